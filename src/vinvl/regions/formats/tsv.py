"""A TSV, read in parts by worker processes and put together in order; its index files are held against it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vinvl.regions.formats.rows import (
    MOST_BYTES,
    Done,
    FeatureOptions,
    Found,
    KnownNames,
    LeftOut,
    at,
    base64_rows,
    checked_size,
    id_in,
    number_of_regions,
    regions_of,
    shifted,
)
from vinvl.regions.regions import Regions
from vinvl.run.errors import UserError
from vinvl.run.files import parse_json, read_json
from vinvl.run.lines import in_order
from vinvl.run.values import checked_id, json_members, shown

PART_BYTES = 8 * 2**20
LONGEST_LINE = MOST_BYTES
BLOCK_IDS = 100_000

# How the rows of a TSV are read: image id and columns → regions, if they are asked for; picklable, raises UserError.
ReadRow = Callable[[str, list[bytes]], Regions | None]


class LinePart(NamedTuple):
    """Whole lines: the bytes start to stop of a file."""

    path: str
    start: int
    stop: int

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """(byte where it begins, line with its end)"""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            position = self.start
            while position < self.stop and (line := file.readline(self.stop - position)):
                yield position, line
                position += len(line)


@dataclass(frozen=True)
class ReadPart:
    """What a worker made of a part.

    Attributes:
        images: (line within the part from 0, image id in the file, regions); of a row that could not be read, no id and
            instead of the regions what is wrong, to follow the place; of one that an earlier run has done, no regions.
        starts: (lines,) int64, where each line begins.
        stop: the end of the part in bytes.
    """

    images: list[tuple[int, str, Regions | str | None]]
    starts: np.ndarray
    stop: int


def line_parts(path: Path) -> Iterator[LinePart]:
    """Parts of some megabytes. Raises UserError if the file cannot be read or has no lines worth the name."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = 0
            while start < size:
                file.seek(min(start + PART_BYTES, size))
                if len(file.readline(LONGEST_LINE)) == LONGEST_LINE:
                    raise UserError(f"{path} has a line of more than {LONGEST_LINE:,} bytes; it is no TSV of features.")
                stop = file.tell()
                yield LinePart(str(path), start, stop)
                start = stop
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error


def read_part(part: LinePart, read: ReadRow, done: Done) -> ReadPart:
    """Reads the lines of a part; of those that are done the image ids."""
    images: list[tuple[int, str, Regions | str | None]] = []
    starts: list[int] = []
    for number, (start, line) in enumerate(part.lines()):
        starts.append(start)
        stop = start + len(line)
        if not line.strip():
            continue
        if stop <= done.position:
            images.append((number, *(("", "") if stop in done.unread else (id_in(line.split(b"\t", 1)[0]), None))))
            continue
        image_id = ""
        try:
            columns = line.rstrip(b"\r\n").split(b"\t")
            image_id = id_in(columns[0])
            images.append((number, image_id, read(image_id, columns)))
        except UserError as error:
            cut = "" if line.endswith(b"\n") else " (the last line, without an end: the file may be cut off)"
            image = f": image {image_id!r}" if image_id else ""
            images.append((number, "", f"{cut}{image}: {error}"))
    return ReadPart(images, np.array(starts, dtype=np.int64), part.stop)


def images_of_lines(
    path: Path, read: ReadRow, indices: Iterable[TsvIndex], workers: int, left_out: LeftOut, done: Done
) -> Iterator[Found]:
    """The images of a TSV in its order; of a wrong row a sentence that names file and line.

    Raises UserError if the file cannot be read, or (unless skipped) an index says something else than the TSV.
    """
    held = HeldIndices(indices, left_out)
    before = 0
    for part in in_order(partial(read_part, read=read, done=done), line_parts(path), workers):
        ends = [*part.starts[1:].tolist(), part.stop]
        for number, _, regions in part.images:
            place = f"{path} line {before + number + 1}"
            yield Found(place, UserError(place + regions) if isinstance(regions, str) else regions, ends[number])
        held.check(before, part)
        before += len(part.starts)
    held.check_end(before)


# The files that say where the rows of a TSV are. `check` holds one against a part that has so many lines before it,
# `check_end` against the number of lines of all.

ANOTHER = "delete the index, or get both again"


