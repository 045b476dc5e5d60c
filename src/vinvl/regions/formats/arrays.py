"""Folders with a file for each image: MMF's `ID.npy` with `ID_info.npy`, and `ID.npz`."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from vinvl.regions.formats.rows import (
    MOST_BYTES,
    Done,
    FeatureOptions,
    Found,
    at,
    checked_size,
    images_of_items,
    numbers,
    regions_of,
    shifted,
)
from vinvl.regions.regions import LabelMap, Regions
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
