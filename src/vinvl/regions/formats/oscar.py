"""Oscar's and VinVL's features.tsv, and what a detector says in JSON about the regions of one image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.regions.formats.rows import (
    GEOMETRY,
    Done,
    FeatureOptions,
    LeftOut,
    at,
    base64_rows,
    checked_size,
    number_of_regions,
    regions_of,
)
from vinvl.regions.formats.tsv import (
    LONGEST_LINE,
    HeldIndices,
    IdTable,
    LinePart,
    ReadPart,
    line_index,
    line_parts,
    read_part,
)
from vinvl.regions.regions import BACKGROUND, NO_ATTRIBUTE, LabelMap, Regions, first_indices
from vinvl.run.errors import UserError
from vinvl.run.files import parse_json
from vinvl.run.lines import in_order
from vinvl.run.values import checked_text, shown

ATTRIBUTE_KEYS = (("attributes", "attr_scores"), ("attr", "attr_conf"))
MOST_ATTRIBUTES = 1000  # of an object
BACKGROUND_NAMES = ("background", "bg")
NO_ATTRIBUTE_NAMES = ("no attribute", "no_attribute", "none", "", *BACKGROUND_NAMES)
GEOMETRY_TOLERANCE = 0.02  # of the image: published boxes are rounded to pixels or hundredths
ANOTHER_RUN = "the two files are not of one run"

# The objects of an image.


@dataclass(frozen=True)
class DetectedObjects:
    """R objects of one image, in the order of its features.

    boxes             (R, 4) float32 in pixels
    classes           R names
    scores            (R,) float32
    attributes        R lists of names
    attribute_scores  R lists of numbers, as long
    size              width and height, None where the file does not say
    features          R base64 texts, or None
    """

    boxes: np.ndarray
    classes: list[str]
    scores: np.ndarray
    attributes: list[list[str]]
    attribute_scores: list[list[float]]
    size: tuple[int, int] | None
    features: list[str] | None = None

    def __len__(self) -> int:
        return len(self.classes)


def read_objects(content: Any) -> DetectedObjects:
    """The objects of an image from {"objects": […], "image_w": …, "image_h": …}, or from the list alone.

    Each has `class`, `rect` (x1 y1 x2 y2) and perhaps `conf`, `feature` and attributes. Raises UserError for all else.
    """
    entries = content.get("objects") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"objects are {shown(entries)}, expected a list of objects with class and rect.")
    pairs = [_attributes(entry) for entry in entries]
    try:
        boxes = np.array([entry["rect"] for entry in entries], dtype=np.float32).reshape(len(entries), 4)
        scores = np.array([entry.get("conf", 0) for entry in entries], dtype=np.float32).reshape(len(entries))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError("an object has no rect of four numbers, or a conf that is no number.") from None
    texts = [text for entry in entries if isinstance(text := entry.get("feature"), str)]
    return DetectedObjects(
        boxes,
        [checked_text(entry.get("class"), "the class of an object").strip() for entry in entries],
        scores,
        [names for names, _ in pairs],
        [numbers for _, numbers in pairs],
        size_in(content),
        texts if texts and len(texts) == len(entries) else None,
    )


def size_in(content: Any) -> tuple[int, int] | None:
    """`image_w` and `image_h` where there are both."""
    if isinstance(content, Mapping) and "image_w" in content and "image_h" in content:
        return checked_size(content["image_w"], content["image_h"])
    return None


def _attributes(entry: Mapping[str, Any]) -> tuple[list[str], list[float]]:
    for names_key, scores_key in ATTRIBUTE_KEYS:
        if names_key in entry:
            names, scores = entry[names_key], entry.get(scores_key, [])
            if not isinstance(names, list) or not isinstance(scores, list) or len(scores) not in (0, len(names)):
                raise UserError(f"{names_key} and {scores_key} of an object are no lists of one length.")
            if len(names) > MOST_ATTRIBUTES:
                raise UserError(f"an object has {len(names):,} attributes, at most {MOST_ATTRIBUTES} are read.")
            texts = [checked_text(name, "an attribute").strip() for name in names]
            if not all(isinstance(score, int | float) and abs(score) < 2**31 for score in scores):
                raise UserError(f"{scores_key} of an object hold what is no number.")
            return texts, [float(score) for score in scores] or [0.0] * len(texts)
    return [], []


def label_map_of(classes: Iterable[str], attributes: Iterable[str]) -> LabelMap:
    """A label map of names as they were found, in alphabetical order; 0 is the background, and no attribute."""
    return LabelMap(
        (BACKGROUND, *sorted(set(classes) - {BACKGROUND})), (NO_ATTRIBUTE, *sorted(set(attributes) - {NO_ATTRIBUTE}))
    )


def with_background(labels: LabelMap) -> LabelMap:
    """The names behind that of the background, and of no attribute: some label maps count from 0 without these."""
    classes, attributes = labels.classes, labels.attributes
    if classes and classes[0].strip("_ ").lower() not in BACKGROUND_NAMES:
        classes = (BACKGROUND, *classes)
    if attributes and attributes[0].strip("_ ").lower() not in NO_ATTRIBUTE_NAMES:
        attributes = (NO_ATTRIBUTE, *attributes)
    return LabelMap(classes, attributes)


# Features and their objects in one.


@dataclass(frozen=True)
class Joiner:
    """What makes regions of features and objects; picklable, what it opens it opens in the process that reads.

    Attributes:
        options: what the files do not say.
        labels: the names that classes and attributes are numbered by.
        most_attributes: K; objects with fewer are filled up with 0, none.
        sizes: folder of an `IdTable` of width and height.
    """

    options: FeatureOptions
    labels: LabelMap
    most_attributes: int
    sizes: Path | None

    @cached_property
    def _sizes(self) -> IdTable | None:
        return IdTable(self.sizes) if self.sizes else None

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        return first_indices(self.labels.classes), first_indices(self.labels.attributes)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("options", "labels", "most_attributes", "sizes")}

    def joined_rows(self, image_id: str, rows: np.ndarray, objects: DetectedObjects | None) -> Regions:
        """Of rows (R, D) or (R, D + 6) with the geometry of their boxes."""
        dim = self.options.oscar_dim
        return self.joined(image_id, rows[:, :dim], rows[:, dim:] if rows.shape[1] == dim + GEOMETRY else None, objects)

    def joined(
        self, image_id: str, features: np.ndarray, geometry: np.ndarray | None, objects: DetectedObjects | None
    ) -> Regions:
        """Of features (R, D), their geometry (R, 6) x1/W, y1/H, x2/W, y2/H, w/W, h/H or None, and objects if there are.

        Boxes are those of the geometry where there is one, so that the region rows of the store are those of the file;
        only their scale is the image's. A size that nothing tells is found by holding boxes in pixels against the
        geometry. Raises UserError if the three do not belong together, or boxes or size are not to be had.
        """
        if objects is not None and len(objects) != len(features):
            raise UserError(f"it has {len(features)} features and {len(objects)} predicted objects: not of one run.")
        if geometry is not None:
            span = geometry[:, 2:4] - geometry[:, 0:2]
            if not np.isfinite(geometry).all() or (np.abs(span - geometry[:, 4:6]) > 1e-2).any():
                raise UserError(
                    "the last six numbers of a row are not x1/W, y1/H, x2/W, y2/H, w/W, h/H; pass "
                    "features.dim=NUMBER if the features are not of dimension 2048."
                )
        size = self._size_of(image_id, geometry, objects)
        if geometry is None and objects is None:
            raise UserError("its rows have no geometry, so its boxes are not known: pass predictions=FILE.")
        edge = np.array([*size, *size], dtype=np.float32)
        boxes = geometry[:, :4] * edge if geometry is not None else objects.boxes if objects else np.zeros((0, 4))
        if objects is None:
            return regions_of(image_id, features, boxes, size, self.options)
        if geometry is not None and (np.abs(objects.boxes / edge - geometry[:, :4]) > GEOMETRY_TOLERANCE).any():
            raise UserError("its predicted boxes are not those of its features: not of one run, or other order.")
        classes, attributes, scores = self._numbered(objects)
        return regions_of(
            image_id,
            features,
            boxes,
            size,
            self.options,
            classes=classes,
            class_scores=objects.scores,
            attributes=attributes,
            attribute_scores=scores,
        )

    def _size_of(self, image_id: str, geometry: np.ndarray | None, objects: DetectedObjects | None) -> tuple[int, int]:
        given = self._sizes.find(image_id) if self._sizes else None
        if given is not None:
            return int(given[0]), int(given[1])
        # Boxes in pixels leave nothing to assume.
        size = self.options.assume_size if objects is None else objects.size or _size_between(geometry, objects)
        if size is None:
            raise UserError(
                "nothing tells its width and height, which boxes need: pass features.sizes=FILE, or "
                "features.assume_size=[1000,1000] for boxes in thousandths (the rows that a model reads stay the same)."
            )
        return size

    def _numbered(self, objects: DetectedObjects) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(R,) classes, (R, K) attributes and their scores. Raises UserError for a name that is not known."""
        class_of, attribute_of = self._numbers
        attributes = np.zeros((len(objects), self.most_attributes), dtype=np.int32)
        scores = np.zeros((len(objects), self.most_attributes), dtype=np.float32)
        try:
            classes = np.array([class_of[name] for name in objects.classes], dtype=np.int32)
            for region, names in enumerate(objects.attributes):
                attributes[region, : len(names)] = [attribute_of[name] for name in names]
                scores[region, : len(names)] = objects.attribute_scores[region]
        except KeyError as error:
            raise UserError(
                f"the label map has no {str(error.args[0])[:40]!r}; give that of the detector with "
                "features.labels=FILE, or leave it out to take the names as they come."
            ) from None
        return classes, attributes, scores


