"""Boxes that somebody gives, of a COCO instances JSON, a TSV, JSON Lines or our annotations: read, matched, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta, Struct

from vinvl.data.table import Column
from vinvl.detector.annotations import is_annotations, open_annotations
from vinvl.pictures import PictureNames, Pictures, ReadingOptions, picture_size
from vinvl.pictures.containers import SUFFIXES, Entry
from vinvl.regions.formats.rows import id_in
from vinvl.regions.formats.tsv import line_parts
from vinvl.regions.regions import INVERSION_TOLERANCE, out_of_bounds
from vinvl.regions.shard import IdLookup
from vinvl.run.errors import UserError
from vinvl.run.files import begins_a_list, no_cycle_collection, reading
from vinvl.run.values import Id, decoded, decoded_file, decoded_items, decoded_records, shown

HEAD = 1 << 20  # bytes of the first line by which the format is told
FIRST = 512  # pictures whose boxes are held against them before the work begins
SOME, LARGE = 20, 200  # boxes, and pixels of the pictures, from which what they share is not an accident
CORNERS = "boxes are expected as x1, y1, x2, y2 in pixels"

Number = Annotated[float, Meta(gt=-1e9, lt=1e9)]
Length = Annotated[float, Meta(ge=0, lt=1e9)]
Side = Annotated[int, Meta(ge=1, lt=2**31)]
Corners = Annotated[list[Number], Meta(min_length=4, max_length=5)]  # VCR has a score behind them


class OfImage(NamedTuple):
    """The boxes of an image as a file has them."""

    number: int  # of the record in its file
    names: tuple[tuple[str, str], ...]  # of the image, the surest first: kind ("path" or "key") and name
    size: tuple[int, int]  # (width, height), 0 where the file does not say
    boxes: np.ndarray  # (n, 4) float32 x1 y1 x2 y2 in pixels


class _Line(Struct, gc=False):
    boxes: list[Corners]
    image_id: Id | None = None
    file_name: str | None = None
    img_fn: str | None = None
    width: Side | None = None
    height: Side | None = None


class _CocoImage(Struct, gc=False):
    id: Id
    file_name: str | None = None
    width: Side | None = None
    height: Side | None = None


class _CocoBox(Struct, gc=False):
    image_id: Id
    bbox: tuple[Number, Number, Length, Length]


class _Coco(Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]


class _Thing(Struct, gc=False):
    rect: Annotated[list[Number], Meta(min_length=4, max_length=4)]


class _Things(Struct, gc=False):
    objects: list[_Thing]
    image_w: Side | None = None
    image_h: Side | None = None


Size = tuple[int, int]


@dataclass(frozen=True, eq=False)
class GivenBoxes:
    """The boxes of N pictures, by image id, in the order of their file; arrays, so that processes share them.

    Attributes:
        place: of a record in messages, before its number: "refs.jsonl line".
        lookup: of the N ids.
        numbers: (N,) int64, of each one's record.
        sizes: (N, 2) int64 width and height, 0 where the file does not say.
        starts: (N + 1,) int64, where each one's boxes begin.
        boxes: (M, 4) float32 x1 y1 x2 y2 in pixels of the pictures.
    """

    place: str
    lookup: IdLookup
    numbers: np.ndarray
    sizes: np.ndarray
    starts: np.ndarray
    boxes: np.ndarray

    def of(self, image_id: str, size: Size) -> np.ndarray:
        """(n, 4) the boxes of a picture of this (width, height).

        Raises UserError where they are of another picture: it has another size, or they reach out of it.
        """
        row = self.lookup.find(image_id)
        boxes = self.boxes[self.starts[row] : self.starts[row + 1]]
        if problem := _misfit(boxes, tuple(self.sizes[row].tolist()), size):
            raise UserError(f"{self.place} {self.numbers[row]} (image {shown(image_id)}) {problem}.")
        return boxes

    def check_first(self, pictures: Pictures, options: ReadingOptions) -> None:
        """Raises UserError if boxes of the first pictures do not fit them, so that no work is done for nothing."""
        sizes = list[int]()
        for image_id, path in islice(zip(pictures.ids, pictures.paths, strict=True), FIRST):
            try:
                size = picture_size(path, options)
            except UserError:
                continue  # it is told with the broken ones
            self.of(image_id, size)
            sizes += size
        if len(self.boxes) >= SOME and min(sizes, default=0) >= LARGE and self.boxes.max() <= 100 + 1e-3:
            raise UserError(
                f"{self.place.rpartition(' ')[0]}: none of {len(self.boxes):,} boxes reaches beyond pixel 100, and the "
                f"pictures have {LARGE} and more: {CORNERS}, not in per cent."
            )


def _misfit(boxes: np.ndarray, said: Size, size: Size) -> str:
    """What is wrong with the boxes of a picture of this size, whose file says that it has another; "" if nothing is."""
    pixels = f"{size[0]} × {size[1]} pixels"
    if any(said) and said != size:
        turned = "; EXIF turns it, and reading.exif_orientation tells whether boxes are of what a viewer shows"
        told = turned if said == size[::-1] else ""
        return f"is of a picture of {said[0]} × {said[1]} pixels, and it has {pixels}: give boxes of this size{told}"
    if len(boxes) and min(size) > 16 and float(boxes.max()) <= 1 + 1e-3:
        return f"has no box beyond pixel 1 of {pixels}: {CORNERS}, not in shares of the picture"
    bad = out_of_bounds(boxes, np.array([size], dtype=np.float32))
    if bad.any():
        first = int(bad.argmax())
        return f"has box {first + 1}, {_text(boxes[first])}, outside of the picture of {pixels}: {CORNERS}"
    return ""


def _text(box: Iterable[float]) -> str:
    return f"({', '.join(f'{side:.6g}' for side in box)})"


def given_boxes(
    path: Path, pictures: Pictures, names: PictureNames, unmatched: Literal["skip", "error"] = "skip"
) -> tuple[Pictures, GivenBoxes, str]:
    """The pictures that a file has boxes of, these, and what is to be told of others.

    An image of the file is the picture that has the id which its name there gives by the same rule; by its number if
    the file does not name it.

    Raises:
        UserError: the file is none of boxes, or has two records of an image with other boxes; or no picture is in it,
            or, with unmatched="error", not all pictures are, or not all of its images are pictures.
    """
    ids = np.array([one.encode() for one in pictures.ids] or [b""])
    lookup, row_of = IdLookup(ids), np.full(len(ids), -1, dtype=np.int64)
    place, records = _records(path)
    found, others, first = list[OfImage](), 0, ""
    for record in records:
        index = next((index for one in record.names if (index := _find(one, names, lookup)) >= 0), -1)
        if index < 0:
            others, first = others + 1, first or record.names[0][1]
            continue
        if (row := int(row_of[index])) < 0:
            row_of[index] = len(found)
            found.append(record)
        elif not np.array_equal(found[row].boxes, record.boxes):
            what = f"is of the image of {found[row].number} and has other boxes: give all boxes of an image together"
            raise UserError(f"{place} {record.number} ({shown(record.names[0][1])}) {what}.")
    without = int((row_of < 0).sum())
    if not found:
        like = f"ids are like {shown(pictures.ids[0])}, the file's images like {shown(first)}"
        raise UserError(
            f"{path} has boxes of none of the {len(pictures):,} pictures ({like}): pass id.rule or id.pattern."
        )
    boxes = np.concatenate([one.boxes for one in found])
    told = f"{path}: {len(boxes):,} boxes of {len(found):,} pictures"
    told += f"; {without:,} pictures have none there and are left out" if without else ""
    told += f"; {others:,} of its images are no pictures here, the first being {shown(first)}" if others else ""
    if unmatched == "error" and (without or others):
        raise UserError(f"{told}: give what is missing, or pass on_unmatched=skip.")
    owners = np.zeros(len(found), dtype=ids.dtype)
    owners[row_of[row_of >= 0]] = ids[row_of >= 0]
    starts = np.insert(np.cumsum([len(one.boxes) for one in found]), 0, 0)
    numbers, sizes = (np.array([getattr(one, name) for one in found]) for name in ("number", "size"))
    given = GivenBoxes(place, IdLookup(owners), numbers, sizes, starts, boxes)
    return pictures.select(row_of >= 0), given, told


def _find(name: tuple[str, str], names: PictureNames, lookup: IdLookup) -> int:
    """The index of the picture of an image, -1 if there is none; a key may also be an id or a file's name as it is."""
    kind, text = name
    entry = Entry("", text, kind)
    kinds = [entry, Entry("", text, "path")] if Path(text).suffix.lower() in SUFFIXES else [entry]
    for one in kinds:
        try:
            index = lookup.find(names.image_id(one))
        except UserError:  # the pattern does not fit
            continue
        if index >= 0:
            return index
    return lookup.find(names.prefix + text)


