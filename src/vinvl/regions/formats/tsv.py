"""A TSV, read in parts by worker processes and put together in order; its index files are held against it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vinvl.regions.formats.rows import (
    MOST_BYTES,
    Done,
    Found,
    Journal,
    id_in,
)
from vinvl.regions.regions import Regions
from vinvl.regions.shard import IdLookup
from vinvl.run.errors import UserError
from vinvl.run.files import reading
from vinvl.run.lines import in_order
from vinvl.run.values import checked_id, json_members, shown

PART_BYTES = 8 * 2**20
LONGEST_LINE = MOST_BYTES
END = ord("\n")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # which some editors put in front of a text
BLOCK_IDS = 100_000

# How the rows of a TSV are read: image id and columns → regions, if they are asked for; picklable, raises UserError.
ReadRow = Callable[[str, list[bytes]], Regions | None]
Refuse = Callable[[UserError], None]  # raises it, or leaves it out with a word


class LinePart(NamedTuple):
    """Whole lines: the bytes start to stop of a file."""

    path: str
    start: int
    stop: int

    def rows(self) -> Iterator[tuple[int, list[bytes], bool, int]]:
        """(byte where it begins, columns, whether it has an end, byte behind it) of each line.

        A blank line has no columns. One may have have some megabytes, which are copied once, into its columns.
        """
        with open(self.path, "rb") as file:
            file.seek(self.start)
            content = file.read(self.stop - self.start)
        begin = 0
        while begin < len(content):
            stop = content.find(b"\n", begin) + 1 or len(content)
            end, columns, column = stop, [], begin
            while end > begin and content[end - 1] in b"\r\n":
                end -= 1
            while (tab := content.find(b"\t", column, end)) >= 0:
                columns.append(content[column:tab])
                column = tab + 1
            columns.append(content[column:end])
            if not self.start + begin:
                columns[0] = columns[0].removeprefix(BYTE_ORDER_MARK)
            is_blank = not any(one.strip() for one in columns)
            yield self.start + begin, [] if is_blank else columns, content[stop - 1] == END, self.start + stop
            begin = stop


class ReadPart(NamedTuple):
    """What a worker made of a part."""

    # Line within the part from 0, image id in the file, and regions; of a row that could not be read, no id and instead
    # of the regions what is wrong, to follow the place; of one that an earlier run has done, no regions.
    images: list[tuple[int, str, Regions | str | None]]
    starts: np.ndarray  # (lines,) int64, where each line begins
    stop: int  # the end of the part in bytes
    more: Any = None


def line_parts(path: Path) -> Iterator[LinePart]:
    """Parts of some megabytes. Raises UserError if the file cannot be read or has no lines worth the name."""
    with reading(path), path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = 0
        while start < size:
            file.seek(min(start + PART_BYTES, size))
            if len(file.readline(LONGEST_LINE)) == LONGEST_LINE:
                raise UserError(f"{path} has a line of more than {LONGEST_LINE:,} bytes; it is no TSV of features.")
            stop = file.tell()
            yield LinePart(str(path), start, stop)
            start = stop


def read_part(part: LinePart, read: ReadRow, done: Done) -> ReadPart:
    """Reads the lines of a part; of those that are done the image ids."""
    images: list[tuple[int, str, Regions | str | None]] = []
    starts: list[int] = []
    for number, (start, columns, ended, stop) in enumerate(part.rows()):
        starts.append(start)
        if not columns:
            continue
        if stop <= done.position:
            images.append((number, *(("", "") if stop in done.unread else (id_in(columns[0]), None))))
            continue
        image_id = ""
        try:
            image_id = id_in(columns[0])
            images.append((number, image_id, read(image_id, columns)))
        except UserError as error:
            cut = "" if ended else " (the last line, without an end: the file may be cut off)"
            image = f": image {image_id!r}" if image_id else ""
            images.append((number, "", f"{cut}{image}: {error}"))
    return ReadPart(images, np.array(starts, dtype=np.int64), part.stop)


def images_of_lines(
    path: Path, read: ReadRow, indices: list[TsvIndex], workers: int, journal: Journal
) -> Iterator[Found]:
    """The images of a TSV in its order; of a wrong row a sentence that names file and line.

    Raises UserError if the file cannot be read, or (unless skipped) an index says something else than the TSV.
    """
    work = partial(read_part, read=read, done=journal.done)
    for before, part in held_parts(path, work, indices, workers, journal.add):
        ends = [*part.starts[1:].tolist(), part.stop]
        for number, _, regions in part.images:
            place = f"{path} line {before + number + 1}"
            yield Found(place, UserError(place + regions) if isinstance(regions, str) else regions, ends[number])


# The files that say where the rows of a TSV are. `check` holds one against a part that has so many lines before it,
# `check_end` against the number of lines of all.

ANOTHER = "delete the index, or get both again"


def held_parts(
    path: Path, read: Callable[[LinePart], ReadPart], indices: list[TsvIndex], workers: int, refuse: Refuse
) -> Iterator[tuple[int, ReadPart]]:
    """The parts of a TSV with the number of lines before each.

    Indices are held against what the reader has taken; one that says something else is dropped with a word, or refused.
    """
    before = 0

    def hold(check: Callable[[TsvIndex], None]) -> None:
        for index in list(indices):
            try:
                check(index)
            except UserError as error:
                refuse(error)
                indices.remove(index)

    for part in in_order(read, line_parts(path), workers):
        yield before, part
        hold(lambda index, lines=before, part=part: index.check(lines, part))  # type: ignore[misc]
        before += len(part.starts)
    hold(lambda index: index.check_end(before))


def listed_starts(path: Path) -> np.ndarray:
    """(N,) int64, the numbers in a `.lineidx`. Raises UserError if it is none."""
    try:
        with reading(path), warnings.catch_warnings():
            warnings.simplefilter("error")  # NumPy warns where it stops before the end
            return np.fromfile(path, dtype=np.int64, sep="\n")
    except (ValueError, Warning):
        raise UserError(f"{path} is no list of numbers, one a line; delete it, it is not needed.") from None


class LineIndex:
    """A `.lineidx`: the byte where each line of its TSV begins."""

    def __init__(self, path: Path, tsv: Path) -> None:
        self._path, self._tsv, self._offsets = path, tsv, listed_starts(path)

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
    """Image ids that the file `path` names with their places in a TSV, "row" or "byte" from 0, or without a unit.

    Of an id that the TSV has more than once the index may name any row: where `repeats` are left out, the check waits
    for the end of the TSV. `note` is told of ids that the TSV does not have; None refuses them with `remedy`.
    """

    def __init__(
        self,
        path: Path,
        tsv: Path,
        table: IdTable,
        unit: str = "",
        repeats: bool = False,
        note: Callable[[str], None] | None = None,
        remedy: str = f"the TSV is cut off or of another index; {ANOTHER}",
    ) -> None:
        self._path, self._tsv, self._table, self._unit, self._repeats = path, tsv, table, unit, repeats
        self._note, self._remedy = note, remedy
        self._places = np.asarray(table.values[:, 0])
        self._seen = np.zeros(len(table.ids), dtype=bool)
        self._elsewhere: dict[int, int] = {}
        self._unread = 0  # rows that may be those of ids without places

    def check(self, before: int, part: ReadPart) -> None:
        places = part.starts if self._unit == "byte" else before + np.arange(len(part.starts))
        for number, image_id, regions in part.images:
            place = int(places[number])
            if isinstance(regions, str):
                self._unread += not self._unit
                if self._unit:
                    self._seen[self._places == place] = True  # the row is there, but cannot be read
                continue
            position = self._table.lookup.find(image_id)
            if position < 0:
                continue  # a row more than the index has does no harm
            if not self._unit or self._places[position] == place:
                self._seen[position] = True
            elif self._repeats:
                self._elsewhere.setdefault(position, place)
            else:
                raise self._at_odds(position, place)

    def check_end(self, lines: int) -> None:
        for position, place in self._elsewhere.items():
            if not self._seen[position]:
                raise self._at_odds(position, place)
        missing = int((~self._seen).sum())
        if missing > self._unread:
            example, verb = self._table.name(int(np.argmin(self._seen))), "names" if self._unit else "has"
            told = f"{self._path} {verb} {missing:,} images that {self._tsv} does not have, such as {example!r}"
            if self._note is None:
                raise UserError(f"{told}: {self._remedy}.")
            self._note(told)

    def _at_odds(self, position: int, place: int) -> UserError:
        return UserError(
            f"{self._path} sends image {self._table.name(position)!r} to {self._unit} {self._places[position]:,} (from "
            f"0), but it is {self._unit} {place:,} of {self._tsv}: the index is of another file; {ANOTHER}."
        )


TsvIndex = LineIndex | ImageIndex


class IdTable:
    """Whole numbers (K,) by id: a sorted (N,) array of UTF-8 ids and an (N, K) int64 array, both memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.ids = np.load(folder / "ids.npy", mmap_mode="r")
        self.values = np.load(folder / "values.npy", mmap_mode="r")
        self.lookup = IdLookup(self.ids, is_sorted=True)

    @classmethod
    def write(
        cls,
        folder: Path,
        blocks: Iterable[tuple[np.ndarray, np.ndarray]],
        source: str | Path,
        on_repeat: Refuse | None = None,
        what: str = "image",
    ) -> IdTable:
        """Makes a table in a new folder of blocks of (n,) ids of `what` and (n, K) int64, in any order.

        `on_repeat` is told of each id that came before, whose first numbers stay; None refuses it, as no ids at all.
        """
        parts = list(blocks)
        if not parts:
            raise UserError(f"{source} names no {what}s.")
        ids = np.concatenate([part for part, _ in parts])
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        first = np.concatenate([[True], ids[1:] != ids[:-1]])
        for image_id in ids[~first]:
            error = UserError(f"{source} has {what} {image_id.decode('utf-8', 'replace')!r} more than once.")
            if on_repeat is None:
                raise error
            on_repeat(error)
        folder.mkdir(parents=True)
        np.save(folder / "ids.npy", ids[first])
        np.save(folder / "values.npy", np.concatenate([values for _, values in parts])[order[first]])
        return cls(folder)

    @classmethod
    def of_members(
        cls,
        folder: Path,
        path: Path,
        members: Iterator[tuple[object, Sequence[int]]],
        on_repeat: Refuse | None = None,
        what: str = "image",
    ) -> IdTable:
        """Of ids and their numbers in the file `path`."""

        def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            while block := list(islice(members, BLOCK_IDS)):
                ids = [str(checked_id(name, f"{path}: an id")).encode() for name, _ in block]
                yield np.array(ids, dtype=np.bytes_), np.array([numbers for _, numbers in block], dtype=np.int64)

        return cls.write(folder, blocks(), path, on_repeat, what)

    def find(self, image_id: str) -> np.ndarray | None:
        """(K,) numbers of an id."""
        position = self.lookup.find(image_id)
        return None if position < 0 else self.values[position]

    def name(self, position: int) -> str:
        name: bytes = self.ids[position]
        return name.decode("utf-8", "replace")


def places_in(path: Path) -> Iterator[tuple[str, Sequence[int]]]:
    """The image ids of a JSON index with their places."""
    for name, row in json_members(path, "image ids with their row numbers"):
        if type(row) is not int or not 0 <= row < 2**62:
            raise UserError(f"{path} sends image {name[:40]!r} to row {shown(row)}, a whole number was expected.")
        yield name, (row,)
