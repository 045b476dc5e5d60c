"""Oscar's and VinVL's features.tsv, and what a detector says in JSON about the regions of one image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.regions.formats.rows import (
    GEOMETRY,
    FeatureOptions,
    FoundImage,
    IdTable,
    LeftOut,
    base64_rows,
    checked_regions,
    checked_size,
    id_in,
    number_of_regions,
)
from vinvl.regions.formats.tsv import (
    LONGEST_LINE,
    Done,
    HeldIndices,
    LinePart,
    ReadPart,
    RowReader,
    line_index,
    line_parts,
    read_part,
)
from vinvl.regions.regions import BACKGROUND, NO_ATTRIBUTE, LabelMap, Regions
from vinvl.run.errors import UserError
from vinvl.run.files import parse_json
from vinvl.run.lines import in_order
from vinvl.run.values import checked_text, shown

ATTRIBUTE_KEYS = (("attributes", "attr_scores"), ("attr", "attr_conf"))
MOST_ATTRIBUTES = 1000  # of an object
BACKGROUND_NAMES = ("background", "bg")
NO_ATTRIBUTE_NAMES = ("no attribute", "no_attribute", "none", "", *BACKGROUND_NAMES)
GEOMETRY_TOLERANCE = 0.02  # of the image: published boxes are rounded to pixels or hundredths


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
    features: list[str] | None

    def __len__(self) -> int:
        return len(self.classes)


def read_objects(content: Any, image: str) -> DetectedObjects:
    """The objects of an image from {"objects": […], "image_w": …, "image_h": …}, or from the list alone.

    Each object has `class`, `rect` (x1 y1 x2 y2) and perhaps `conf`, `feature` and attributes.

    Raises:
        UserError: it is nothing of the kind.
    """
    entries = content.get("objects") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{image}: objects are {shown(entries)}, expected a list of objects with class and rect.")
    pairs = [_attributes(entry, image) for entry in entries]
    try:
        boxes = np.array([entry["rect"] for entry in entries], dtype=np.float32).reshape(len(entries), 4)
        scores = np.array([entry.get("conf", 0) for entry in entries], dtype=np.float32).reshape(len(entries))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{image}: an object has no rect of four numbers, or a conf that is no number.") from None
    features = [entry.get("feature") for entry in entries]
    texts = [text for text in features if isinstance(text, str)]
    return DetectedObjects(
        boxes=boxes,
        classes=[checked_text(entry.get("class"), f"{image}: the class of an object").strip() for entry in entries],
        scores=scores,
        attributes=[names for names, _ in pairs],
        attribute_scores=[numbers for _, numbers in pairs],
        size=size_in(content, image),
        features=texts if texts and len(texts) == len(entries) else None,
    )


def size_in(content: Any, image: str) -> tuple[int, int] | None:
    """`image_w` and `image_h` where there are both. Raises UserError if they are no size."""
    if isinstance(content, Mapping) and "image_w" in content and "image_h" in content:
        return checked_size(content["image_w"], content["image_h"], image)
    return None


def _attributes(entry: Mapping[str, Any], image: str) -> tuple[list[str], list[float]]:
    for names_key, scores_key in ATTRIBUTE_KEYS:
        if names_key in entry:
            names, scores = entry[names_key], entry.get(scores_key, [])
            if not isinstance(names, list) or not isinstance(scores, list) or len(scores) not in (0, len(names)):
                raise UserError(f"{image}: {names_key} and {scores_key} of an object are no lists of one length.")
            if len(names) > MOST_ATTRIBUTES:
                raise UserError(
                    f"{image}: an object has {len(names):,} attributes, at most {MOST_ATTRIBUTES} are read."
                )
            texts = [checked_text(name, f"{image}: an attribute").strip() for name in names]
            if not all(isinstance(score, int | float) and abs(score) < 2**31 for score in scores):
                raise UserError(f"{image}: {scores_key} of an object hold what is no number.")
            return texts, [float(score) for score in scores] or [0.0] * len(texts)
    return [], []


@dataclass(frozen=True)
class ObjectNames:
    """Names → numbers. `most_attributes` is K: objects with fewer are filled up with 0, none."""

    classes: dict[str, int]
    attributes: dict[str, int]
    most_attributes: int

    @classmethod
    def of(cls, labels: LabelMap, most_attributes: int) -> ObjectNames:
        # The published label map has names twice; the first is meant.
        classes, attributes = ({}, {})  # type: dict[str, int], dict[str, int]
        for names, numbers in ((labels.classes, classes), (labels.attributes, attributes)):
            for number, name in enumerate(names):
                numbers.setdefault(name, number)
        return cls(classes, attributes, most_attributes)

    def numbers(self, objects: DetectedObjects, image: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(R,) classes, (R, K) attributes and their scores. Raises UserError for a name that is not known."""
        try:
            classes = np.array([self.classes[name] for name in objects.classes], dtype=np.int32)
            attributes = np.zeros((len(objects), self.most_attributes), dtype=np.int32)
            scores = np.zeros((len(objects), self.most_attributes), dtype=np.float32)
            for region, names in enumerate(objects.attributes):
                attributes[region, : len(names)] = [self.attributes[name] for name in names]
                scores[region, : len(names)] = objects.attribute_scores[region]
        except KeyError as error:
            raise UserError(
                f"{image}: the label map has no {str(error.args[0])[:40]!r}; give that of the detector with "
                "features.labels=FILE, or leave it out to take the names as they come."
            ) from None
        return classes, attributes, scores


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


