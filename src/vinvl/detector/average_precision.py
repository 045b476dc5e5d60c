"""Mean average precision of detected boxes, as COCO counts it."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

TRUE, FALSE, IGNORED = 1, 0, -1  # found an object; found none; found something that is not counted
# As COCO's own evaluation computes them, to the last bit.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
NEARLY_ONE = 1 - 1e-10
LAST_PIXEL = np.array([0.0, 0, 1, 1])  # which a detector's boxes count in; here no box does


@dataclass(frozen=True)
class FoundBoxes:
    """What a detector says of one picture, n boxes."""

    boxes: np.ndarray  # (n, 4) float64 x1 y1 x2 y2, the far edges not counted in
    labels: np.ndarray  # (n,) int64
    scores: np.ndarray  # (n,) float64
    attributes: np.ndarray  # (n, J) int64, the most likely first; entries below 1 name none
    attribute_scores: np.ndarray  # (n, J) float64


@dataclass(frozen=True)
class TrueBoxes:
    """What is annotated in one picture, m objects, in pixels of the original; it stays on the host."""

    boxes: np.ndarray  # (m, 4) float64 x1 y1 x2 y2, the far edges not counted in
    labels: np.ndarray  # (m,) int64
    crowd: np.ndarray  # (m,) bool: many things in one box, boxes in it are neither right nor wrong
    attributes: np.ndarray  # (m, K) int64; entries below 1 name none


def overlaps(found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes (n, 4) with boxes (m, 4); with crowds (m,) the share of the found box that is in them."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    own, other = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (found, true))
    union = np.where(crowd, own[:, None], own[:, None] + other - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match_found(found: FoundBoxes, true: TrueBoxes) -> np.ndarray:
    """What became of each box at each of the ten thresholds: (n, 10) int8, TRUE, FALSE or IGNORED.

    From the best box on each takes the free object of its class that it overlaps most, of equal ones the last; where
    none is free enough, a crowd. The k-th boxes of all classes choose at once: they never want the same object.

    found: by descending score.
    """
    outcome = np.full((len(found.labels), len(IOU_THRESHOLDS)), FALSE, dtype=np.int8)
    if len(true.labels) == 0 or len(found.labels) == 0:
        return outcome
    same_class = found.labels[:, None] == true.labels
    shared = np.where(same_class, overlaps(found.boxes, true.boxes, true.crowd), -1.0)  # (n, m)
    thresholds = np.minimum(IOU_THRESHOLDS, NEARLY_ONE)[:, None, None]
    free = np.repeat(~true.crowd[None], len(IOU_THRESHOLDS), axis=0)  # (10, m): objects that nothing took
    turn = _number_in_class(found.labels)
    for number in range(int(turn.max()) + 1):
        rows = np.flatnonzero(turn == number)
        single = np.where(free[:, None], shared[rows], -1.0)  # (10, r, m)
        place, best = _last_largest(single)
        took = best >= thresholds[:, :, 0]
        in_crowd = np.where(true.crowd, shared[rows], -1.0).max(axis=1) >= thresholds[:, :, 0]
        outcome[rows] = np.where(took, TRUE, np.where(in_crowd, IGNORED, FALSE)).T
        threshold, row = np.nonzero(took)
        free[threshold, place[threshold, row]] = False
    return outcome


def _number_in_class(labels: np.ndarray) -> np.ndarray:
    """How many entries before each one have its label: (n,) int64."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first = np.searchsorted(ordered, ordered, side="left")
    number = np.empty(len(labels), dtype=np.int64)
    number[order] = np.arange(len(labels)) - first
    return number


