"""Which regions and attributes of an image are kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vinvl.detector.boxes import greedy, iou, nms_of_sorted, nms_within_classes
from vinvl.detector.config import DetectorConfig

HALVINGS = 10  # of the score threshold, with nms_filter=0, for an image with too few regions
SHORTLIST = 1024  # best scores of an image, of any proposal and class, that nms_filter=1 looks at first


class Selection(NamedTuple):
    """The kept regions of an image in their order: n each; where the host does not wait, max_boxes, the first count."""

    proposals: Tensor  # (n,) int64, which of the image's proposals
    labels: Tensor  # (n,) int64, class from 1
    scores: Tensor  # (n,) float32, probability of that class
    boxes: Tensor  # (n, 4) float32, pixels of the network's input
    probabilities: Tensor  # (N, C) float32, of all proposals
    class_boxes: Tensor  # (N, C, 4), of all proposals for each class, or (N, 1, 4), the same for all
    number: Tensor | None = None  # (), int64
    sound: Tensor | None = None  # (), bool; False if the choice may be another where the host waits

    def cut(self, number: int) -> Selection:
        """The first so many regions."""
        return self._replace(**{name: getattr(self, name)[:number] for name in self._fields[:4]})


def select_regions(
    probabilities: Tensor, boxes: Tensor, config: DetectorConfig, waiting: bool = True, number: Tensor | None = None
) -> Selection:
    """The regions of one image: all above the score threshold, but at least min_boxes and at most max_boxes.

    Args:
        probabilities: (N, C) of each proposal's classes, background first.
        boxes: (N, C, 4), a box for every class, or (N, 1, 4), the same for all.
        waiting: whether the host may wait for the device; with nms_filter=0 it must.
        number: (), how many of the proposals there are; None: all.
    """
    if config.nms_filter == 0:
        return _selected(*_surviving_classes(probabilities, boxes, config), probabilities, boxes)
    if number is not None:
        others = torch.arange(len(probabilities), device=number.device) >= number
        probabilities = probabilities.masked_fill(others[:, None], 0)
    choose = _best_surviving_class if config.nms_filter == 1 else _surviving_boxes
    chosen, labels, there, sound = choose(probabilities, boxes, config, waiting)
    if number is not None:
        there = there & (chosen < number)
    scores = probabilities[chosen, labels]
    enough = ((scores >= config.score_threshold) & there).sum()
    count = torch.minimum(enough.clamp(config.min_boxes, config.max_boxes), there.sum())
    selection = _selected(chosen, labels, probabilities, boxes)._replace(number=count, sound=sound)
    return selection.cut(int(count)) if waiting else selection


def given_regions(probabilities: Tensor, boxes: Tensor) -> Selection:
    """All of the boxes, in their order, each of its best class, as the published FORCE_BOXES; as `select_regions`."""
    labels = probabilities[:, 1:].argmax(dim=1) + 1
    return _selected(torch.arange(len(labels), device=labels.device), labels, probabilities, boxes)


def _selected(proposals: Tensor, labels: Tensor, probabilities: Tensor, boxes: Tensor) -> Selection:
    own = boxes[proposals, labels if boxes.shape[1] > 1 else 0]
    return Selection(proposals, labels, probabilities[proposals, labels], own, probabilities, boxes)


def _surviving_classes(probabilities: Tensor, boxes: Tensor, config: DetectorConfig) -> tuple[Tensor, Tensor]:
    """Proposals and their classes, (n,) each, by class, then descending score; a proposal may have several.

    Of all that are above the threshold and survive the suppression within their class, those that score no less than
    the max_boxes-th best. The threshold is halved, ten times at most, while there are fewer than min_boxes.
    """
    foreground, threshold = probabilities[:, 1:], config.score_threshold
    own_boxes = boxes[:, 1:] if boxes.shape[1] > 1 else boxes
    for _ in range(1 + HALVINGS):
        survives = nms_within_classes(own_boxes, foreground, config.agnostic_nms_threshold, threshold)
        survives &= foreground > threshold
        if int(survives.sum()) >= config.min_boxes:
            break
        threshold /= 2
    classes, proposals = survives.T.nonzero(as_tuple=True)
    scores = foreground[proposals, classes]
    if len(scores) > config.max_boxes:
        enough = scores >= scores.topk(config.max_boxes).values[-1]
        classes, proposals, scores = classes[enough], proposals[enough], scores[enough]
    order = scores.argsort(descending=True, stable=True)
    order = order[classes[order].argsort(stable=True)]
    return proposals[order], classes[order] + 1


# The best regions first, at most max_boxes: proposals and classes (n,), and bool (n,), whether there are so many; and
# bool (), whether this is so for certain.
Choice = tuple[Tensor, Tensor, Tensor, Tensor]


def _surviving_boxes(probabilities: Tensor, boxes: Tensor, config: DetectorConfig, waiting: bool) -> Choice:
    """The boxes that survive one suppression over the best classes of all proposals."""
    scores, labels = probabilities[:, 1:].max(dim=1)
    order = scores.argsort(descending=True, stable=True)
    places, _, (settled,) = nms_of_sorted(
        boxes[order, 0][None], config.agnostic_nms_threshold, config.max_boxes, waiting
    )
    chosen = order[places[0].clamp(max=len(order) - 1)]
    return chosen, labels[chosen] + 1, places[0] < len(order), settled


def _best_surviving_class(probabilities: Tensor, boxes: Tensor, config: DetectorConfig, waiting: bool) -> Choice:
    """The proposals with a class in which they survive suppression, each with the best of these.

    Most of the many scores cannot matter: the best ones of all are looked at. Those that are left out are lower, and
    decide nothing if enough others are found; else, if the host may wait for that, all are looked at.
    """
    foreground = probabilities[:, 1:]
    number, classes = foreground.shape
    scores, entries = foreground.flatten().topk(most := min(SHORTLIST, number * classes))
    entries, order = entries.sort()  # of equal scores that of the first proposal and class comes first
    scores, order = scores[order].sort(descending=True, stable=True)
    entries = entries[order]
    proposals, labels = entries // classes, entries % classes
    own = boxes[proposals, labels + 1 if boxes.shape[1] > 1 else 0]
    overlapping = (iou(own, own) > config.class_nms_threshold) & (labels[:, None] == labels)
    survives, settled = greedy(overlapping, scores > 0, waiting)
    ranks = torch.where(survives, torch.arange(most, device=scores.device), most)
    # The best rank of each proposal, in their order.
    best = torch.full_like(proposals, most)[:1].repeat(number).scatter_reduce(0, proposals, ranks, "amin").sort().values
    best = best[: config.max_boxes]
    there, best = best < most, best.clamp(max=most - 1)
    above = ((scores[best] > scores[-1]) & there).sum()
    enough = (scores[-1] < config.score_threshold) & (above >= min(config.min_boxes, number))
    sound = settled & (enough | (above >= config.max_boxes) | (most == number * classes))
    if waiting and not bool(sound):
        survives = nms_within_classes(
            boxes[:, 1:] if boxes.shape[1] > 1 else boxes, foreground, config.class_nms_threshold
        )
        every, labels = (foreground * survives).max(dim=1)
        best = every.argsort(descending=True, stable=True)[: config.max_boxes]
        return best, labels[best] + 1, every[best] > 0, sound
    return proposals[best], labels[best] + 1, there, sound


def select_attributes(logits: Tensor, config: DetectorConfig) -> tuple[Tensor, Tensor]:
    """Attribute indices, int64, and probabilities (n, attributes_per_box), by descending probability.

    Entries of probability 0 stand for no attribute; their index means nothing. Where the detector knows fewer
    attributes than attributes_per_box, there are as many columns as it knows. `logits`: (n, A), "no attribute" first.
    """
    probabilities = logits.float().softmax(dim=1)
    probabilities[:, 0] = 0
    probabilities = probabilities.masked_fill(probabilities <= config.attribute_threshold, 0)
    scores, labels = probabilities.topk(min(config.attributes_per_box, logits.shape[1]), dim=1)
    return labels, scores
