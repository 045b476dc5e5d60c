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
    KnownNames,
    at,
    checked_size,
    images_of_items,
    regions_of,
    shifted,
)
from vinvl.regions.regions import Regions
from vinvl.run.errors import UserError
from vinvl.run.restricted_pickle import load_restricted, plain_array
from vinvl.run.values import shown

# Named arrays of one image, as MMF, bottom-up-attention and others save them: what they call one thing.
FEATURES = ("features", "x", "feature", "feat")
BOXES = ("boxes", "bbox", "bboxes")
WIDTH = ("image_w", "image_width", "img_w", "width")
HEIGHT = ("image_h", "image_height", "img_h", "height")
COUNT = ("num_boxes", "num_bbox")
CLASSES = ("objects", "classes", "objects_id", "class_ids")
SCORES = ("cls_prob", "scores", "class_scores", "objects_conf", "confidence")
ATTRIBUTES = ("attributes", "attrs_id")
ATTRIBUTE_SCORES = ("attribute_scores", "attrs_conf", "attrs_scores")
OFFSET = ("class_offset",)  # what `features_out` says of the numbers in its files
FIELDS = (
    *FEATURES, *BOXES, *WIDTH, *HEIGHT, *COUNT, *CLASSES, *SCORES, *ATTRIBUTES, *ATTRIBUTE_SCORES, *OFFSET
)  # fmt: skip


def regions_of_fields(image_id: str, fields: Mapping[str, Any], options: FeatureOptions, known: KnownNames) -> Regions:
    """The regions of an image from its named arrays; keys that are not known are left out.

    Score tables (R, C) count with their highest number; padding behind the number of boxes is dropped. Raises UserError
    if features, boxes or size are missing or not what they should be, or nothing tells what class numbers count.
    """
    features = _array(_required(fields, FEATURES, "features"), "features")
    boxes = _array(_required(fields, BOXES, "boxes"), "boxes")
    features, count = _of_boxes(features, boxes, _optional(fields, COUNT))
    size = checked_size(_required(fields, WIDTH, "width"), _required(fields, HEIGHT, "height"))
    classes, scores = _numbers(fields, CLASSES, count), _numbers(fields, SCORES, count)
    attributes, attribute_scores = _numbers(fields, ATTRIBUTES, count), _numbers(fields, ATTRIBUTE_SCORES, count)
    if (given := options.class_offset) is None and (said := _optional(fields, OFFSET)) is not None:
        given = _checked_count(said, 1, "class_offset")
    if given is None:
        offset = offset_of(classes, scores, known.classes, "class")
        of_attributes = offset_of(attributes, attribute_scores, known.attributes, "attribute", otherwise=offset)
    else:
        offset = of_attributes = given
    return regions_of(
        image_id,
        features[:count],
        boxes[:count].reshape(count, -1) if count else np.zeros((0, 4)),
        size,
        options,
        classes=None if classes is None else shifted(classes, offset or 0, known.classes, "classes"),
        class_scores=_highest(scores),
        attributes=None
        if attributes is None
        else shifted(attributes, of_attributes or 0, known.attributes, "attributes"),
        attribute_scores=_highest(attribute_scores) if attributes is None or attributes.ndim == 1 else attribute_scores,
    )


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


def _required(fields: Mapping[str, Any], names: tuple[str, ...], what: str) -> Any:
    value = _optional(fields, names)
    if value is None:
        present = ", ".join(sorted(str(name) for name in fields if isinstance(name, str | bytes))[:12]) or "nothing"
        raise UserError(f"there is no {what} (one of {', '.join(names)}); it has {present}.")
    return value