def own_features(objects: DetectedObjects, image: str) -> np.ndarray:
    """(R, D) float32 of objects that carry their features. Raises UserError if one has none or of another length."""
    if not len(objects):
        return np.zeros((0, 0), dtype=np.float32)
    if objects.features is None:
        raise UserError(f"{image}: not every object has a feature; give the TSV of features, which lies beside it.")
    rows = [base64_rows(text, 1, None, f"{image}: features", "<f4") for text in objects.features]
    if len({row.shape for row in rows}) > 1:
        raise UserError(f"{image}: its features have the lengths {sorted({row.shape[1] for row in rows})}, not one.")
    return np.concatenate(rows)


def joined(
    image_id: str,
    features: np.ndarray,
    geometry: np.ndarray | None,
    objects: DetectedObjects | None,
    size: tuple[int, int] | None,
    names: ObjectNames,
) -> FoundImage:
    """Features and their objects in one.

    Boxes are those of the geometry where there is one, so that the region rows of the store are those of the file; only
    their scale is the image's. A size that nothing tells is found by holding boxes in pixels against the geometry.

    Args:
        image_id: as in the file.
        features: (R, D).
        geometry: (R, 6) x1/W, y1/H, x2/W, y2/H, w/W, h/H, or None.
        objects: None if the file of objects is not given.
        size: width and height if they are known from elsewhere.
        names: numbers of class and attribute names.

    Raises:
        UserError: the two do not belong together, or boxes or size are not to be had.
    """
    image = f"image {image_id!r}"
    if objects is not None and len(objects) != len(features):
        raise UserError(f"{image} has {len(features)} features and {len(objects)} predicted objects: not of one run.")
    if geometry is not None:
        _check_geometry(geometry, image)
    size = size or (objects.size if objects is not None else None) or _size_between(geometry, objects)
    if size is None:
        raise UserError(
            f"{image}: nothing tells its width and height, which boxes need: pass features.sizes=FILE, or "
            "features.assume_size=[1000,1000] for boxes in thousandths (the rows that a model reads stay the same)."
        )
    if geometry is None and objects is None:
        raise UserError(f"{image}: its rows have no geometry, so its boxes are not known: pass predictions=FILE.")
    edge = np.array([*size, *size], dtype=np.float32)
    if objects is None:
        assert geometry is not None
        return FoundImage(image_id, features, geometry[:, :4] * edge, size)
    if geometry is not None and (np.abs(objects.boxes / edge - geometry[:, :4]) > GEOMETRY_TOLERANCE).any():
        raise UserError(f"{image}: its predicted boxes are not those of its features: not of one run, or other order.")
    classes, attributes, scores = names.numbers(objects, image)
    boxes = objects.boxes if geometry is None else geometry[:, :4] * edge
    return FoundImage(image_id, features, boxes, size, classes, objects.scores, attributes, scores)


def _check_geometry(geometry: np.ndarray, image: str) -> None:
    span = geometry[:, 2:4] - geometry[:, 0:2]
    if not np.isfinite(geometry).all() or (np.abs(span - geometry[:, 4:6]) > 1e-2).any():
        raise UserError(
            f"{image}: the last six numbers of a row are not x1/W, y1/H, x2/W, y2/H, w/W, h/H; pass "
            "features.dim=NUMBER if the features are not of dimension 2048."
        )