class HeldIndices:
    """Index files that are held against their TSV; one that says something else is dropped with a word, or refused."""

    def __init__(self, indices: Iterable[TsvIndex], left_out: LeftOut) -> None:
        self._indices, self._left_out = list(indices), left_out

    def check(self, before: int, part: ReadPart) -> None:
        self._each(lambda index: index.check(before, part))

    def check_end(self, lines: int) -> None:
        self._each(lambda index: index.check_end(lines))

    def _each(self, hold: Callable[[TsvIndex], None]) -> None:
        for index in list(self._indices):
            try:
                hold(index)
            except UserError as error:
                self._left_out.add(error)
                self._indices.remove(index)


class LineIndex:
    """A `.lineidx`: the byte where each line of its TSV begins."""

    def __init__(self, path: Path, tsv: Path) -> None:
        self._path, self._tsv = path, tsv
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # NumPy warns where it stops before the end
                self._offsets = np.fromfile(path, dtype=np.int64, sep="\n")
        except (ValueError, Warning):
            raise UserError(f"{path} is no list of numbers, one a line; delete it, it is not needed.") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error

    def check(self, before: int, part: ReadPart) -> None:
        listed = self._offsets[before : before + len(part.starts)]
        wrong = np.flatnonzero(listed != part.starts[: len(listed)])
        if len(wrong):
            line = int(wrong[0])
            raise UserError(
                f"{self._path} sends line {before + line + 1} of {self._tsv} to byte {listed[line]:,}, but it begins "
                f"at {part.starts[line]:,}: the index is of another file; {ANOTHER}."
            )

    def check_end(self, lines: int) -> None:
        if len(self._offsets) != lines:
            raise UserError(
                f"{self._path} lists {len(self._offsets):,} lines, but {self._tsv} has {lines:,}: "
                f"one of them is cut off or of another file; {ANOTHER}."
            )


def line_index(path: Path) -> list[TsvIndex]:
    """The `.lineidx` beside a TSV, if there is one."""
    beside = path.with_suffix(".lineidx")
    return [LineIndex(beside, path)] if beside.is_file() else []


class ImageIndex:
    """The place of each image id in a TSV: its row in an `imageid2idx.json`, its byte in an `…_offset_map.json`.

    Of an id that the TSV has more than once the index may name any row: where repeated rows are left out, the check
    waits for the end of the TSV.
    """

    def __init__(self, path: Path, tsv: Path, scratch: Path, repeats: bool, *, of_bytes: bool) -> None:
        self._path, self._tsv, self._of_bytes, self._repeats = path, tsv, of_bytes, repeats
        self._table = IdTable.write(scratch, _id_blocks(path, _rows_in(path)), path)
        self._places = np.asarray(self._table.values[:, 0])
        self._seen = np.zeros(len(self._table), dtype=bool)
        self._elsewhere: dict[int, int] = {}

    def check(self, before: int, part: ReadPart) -> None:
        places = part.starts if self._of_bytes else before + np.arange(len(part.starts))
        for number, image_id, regions in part.images:
            place = int(places[number])
            if isinstance(regions, str):
                self._seen[self._places == place] = True  # the row is there, but cannot be read
                continue
            position = self._table.position(image_id)
            if position is None:
                continue  # a row more than the index has does no harm
            if self._places[position] == place:
                self._seen[position] = True
            elif self._repeats:
                self._elsewhere.setdefault(position, place)
            else:
                raise self._at_odds(position, place)

    def check_end(self, lines: int) -> None:
        for position, place in self._elsewhere.items():
            if not self._seen[position]:
                raise self._at_odds(position, place)
        if (missing := self._table.lacking(self._seen, self._tsv)) is not None:
            raise UserError(f"{self._path} names {missing}: the TSV is cut off or of another index; {ANOTHER}.")

    def _at_odds(self, position: int, place: int) -> UserError:
        kind = "byte" if self._of_bytes else "row"
        return UserError(
            f"{self._path} sends image {self._table.name(position)!r} to {kind} {self._places[position]:,} (from 0), "
            f"but it is {kind} {place:,} of {self._tsv}: the index is of another file; {ANOTHER}."
        )