# The files.


def _records(path: Path) -> tuple[str, Iterator[OfImage]]:
    """What a record is called in messages, and the records. Raises UserError for what is no file of boxes."""
    if is_annotations(path):
        return f"{path} image", _of_annotations(path)
    with reading(path), path.open("rb") as file:
        start = file.readline(HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"[") or (start.startswith(b"{") and _is_line(start)):
        return f"{path} {'record' if begins_a_list(path) else 'line'}", _of_lines(path)
    if start.startswith(b"{") or not start:
        return f"{path} image", _of_coco(path)
    return f"{path} line", _of_tsv(path)


def _is_line(content: bytes) -> bool:
    try:
        return "boxes" in msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError:
        return False


def _of_lines(path: Path) -> Iterator[OfImage]:
    for place, number, one in decoded_records(path, msgspec.json.Decoder(_Line)):
        named = [("path", name) for name in (one.file_name, one.img_fn) if name]
        named += [("key", str(one.image_id))] if one.image_id is not None else []
        if not named:
            raise UserError(f"{place} {number} names no image: give image_id, file_name or img_fn.")
        yield _of_image(place, number, tuple(named), (one.width, one.height), [box[:4] for box in one.boxes])


def _of_tsv(path: Path) -> Iterator[OfImage]:
    """Rows of key and JSON: a list of objects with rect, or {"objects": such a list}."""
    decoder, number = msgspec.json.Decoder(_Things | list[_Thing]), 0
    for part in line_parts(path):
        for _, columns, _, _ in part.rows():
            number += 1
            if not columns:
                continue
            place = f"{path} line {number}"
            if len(columns) < 2 or columns[-1][:1] not in (b"[", b"{"):
                raise UserError(f"{place} is not a key, a tab and the JSON of objects: give a file of boxes.")
            try:
                key = id_in(columns[0])
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
            found: Any = decoded(columns[-1], decoder, place)
            found = found if isinstance(found, _Things) else _Things(found)
            size, boxes = (found.image_w, found.image_h), [one.rect for one in found.objects]
            yield _of_image(f"{path} line", number, (("key", key),), size, boxes)


