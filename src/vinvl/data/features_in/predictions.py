"""A `predictions.tsv` (or `labels.tsv`) of objects, indexed once so that the features find theirs by image id."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from vinvl.data.features_in.left_out import LeftOut
from vinvl.data.features_in.lines import (
    LONGEST_LINE,
    HeldIndices,
    LinePart,
    ReadPart,
    line_index,
    line_parts,
    wrong_row,
)
from vinvl.data.features_in.objects import DetectedObjects, label_map_of, read_objects
from vinvl.data.features_in.rows import id_in
from vinvl.data.id_table import IdTable
from vinvl.data.json_files import parse_json
from vinvl.data.store import LabelMap
from vinvl.data.worker_pool import in_order
from vinvl.errors import UserError


@dataclass(frozen=True)
class PredictionsFile:
    """A TSV of image id and JSON, with the byte of each image's line in the `IdTable` in `table`. Small to pickle."""

    path: Path
    table: Path

    @contextmanager
    def opened(self) -> Iterator[PredictionsReader]:
        with self.path.open("rb") as file:
            yield PredictionsReader(self.path, IdTable(self.table), file)


class PredictionsReader:
    """Objects by image id."""

    def __init__(self, path: Path, table: IdTable, file: IO[bytes]) -> None:
        self._path, self._table, self._file = path, table, file

    def objects(self, image_id: str) -> DetectedObjects:
        """Raises UserError if the file does not have the image."""
        start = self._table.find(image_id)
        if start is None:
            raise UserError(f"{self._path} has no image {image_id!r}; the two files are not of one run.")
        self._file.seek(int(start[0]))
        image = f"{self._path}, image {image_id!r}"
        content = self._file.readline(LONGEST_LINE).rstrip(b"\r\n").split(b"\t")
        return read_objects(parse_json(content[1] if len(content) > 1 else b"", image), image)


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


@dataclass(frozen=True)
class ScannedPart:
    """What a part of the TSV has: (line, id) of each image, names, the most attributes of an object, what is wrong."""

    images: list[tuple[int, bytes]]
    classes: set[str]
    attributes: set[str]
    most_attributes: int
    wrong: list[tuple[int, str]]
    read: ReadPart


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
    classes: set[str] = set()
    attributes: set[str] = set()
    most, lines, blocks = 0, 0, []
    for part in in_order(partial(_scan), line_parts(path), workers):
        for number, wrong in part.wrong:
            left_out.add(UserError(f"{path} line {lines + number + 1}{wrong}"))
        held.check(lines, part.read)
        lines += len(part.read.starts)
        if part.images:
            starts = part.read.starts[[number for number, _ in part.images]]
            blocks.append((np.array([name for _, name in part.images], dtype=np.bytes_), starts[:, None]))
        classes |= part.classes
        attributes |= part.attributes
        most = max(most, part.most_attributes)
    held.check_end(lines)
    IdTable.write(scratch, blocks, path, left_out.add)
    return ScannedPredictions(PredictionsFile(path, scratch), label_map_of(classes, attributes), most)


def _scan(part: LinePart) -> ScannedPart:
    images: list[tuple[int, bytes]] = []
    classes: set[str] = set()
    attributes: set[str] = set()
    wrong: list[tuple[int, str]] = []
    most, starts = 0, []
    for number, (start, line) in enumerate(part.lines()):
        starts.append(start)
        if not line.strip():
            continue
        columns = line.rstrip(b"\r\n").split(b"\t")
        try:
            image_id = id_in(columns[0])
            image = f"image {image_id!r}"
            objects = read_objects(parse_json(columns[1] if len(columns) > 1 else b"", image), image)
        except UserError as error:
            wrong.append((number, wrong_row(line, error)))
            continue
        images.append((number, image_id.encode()))
        classes.update(objects.classes)
        attributes.update(*objects.attributes)
        most = max(most, *map(len, objects.attributes), 0)
    read = ReadPart([], np.array(starts, dtype=np.int64), part.stop)
    return ScannedPart(images, classes, attributes, most, wrong, read)