def _size_between(geometry: np.ndarray | None, objects: DetectedObjects) -> tuple[int, int] | None:
    """Width and height from the boxes that reach furthest, in pixels and as shares of the image."""
    if geometry is None or not len(objects):
        return None
    size = []
    for column in (2, 3):
        region = int(np.argmax(geometry[:, column]))
        share = float(geometry[region, column])
        length = round(float(objects.boxes[region, column]) / share) if share > 0 else 0
        if not 0 < length < 2**31:
            return None
        size.append(length)
    return size[0], size[1]


# A `predictions.tsv` (or `labels.tsv`) of objects, indexed once so that the features find theirs by image id.


@dataclass(frozen=True)
class Predictions:
    """A TSV of image id and JSON, read through once.

    Attributes:
        path: of the file.
        table: folder of an `IdTable` of the byte where each image's line begins.
        label_map: of all names in it.
        most_attributes: that an object has.
    """

    path: Path
    table: Path
    label_map: LabelMap
    most_attributes: int

    @cached_property
    def _table(self) -> IdTable:
        return IdTable(self.table)

    def __getstate__(self) -> dict[str, Any]:  # small: what is opened or large stays in this process
        return {"path": self.path, "table": self.table}

    def objects(self, image_id: str) -> DetectedObjects:
        """The objects of an image. Raises UserError if the file does not have it."""
        start = self._table.find(image_id)
        if start is None:
            raise UserError(f"{self.path} has no image {image_id!r}; {ANOTHER_RUN}.")
        with self.path.open("rb") as file:
            file.seek(int(start[0]))
            line = file.readline(LONGEST_LINE).rstrip(b"\r\n")
        with at(f"{self.path}, image {image_id!r}"):
            return _objects_in(line.split(b"\t"))