def _size_between(geometry: np.ndarray | None, objects: DetectedObjects | None) -> tuple[int, int] | None:
    """Width and height from the boxes that reach furthest, in pixels and as shares of the image."""
    if geometry is None or objects is None or not len(objects):
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


ObjectsOf = Callable[[str], DetectedObjects]


@dataclass(frozen=True)
class PredictionsFile:
    """A TSV of image id and JSON, with the byte of each image's line in the `IdTable` in `table`. Small to pickle."""

    path: Path
    table: Path

    @contextmanager
    def opened(self) -> Iterator[ObjectsOf]:
        """What gives the objects of an image id. Raises UserError if the file does not have the image."""
        table = IdTable(self.table)
        with self.path.open("rb") as file:

            def objects(image_id: str) -> DetectedObjects:
                start = table.find(image_id)
                if start is None:
                    raise UserError(f"{self.path} has no image {image_id!r}; the two files are not of one run.")
                file.seek(int(start[0]))
                return _objects_in(file.readline(LONGEST_LINE).rstrip(b"\r\n"), f"{self.path}, image {image_id!r}")

            yield objects


def _objects_in(line: bytes, image: str) -> DetectedObjects:
    """The objects in the second column of a row."""
    columns = line.split(b"\t")
    return read_objects(parse_json(columns[1] if len(columns) > 1 else b"", image), image)


class PredictedImages:
    """`TsvIndex` of the ids in a `predictions.tsv`, which has no more images than the features that it is of."""

    def __init__(self, predictions: PredictionsFile, tsv: Path, note: Callable[[str], None] | None) -> None:
        """`note` is told of a file that has more where a person named it for these features; None refuses it."""
        self._path, self._tsv, self._note = predictions.path, tsv, note
        self._table = IdTable(predictions.table)
        self._seen = np.zeros(len(self._table), dtype=bool)
        self._unread = 0

    def check(self, before: int, part: ReadPart) -> None:
        for _, image_id, regions in part.images:
            self._unread += isinstance(regions, str)
            if (position := self._table.position(image_id)) is not None:
                self._seen[position] = True

    def check_end(self, lines: int) -> None:
        missing = np.flatnonzero(~self._seen)
        if len(missing) > self._unread:
            name = self._table.ids[missing[0]].decode("utf-8", "replace")
            more = f"{self._path} has {len(missing):,} images that {self._tsv} does not have, such as {name!r}"
            if self._note is None:
                raise UserError(f"{more}: the features are cut off, or a part: pass features.predictions=FILE then.")
            self._note(more)


@dataclass
class _Names:
    """The names in a part of the TSV, and the most attributes of an object; as `RowFormat` it finds them."""

    classes: set[str]
    attributes: set[str]
    most_attributes: int = 0

    @contextmanager
    def reader(self) -> Iterator[RowReader]:
        yield self._read

    def _read(self, line: bytes) -> tuple[str, None]:
        image_id = id_in(line.split(b"\t", 1)[0])
        objects = _objects_in(line, f"image {image_id!r}")
        self.take(set(objects.classes), {name for names in objects.attributes for name in names})
        self.most_attributes = max(self.most_attributes, *map(len, objects.attributes), 0)
        return image_id, None

    def take(self, classes: set[str], attributes: set[str]) -> None:
        self.classes |= classes
        self.attributes |= attributes


@dataclass(frozen=True)
class ScannedPredictions:
    """The file, the label map of all names in it, and the most attributes that an object has."""

    file: PredictionsFile
    label_map: LabelMap
    most_attributes: int


def scan_predictions(path: Path, scratch: Path, workers: int, left_out: LeftOut) -> ScannedPredictions:
    """Reads the file through; makes the table in a new folder.

    Raises:
        UserError: (unless skipped) a line is wrong, an image comes twice, or the `.lineidx` beside the file is of
            another one.
    """
    held = HeldIndices(line_index(path), left_out)
    names, lines, blocks = _Names(set(), set()), 0, []
    for part, found in in_order(_scan, line_parts(path), workers):
        for number, _, wrong in part.images:
            if wrong is not None:
                left_out.add(UserError(f"{path} line {lines + number + 1}{wrong}"))
        held.check(lines, part)
        lines += len(part.starts)
        if images := [(number, image_id.encode()) for number, image_id, wrong in part.images if wrong is None]:
            starts = part.starts[[number for number, _ in images]]
            blocks.append((np.array([image_id for _, image_id in images], dtype=np.bytes_), starts[:, None]))
        names.take(found.classes, found.attributes)
        names.most_attributes = max(names.most_attributes, found.most_attributes)
    held.check_end(lines)
    IdTable.write(scratch, blocks, path, left_out.add)
    label_map = label_map_of(names.classes, names.attributes)
    return ScannedPredictions(PredictionsFile(path, scratch), label_map, names.most_attributes)


