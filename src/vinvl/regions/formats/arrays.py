"""Folders with a file for each image: MMF's `ID.npy` with `ID_info.npy`, and `ID.npz`."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from vinvl.regions.formats.oscar import GEOMETRY_TOLERANCE, size_between
from vinvl.regions.formats.rows import (
    MOST_BYTES,
    Done,
    FeatureOptions,
    Found,
    at,
    cell_boxes,
    checked_size,
    grid_rows,
    images_of_items,
    numbers,
    regions_of,
    shifted,
)
from vinvl.regions.formats.tsv import IdTable
from vinvl.regions.regions import BOX_NUMBERS, LabelMap, Regions
from vinvl.run.errors import UserError
from vinvl.run.files import reading
from vinvl.run.restricted_pickle import load_restricted, plain_array
from vinvl.run.values import shown

# Named arrays of one image, as MMF, bottom-up-attention and others save them: what they call one thing.
FIELDS = {
    "features": ("features", "x", "feature", "feat"),
    "boxes": ("boxes", "bbox", "bboxes"),
    "width": ("image_w", "image_width", "img_w", "width"),
    "height": ("image_h", "image_height", "img_h", "height"),
    "count": ("num_boxes", "num_bbox"),
    "classes": ("objects", "classes", "objects_id", "class_ids"),
    "class_scores": ("cls_prob", "scores", "class_scores", "objects_conf", "confidence"),
    "attributes": ("attributes", "attrs_id"),
    "attribute_scores": ("attribute_scores", "attrs_conf", "attrs_scores"),
    "class_offset": ("class_offset",),  # what `write_mmf_npy` says of the numbers in its files
}
SIDES = ("width", "height")
KNOWN = {name for names in FIELDS.values() for name in names} | {"info"}


def regions_of_fields(image_id: str, fields: Mapping[str, Any], options: FeatureOptions, labels: LabelMap) -> Regions:
    """The regions of an image from its named arrays; keys that are not known are left out.

    Score tables (R, C) count with their highest number; padding behind the number of boxes is dropped. Raises UserError
    if features, boxes or size are missing or not what they should be, or nothing tells what class numbers count.
    """
    given = {what: fields[name] for what, names in FIELDS.items() for name in reversed(names) if name in fields}
    for what in ("features", "boxes", "width", "height"):
        if given.get(what) is None:
            present = ", ".join(sorted(str(name) for name in fields if isinstance(name, str | bytes))[:12]) or "nothing"
            raise UserError(f"there is no {what} (one of {', '.join(FIELDS[what])}); it has {present}.")
    features, boxes = numbers(given["features"], "features"), numbers(given["boxes"], "boxes")
    features, count = _of_boxes(features, boxes, given.get("count"))
    size = checked_size(given["width"], given["height"])
    tables = {
        what: None if given.get(what) is None else numbers(given[what], what)[:count]
        for what in ("classes", "class_scores", "attributes", "attribute_scores")
    }
    classes, scores, attributes, attribute_scores = tables.values()
    if (offset := options.class_offset) is None and given.get("class_offset") is not None:
        offset = _checked_count(given["class_offset"], 1, "class_offset")
    of_attributes = offset
    if offset is None:
        offset = offset_of(classes, scores, labels.classes, "class")
        of_attributes = offset_of(attributes, attribute_scores, labels.attributes, "attribute", otherwise=offset)
    if classes is not None:
        tables["classes"] = shifted(classes, offset or 0, labels.classes, "classes")
    if attributes is not None:
        tables["attributes"] = shifted(attributes, of_attributes or 0, labels.attributes, "attributes")
    tables["class_scores"] = _highest(scores)
    if classes is None and scores is not None and scores.ndim == 2 and options.classes:
        tables["classes"], tables["class_scores"] = _best_classes(scores, labels, options)
    if attributes is None or attributes.ndim == 1:
        tables["attribute_scores"] = _highest(attribute_scores)
    boxes = boxes[:count].reshape(count, -1) if count else np.zeros((0, 4))
    return regions_of(image_id, features[:count], boxes, size, options, **tables)


def _checked_count(given: Any, most: int, what: str = "the number of boxes") -> int:
    array = np.asarray(given)
    if array.size != 1 or array.dtype.kind not in "iu" or not 0 <= int(array.item()) <= most:
        raise UserError(f"{what} is {shown(given)}, expected a whole number from 0 to {most}.")
    return int(array.item())


def _of_boxes(features: np.ndarray, boxes: np.ndarray, given: Any) -> tuple[np.ndarray, int]:
    """Features (N, D) of N boxes or more, and how many count; features that lie (D, N) are turned.

    Raises UserError if there are not as many features as boxes, and what there is more is not padding.
    """
    if features.ndim == 1 and not features.size:  # a list of none
        features = features.reshape(0, 0)
    if features.ndim != 2:
        raise UserError(f"features have shape {features.shape}, expected a row for each region.")
    if features.shape[1] == len(boxes) != len(features):
        features = features.T
    count = min(len(features), len(boxes)) if given is None else _checked_count(given, min(len(features), len(boxes)))
    longer = features if len(features) > len(boxes) else boxes
    if len(features) != len(boxes) and (given is None or longer[count:].any()):
        raise UserError(f"features have shape {features.shape}, but there are {len(boxes)} boxes.")
    return features, count


def _best_classes(table: np.ndarray, labels: LabelMap, options: FeatureOptions) -> tuple[np.ndarray, np.ndarray]:
    """(R,) class numbers as the store counts them and their scores, of a table (R, C) of all classes.

    A region that has a score for the background alone is background. Raises UserError if nothing tells whether the
    first column is the background's.
    """
    expected, columns = len(labels.classes) or USUAL_NAMES["class"], table.shape[1]
    offset = options.class_offset if options.class_offset is not None else expected - columns
    if offset not in (0, 1) or columns < 2:
        raise UserError(
            f"there are scores of {columns} class columns, expected were {expected - 1} or {expected} (with the "
            "background): give the detector's label map with features.labels=FILE, or pass features.classes=false."
        )
    classes = table if offset else table[:, 1:]
    scores = classes.max(axis=1, initial=0)
    numbers = np.where(scores > 0, classes.argmax(axis=1) + 1, 0)
    return numbers, scores if offset else np.where(scores > 0, scores, table[:, 0])


def _highest(scores: np.ndarray | None) -> np.ndarray | None:
    """(R,) scores, of a table (R, C) of all classes the highest of each region."""
    if scores is None or scores.ndim != 2:
        return scores
    return scores.max(axis=1) if scores.size else np.zeros(len(scores), dtype=np.float32)


# Whether the class numbers of a file count the background, as the store's do, or begin with the first class.

# Columns of the detectors of Visual Genome, classes and attributes, which need no label map: with what is 0 here.
USUAL_NAMES = {"class": 1601, "attribute": 401}


def offset_of(
    numbers: np.ndarray | None, table: np.ndarray | None, names: Sequence[str], kind: str, otherwise: int | None = None
) -> int | None:
    """What is to be added to class or attribute numbers (R,) or (R, K), 0 or 1, told by their table (R, C) of scores.

    A table with as many columns as there are names has the background, one with a column less leaves it out; which of
    its columns the numbers count shows in that they are those of the highest scores. `otherwise` is what holds where
    the table tells nothing: without that, UserError if there are names, which could be wrong.
    """
    if numbers is None or not numbers.size:
        return otherwise
    tells = False
    if numbers.ndim == 1 and table is not None and table.ndim == 2 and len(table) == len(numbers):
        columns, expected = table.shape[1], len(names) or USUAL_NAMES[kind]
        tells = columns in (expected, expected - 1)
        if not tells and names and columns > 1:
            raise UserError(
                f"there are scores of {columns} {kind} columns, but the label map has {len(names)} names, the "
                f"background's included: pass features.class_offset=0 or 1 ({kind} numbers with or without it)."
            )
        fits = _offsets_that_fit(numbers, table, with_background=columns == expected) if tells else []
        if len(fits) == 1:
            return fits[0]
    if (names or tells) and otherwise is None:
        raise UserError(
            f"nothing tells whether {kind} numbers count the background: pass features.class_offset=0 if 0 is the "
            f"background, or 1 if 0 is the first {kind}."
        )
    return otherwise


def _offsets_that_fit(numbers: np.ndarray, table: np.ndarray, *, with_background: bool) -> list[int]:
    """The offsets with which the numbers are those of the highest scores, in every row that has one highest."""
    # As the store counts: the best class, and where the table has the background, the best of all.
    best = [(table[:, 1:] if with_background else table, 1), *([(table, 0)] if with_background else [])]
    fits = {
        offset
        for scores, first in best
        for offset in ((0, 1) if first else (0,))
        if scores.shape[1]
        and (clear := (scores == scores.max(axis=1, keepdims=True)).sum(axis=1) == 1).any()
        and (numbers + offset == scores.argmax(axis=1) + first)[clear].all()
    }
    return sorted(fits)


# What files of many images leave to others: sizes, boxes of a grid, and whether boxes are those of their geometry.

RENAMED = {"image_features": "features", "image_feature": "features", "image_bb": "boxes"}
GRID, SIZE, GEOMETRY = "grids", "size", "spatial_features"  # (H * W, D) features of cells; (height, width); shares


@dataclass(frozen=True)
class FieldReader:
    """Named arrays of an image → its regions; `sizes` is the folder of an `IdTable` of width and height."""

    options: FeatureOptions
    labels: LabelMap
    sizes: Path | None

    @cached_property
    def _sizes(self) -> IdTable | None:
        return IdTable(self.sizes) if self.sizes else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("options", "labels", "sizes")}

    def found(self, place: str, image_id: str, given: Mapping[str, Any], size: int) -> Found:
        """`size` is the number of bytes that were read."""
        try:
            with at(place):
                fields = self._complete(image_id, {RENAMED.get(name, name): value for name, value in given.items()})
                return Found(place, regions_of_fields(image_id, fields, self.options, self.labels), size)
        except UserError as error:
            return Found(place, error, size)

    def _complete(self, image_id: str, fields: dict[str, Any]) -> dict[str, Any]:
        """With width and height, and of a grid the boxes."""
        boxes = next((numbers(fields[name], name) for name in FIELDS["boxes"] if name in fields), None)
        grid, geometry, own = (fields.pop(name, None) for name in (GRID, GEOMETRY, SIZE))
        if boxes is None and grid is None and np.ndim(fields.get("features", 0)) == 3:
            grid = fields["features"]
        if not fields.keys() & set(FIELDS["width"]):
            fields["image_w"], fields["image_h"] = self._size(image_id, own, geometry, boxes, grid)
        sides = [next((fields[name] for name in FIELDS[side] if name in fields), None) for side in SIDES]
        size = checked_size(*sides)
        if boxes is None and grid is not None:
            fields["features"], rows, columns = grid_rows(numbers(grid, "features"))
            fields["boxes"] = cell_boxes(rows, columns, size)
        elif boxes is not None and geometry is not None:
            same = boxes.shape == (len(geometry), 4) and geometry.shape == (len(boxes), BOX_NUMBERS)
            if not same or not (np.abs(boxes / [*size, *size] - geometry[:, :4]) <= GEOMETRY_TOLERANCE).all():
                raise UserError(f"its boxes, as shares of {size[0]} x {size[1]}, are not those of its {GEOMETRY}.")
        return fields

    def _size(
        self, image_id: str, own: Any, geometry: np.ndarray | None, boxes: np.ndarray | None, grid: Any
    ) -> tuple[int, int]:
        if own is not None:
            height, width = numbers(own, "size").reshape(-1) if np.size(own) == 2 else (0, 0)
            return checked_size(width, height)
        if (told := self._sizes.find(image_id) if self._sizes else None) is not None:
            return int(told[0]), int(told[1])
        if boxes is not None and geometry is not None:
            fit = boxes.shape == (len(geometry), 4) and geometry.shape == (len(boxes), BOX_NUMBERS)
            if fit and (between := size_between(geometry, boxes)):
                return between
        if grid is not None and self.options.assume_size is not None:
            return self.options.assume_size
        more = ", or features.assume_size=[1000,1000]" if grid is not None else ", such as COCO's annotations"
        raise UserError(f"nothing tells its width and height: pass features.sizes=FILE{more}.")


# The files.

INFO = "_info"
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes; the others have no limit when reading

# The head of an npy file as NumPy writes it, of a plain data type. (NumPy's own reader runs a Python parser on it.)
HEAD = re.compile(
    rb"\s*\{\s*'descr':\s*'(?P<dtype>[<>|=]?(?:[biufc][0-9]{1,2}|[SU][0-9]{1,9}|O))',\s*'fortran_order':\s*(?P<fortran>True|False),"
    rb"\s*'shape':\s*\((?P<shape>(?:\s*[0-9]{1,18}L?\s*,?)*)\s*\),?\s*\}\s*"
)


def image_files(folder: Path, suffix: str) -> list[Path]:
    """The files of features below a folder, in the order of their names; only the names are held.

    Of an `ID_info.npy` without features, the name that these should have.
    """
    files = set(folder.rglob(f"*{suffix}"))
    infos = {path for path in files if path.stem.endswith(INFO)}
    return sorted(files - infos | {path.with_name(f"{path.stem.removesuffix(INFO)}{suffix}") for path in infos})


def info_of(path: Path) -> Path:
    """The file that says more of a file of features."""
    return path.with_name(f"{path.stem}{INFO}.npy")


def images_of_files(
    folder: Path, files: Sequence[Path], options: FeatureOptions, labels: LabelMap, workers: int, done: Done
) -> Iterator[Found]:
    """The images of a folder; the id is the path below the folder without its suffix."""
    return images_of_items(files, partial(_read_file, folder=folder, options=options, labels=labels), workers, done)


def _read_file(path: Path, folder: Path, options: FeatureOptions, labels: LabelMap) -> Found:
    image_id, size = path.relative_to(folder).with_suffix("").as_posix(), 0
    try:
        with reading(path):
            fields = read_npz(path) if path.suffix == ".npz" else _read_npy_pair(path)
            size = path.stat().st_size
        with at(str(path)):
            return Found(str(path), regions_of_fields(image_id, fields, options, labels), size)
    except UserError as error:
        return Found(str(path), error, size)


def _read_npy_pair(path: Path) -> dict[str, Any]:
    info_path = info_of(path)
    if not info_path.is_file():
        raise UserError(f"{path} has no {info_path.name} beside it, so its boxes are not known.")
    if not path.exists():
        raise UserError(f"{info_path} has no {path.name} beside it, so its image has no features.")
    features, info = (read_array(_all_of(one.open("rb"), MOST_BYTES, one), one) for one in (path, info_path))
    if not isinstance(info := _item(info), dict):
        raise UserError(f"{info_path} holds {type(info).__name__}, expected a dict with bbox and the image's size.")
    return {**info, "features": features}


def _all_of(file: IO[bytes], most: int, place: object) -> bytes:
    with file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{place} has more than the {MOST_BYTES:,} bytes that are read of one image.")
    return content


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays of an npz by name, None for those of no use; a dict in its member `info` is taken in too.

    Raises UserError if it is damaged, or would fill the memory.
    """
    fields: dict[str, Any] = {}
    left = MOST_BYTES
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                place = f"{path}, {member.filename}"
                if name in fields or member.compress_type not in COMPRESSIONS:
                    raise UserError(f"{place} comes twice, or is compressed as no npz is; get the file again.")
                fields[name] = None
                if name in KNOWN:
                    content = _all_of(archive.open(member), left, place)
                    left -= len(content)
                    fields[name] = read_array(content, place)
    except (OSError, UserError):
        raise
    except Exception as error:  # what a damaged archive runs into: zlib, struct, a codec, a checksum
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path} is no npz, or a damaged one ({reason}); get the file again.") from None
    info = _item(fields.pop("info", None))
    return {**info, **fields} if isinstance(info, dict) else fields


