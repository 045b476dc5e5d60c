"""A TSV, read in parts by worker processes and put together in order; its index files are held against it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from vinvl.data.id_table import IdBlock, IdTable
from vinvl.data.json_members import json_members
from vinvl.data.record_fields import checked_text, shown
from vinvl.data.store import Regions
from vinvl.data.worker_pool import in_order
from vinvl.errors import UserError

PART_BYTES = 8 * 2**20
LONGEST_LINE = 2**27
BLOCK_IDS = 100_000

RowReader = Callable[[bytes], tuple[str, Regions]]


class Found(NamedTuple):
    """An image, the place in the files that it is from, and how many bytes of input are read by now."""

    place: str
    regions: Regions
    position: int


class RowFormat(Protocol):
    """How the rows of a TSV are read: picklable; what it opens, it opens in the process that reads."""

    def reader(self) -> AbstractContextManager[RowReader]:
        """A function from a line without its end to the file's image id and the regions; raises UserError."""
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
        images: (line within the part from 0, image id in the file, regions).
        starts: (lines,) int64, where each line begins.
        stop: the end of the part in bytes.
        error: (line within the part, sentence) of the row that could not be read, after the images before it.
    """

    images: list[tuple[int, str, Regions]]
    starts: np.ndarray
    stop: int
    error: tuple[int, str] | None


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


def read_part(part: LinePart, rows: RowFormat) -> ReadPart:
    """Reads the lines of a part up to the first that is wrong."""
    images: list[tuple[int, str, Regions]] = []
    starts: list[int] = []
    with rows.reader() as read:
        for number, (start, line) in enumerate(part.lines()):
            starts.append(start)
            if not line.strip():
                continue
            try:
                images.append((number, *read(line.rstrip(b"\r\n"))))
            except UserError as error:
                cut = "" if line.endswith(b"\n") else " (the last line, without an end: the file may be cut off)"
                return ReadPart(images, np.array(starts), part.stop, (number, f"{cut}: {error}"))
    return ReadPart(images, np.array(starts, dtype=np.int64), part.stop, None)


def images_of_lines(path: Path, rows: RowFormat, indices: Iterable[TsvIndex], workers: int) -> Iterator[Found]:
    """The images of a TSV in its order.

    Raises:
        UserError: a row is wrong, or an index says something else than the TSV; the sentence names file and line.
    """
    before = 0
    for part in in_order(partial(read_part, rows=rows), line_parts(path), workers):
        for number, _, regions in part.images:
            yield Found(f"{path} line {before + number + 1}", regions, part.stop)
        if part.error:
            raise UserError(f"{path} line {before + part.error[0] + 1}{part.error[1]}")
        for index in indices:
            index.check(before, part)
        before += len(part.starts)
    for index in indices:
        index.check_end(before)


class TsvIndex(Protocol):
    """A file that says where the rows of a TSV are."""

    def check(self, before: int, part: ReadPart) -> None:
        """Holds it against a part of the TSV that has `before` lines before it."""
        ...

    def check_end(self, lines: int) -> None:
        """Holds it against the number of lines of the whole TSV."""
        ...


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


class ImageIndex:
    """An `imageid2idx.json`: the number of the row of each image id."""

    def __init__(self, path: Path, tsv: Path, scratch: Path) -> None:
        self._path, self._tsv = path, tsv
        self._table = IdTable.write(scratch, _id_blocks(path), path)
        self._seen = np.zeros(len(self._table), dtype=bool)

    def check(self, before: int, part: ReadPart) -> None:
        for number, image_id, _ in part.images:
            position = self._table.position(image_id)
            if position is None:
                continue  # a row more than the index has does no harm
            self._seen[position] = True
            row = int(self._table.values[position, 0])
            if row != before + number:
                raise UserError(
                    f"{self._path} sends image {image_id!r} to row {row:,} (from 0), but it is row {before + number:,} "
                    f"of {self._tsv}: the index is of another file; delete it or get both again."
                )

    def check_end(self, lines: int) -> None:
        if not self._seen.all():
            missing = self._table.ids[int(np.argmin(self._seen))].decode("utf-8", "replace")
            raise UserError(
                f"{self._path} names {int((~self._seen).sum()):,} images that {self._tsv} does not have, such as "
                f"{missing!r}: the TSV is cut off or of another index; delete the index, or get both again."
            )


def _id_blocks(path: Path) -> Iterator[IdBlock]:
    members = json_members(path, "image ids with their row numbers")
    while block := list(islice(members, BLOCK_IDS)):
        for name, row in block:
            if type(row) is not int or not 0 <= row < 2**62:
                raise UserError(f"{path} sends image {name[:40]!r} to row {shown(row)}, a whole number was expected.")
        ids = np.array([checked_text(name, f"{path}: an id").encode() for name, _ in block], dtype=np.bytes_)
        yield ids, np.array([[row] for _, row in block], dtype=np.int64)