class PredictedImages:
    """The ids in a `predictions.tsv`, which has no more images than the features that it is of."""

    def __init__(self, predictions: Path, table: Path, tsv: Path, note: Callable[[str], None] | None) -> None:
        """`note` is told of a file that has more where a person named it for these features; None refuses it."""
        self._path, self._table, self._tsv, self._note = predictions, IdTable(table), tsv, note
        self._seen = np.zeros(len(self._table), dtype=bool)
        self._unread = 0

    def check(self, before: int, part: ReadPart) -> None:
        for _, image_id, regions in part.images:
            self._unread += isinstance(regions, str)
            if (position := self._table.position(image_id)) is not None:
                self._seen[position] = True

    def check_end(self, lines: int) -> None:
        missing = self._table.lacking(self._seen, self._tsv)
        if missing is not None and int((~self._seen).sum()) > self._unread:
            more = f"{self._path} has {missing}"
            if self._note is None:
                raise UserError(f"{more}: the features are cut off, or a part: pass features.predictions=FILE then.")
            self._note(more)


TsvIndex = LineIndex | ImageIndex | PredictedImages


class IdTable:
    """Whole numbers (K,) by id: a sorted (N,) array of UTF-8 ids and an (N, K) int64 array, both memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.ids = np.load(folder / "ids.npy", mmap_mode="r")
        self.values = np.load(folder / "values.npy", mmap_mode="r")

    @classmethod
    def write(
        cls,
        folder: Path,
        blocks: Iterable[tuple[np.ndarray, np.ndarray]],
        source: str | Path,
        on_repeat: Callable[[UserError], None] | None = None,
    ) -> IdTable:
        """Makes a table in a new folder of blocks of (n,) ids and (n, K) int64, in any order.

        `on_repeat` is told of each id that came before, whose first numbers stay; None refuses it. Raises UserError,
        naming the source, if there is no id, or one comes twice.
        """
        parts = list(blocks)
        if not parts:
            raise UserError(f"{source} names no images.")
        ids = np.concatenate([part for part, _ in parts])
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        first = np.concatenate([[True], ids[1:] != ids[:-1]])
        for image_id in ids[~first]:
            error = UserError(f"{source} has image {image_id.decode('utf-8', 'replace')!r} more than once.")
            if on_repeat is None:
                raise error
            on_repeat(error)
        folder.mkdir(parents=True)
        np.save(folder / "ids.npy", ids[first])
        np.save(folder / "values.npy", np.concatenate([values for _, values in parts])[order[first]])
        return cls(folder)

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, image_id: str) -> int | None:
        """Where an id is in the table."""
        key = image_id.encode("utf-8", "surrogatepass")
        if len(key) > self.ids.dtype.itemsize:
            return None  # NumPy would convert all ids to its length
        position = int(self.ids.searchsorted(np.array(key, dtype=self.ids.dtype)))
        return position if position < len(self.ids) and self.ids[position] == key else None

    def find(self, image_id: str) -> np.ndarray | None:
        """(K,) numbers of an id."""
        position = self.position(image_id)
        return None if position is None else self.values[position]

    def name(self, position: int) -> str:
        name: bytes = self.ids[position]
        return name.decode("utf-8", "replace")

    def lacking(self, seen: np.ndarray, tsv: Path) -> str | None:
        """How many of the ids were not seen in a TSV, in words; None if all were."""
        if seen.all():
            return None
        example = self.name(int(np.argmin(seen)))
        return f"{int((~seen).sum()):,} images that {tsv} does not have, such as {example!r}"


def _id_blocks(path: Path, members: Iterator[tuple[object, Sequence[int]]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of ids and their numbers, for `IdTable.write`."""
    while block := list(islice(members, BLOCK_IDS)):
        ids = np.array([str(checked_id(name, f"{path}: an id")).encode() for name, _ in block], dtype=np.bytes_)
        yield ids, np.array([numbers for _, numbers in block], dtype=np.int64)


def _rows_in(path: Path) -> Iterator[tuple[str, Sequence[int]]]:
    for name, row in json_members(path, "image ids with their row numbers"):
        if type(row) is not int or not 0 <= row < 2**62:
            raise UserError(f"{path} sends image {name[:40]!r} to row {shown(row)}, a whole number was expected.")
        yield name, (row,)


# Rows of the TSV files of bottom-up-attention and of LXMERT, whose columns have fixed places.


BOTTOM_UP_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT_COLUMNS = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features"
)  # fmt: skip