def _scan(part: LinePart) -> tuple[ReadPart, _Names]:
    names = _Names(set(), set())
    return read_part(part, names, Done()), names


# Rows of the TSV files of Oscar and VinVL: `features.tsv` of either dialect, and `predictions.tsv` with features.


@dataclass(frozen=True)
class OscarRows:
    """`RowFormat` of `features.tsv`, whose rows are joined to `predictions.tsv` by image id.

    Attributes:
        options: what the files do not say.
        names: of classes and attributes.
        predictions: None if there are none, or if the TSV itself is of predictions that carry features.
        sizes: folder of an `IdTable` of width and height.
        of_predictions: the TSV is a `predictions.tsv`.
    """

    options: FeatureOptions
    names: ObjectNames
    predictions: PredictionsFile | None = None
    sizes: Path | None = None
    of_predictions: bool = False

    @contextmanager
    def reader(self) -> Iterator[RowReader]:
        sizes = SizesOrAssumed(self.sizes, self.options.assume_size)
        if self.of_predictions:
            yield lambda line: self._prediction(line, sizes)
        elif self.predictions is None:
            yield lambda line: self._features(line, sizes, None)
        else:
            with self.predictions.opened() as predictions:
                yield lambda line: self._features(line, sizes, predictions)

    def _features(self, line: bytes, sizes: SizesOrAssumed, predictions: ObjectsOf | None) -> tuple[str, Regions]:
        columns = line.split(b"\t")
        image_id = id_in(columns[0])
        try:
            rows = region_rows(columns, self.options.oscar_dim)
        except UserError as error:
            raise UserError(f"image {image_id!r}: {error}") from None
        features, geometry = split_geometry(rows, self.options.oscar_dim)
        objects = predictions(image_id) if predictions else None
        found = joined(image_id, features, geometry, objects, sizes.of(image_id, objects is None), self.names)
        return image_id, checked_regions(found, self.options)

    def _prediction(self, line: bytes, sizes: SizesOrAssumed) -> tuple[str, Regions]:
        image_id = id_in(line.split(b"\t", 1)[0])
        image = f"image {image_id!r}"
        objects = _objects_in(line, image)
        found = joined(image_id, own_features(objects, image), None, objects, sizes.of(image_id, False), self.names)
        return image_id, checked_regions(found, self.options)


class SizesOrAssumed:
    """Sizes of a file, else the one that is assumed."""

    def __init__(self, folder: Path | None, assumed: tuple[int, int] | None) -> None:
        self._table = IdTable(folder) if folder else None
        self._assumed = assumed

    def of(self, image_id: str, may_assume: bool) -> tuple[int, int] | None:
        """Width and height, None if they are not known; boxes in pixels leave nothing to assume."""
        size = self._table.find(image_id) if self._table else None
        if size is not None:
            return int(size[0]), int(size[1])
        return self._assumed if may_assume else None


def region_rows(columns: list[bytes], feature_dim: int) -> np.ndarray:
    """(R, D) or (R, D + 6) float32 of a row: `id, {"num_boxes", "features"}` or `id, number of boxes, …, features`.

    Raises:
        UserError: columns are missing, or the base64 is damaged or of another length.
    """
    if len(columns) < 2:
        raise UserError("the row has one column, expected an image id, a number of boxes and features.")
    widths = feature_dim + GEOMETRY, feature_dim
    if columns[1].lstrip().startswith(b"{"):
        content = parse_json(columns[1], "column 2")
        if not isinstance(content, dict) or not isinstance(content.get("features"), str):
            raise UserError(f"column 2 is {shown(content)}, expected num_boxes and features.")
        return base64_rows(content["features"], number_of_regions(content.get("num_boxes")), widths, "features", "<f4")
    if len(columns) < 3:
        raise UserError("the row has two columns, expected an image id, a number of boxes and features.")
    return base64_rows(columns[-1], number_of_regions(columns[1]), widths, "features", "<f4")


def split_geometry(rows: np.ndarray, feature_dim: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(R, D) features and (R, 6) geometry, None if the rows have none."""
    return rows[:, :feature_dim], rows[:, feature_dim:] if rows.shape[1] == feature_dim + GEOMETRY else None