def _last_largest(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index of the largest value of the last axis (the last of equal ones), and that value."""
    place = values.shape[-1] - 1 - values[..., ::-1].argmax(axis=-1)
    return place, np.take_along_axis(values, place[..., None], axis=-1)[..., 0]


FOUND_IOU = 0.5  # of an object with the box that it is looked for in


class AttributeRecall(Metric):
    """Share of the objects' attributes that are named by the box that overlaps the object most, whatever its class.

    Of an object with k attributes, the k most likely ones of the box count: naming all there are earns nothing. Counts
    are whole numbers, so that order, batches and ranks change nothing.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    named: Tensor
    of_found: Tensor
    of_all: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("named", "of_found", "of_all"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, found: FoundBoxes, true: TrueBoxes) -> None:
        """Adds a picture: its n boxes and its m objects; crowds are passed over."""
        annotated = (true.attributes > 0).sum(axis=1) * ~true.crowd  # (m,)
        self.of_all += int(annotated.sum())
        if len(found.labels) == 0 or not annotated.any():
            return
        shared = overlaps(found.boxes, true.boxes, np.zeros_like(true.crowd))  # (n, m)
        box = shared.argmax(axis=0)  # (m,)
        looked_at = (shared.max(axis=0) >= FOUND_IOU) & (annotated > 0)
        most_likely = np.arange(found.attributes.shape[1]) < annotated[:, None]  # (m, J)
        said, there = np.where(most_likely, found.attributes[box], 0)[:, :, None], true.attributes[:, None]
        right = (said == there) & (there > 0)  # (m, J, K)
        self.named += int(right[looked_at].any(axis=1).sum())
        self.of_found += int(annotated[looked_at].sum())

    def compute(self) -> dict[str, Tensor]:
        """`all`: of the attributes of all objects; `found`: of those that some box overlaps by half. Float64 between 0
        and 1, nan if there are none."""
        return {"all": self.named.double() / self.of_all, "found": self.named.double() / self.of_found}


RECALLS = np.linspace(0.0, 1.0, 101)  # where precision is read off
MOST_BOXES = 100  # of an image and a class, that count
KEPT = ("images", "labels", "scores", "outcomes")  # of every box


class AveragePrecision(Metric):
    """Average precision of each class at IoU 0.5, 0.55 … 0.95, and its means; the figures of COCO's own evaluation.

    Boxes are matched with the objects in `update`; the result of each is kept, about 30 bytes a box. Images are sorted
    in `compute`, so order, batches and ranks change no digit.

    Args:
        num_classes: with the background, which is class 0.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    objects: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name in KEPT:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("objects", default=torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.reset()

    def reset(self) -> None:
        super().reset()
        # A rank that sees no image must still join the gathering with tensors of the right type.
        self._keep(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 10), np.int8))

    def update(self, image: int, found: FoundBoxes, true: TrueBoxes) -> None:
        """Adds an image: its number, unique among all images, what was found in it and its objects."""
        order = np.argsort(-found.scores, kind="stable")
        order = order[_number_in_class(found.labels[order]) < MOST_BOXES]
        best = FoundBoxes(*(getattr(found, field.name)[order] for field in fields(found)))
        self._keep(np.full(len(order), image), best.labels, best.scores, match_found(best, true))
        counts = np.bincount(true.labels[~true.crowd], minlength=self.num_classes)
        self.objects += torch.from_numpy(counts).to(self.objects.device)

    def compute(self) -> dict[str, Tensor]:
        """`by_class` (num_classes, 10) float64, nan for a class without objects, and the means over the others: `map`,
        `map_50`, `map_75`, float64 scalars between 0 and 1; nan if there are no objects at all."""
        images, labels, scores, outcomes = (dim_zero_cat(getattr(self, name)).cpu().numpy() for name in KEPT)
        objects = self.objects.cpu().numpy()
        order = np.lexsort((images, -scores, labels))  # class by class, best first; ties by image, then as they came
        starts = np.searchsorted(labels[order], np.arange(self.num_classes + 1))
        by_class = np.full((self.num_classes, len(IOU_THRESHOLDS)), np.nan)
        for label in np.flatnonzero(objects):
            own = order[starts[label] : starts[label + 1]]
            by_class[label] = average_precision(outcomes[own], int(objects[label]))
        counted = by_class[objects > 0]
        means = counted.mean(axis=0) if len(counted) else np.full(len(IOU_THRESHOLDS), np.nan)
        values = {"by_class": by_class, "map": means.mean(), "map_50": means[0], "map_75": means[5]}
        return {name: torch.as_tensor(value, device=self.objects.device) for name, value in values.items()}

    def _keep(self, images: np.ndarray, labels: np.ndarray, scores: np.ndarray, outcomes: np.ndarray) -> None:
        values = (images.astype(np.int64), labels.astype(np.int64), scores.astype(np.float64), outcomes)
        for name, value in zip(KEPT, values, strict=True):
            getattr(self, name).append(torch.from_numpy(value).to(self.objects.device))


def average_precision(outcomes: np.ndarray, objects: int) -> np.ndarray:
    """Precision averaged over 101 recalls, of one class at each threshold: (T,) float64.

    Args:
        outcomes: (n, T) of TRUE, FALSE and IGNORED, by descending score.
        objects: how many there are to be found, at least 1.
    """
    right = (outcomes == TRUE).cumsum(axis=0)
    counted = (outcomes != IGNORED).cumsum(axis=0)
    precision = right / (counted + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1], axis=0)[::-1]  # at this recall or a higher one
    recall = right / objects
    sums = []
    for own, reached in zip(precision.T, recall.T, strict=True):
        place = np.searchsorted(reached, RECALLS, side="left")
        sums.append(own[place[place < len(own)]].sum())
    return np.array(sums) / len(RECALLS)
