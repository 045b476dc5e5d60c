"""Mean average precision of detected boxes, as COCO counts it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vinvl.metrics.detection_matching import (
    IGNORED,
    IOU_THRESHOLDS,
    TRUE,
    FoundBoxes,
    TrueBoxes,
    best_first,
    match_found,
)

RECALLS = np.linspace(0.0, 1.0, 101)  # where precision is read off
MOST_BOXES = 100  # of an image and a class, that count


class AveragePrecision(Metric):
    """Average precision of each class at IoU 0.5, 0.55 … 0.95, and its means; the figures of COCO's own evaluation.

    Boxes are held against the objects in `update`; kept is what became of each, about 30 bytes a box. Images are sorted
    in `compute`, so order, batches and ranks change no digit.

    Args:
        num_classes: with the background, which is class 0.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    images: list[Tensor]
    labels: list[Tensor]
    scores: list[Tensor]
    outcomes: list[Tensor]
    objects: Tensor

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        for name in ("images", "labels", "scores", "outcomes"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.add_state("objects", default=torch.zeros(num_classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.reset()

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        # A rank that sees no image must still join the gathering with tensors of the right type.
        self._keep(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 10), np.int8))

    def update(self, image: int, found: FoundBoxes, true: TrueBoxes) -> None:
        """Adds an image: its number among all images, which no other has, what was found in it and what is there."""
        order = best_first(found, MOST_BOXES)
        best = FoundBoxes(found.boxes[order], found.labels[order], found.scores[order])
        self._keep(np.full(len(order), image), best.labels, best.scores, match_found(best, true))
        counts = np.bincount(true.labels[~true.crowd], minlength=self.num_classes)
        self.objects += torch.from_numpy(counts).to(self.objects.device)

    def compute(self) -> dict[str, Tensor]:
        """`by_class` (num_classes, 10) float64, nan for a class without objects, and the means over the others: `map`,
        `map_50`, `map_75`, float64 scalars between 0 and 1; nan if there are no objects at all."""
        states: Sequence[list[Tensor]] = (self.images, self.labels, self.scores, self.outcomes)
        images, labels, scores, outcomes = (dim_zero_cat(state).cpu().numpy() for state in states)
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
        states = (self.images, self.labels, self.scores, self.outcomes)
        for state, value in zip(states, values, strict=True):
            state.append(torch.from_numpy(value).to(self.objects.device))


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
    result = np.zeros(outcomes.shape[1])
    for threshold in range(outcomes.shape[1]):
        place = np.searchsorted(recall[:, threshold], RECALLS, side="left")
        reached = place < len(precision)
        result[threshold] = precision[place[reached], threshold].sum() / len(RECALLS)
    return result
