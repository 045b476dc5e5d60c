"""Scores of detected boxes as VinVL's code counts them on Visual Genome: area AP of classes and attributes, and recall.

Read from scene_graph_benchmark, datasets/evaluation/vg/vg_eval.py and evaluation/utils.py. Its boxes count their last
pixel in, and so do its widths; ours, `FoundBoxes` and `TrueBoxes`, have the far edges not counted in, which comes to
the same overlaps. A crowd, which Visual Genome does not have, is no object here.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vinvl.detector.average_precision import IOU_THRESHOLDS, FoundBoxes, TrueBoxes, overlaps

FOUND_IOU = 0.5  # which the overlap must exceed
KEPT = ("images", "labels", "scores", "hits")  # of every label that was said


class Labelled(NamedTuple):
    """The k labels of a picture's boxes; a box may have several."""

    rows: np.ndarray  # (k,) int64, which of the boxes
    labels: np.ndarray  # (k,) int64, from 1
    scores: np.ndarray  # (k,) float64; of what is true they mean nothing


def classes_of(found: FoundBoxes, true: TrueBoxes) -> tuple[Labelled, Labelled]:
    """What is said of a picture's boxes and what is true of its objects, where a label is a class."""
    single = np.flatnonzero(~true.crowd)
    said = Labelled(np.arange(len(found.labels)), found.labels, found.scores)
    return said, Labelled(single, true.labels[single], np.zeros(len(single)))


def attributes_of(found: FoundBoxes, true: TrueBoxes) -> tuple[Labelled, Labelled]:
    """The same where a label is an attribute: of a box each that has a score, of an object each of its own once."""
    row, place = np.nonzero((found.attributes > 0) & (found.attribute_scores != 0))
    said = Labelled(row, found.attributes[row, place], found.attribute_scores[row, place])
    named = np.where(true.crowd[:, None], 0, np.sort(true.attributes, axis=1))
    row, place = np.nonzero(np.diff(named, axis=1, prepend=0) > 0)  # none is 0, and one may be listed twice
    return said, Labelled(row, named[row, place], np.zeros(len(row)))


def match_labels(shared: np.ndarray, said: Labelled, true: Labelled) -> np.ndarray:
    """Which of the k labels said are right, bool (k,); `shared`: IoU (n, m) of the boxes with the objects.

    Each is about the object of its label that its box overlaps most, of equal ones the first, also where a better
    score is about that object already: then it is wrong.
    """
    label, place = np.nonzero(said.labels[:, None] == true.labels)
    overlap = shared[said.rows[label], true.rows[place]]
    enough = overlap > FOUND_IOU
    label, place, overlap = label[enough], place[enough], overlap[enough]
    order = np.lexsort((place, -overlap, label))
    about, first = np.unique(label[order], return_index=True)  # of each label that is about an object: which
    best = place[order][first]
    order = np.argsort(-said.scores[about], kind="stable")
    _, first = np.unique(best[order], return_index=True)
    hits = np.zeros(len(said.labels), dtype=bool)
    hits[about[order[first]]] = True
    return hits