@dataclass(frozen=True)
class ColumnRows:
    """`ReadRow` of a TSV with these columns. LXMERT's numbers leave the background out: its 0 is the store's 1."""

    columns: tuple[str, ...]
    options: FeatureOptions
    known: KnownNames

    def __call__(self, image_id: str, values: list[bytes]) -> Regions:
        if len(values) != len(self.columns):
            expected = f"{len(self.columns)}: {', '.join(self.columns)}"
            raise UserError(f"the row has {len(values)} columns, expected {expected}.")
        row, prefix = dict(zip(self.columns, values, strict=True)), self.columns[0].removesuffix("id")
        count = number_of_regions(row["num_boxes"])
        return regions_of(
            image_id,
            base64_rows(row["features"], count, None, "features", "<f4"),
            base64_rows(row["boxes"], count, (4,), "boxes", "<f4"),
            checked_size(row[f"{prefix}w"], row[f"{prefix}h"]),
            self.options,
            **(self._objects(row, count) if "objects_id" in row else {}),
        )

    def _objects(self, row: Mapping[str, bytes], count: int) -> dict[str, np.ndarray]:
        offset = 1 if self.options.class_offset is None else self.options.class_offset
        columns = {
            name: base64_rows(row[name], count, (1,), name, "<i8" if name.endswith("id") else "<f4")
            for name in ("objects_id", "attrs_id", "objects_conf", "attrs_conf")
        }
        return {
            "classes": shifted(columns["objects_id"][:, 0], offset, self.known.classes, "objects_id"),
            "class_scores": columns["objects_conf"][:, 0],
            "attributes": shifted(columns["attrs_id"], offset, self.known.attributes, "attrs_id"),
            "attribute_scores": columns["attrs_conf"],
        }


# Image sizes from a file, for features that do not say how large their pictures were.


def write_sizes(path: Path, scratch: Path, left_out: LeftOut) -> IdTable:
    """A table of (width, height) in a new folder, from one of three kinds of file.

    A TSV of id and {"height": …, "width": …}, or a list of one such, as the published extractor wants it (`hw.tsv`); a
    JSON of COCO's form with `images` of `id`, `width` and `height`; or a JSON {id: [width, height]}. Raises UserError
    for anything else, a size that is none, and (unless skipped) an id that comes twice.
    """
    return IdTable.write(scratch, _id_blocks(path, _checked_sizes(path)), path, left_out.add)


def _checked_sizes(path: Path) -> Iterator[tuple[object, Sequence[int]]]:
    for name, width, height in _sizes(path):
        with at(f"{path}: image {shown(name)}"):
            size = checked_size(width, height)
        yield name, size


def _sizes(path: Path) -> Iterator[tuple[object, object, object]]:
    if path.suffix == ".tsv":
        yield from _tsv_sizes(path)
        return
    holds = "image ids with [width, height]"
    first = next(iter(json_members(path, holds)), ("", None))[0]
    if first in ("images", "info", "licenses", "annotations", "categories", "type"):  # as COCO has it
        images = read_json(path).get("images")
        if not isinstance(images, list):
            raise UserError(f"{path} has no list of images; give a JSON {{id: [width, height]}} or of COCO's form.")
        for number, image in enumerate(images, start=1):
            if not isinstance(image, dict) or not {"id", "width", "height"} <= set(image):
                raise UserError(f"{path} image {number} lacks id, width or height.")
            yield image["id"], image["width"], image["height"]
        return
    for name, value in json_members(path, holds):
        if not isinstance(value, list) or len(value) != 2:
            raise UserError(f"{path}: image {name[:40]!r} has {shown(value)}, [width, height] was expected.")
        yield name, value[0], value[1]


def _tsv_sizes(path: Path) -> Iterator[tuple[object, object, object]]:
    number = 0
    for part in line_parts(path):
        for _, line in part.lines():
            number += 1
            if not line.strip():
                continue
            place = f"{path} line {number}"
            name, _, content = line.partition(b"\t")
            value: Any = parse_json(content.strip(), place)
            value = value[0] if isinstance(value, list) and value else value
            if not isinstance(value, dict) or not {"width", "height"} <= set(value):
                raise UserError(f"{place} has no width and height.")
            yield name.decode("utf-8", "replace").strip(), value["width"], value["height"]