def _item(array: Any) -> Any:
    """What an array of no dimension holds."""
    return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else array


def read_array(content: bytes, place: object) -> Any:
    """The array of an npy file, of objects what the restricted unpickler allows. Raises UserError for anything else."""
    begin = {b"\x93NUMPY\x01\x00": 10, b"\x93NUMPY\x02\x00": 12, b"\x93NUMPY\x03\x00": 12}.get(content[:8], 0)
    end = begin + int.from_bytes(content[8:begin], "little")
    head = HEAD.fullmatch(content[begin:end]) if begin and end <= len(content) else None
    if head is None:
        raise UserError(f"{place} is no npy file of plain numbers, or a damaged one; get the file again.")
    dtype_name = head["dtype"].decode()
    if dtype_name.endswith("O"):
        return load_restricted(content[end:], str(place))
    try:
        dtype = np.dtype(dtype_name)
        shape = tuple(int(length.strip(b" L")) for length in head["shape"].split(b",") if length.strip())
        expected = prod(shape) * dtype.itemsize
        if len(content) - end != expected:
            had = f"{len(content) - end:,} bytes of data"
            raise UserError(f"{place} has {had}, expected {expected:,}; it may be cut off.")
        return plain_array(dtype, shape, content[end:], fortran=head["fortran"] == b"True")
    except (ValueError, TypeError) as error:
        raise UserError(f"{place} is no npy file that can be read ({error}); get the file again.") from None