def _objects_in(columns: list[bytes]) -> DetectedObjects:
    return read_objects(parse_json(columns[1] if len(columns) > 1 else b"", "column 2"))


@dataclass
class _Names:
    """The names in a part of the TSV, and the most attributes of an object; as `ReadRow` it finds them."""

    classes: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    most_attributes: int = 0

    def __call__(self, image_id: str, columns: list[bytes]) -> None:
        objects = _objects_in(columns)
        most = max(map(len, objects.attributes), default=0)
        self.take(_Names(set(objects.classes), {name for names in objects.attributes for name in names}, most))

    def take(self, other: _Names) -> None:
        self.classes |= other.classes
        self.attributes |= other.attributes
        self.most_attributes = max(self.most_attributes, other.most_attributes)


def scan_predictions(path: Path, scratch: Path, workers: int, left_out: LeftOut) -> Predictions:
    """Reads the file through; makes the table in a new folder.

    Raises:
        UserError: (unless skipped) a line is wrong, an image comes twice, or the `.lineidx` beside the file is of
            another one.
    """
    held = HeldIndices(line_index(path), left_out)
    names, lines, blocks = _Names(), 0, []
    for part, found in in_order(_scan, line_parts(path), workers):
        for number, _, wrong in part.images:
            if wrong is not None:
                left_out.add(UserError(f"{path} line {lines + number + 1}{wrong}"))
        held.check(lines, part)
        lines += len(part.starts)
        if images := [(number, image_id.encode()) for number, image_id, wrong in part.images if wrong is None]:
            starts = part.starts[[number for number, _ in images]]
            blocks.append((np.array([image_id for _, image_id in images], dtype=np.bytes_), starts[:, None]))
        names.take(found)
    held.check_end(lines)
    IdTable.write(scratch, blocks, path, left_out.add)
    return Predictions(path, scratch, label_map_of(names.classes, names.attributes), names.most_attributes)


