"""What a detector is scored by, picture by picture: COCO's mAP and, on request, Visual Genome's scores and recall."""

from collections.abc import Sequence
from math import isnan

import numpy as np
from torch import Tensor, nn

from vinvl.detector.average_precision import AttributeRecall, AveragePrecision, FoundBoxes, TrueBoxes, overlaps
from vinvl.detector.visual_genome_scores import AREAS, AreaPrecision, BoxRecall, attributes_of, classes_of
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError

VISUAL_GENOME, PROPOSALS = "visual_genome", "proposals"
MORE = (VISUAL_GENOME, PROPOSALS)  # that can be scored besides COCO's
OF_FOUND, OF_PROPOSALS = (36, 99), (100, 1000)  # how many of the best boxes are looked at, as published
SHOWN = {
    "map_50": "mean average precision at IoU 0.5",
    "map_75": "mean average precision at IoU 0.75",
    "map": "mean average precision, IoU 0.5 to 0.95",
    "attributes_of_found": "attributes named, of objects found",
    "attributes": "attributes named, of all objects",
    "vg_map": "Visual Genome's mAP",
    "vg_weighted_map": "Visual Genome's mAP, weighted by objects",
    "vg_attributes": "Visual Genome's mAP of attributes, on true boxes",
    "vg_weighted_attributes": "the same, weighted by objects",
    "vg_attributes_of_found": "Visual Genome's mAP of attributes, on found boxes",
    "vg_weighted_attributes_of_found": "the same, weighted by objects",
    **{f"recall_{limit}": f"average recall of {limit} boxes" for limit in OF_FOUND},
    **{f"proposals_{limit}": f"average recall of {limit} proposals" for limit in OF_PROPOSALS},
}
"""Names of figures → what they are, for a person."""


class DetectionScores(nn.Module):
    """The metrics of an evaluation, which order, batches and ranks do not change.

    Attributes:
        visual_genome, proposals: whether these are asked for.
    """

    def __init__(
        self, labels: LabelMap, more: Sequence[str] = (), *, true_boxes: bool = True, rpn: bool = True
    ) -> None:
        """
        Args:
            labels: what classes and attributes there are; the means of Visual Genome's scores are over all of them.
            more: what of `MORE` is scored besides COCO's.
            true_boxes, rpn: whether `update_on_true_boxes` and `update_proposals` will be called, if they are wanted.

        Raises:
            UserError: there is no such thing to score.
        """
        super().__init__()
        if unknown := [name for name in more if name not in MORE]:
            raise UserError(f"more_scores has {unknown[0]!r}, which is unknown: give some of {', '.join(MORE)}.")
        self.labels = labels
        self.visual_genome, self.proposals = VISUAL_GENOME in more, PROPOSALS in more
        self.coco, self.attributes = AveragePrecision(len(labels.classes)), AttributeRecall()
        self.areas = nn.ModuleDict()
        if self.visual_genome:
            self.areas["map"] = AreaPrecision(len(labels.classes))
            if len(labels.attributes) > 1:
                own = ["attributes", "attributes_of_found"] if true_boxes else ["attributes_of_found"]
                self.areas.update({name: AreaPrecision(len(labels.attributes)) for name in own})
        limits = {"recall": OF_FOUND, "proposals": OF_PROPOSALS} if rpn else {"recall": OF_FOUND}
        self.recalls = nn.ModuleDict({name: BoxRecall(one) for name, one in limits.items() if self.proposals})

    def update(self, image: int, found: FoundBoxes, true: TrueBoxes) -> None:
        """Adds a picture: its number, unique among all, what was found in it and its objects."""
        self.coco.update(image, found, true)
        self.attributes.update(found, true)
        if self.visual_genome:
            shared = overlaps(found.boxes, true.boxes, np.zeros_like(true.crowd))
            self.areas["map"].update(image, shared, *classes_of(found, true))  # type: ignore[operator]
            self._update_attributes("attributes_of_found", image, shared, found, true)
        if self.proposals:
            best = found.boxes[np.argsort(-found.scores, kind="stable")]
            self.recalls["recall"].update(best, true)  # type: ignore[operator]

    @property
    def wants_true_boxes(self) -> bool:
        """Whether the detector is to describe the objects' own boxes, for `update_on_true_boxes`."""
        return "attributes" in self.areas

    def update_on_true_boxes(self, image: int, said: FoundBoxes, true: TrueBoxes) -> None:
        """Adds what was said of the boxes of a picture's objects, which are then no matter of finding them."""
        shared = overlaps(said.boxes, true.boxes, np.zeros_like(true.crowd))
        self._update_attributes("attributes", image, shared, said, true)

    def update_proposals(self, boxes: np.ndarray, true: TrueBoxes) -> None:
        """Adds a picture's proposals (n, 4), the best first, far edges not counted in."""
        self.recalls["proposals"].update(boxes, true)  # type: ignore[operator]

    def _update_attributes(self, name: str, image: int, shared: np.ndarray, found: FoundBoxes, true: TrueBoxes) -> None:
        if name in self.areas:
            self.areas[name].update(image, shared, *attributes_of(found, true))  # type: ignore[operator]

    def compute(self) -> dict[str, float]:
        """Figures in percent by name, nan if there is nothing to measure; of single classes and attributes, whose names
        have a slash, those that there are."""
        precision, named = self.coco.compute(), self.attributes.compute()
        scores = {name: 100 * float(precision[name]) for name in ("map_50", "map_75", "map")}
        scores |= {"attributes_of_found": 100 * float(named["found"]), "attributes": 100 * float(named["all"])}
        by_label = {"class_50": (self.labels.classes, precision["by_class"][:, 0])}
        for name, metric in self.areas.items():
            found = metric.compute()  # type: ignore[operator]
            scores |= {f"vg_{name}": 100 * float(found["map"])}
            scores |= {f"vg_weighted_{name}": 100 * float(found["weighted_map"])}
            names = self.labels.classes if name == "map" else self.labels.attributes
            by_label[f"vg_{name}"] = (names, found["by_label"].masked_fill(found["objects"] == 0, np.nan))
        for name, metric in self.recalls.items():
            scores |= _recalls(name, metric.limits, metric.compute()["average"])  # type: ignore[operator, arg-type]
        for name, (labels, values) in by_label.items():
            single = zip(labels[1:], values[1:].tolist(), strict=True)
            scores |= {f"{name}/{label}": 100 * value for label, value in single if not isnan(value)}
        return scores


def _recalls(name: str, limits: Sequence[int], average: Tensor) -> dict[str, float]:
    """`recall_36` and, by the objects' size if there are such, `recall_36_small` and so on, of (areas, limits)."""
    values = average.T.flatten().tolist()
    names = [f"{name}_{limit}{'' if area == 'all' else f'_{area}'}" for limit in limits for area in AREAS]
    return {name: 100 * value for name, value in zip(names, values, strict=True) if not isnan(value)}


def shown_rows(scores: dict[str, float]) -> list[tuple[str, str]]:
    """The figures of an evaluation for a person: (what, value) rows."""
    return [(what, f"{scores[name]:.2f} %") for name, what in SHOWN.items() if not isnan(scores.get(name, np.nan))]
