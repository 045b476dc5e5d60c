"""Which boxes of a detector found an object of one picture, by COCO's rules."""

from dataclasses import dataclass

import numpy as np

TRUE, FALSE, IGNORED = 1, 0, -1  # found an object; found none; found what is not counted
# As COCO's own evaluation computes them, to the last bit.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
NEARLY_ONE = 1 - 1e-10


@dataclass(frozen=True)
class FoundBoxes:
    """What a detector says of one picture, n boxes."""

    boxes: np.ndarray  # (n, 4) float64 x1 y1 x2 y2, the far edges not counted in
    labels: np.ndarray  # (n,) int64
    scores: np.ndarray  # (n,) float64


@dataclass(frozen=True)
class TrueBoxes:
    """What is annotated in one picture, m boxes."""

    boxes: np.ndarray  # (m, 4) float64 x1 y1 x2 y2, the far edges not counted in
    labels: np.ndarray  # (m,) int64
    crowd: np.ndarray  # (m,) bool: many things in one box, which boxes may lie in without being right or wrong


def overlaps(found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes (n, 4) with boxes (m, 4); with crowds (m,) the share of the found box that lies in them."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    own, other = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (found, true))
    union = np.where(crowd, own[:, None], own[:, None] + other - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def best_first(found: FoundBoxes, most: int) -> np.ndarray:
    """Indices of the boxes by descending score, of each class at most `most`; equal scores in the order given."""
    order = np.argsort(-found.scores, kind="stable")
    return order[_number_in_class(found.labels[order]) < most]


def match_found(found: FoundBoxes, true: TrueBoxes) -> np.ndarray:
    """What became of each box at each of the ten thresholds: (n, 10) int8, TRUE, FALSE or IGNORED.

    From the best box on each takes the free object of its class that it overlaps most, of equal ones the last; where
    none is free enough, a crowd. The k-th boxes of all classes choose at once: they never want the same object.

    found: by descending score, as `best_first` has them.
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
    """Of the last axis the index of the largest value, the last of equal ones, and that value."""
    place = values.shape[-1] - 1 - values[..., ::-1].argmax(axis=-1)
    return place, np.take_along_axis(values, place[..., None], axis=-1)[..., 0]
