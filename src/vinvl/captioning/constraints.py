"""Constraints of captions from the classes that a detector found: what NoCaps is evaluated with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from vinvl.models.constrained import (
    MAX_CONSTRAINTS,
    TOO_GENERIC,
    Constraint,
    constraint_from_words,
    constraints_from_detections,
)
from vinvl.regions.regions import Regions
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError
from vinvl.run.files import read_json


@dataclass(frozen=True)
class ConstraintOptions:
    """The settings of `conf/decoding/constrained.yaml`, in plain types.

    Attributes:
        regions: RegionStore of the detector whose classes are the constraints; None for the store of the features.
        hierarchy: JSON file of {class: parent class}, or None: a class is dropped if a box of it is nearly the same as
            one of a class below it.
        synonyms: JSON file of {class: what captions call it}, or None.
        word_forms: JSON file of {word: [other forms that will do, …]}, or None.
        excluded: JSON list of classes that set no constraint, or None for those that captions seldom name.
        min_score: detections below it set no constraint.
        overlap: boxes overlapping by more than this (intersection over union) are the same thing.
        max_constraints: at most this many an image, the surest first.

    Raises:
        UserError: more constraints than a search can follow.
    """

    regions: str | list[str] | None = None
    hierarchy: str | None = None
    synonyms: str | None = None
    word_forms: str | None = None
    excluded: str | None = None
    min_score: float = 0.0
    overlap: float = 0.85
    max_constraints: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.max_constraints <= MAX_CONSTRAINTS:
            raise UserError(
                f"decoding.constraints.max_constraints is {self.max_constraints}; give 0 to {MAX_CONSTRAINTS}: the "
                "search has a state for every subset of them."
            )

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "ConstraintOptions":
        """From a configuration's section.

        Raises:
            UserError: a setting that does not exist, or a value that none may have.
        """
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
        self._store = store
        if options.regions is not None:
            self._store = RegionStore(options.regions)
            self._store.require_sound()
        self.tokenizer = tokenizer
        self.room = max_length - 1  # tokens of a caption besides [CLS]
        self.hierarchy = _names_by_name(options.hierarchy)
        self.synonyms = _names_by_name(options.synonyms)
        self.word_forms = _lists_by_name(options.word_forms)
        self.excluded = TOO_GENERIC if options.excluded is None else frozenset(_excluded_names(options.excluded))
        self.dropped = 0  # constraints that had no room in a caption
        self.without_regions = 0  # images that are not in the detector's store

    @property
    def store(self) -> RegionStore:
        """Where the images are looked up."""
        assert self._store is not None, "made without a store: call of_regions"
        return self._store

    def __call__(self, image_ids: Sequence[str]) -> list[list[Constraint]]:
        return [self._of_image(image_id) for image_id in image_ids]

    def _of_image(self, image_id: str) -> list[Constraint]:
        if image_id not in self.store:
            self.without_regions += 1
            return []
        return self.of_regions(self.store[image_id], self.store.label_map.classes)

    def of_regions(self, regions: Regions, names: Sequence[str]) -> list[Constraint]:
        """The constraints that an image's regions set; `names` of their classes."""
        sure = (regions.class_scores >= self.options.min_score) & (regions.classes > 0)
        labels = constraints_from_detections(
            [names[index] for index in regions.classes[sure]],
            regions.class_scores[sure],
            regions.boxes[sure],
            parents=self.hierarchy,
            synonyms=self.synonyms,
            excluded=self.excluded,
            max_constraints=self.options.max_constraints,
            threshold=self.options.overlap,
        )
        kept: list[Constraint] = []
        room = self.room
        for label in labels:
            constraint = constraint_from_words(label, self._tokens, self.word_forms)
            if len(constraint.steps) <= room:
                room -= len(constraint.steps)
                kept.append(constraint)
        self.dropped += len(labels) - len(kept)
        return kept

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


def _names_by_name(path: str | None) -> dict[str, str]:
    content = {} if path is None else read_json(Path(path))
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise UserError(f"{path} holds no JSON object of {{name: name}}, which decoding.constraints needs there.")
    return content


def _lists_by_name(path: str | None) -> dict[str, list[str]]:
    content = {} if path is None else read_json(Path(path))
    if not isinstance(content, dict) or not all(_is_list_of_names(names) for names in content.values()):
        raise UserError(f"{path} holds no JSON object of {{word: [word, …]}}, which decoding.constraints needs there.")
    return content


def _excluded_names(path: str) -> list[str]:
    content = read_json(Path(path))
    if not _is_list_of_names(content):
        raise UserError(f"{path} holds no JSON list of names; decoding.constraints.excluded needs one.")
    names: list[str] = content
    return names


def _is_list_of_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