def _of_coco(path: Path) -> Iterator[OfImage]:
    with no_cycle_collection():
        content = decoded_file(path, _Coco, "COCO instances JSON, a TSV or JSON Lines of boxes")
        images = list(decoded_items(content.images, msgspec.json.Decoder(_CocoImage), path, "$.images"))
        things = list(decoded_items(content.annotations, msgspec.json.Decoder(_CocoBox), path, "$.annotations"))
    rows = {str(one.id): row for row, one in enumerate(images)}
    owners = np.zeros(len(things), dtype=np.int64)
    for number, one in enumerate(things):
        owner = rows.get(str(one.image_id), -1)
        if owner < 0:
            what = f"is of the image {shown(one.image_id)}, which is none of the file's images"
            raise UserError(f"{path} annotation {number + 1} {what}.")
        owners[number] = owner
    boxes = np.array([one.bbox for one in things], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    order = np.argsort(owners, kind="stable")
    parts = np.split(boxes[order].astype(np.float32), np.searchsorted(owners[order], np.arange(1, len(images))))
    for number, (image, own) in enumerate(zip(images, parts, strict=False), start=1):
        names = (*((("path", image.file_name),) if image.file_name else ()), ("key", str(image.id)))
        yield OfImage(number, names, (image.width or 0, image.height or 0), own)


def _of_annotations(path: Path) -> Iterator[OfImage]:
    records, _ = open_annotations(path)
    for index in range(len(records)):
        row = records.table.slice(index, 1)
        name, image_id = (Column(row[column])[0] for column in ("file_name", "image_id"))
        boxes = records.objects(index).boxes.astype(np.float32)
        width, height = records.sizes[index].tolist()
        yield OfImage(index + 1, (("path", name), ("key", str(image_id))), (width, height), boxes)


def _of_image(
    place: str,
    number: int,
    names: tuple[tuple[str, str], ...],
    size: tuple[int | None, int | None],
    boxes: Sequence[Any],
) -> OfImage:
    """Raises UserError for a box that ends before it begins, by more than what detectors may turn over."""
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    bad = (array[:, :2] - array[:, 2:] > INVERSION_TOLERANCE * array.max(initial=0)).any(axis=1)
    if bad.any():
        first = int(bad.argmax())
        what = f"has box {first + 1}, {_text(array[first])}, which ends before it begins: {CORNERS}"
        raise UserError(f"{place} {number} ({shown(names[0][1])}) {what}, not as x, y, width and height.")
    width, height = size
    array[:, 2:] = np.maximum(array[:, :2], array[:, 2:])
    return OfImage(number, names, (width, height) if width and height else (0, 0), array)
