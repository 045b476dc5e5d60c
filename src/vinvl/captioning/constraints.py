"""Constraints of captions from the classes that a detector found: what NoCaps is evaluated with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from transformers import PreTrainedTokenizerBase

from vinvl.captioning.constraint_files import Hierarchy, json_table, read_detections, read_word_lists
from vinvl.captioning.published import files_of_split
from vinvl.models.constrained import MAX_CONSTRAINTS, Constraint, constraint_from_words
from vinvl.regions.regions import Regions
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError
from vinvl.run.values import check_fields

# Classes of Open Images that captions seldom name: parts of bodies and things, and groups too wide to be seen as one.
TOO_GENERIC = {"__background__"} | frozenset(
    """auto part|bathroom accessory|bicycle wheel|boy|building|clothing|door handle|fashion accessory|footwear|girl|
hiking equipment|human arm|human beard|human body|human ear|human eye|human face|human foot|human hair|human hand|
human head|human leg|human mouth|human nose|land vehicle|mammal|man|person|personal care|plant|plumbing fixture|
seat belt|skull|sports equipment|tire|tree|vehicle registration plate|wheel|woman""".replace("\n", "").split("|")
)
# What captions call some of them (both lists: the NoCaps baseline, Agrawal et al. 2019, and Oscar).
CALLED = {
    "band-aid": "bandaid",
    "wood-burning stove": "wood burning stove",
    "kitchen & dining room table": "table",
    "salt and pepper shakers": "salt and pepper",
    "power plugs and sockets": "power plugs",
    "luggage and bags": "luggage",
}
YAML_KEYS = {  # of the options of `ConstraintOptions`, those of the published yaml of NoCaps
    "regions": "cbs_box",
    "hierarchy": "cbs_hierarchy",
    "word_forms": "cbs_tokenforms",
    "word_pieces": "cbs_constraint",
}
MOST_PIECES = 4  # of a constraint, as published


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

    files: str | None = None
    regions: str | list[str] | None = None
    hierarchy: str | None = None
    synonyms: str | None = None
    word_forms: str | None = None
    word_pieces: str | None = None
    excluded: str | None = None
    min_score: float = 0.0
    overlap: float = 0.85
    max_constraints: Annotated[int, Meta(ge=0, le=MAX_CONSTRAINTS)] = 3  # a search has a state for every subset of them
    as_published: bool = False

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

    def with_files(self) -> "ConstraintOptions":
        """With those of the published yaml for what is not given; UserError if it lacks one."""
        if self.files is None:
            return self
        found = files_of_split(Path(self.files), *YAML_KEYS.values())
        lacking = [key for name, key in YAML_KEYS.items() if key not in found and getattr(self, name) is None]
        if lacking:
            raise UserError(f"{self.files} names no {lacking[0]}; decoding.constraints.files needs the yaml of NoCaps.")
        named = {name: str(found[key]) for name, key in YAML_KEYS.items() if getattr(self, name) is None}
        return replace(self, files=None, **named)  # type: ignore[arg-type]


class DetectedConstraints:
    """Image ids → the constraints that their captions should meet."""

    def __init__(
        self, options: ConstraintOptions, store: RegionStore | None, tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        """
        Args:
            store: of the region features, used if the options name nothing else; None if calls name it, or no images.
            max_length: of a caption.

        Raises:
            UserError: a file that the options name is missing, damaged or of another form, or a class of a file of
                detections cannot become a constraint; the sentence names file and line.
        """
        self.options = options = options.with_files()
        self.tokenizer = tokenizer
        self.room = max_length - 1  # tokens of a caption besides [CLS]
        synonyms = json_table(options.synonyms, dict[str, str], "object of {name: name}")
        excluded = json_table(options.excluded, list[str], "list of names")
        # Names of classes are compared in lower case.
        self.hierarchy = Hierarchy.read(options.hierarchy)
        self.synonyms = CALLED if synonyms is None else {name.lower(): label for name, label in synonyms.items()}
        self.excluded = TOO_GENERIC if excluded is None else {name.lower() for name in excluded}
        self.word_forms, self.word_pieces = read_word_lists(options.word_forms), read_word_lists(options.word_pieces)
        if options.as_published and (self.hierarchy.heights is None or options.word_pieces is None):
            raise UserError(
                "decoding.constraints.as_published needs Open Images' tree as decoding.constraints.hierarchy and the "
                "published constraint2tokens.tsv as decoding.constraints.word_pieces: give both."
            )
        self.dropped = 0  # constraints that had no room in a caption
        self.without_regions = 0  # images that are not among the detector's
        self.store = store
        self._named: RegionStore | None = None  # by the options
        self._of_file: dict[str, list[Constraint]] | None = None
        if isinstance(options.regions, str) and options.regions.endswith(".tsv"):
            self._of_file = self._read(Path(options.regions))
        elif options.regions is not None:
            self._named = RegionStore(options.regions)
            self._named.require_sound()

    def _read(self, path: Path) -> dict[str, list[Constraint]]:
        """The constraints of all images of a file of detections."""
        found = {}
        for place, image_id, seen in read_detections(path):
            try:
                found[image_id] = self._of_labels(self.labels(seen.classes, seen.scores, seen.boxes))
            except UserError as error:
                raise UserError(f"{place} (image {image_id}): {error}") from None
        return found

    def __call__(self, image_ids: Sequence[str], features: RegionStore | None = None) -> list[list[Constraint]]:
        """Those of images, by their ids in the store of the features, which is `features` where a split has its own."""
        if self._of_file is not None:
            self.without_regions += sum(image_id not in self._of_file for image_id in image_ids)
            return [self._fitting(self._of_file.get(image_id, [])) for image_id in image_ids]
        store, names = self.names_in(features)
        there = [image_id in store for image_id in image_ids]
        self.without_regions += there.count(False)
        return [
            self.of_regions(store[image_id], names) if known else []
            for image_id, known in zip(image_ids, there, strict=True)
        ]

    def names_in(self, features: RegionStore | None) -> tuple[RegionStore, Sequence[str]]:
        """The store that constraints come from where no file names them, and its classes; UserError if it has none."""
        store, *_ = (one for one in (self._named, features, self.store) if one is not None)
        if self._of_file is None and not store.label_map.classes:
            raise no_names(repr(store))
        return store, store.label_map.classes

    def of_regions(self, regions: Regions, names: Sequence[str]) -> list[Constraint]:
        """The constraints that an image's regions set; `names` of their classes, without which UserError."""
        if not names:
            raise no_names(regions.source or "the detector")
        known = regions.classes > 0
        classes = [names[index] for index in regions.classes[known]]
        labels = self.labels(classes, regions.class_scores[known], regions.boxes[known])
        return self._fitting(self._of_labels(labels))

    def _fitting(self, constraints: Sequence[Constraint]) -> list[Constraint]:
        """Those that a caption has room for, the surest first; the others are counted."""
        kept: list[Constraint] = []
        room = self.room
        for constraint in constraints:
            if len(constraint.steps) <= room:
                room -= len(constraint.steps)
                kept.append(constraint)
        self.dropped += len(constraints) - len(kept)
        return kept

    def labels(self, classes: Sequence[str], scores: np.ndarray, boxes: np.ndarray) -> list[str]:
        """The classes that an image's caption should name, the surest first (the NoCaps baseline, Agrawal et al. 2019).

        Excluded classes go first. Of two boxes that are nearly the same, the one whose class is an ancestor of the
        other's in the hierarchy goes: a dog is not also an animal. What remains is called as captions call it, each
        label counted once with its best score, and cut to the best `max_constraints`. UserError for a circle of
        classes.

        `as_published` differs: Oscar's filter means to do the same, but keeps both of two such boxes (it sorts them by
        height in the hierarchy, then looks for lower ones behind), cuts before double labels are gone, and raises for a
        class whose name holds no node's of the hierarchy.

        Args:
            classes, scores: (n,) of the detections, of which those of score 0 are padding.
            boxes: (n, 4) float, x1, y1, x2, y2.
        """
        names = [name.lower() for name in classes]
        kept = [
            index
            for index, name in enumerate(names)
            if scores[index] > 0 and scores[index] >= self.options.min_score and name not in self.excluded
        ]
        if self.options.as_published:
            return self._published_labels([(names[index], float(scores[index])) for index in kept])
        overlaps = box_overlaps(np.asarray(boxes, dtype=np.float64).reshape(-1, 4)[kept])
        ancestors = [_ancestors(names[index], self.hierarchy.parents) for index in kept]
        best: dict[str, float] = {}
        for place, index in enumerate(kept):
            near = overlaps[place] > self.options.overlap
            if not any(names[index] in above and near[other] for other, above in enumerate(ancestors)):
                label = self.synonyms.get(names[index], names[index])
                best[label] = max(best.get(label, 0.0), float(scores[index]))
        return sorted(best, key=lambda label: -best[label])[: self.options.max_constraints]

    def _published_labels(self, found: Sequence[tuple[str, float]]) -> list[str]:
        heights = [self.hierarchy.height(name) for name, _ in found]
        for (name, _), height in zip(found, heights, strict=True):
            if height is None:
                raise UserError(
                    f"the class {name!r} matches no node of {self.options.hierarchy}: add it there, or to a list of "
                    "decoding.constraints.excluded."
                )
        order = sorted(range(len(found)), key=lambda index: (-found[index][1], heights[index]))
        best = [found[index][0] for index in order[: self.options.max_constraints]]
        return list(dict.fromkeys(self.synonyms.get(name, name) for name in best))

    def _of_labels(self, labels: Sequence[str]) -> list[Constraint]:
        if self.options.as_published:
            return [self._published_constraint(label) for label in labels]
        return [constraint_from_words(label, self._tokens, self.word_forms) for label in labels]

    def _published_constraint(self, label: str) -> Constraint:
        """At most `MOST_PIECES` pieces, each met by its forms alone; what is no word of the tokenizer is [UNK]."""
        pieces = [piece for word in label.split() for piece in self._pieces(word)][:MOST_PIECES]
        unknown: Any = self.tokenizer.unk_token_id
        forms = [self.word_forms.get(piece, [piece]) for piece in pieces]
        steps = [tuple(dict.fromkeys(self._vocabulary.get(form, unknown) for form in said)) for said in forms]
        return Constraint(label, tuple(steps))

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    def _pieces(self, word: str) -> list[str]:
        if word not in self.word_pieces:
            raise UserError(
                f"the word {word!r} has no row in {self.options.word_pieces}: add it there, or the class to a list of "
                "decoding.constraints.excluded."
            )
        return self.word_pieces[word]

    def _tokens(self, word: str) -> list[int]:
        if word not in self.word_pieces:
            ids: list[int] = self.tokenizer(word, add_special_tokens=False)["input_ids"]
            return ids
        for piece in self.word_pieces[word]:
            if piece not in self._vocabulary:
                raise UserError(
                    f"{self.options.word_pieces} gives {word!r} the piece {piece!r}, which is no word of the "
                    "tokenizer: give the pieces of its vocabulary."
                )
        return [self._vocabulary[piece] for piece in self.word_pieces[word]]

    def describe_losses(self, dropped: int, without_regions: int) -> str | None:
        """What was left out and how much of it, or None if nothing was; the counts are those of all ranks."""
        told, where = [], self.options.regions or "the store of the features"
        if dropped:
            told.append(f"{dropped:,} constraints had no room within decoding.max_length={self.room + 1}")
        if without_regions:
            told.append(f"{without_regions:,} images are not in {where} and had no constraints")
        return "; ".join(told) or None


def no_names(source: str) -> UserError:
    """The refusal of regions whose classes have no names."""
    remedy = "give decoding.constraints.regions=FILE, a store that has them or a TSV of detections"
    return UserError(f"{source} has no names of classes, of which constraints are: {remedy}.")
