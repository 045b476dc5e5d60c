"""A TSV, read in parts by worker processes and put together in order; its index files are held against it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from vinvl.regions.formats.rows import (
    MOST_BYTES,
    FeatureOptions,
    FoundImage,
    IdBlock,
    IdTable,
    KnownNames,
    LeftOut,
    base64_rows,
    checked_regions,
    checked_size,
    id_in,
    number_of_regions,
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

RowReader = Callable[[bytes], tuple[str, Regions | None]]


class Found(NamedTuple):
    """An image or why it cannot be used, its place in the files, and how many bytes of input are read by now.

    Of what an earlier run has done there are no regions.
    """

    place: str
    regions: Regions | UserError | None
    position: int


class Done(NamedTuple):
    """What an earlier run has done of a source: so many of what is `Found`, which end at that position.

    `unread` are the positions of those that it could not read.
    """

    images: int = 0
    position: int = 0
    unread: frozenset[int] = frozenset()


class RowFormat(Protocol):
    """How the rows of a TSV are read: picklable; what it opens, it opens in the process that reads."""

    def reader(self) -> AbstractContextManager[RowReader]:
        """A function from a line without its end to the image id and, if asked for, the regions; raises UserError."""
        ...


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
            while position < self.stop:
                line = file.readline(self.stop - position)
                if not line:
                    return
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


def read_part(part: LinePart, rows: RowFormat, done: Done) -> ReadPart:
    """Reads the lines of a part; of those that are done the image ids."""
    images: list[tuple[int, str, Regions | str | None]] = []
    starts: list[int] = []
    with rows.reader() as read:
        for number, (start, line) in enumerate(part.lines()):
            starts.append(start)
            if not line.strip():
                continue
            stop = start + len(line)
            if stop <= done.position:
                images.append((number, *(("", "") if stop in done.unread else (id_in(line.split(b"\t", 1)[0]), None))))
                continue
            try:
                images.append((number, *read(line.rstrip(b"\r\n"))))
            except UserError as error:
                cut = "" if line.endswith(b"\n") else " (the last line, without an end: the file may be cut off)"
                images.append((number, "", f"{cut}: {error}"))
    return ReadPart(images, np.array(starts, dtype=np.int64), part.stop)


def images_of_lines(
    path: Path, rows: RowFormat, indices: Iterable[TsvIndex], workers: int, left_out: LeftOut, done: Done
) -> Iterator[Found]:
    """The images of a TSV in its order; of a wrong row a sentence that names file and line.

    Raises:
        UserError: the file cannot be read, or (unless skipped) an index says something else than the TSV.
    """
    held = HeldIndices(indices, left_out)
    before = 0
    for part in in_order(partial(read_part, rows=rows, done=done), line_parts(path), workers):
        ends = [*part.starts[1:].tolist(), part.stop]
        for number, _, regions in part.images:
            place = f"{path} line {before + number + 1}"
            yield Found(place, UserError(place + regions) if isinstance(regions, str) else regions, ends[number])
        held.check(before, part)
        before += len(part.starts)
    held.check_end(before)


class TsvIndex(Protocol):
    """A file that says where the rows of a TSV are."""

    def check(self, before: int, part: ReadPart) -> None:
        """Holds it against a part of the TSV that has `before` lines before it."""
        ...

    def check_end(self, lines: int) -> None:
        """Holds it against the number of lines of the whole TSV."""
        ...


class HeldIndices:
    """Index files that are held against their TSV; one that says something else is dropped with a word, or refused."""

    def __init__(self, indices: Iterable[TsvIndex], left_out: LeftOut) -> None:
        self._indices, self._left_out = list(indices), left_out

    def check(self, before: int, part: ReadPart) -> None:
        """As `TsvIndex.check`."""
        self._each(lambda index: index.check(before, part))

    def check_end(self, lines: int) -> None:
        """As `TsvIndex.check_end`."""
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
                f"at {part.starts[line]:,}: the index is of another file; delete it or get both again."
            )

    def check_end(self, lines: int) -> None:
        if len(self._offsets) != lines:
            raise UserError(
                f"{self._path} lists {len(self._offsets):,} lines, but {self._tsv} has {lines:,}: "
                "one of them is cut off or of another file; delete the index, or get both again."
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
        self._table = IdTable.write(scratch, _id_blocks(path), path)
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
        if not self._seen.all():
            raise UserError(
                f"{self._path} names {int((~self._seen).sum()):,} images that {self._tsv} does not have, such as "
                f"{self._name(int(np.argmin(self._seen)))!r}: the TSV is cut off or of another index; delete the "
                "index, or get both again."
            )

    def _name(self, position: int) -> str:
        name: bytes = self._table.ids[position]
        return name.decode("utf-8", "replace")

    def _at_odds(self, position: int, place: int) -> UserError:
        kind = "byte" if self._of_bytes else "row"
        return UserError(
            f"{self._path} sends image {self._name(position)!r} to {kind} {self._places[position]:,} (from 0), but it "
            f"is {kind} {place:,} of {self._tsv}: the index is of another file; delete it or get both again."
        )


def _id_blocks(path: Path) -> Iterator[IdBlock]:
    members = json_members(path, "image ids with their row numbers")
    while block := list(islice(members, BLOCK_IDS)):
        for name, row in block:
            if type(row) is not int or not 0 <= row < 2**62:
                raise UserError(f"{path} sends image {name[:40]!r} to row {shown(row)}, a whole number was expected.")
        ids = np.array([str(checked_id(name, f"{path}: an id")).encode() for name, _ in block], dtype=np.bytes_)
        yield ids, np.array([[row] for _, row in block], dtype=np.int64)


# Rows of the TSV files of bottom-up-attention and of LXMERT, whose columns have fixed places.


BOTTOM_UP_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT_COLUMNS = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features"
)  # fmt: skip


@dataclass(frozen=True)
class ColumnRows:
    """`RowFormat` of a TSV with these columns. LXMERT's numbers leave the background out: its 0 is the store's 1."""

    columns: tuple[str, ...]
    options: FeatureOptions
    known: KnownNames

    @contextmanager
    def reader(self) -> Iterator[RowReader]:
        yield self._read

    def _read(self, line: bytes) -> tuple[str, Regions]:
        values = line.split(b"\t")
        if len(values) != len(self.columns):
            expected = f"{len(self.columns)}: {', '.join(self.columns)}"
            raise UserError(f"the row has {len(values)} columns, expected {expected}.")
        row = dict(zip(self.columns, values, strict=True))
        image_id, prefix = id_in(values[0]), self.columns[0].removesuffix("id")
        try:
            count = number_of_regions(row["num_boxes"])
            found = FoundImage(
                image_id,
                features=base64_rows(row["features"], count, None, "features", "<f4"),
                boxes=base64_rows(row["boxes"], count, (4,), "boxes", "<f4"),
                size=checked_size(row[f"{prefix}w"], row[f"{prefix}h"], "the row"),
                **(self._objects(row, count) if "objects_id" in row else {}),
            )
        except UserError as error:
            raise UserError(f"image {image_id!r}: {error}") from None
        return image_id, checked_regions(found, self.options)

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


SizeOf = tuple[object, object, object]


def write_sizes(path: Path, scratch: Path, left_out: LeftOut) -> IdTable:
    """A table of (width, height) in a new folder, from one of three kinds of file.

    A TSV of id and {"height": …, "width": …}, or a list of one such, as the published extractor wants it (`hw.tsv`); a
    JSON of COCO's form with `images` of `id`, `width` and `height`; or a JSON {id: [width, height]}.

    Raises:
        UserError: it is none of these, or has a size that is none, or (unless skipped) an id twice.
    """
    return IdTable.write(scratch, _blocks(_sizes(path), path), path, left_out.add)


def _blocks(sizes: Iterator[SizeOf], path: Path) -> Iterator[IdBlock]:
    while block := list(islice(sizes, BLOCK_IDS)):
        names = [str(checked_id(name, f"{path}: image id")) for name, _, _ in block]
        values = [checked_size(width, height, f"{path}: image {name!r}") for name, width, height in block]
        yield np.array([name.encode() for name in names], dtype=np.bytes_), np.array(values, dtype=np.int64)


def _sizes(path: Path) -> Iterator[SizeOf]:
    if path.suffix == ".tsv":
        yield from _tsv_sizes(path)
        return
    if _is_coco(path):
        images = read_json(path).get("images")
        if not isinstance(images, list):
            raise UserError(f"{path} has no list of images; give a JSON {{id: [width, height]}} or of COCO's form.")
        for number, image in enumerate(images, start=1):
            if not isinstance(image, dict) or not {"id", "width", "height"} <= set(image):
                raise UserError(f"{path} image {number} lacks id, width or height.")
            yield image["id"], image["width"], image["height"]
        return
    for name, value in json_members(path, "image ids with [width, height]"):
        if not isinstance(value, list) or len(value) != 2:
            raise UserError(f"{path}: image {name[:40]!r} has {shown(value)}, [width, height] was expected.")
        yield name, value[0], value[1]


def _is_coco(path: Path) -> bool:
    """Whether a member of the object is a list of images, or what COCO has before that."""
    first = next(iter(json_members(path, "image ids with [width, height]")), ("", None))
    return first[0] in ("images", "info", "licenses", "annotations", "categories", "type")


def _tsv_sizes(path: Path) -> Iterator[SizeOf]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
                if not line.strip():
                    continue
                place = f"{path} line {number}"
                name, _, content = line.partition(b"\t")
                value: Any = parse_json(content.strip(), place)
                value = value[0] if isinstance(value, list) and value else value
                if not isinstance(value, dict) or not {"width", "height"} <= set(value):
                    raise UserError(f"{place} has no width and height.")
                yield name.decode("utf-8", "replace").strip(), value["width"], value["height"]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
