"""Which regions and attributes of an image are kept."""

from dataclasses import dataclass

from torch import Tensor

from vinvl.detection.config import PER_CLASS, DetectorConfig
from vinvl.detection.nms import nms, nms_within_classes


@dataclass(frozen=True)
class Selection:
    """The kept regions of an image by descending score: (n,) each."""

    proposals: Tensor  # int64, which of the image's proposals
    labels: Tensor  # int64, class from 1
    scores: Tensor  # float32, probability of that class


def select_regions(probabilities: Tensor, boxes: Tensor, config: DetectorConfig) -> Selection:
    """The regions of one image: all above the score threshold, but at least min_boxes and at most max_boxes.

    Args:
        probabilities: (N, C) of each proposal's classes, background first.
        boxes: (N, C, 4), a box for every class, or (N, 1, 4), the same for all.
        config: nms_filter, thresholds and numbers of boxes are read.
    """
    if config.nms_filter == PER_CLASS:
        scores, labels = _best_surviving_class(probabilities, boxes, config)
        order = scores.argsort(descending=True, stable=True)
        order = order[: int((scores > 0).sum())]
    else:
        scores, labels = probabilities[:, 1:].max(dim=1)
        order = nms(boxes[:, 0], scores, config.agnostic_nms_threshold, limit=config.max_boxes)
    enough = int((scores[order] >= config.score_threshold).sum())
    chosen = order[: min(max(enough, config.min_boxes), config.max_boxes)]
    return Selection(chosen, labels[chosen] + 1, scores[chosen])


def _best_surviving_class(probabilities: Tensor, boxes: Tensor, config: DetectorConfig) -> tuple[Tensor, Tensor]:
    """Score (0: none) and index among the foreground classes, (N,) each, of each proposal's best class that survived.

    Most of the many classes of a proposal have scores that cannot matter; they are looked at only where better ones do
    not make up the fewest boxes wanted. Scores below the last floor are 0, the others are those of a full search.
    """
    foreground = probabilities[:, 1:]
    own_boxes = boxes[:, 1:] if boxes.shape[1] > 1 else boxes
    for floor in (config.score_threshold, config.score_threshold / 10, 0.0):
        survives = nms_within_classes(own_boxes, foreground, config.class_nms_threshold, floor)
        scores, labels = (foreground * survives).max(dim=1)
        if int((scores > 0).sum()) >= config.min_boxes:
            break
    return scores, labels


def select_attributes(logits: Tensor, config: DetectorConfig) -> tuple[Tensor, Tensor]:
    """Attribute indices, int64, and probabilities (n, attributes_per_box), by descending probability.

    Entries of probability 0 stand for no attribute; their index means nothing. Where the detector knows fewer
    attributes than attributes_per_box, there are as many columns as it knows.

    Args:
        logits: (n, A), "no attribute" first.
        config: attribute_threshold and attributes_per_box are read.
    """
    probabilities = logits.float().softmax(dim=1)
    probabilities[:, 0] = 0
    probabilities = probabilities.masked_fill(probabilities <= config.attribute_threshold, 0)
    scores, labels = probabilities.topk(min(config.attributes_per_box, logits.shape[1]), dim=1)
    return labels, scores