def _scan(part: LinePart) -> tuple[ReadPart, _Names]:
    names = _Names()
    return read_part(part, names, Done()), names


# Rows of the TSV files of Oscar and VinVL: `features.tsv` of either dialect, and `predictions.tsv` with features.


@dataclass(frozen=True)
class FeatureRows:
    """`ReadRow` of `features.tsv`, whose rows are joined to `predictions.tsv` by image id where there is one."""

    joiner: Joiner
    predictions: Predictions | None

    def __call__(self, image_id: str, columns: list[bytes]) -> Regions:
        rows = _region_rows(columns, self.joiner.options.oscar_dim)
        objects = self.predictions.objects(image_id) if self.predictions else None
        return self.joiner.joined_rows(image_id, rows, objects)


@dataclass(frozen=True)
class PredictionRows:
    """`ReadRow` of a `predictions.tsv` whose objects carry their features."""

    joiner: Joiner

    def __call__(self, image_id: str, columns: list[bytes]) -> Regions:
        objects = _objects_in(columns)
        features = np.zeros((0, 0), dtype=np.float32)
        if len(objects):
            if objects.features is None:
                raise UserError("not every object has a feature; give the TSV of features, which lies beside it.")
            rows = [base64_rows(text, 1, None, "features", "<f4") for text in objects.features]
            if len(lengths := {row.shape[1] for row in rows}) > 1:
                raise UserError(f"its features have the lengths {sorted(lengths)}, not one.")
            features = np.concatenate(rows)
        return self.joiner.joined(image_id, features, None, objects)


def _region_rows(columns: list[bytes], dim: int) -> np.ndarray:
    """(R, D) or (R, D + 6) float32 of a row: `id, {"num_boxes", "features"}` or `id, number of boxes, …, features`."""
    count: Any = columns[1] if len(columns) > 2 else b""
    features: bytes | str = columns[-1]
    if len(columns) > 1 and columns[1].lstrip().startswith(b"{"):
        content = parse_json(columns[1], "column 2")
        if not isinstance(content, dict) or not isinstance(content.get("features"), str):
            raise UserError(f"column 2 is {shown(content)}, expected num_boxes and features.")
        count, features = content.get("num_boxes"), content["features"]
    elif len(columns) < 3:
        raise UserError(f"the row has {len(columns)} columns, expected an image id, a number of boxes and features.")
    return base64_rows(features, number_of_regions(count), (dim + GEOMETRY, dim), "features", "<f4")
