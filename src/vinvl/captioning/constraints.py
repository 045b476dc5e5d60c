"""Constraints of captions from the classes that a detector found: what NoCaps is evaluated with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from transformers import PreTrainedTokenizerBase

from vinvl.models.constrained import MAX_CONSTRAINTS, Constraint, constraint_from_words
from vinvl.regions.regions import Regions
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError
from vinvl.run.files import read_json
from vinvl.run.values import check_fields

Content = TypeVar("Content")

# Classes of Open Images that captions seldom name: parts of bodies and things, and groups too wide to be seen as one.
TOO_GENERIC = frozenset(
    """auto part|bathroom accessory|bicycle wheel|boy|building|clothing|door handle|fashion accessory|footwear|girl|
hiking equipment|human arm|human beard|human body|human ear|human eye|human face|human foot|human hair|human hand|
human head|human leg|human mouth|human nose|land vehicle|mammal|man|person|personal care|plant|plumbing fixture|
seat belt|skull|sports equipment|tire|tree|vehicle registration plate|wheel|woman""".replace("\n", "").split("|")
)


def box_overlaps(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair of boxes (n, 4): (n, n), 0 where both are empty."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1)
    joint = areas[:, None] + areas[None, :] - shared
    return np.divide(shared, joint, out=np.zeros_like(shared), where=joint > 0)


def _ancestors(name: str, parents: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    while name in parents:
        name = parents[name]
        if name in found:
            raise UserError(f"The class hierarchy goes in a circle at {name!r}; every class needs a way to the top.")
        found.add(name)
    return found


@dataclass(frozen=True)
class ConstraintOptions:
    """The settings of `conf/decoding/constrained.yaml`, which says what each is; UserError for one that cannot be."""

    regions: str | list[str] | None = None
    hierarchy: str | None = None
    synonyms: str | None = None
    word_forms: str | None = None
    excluded: str | None = None
    min_score: float = 0.0
    overlap: float = 0.85
    max_constraints: Annotated[int, Meta(ge=0, le=MAX_CONSTRAINTS)] = 3  # a search has a state for every subset of them

    def __post_init__(self) -> None:
        check_fields(self, "decoding.constraints.")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "ConstraintOptions":
        """From a configuration's section; UserError also for a setting that does not exist."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(settings) - known)
        if unknown:
            raise UserError(f"decoding.constraints has no '{unknown[0]}'; it has {', '.join(sorted(known))}.")
        return cls(**settings)


class DetectedConstraints:
    """Image ids → the constraints that their captions should meet."""

    def __init__(
        self, options: ConstraintOptions, store: RegionStore | None, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        """
        Args:
            store: of the region features, used if the options name no other; None if images are never named.
            max_length: of a caption.
        """
        self.options = options
        self.store = store
        if options.regions is not None:
            self.store = RegionStore(options.regions)
            self.store.require_sound()
        self.tokenizer = tokenizer
        self.room = max_length - 1  # tokens of a caption besides [CLS]
        parents = _table(options.hierarchy, dict[str, str], "object of {name: name}") or {}
        synonyms = _table(options.synonyms, dict[str, str], "object of {name: name}") or {}
        excluded = _table(options.excluded, list[str], "list of names")
        # Names of classes are compared in lower case.
        self.parents = {child.lower(): parent.lower() for child, parent in parents.items()}
        self.synonyms = {name.lower(): label for name, label in synonyms.items()}
        self.excluded = TOO_GENERIC if excluded is None else {name.lower() for name in excluded}
        self.word_forms = _table(options.word_forms, dict[str, list[str]], "object of {word: [word, …]}") or {}
        self.dropped = 0  # constraints that had no room in a caption
        self.without_regions = 0  # images that are not in the detector's store

    def __call__(self, image_ids: Sequence[str]) -> list[list[Constraint]]:
        assert self.store is not None, "made without a store: call of_regions"
        there = [image_id in self.store for image_id in image_ids]
        self.without_regions += there.count(False)
        names = self.store.label_map.classes
        return [
            self.of_regions(self.store[image_id], names) if known else []
            for image_id, known in zip(image_ids, there, strict=True)
        ]

    def of_regions(self, regions: Regions, names: Sequence[str]) -> list[Constraint]:
        """The constraints that an image's regions set; `names` of their classes."""
        sure = (regions.class_scores >= self.options.min_score) & (regions.classes > 0)
        classes = [names[index] for index in regions.classes[sure]]
        labels = self.labels(classes, regions.class_scores[sure], regions.boxes[sure])
        kept: list[Constraint] = []
        room = self.room
        for label in labels:
            constraint = constraint_from_words(label, self._tokens, self.word_forms)
            if len(constraint.steps) <= room:
                room -= len(constraint.steps)
                kept.append(constraint)
        self.dropped += len(labels) - len(kept)
        return kept

    def labels(self, classes: Sequence[str], scores: np.ndarray, boxes: np.ndarray) -> list[str]:
        """The classes that an image's caption should name, the surest first (the NoCaps baseline, Agrawal et al. 2019).

        Excluded classes go first. Of two boxes that are nearly the same, the one whose class is an ancestor of the
        other's in the hierarchy goes: a dog is not also an animal. What remains is called as captions call it, each
        label counted once with its best score, and cut to the best `max_constraints`. UserError for a circle of
        classes.

        Args:
            classes, scores: (n,) of the detections, of which those of score 0 are padding.
            boxes: (n, 4) float, x1, y1, x2, y2.
        """
        names = [name.lower() for name in classes]
        kept = [index for index, name in enumerate(names) if scores[index] > 0 and name not in self.excluded]
        overlaps = box_overlaps(np.asarray(boxes, dtype=np.float64).reshape(-1, 4)[kept])
        ancestors = [_ancestors(names[index], self.parents) for index in kept]
        best: dict[str, float] = {}
        for place, index in enumerate(kept):
            near = overlaps[place] > self.options.overlap
            if not any(names[index] in above and near[other] for other, above in enumerate(ancestors)):
                label = self.synonyms.get(names[index], names[index])
                best[label] = max(best.get(label, 0.0), float(scores[index]))
        return sorted(best, key=lambda label: -best[label])[: self.options.max_constraints]

    def _tokens(self, word: str) -> list[int]:
        ids: list[int] = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        return ids

    def describe_losses(self, dropped: int, without_regions: int) -> str | None:
        """What was left out and how much of it, or None if nothing was; the counts are those of all ranks."""
        told = []
        if dropped:
            told.append(f"{dropped:,} constraints had no room within decoding.max_length={self.room + 1}")
        if without_regions:
            told.append(f"{without_regions:,} images are not in {self.store!r} and had no constraints")
        return "; ".join(told) or None


def _table(path: str | None, kind: type[Content], what: str) -> Content | None:
    """What a JSON file holds, which must be of such a kind; None for no file."""
    try:
        return None if path is None else msgspec.convert(read_json(Path(path)), kind)
    except msgspec.ValidationError:
        raise UserError(f"{path} holds no JSON {what}, which decoding.constraints needs there.") from None
