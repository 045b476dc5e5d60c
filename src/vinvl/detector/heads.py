"""What is said of single regions: their feature vector, class, box and attributes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vinvl.detector.backbone import RegionHead
from vinvl.detector.boxes import nms, nms_within_classes
from vinvl.detector.config import PER_CLASS, Architecture, DetectorConfig
from vinvl.detector.roi_align import box_bins
from vinvl.run.errors import UserError

# Which regions and attributes of an image are kept.


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


@dataclass(frozen=True)
class RegionMaps:
    """What boxes are read off."""

    c4: Tensor  # (B, c4_channels, H, W)
    projections: tuple[Tensor, Tensor]  # see `RegionHead.projections`


class RegionFeatures(nn.Module):
    """Boxes on C4 features → feature vectors; one module that the box and the attribute heads share."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.head = RegionHead(architecture)
        self.size = architecture.c5_channels

    def forward(self, c4: Tensor, boxes: list[Tensor], boxes_per_pass: int) -> Tensor:
        """(sum of boxes, c5_channels), images in turn.

        Args:
            c4: (B, c4_channels, H, W).
            boxes: for each image (n, 4) in pixels of the network's input.
            boxes_per_pass: how many are held in memory at once.
        """
        return self.of_boxes(self.maps(c4), boxes, boxes_per_pass)

    def maps(self, c4: Tensor) -> RegionMaps:
        """What is the same for all boxes of a batch of images; for `of_boxes`."""
        return RegionMaps(c4, self.head.projections(c4))

    def of_boxes(self, maps: RegionMaps, boxes: list[Tensor], boxes_per_pass: int) -> Tensor:
        """(sum of boxes, c5_channels), images in turn; arguments as of `forward`.

        Raises:
            UserError: a box is not of numbers.
        """
        if not all(of_image.isfinite().all() for of_image in boxes):
            raise UserError("The detector finds boxes of NaN or infinite size: its weights are damaged or diverged.")
        counts = torch.tensor([len(of_image) for of_image in boxes], device=maps.c4.device)
        images = torch.arange(len(boxes), device=maps.c4.device).repeat_interleave(counts)
        passes = zip(torch.cat(boxes).split(boxes_per_pass), images.split(boxes_per_pass), strict=True)
        vectors = [self._of_one_pass(maps, part, of_part) for part, of_part in passes if len(part)]
        return torch.cat(vectors) if vectors else maps.c4.new_zeros(0, self.size)

    def in_one_pass(self, c4: Tensor, boxes: list[Tensor]) -> Tensor:
        """The same of all boxes together, for training: norms that are being trained see them as one batch."""
        return self(c4, boxes, max(1, sum(map(len, boxes))))

    def _of_one_pass(self, maps: RegionMaps, boxes: Tensor, images: Tensor) -> Tensor:
        """(n, c5_channels) of boxes (n, 4) of the images (n,)."""
        bins = box_bins(boxes, images, maps.c4)
        through, around = maps.projections
        vectors: Tensor = self.head.after_pooling(bins.pool(through), bins.every_second().pool(around))
        return vectors


class BoxPredictor(nn.Module):
    """Class and box of a region from its feature vector."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.cls_score = nn.Linear(architecture.c5_channels, architecture.num_classes)
        self.bbox_pred = nn.Linear(architecture.c5_channels, architecture.num_classes * 4)

    def class_logits(self, vectors: Tensor) -> Tensor:
        """(n, c5_channels) → (n, num_classes), background first."""
        logits: Tensor = self.cls_score(vectors)
        return logits

    def box_deltas(self, vectors: Tensor) -> Tensor:
        """(n, c5_channels) → (n, num_classes, 4), the deltas of a proposal for each class."""
        deltas: Tensor = self.bbox_pred(vectors)
        return deltas.unflatten(1, (-1, 4))


class AttributePredictor(nn.Module):
    """Attributes of a region from its feature vector and its class."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        size = architecture.class_embedding_size
        self.cls_embedding = nn.Embedding(architecture.num_classes, size)
        self.fc_attr = nn.Linear(architecture.c5_channels + size, architecture.attribute_hidden_size)
        self.attr_score = nn.Linear(architecture.attribute_hidden_size, architecture.num_attributes)

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Logits (n, num_attributes), "no attribute" first, of feature vectors (n, c5_channels) and classes (n,)."""
        embedded = self.cls_embedding(labels).to(vectors.dtype)
        logits: Tensor = self.attr_score(functional.relu(self.fc_attr(torch.cat([vectors, embedded], dim=1))))
        return logits


class BoxHead(nn.Module):
    """`roi_heads.box` of published checkpoints."""

    def __init__(self, features: RegionFeatures, architecture: Architecture) -> None:
        super().__init__()
        self.feature_extractor = features
        self.predictor = BoxPredictor(architecture)


class AttributeHead(nn.Module):
    """`attribute` of published checkpoints; its feature_extractor is the box head's."""

    def __init__(self, features: RegionFeatures, architecture: Architecture) -> None:
        super().__init__()
        self.feature_extractor = features
        self.predictor = AttributePredictor(architecture)