def _optional(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _array(value: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError):  # lists of unlike lengths, or of no numbers
        array = np.zeros(0, dtype=object)
    if array.dtype.kind not in "fiu" or array.ndim == 0:
        raise UserError(f"{what} are {array.shape} of {array.dtype}, expected numbers.")
    return array


def _numbers(fields: Mapping[str, Any], names: tuple[str, ...], count: int) -> np.ndarray | None:
    """The first `count` rows of what may be missing."""
    value = _optional(fields, names)
    return None if value is None else _array(value, names[0])[:count]


def _highest(scores: np.ndarray | None) -> np.ndarray | None:
    """(R,) scores, of a table (R, C) of all classes the highest of each region."""
    if scores is None or scores.ndim != 2:
        return scores
    return scores.max(axis=1) if scores.size else np.zeros(len(scores), dtype=np.float32)


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


def size_of(path: Path) -> int:
    """Bytes of a file; 0 of one that is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def images_of_files(
    folder: Path, files: Sequence[Path], options: FeatureOptions, known: KnownNames, workers: int, done: Done
) -> Iterator[Found]:
    """The images of a folder; the id is the path below the folder without its suffix."""
    return images_of_items(files, partial(_read_file, folder=folder, options=options, known=known), workers, done)


def _read_file(path: Path, folder: Path, options: FeatureOptions, known: KnownNames) -> Found:
    image_id, size = path.relative_to(folder).with_suffix("").as_posix(), 0
    try:
        fields = read_npz(path) if path.suffix == ".npz" else _read_npy_pair(path)
        size = size_of(path)
        with at(str(path)):
            return Found(str(path), regions_of_fields(image_id, fields, options, known), size)
    except OSError as error:
        return Found(str(path), UserError(f"{path} cannot be read ({error.strerror or error}); check the path."), 0)
    except UserError as error:
        return Found(str(path), error, size)


def _read_npy_pair(path: Path) -> dict[str, Any]:
    info_path = info_of(path)
    if not info_path.is_file():
        raise UserError(f"{path} has no {info_path.name} beside it, so its boxes are not known.")
    if not path.exists():
        raise UserError(f"{info_path} has no {path.name} beside it, so its image has no features.")
    with path.open("rb") as file, info_path.open("rb") as info_file:
        features = read_array(_all_of(file, MOST_BYTES, str(path)), str(path))
        info = _item(read_array(_all_of(info_file, MOST_BYTES, str(info_path)), str(info_path)))
    if not isinstance(info, dict):
        raise UserError(f"{info_path} holds {type(info).__name__}, expected a dict with bbox and the image's size.")
    return {**info, "features": features}


def _all_of(file: IO[bytes], most: int, place: str) -> bytes:
    content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{place} has more than the {MOST_BYTES:,} bytes that are read of one image.")
    return content


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays of an npz by name, None for those of no use; a dict in its member `info` is taken in too.

    Raises:
        UserError: it is damaged, or would fill the memory.
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
                if name in (*FIELDS, "info"):
                    with archive.open(member) as file:
                        content = _all_of(file, left, place)
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


def read_array(content: bytes, place: str) -> Any:
    """The array of an npy file, of objects what the restricted unpickler allows. Raises UserError for anything else."""
    begin = {b"\x93NUMPY\x01\x00": 10, b"\x93NUMPY\x02\x00": 12, b"\x93NUMPY\x03\x00": 12}.get(content[:8], 0)
    end = begin + int.from_bytes(content[8:begin], "little")
    head = HEAD.fullmatch(content[begin:end]) if begin and end <= len(content) else None
    if head is None:
        raise UserError(f"{place} is no npy file of plain numbers, or a damaged one; get the file again.")
    dtype_name = head["dtype"].decode()
    if dtype_name.endswith("O"):
        return load_restricted(content[end:], place)
    try:
        dtype = np.dtype(dtype_name)
        shape = tuple(int(length.strip(b" L")) for length in head["shape"].split(b",") if length.strip())
        expected = prod(shape) * dtype.itemsize
        if len(content) - end != expected:
            raise UserError(
                f"{place} has {len(content) - end:,} bytes of data, expected {expected:,}; it may be cut off."
            )
        return plain_array(dtype, shape, content[end:], fortran=head["fortran"] == b"True")
    except (ValueError, TypeError) as error:
        raise UserError(f"{place} is no npy file that can be read ({error}); get the file again.") from None


# Whether the class numbers of a file count the background, as the store's do, or begin with the first class.


# Columns of the detectors of Visual Genome, classes and attributes, which need no label map: with what is 0 here.
USUAL_NAMES = {"class": 1601, "attribute": 401}


def offset_of(
    numbers: np.ndarray | None, table: np.ndarray | None, names: int, kind: str, otherwise: int | None = None
) -> int | None:
    """What is to be added to the class or attribute numbers of an image, 0 or 1, told by their table of scores.

    A table with as many columns as there are names has the background, one with a column less leaves it out; which of
    its columns the numbers count shows in that they are those of the highest scores.

    Args:
        numbers: (R,) or (R, K) as in the file; None if it has none.
        table: (R, C) scores of all classes, or anything else that then tells nothing.
        names: of the label map, the background's included; 0 if there is none, and then no name can be wrong.
        kind: "class" or "attribute".
        otherwise: what holds where the table tells nothing; None if nothing else does.

    Raises:
        UserError: there are names, and nothing tells.
    """
    if numbers is None or not numbers.size:
        return otherwise
    tells = False
    if numbers.ndim == 1 and table is not None and table.ndim == 2 and len(table) == len(numbers):
        columns, expected = table.shape[1], names or USUAL_NAMES[kind]
        tells = columns in (expected, expected - 1)
        if not tells and names and columns > 1:
            raise UserError(
                f"there are scores of {columns} {kind} columns, but the label map has {names} names, the background's "
                f"included: pass features.class_offset=0 or 1 ({kind} numbers with or without the background)."
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