def area_under(recall: np.ndarray, precision: np.ndarray) -> float:
    """The area under a curve (n,), where the precision at a recall is the best at that or a higher one (VOC's)."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.diff(recall, prepend=0.0) @ envelope)


class AreaPrecision(Metric):
    """Area AP of each label at IoU > 0.5, its mean over all labels, and that weighted by their objects.

    As published: a label without objects, or that is never said, counts 0 in the mean; of a picture without any box
    the objects do not count either. About 17 bytes are kept for each label said; pictures are sorted in `compute`, so
    that order, batches and ranks change no digit.

    Args:
        num_labels: with the one at 0, background or no attribute, which does not count.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    objects: Tensor

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        for name in KEPT:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("objects", default=torch.zeros(num_labels, dtype=torch.int64), dist_reduce_fx="sum")
        self.reset()

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        # A rank that sees no image must still join the gathering with tensors of the right type.
        self._keep(0, Labelled(*np.zeros((3, 0))), np.zeros(0, bool))

    def update(self, image: int, shared: np.ndarray, said: Labelled, true: Labelled) -> None:
        """Adds a picture: its number, unique among all, the IoU (n, m) of what was found in it with its objects, and
        `classes_of` or `attributes_of` them. Without any box nothing of it counts."""
        if len(shared) == 0:
            return
        self._keep(image, said, match_labels(shared, said, true))
        counts = np.bincount(true.labels, minlength=self.num_labels)
        self.objects += torch.from_numpy(counts).to(self.objects.device)

    def compute(self) -> dict[str, Tensor]:
        """`by_label` (num_labels,) float64 and `map`, `weighted_map`, float64 scalars between 0 and 1, the means nan if
        there were no objects at all; `objects` and `said` (num_labels,) int64, how many."""
        images, labels, scores, hits = (dim_zero_cat(getattr(self, name)).cpu().numpy() for name in KEPT)
        objects = self.objects.cpu().numpy()
        order = np.lexsort((images, -scores, labels))  # label by label, best first; ties by image, then as they came
        starts = np.searchsorted(labels[order], np.arange(self.num_labels + 1))
        by_label = np.zeros(self.num_labels)
        for label in np.flatnonzero((objects > 0) & (np.diff(starts) > 0)):
            right = hits[order[starts[label] : starts[label + 1]]].cumsum()
            by_label[label] = area_under(right / objects[label], right / np.arange(1, len(right) + 1))
        means = (np.nan, np.nan)
        if objects.any():
            means = by_label[1:].mean(), by_label @ objects / objects.sum()
        values = {"by_label": by_label, "map": means[0], "weighted_map": means[1]}
        values |= {"objects": objects, "said": np.diff(starts)}
        return {name: torch.as_tensor(value, device=self.objects.device) for name, value in values.items()}

    def _keep(self, image: int, said: Labelled, hits: np.ndarray) -> None:
        images, labels = np.full(len(hits), image, dtype=np.int32), said.labels.astype(np.int32)
        for name, value in zip(KEPT, (images, labels, said.scores.astype(np.float64), hits), strict=True):
            getattr(self, name).append(torch.from_numpy(value).to(self.objects.device))


AREAS = {"all": (0.0, np.inf), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, np.inf)}
"""Square pixels of an object, from and to; both count in."""


def covered(shared: np.ndarray) -> np.ndarray:
    """The overlaps, of 0.5 and more, of objects with one box each: (at most m,) of IoU (n, m) of boxes with objects.

    The object that is covered best takes its box, then of the others again the one that is covered best.
    """
    left, found = shared.copy(), []
    while left.size and (best := left.max()) >= IOU_THRESHOLDS[0]:
        place = left.max(axis=0).argmax()
        found.append(best)
        left[left[:, place].argmax()] = -1.0
        left[:, place] = -1.0
    return np.array(found)


class BoxRecall(Metric):
    """Share of the objects that a box of their own is at, whatever its class, by size of the object: averaged over IoU
    0.5, 0.55 … 0.95 it is the published AR. Counts are whole numbers, so that order, batches and ranks change nothing.

    Args:
        limits: how many of a picture's best boxes are looked at.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    objects: Tensor
    found: Tensor

    def __init__(self, limits: tuple[int, ...]) -> None:
        super().__init__()
        self.limits = limits
        shape = len(AREAS), len(limits), len(IOU_THRESHOLDS)
        self.add_state("objects", default=torch.zeros(len(AREAS), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("found", default=torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, boxes: np.ndarray, true: TrueBoxes) -> None:
        """Adds a picture: boxes (n, 4) by descending score, far edges not counted in, and its objects."""
        corners = true.boxes[~true.crowd]
        sizes = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
        shared = overlaps(boxes, corners, np.zeros(len(corners), dtype=bool))  # (n, m)
        objects, found = np.zeros(self.objects.shape, np.int64), np.zeros(self.found.shape, np.int64)
        for area, (least, most) in enumerate(AREAS.values()):
            counted = (sizes >= least) & (sizes <= most)
            objects[area] = counted.sum()
            for place, limit in enumerate(self.limits):
                found[area, place] = (covered(shared[:limit, counted])[:, None] >= IOU_THRESHOLDS).sum(axis=0)
        self.objects += torch.from_numpy(objects).to(self.objects.device)
        self.found += torch.from_numpy(found).to(self.found.device)

    def compute(self) -> dict[str, Tensor]:
        """`recalls` (areas, limits, 10) and their mean over the thresholds, `average` (areas, limits), float64 from 0
        to 1, nan where there are no objects of the area; `objects` (areas,) int64."""
        recalls = self.found.double() / self.objects[:, None, None]
        return {"recalls": recalls, "average": recalls.mean(dim=2), "objects": self.objects.clone()}
