"""A `predictions.tsv` (or `labels.tsv`) of objects, indexed once so that the features find theirs by image id."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from vinvl.data.features_in.lines import LONGEST_LINE, LineIndex, LinePart, ReadPart, line_parts
from vinvl.data.features_in.objects import DetectedObjects, label_map_of, read_objects
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


@dataclass(frozen=True)
class ScannedPart:
    """What a part of the TSV has: (id, byte of its line) of each image, names, and the most attributes of an object."""

    images: list[tuple[bytes, int]]
    classes: set[str]
    attributes: set[str]
    most_attributes: int
    read: ReadPart


@dataclass(frozen=True)
class ScannedPredictions:
    """The file, the label map of all names in it, and the most attributes that an object has."""

    file: PredictionsFile
    label_map: LabelMap
    most_attributes: int


def scan_predictions(path: Path, scratch: Path, workers: int) -> ScannedPredictions:
    """Reads the file through; makes the table in a new folder.

    Raises:
        UserError: a line is wrong, an image comes twice, or the `.lineidx` beside the file is of another one.
    """
    index = LineIndex(path.with_suffix(".lineidx"), path) if path.with_suffix(".lineidx").is_file() else None
    classes: set[str] = set()
    attributes: set[str] = set()
    most, lines, blocks = 0, 0, []
    for part in in_order(partial(_scan), line_parts(path), workers):
        if part.read.error:
            raise UserError(f"{path} line {lines + part.read.error[0] + 1}{part.read.error[1]}")
        if index:
            index.check(lines, part.read)
        lines += len(part.read.starts)
        if part.images:
            ids = np.array([name for name, _ in part.images], dtype=np.bytes_)
            blocks.append((ids, np.array([[start] for _, start in part.images], dtype=np.int64)))
        classes |= part.classes
        attributes |= part.attributes
        most = max(most, part.most_attributes)
    if index:
        index.check_end(lines)
    IdTable.write(scratch, blocks, path)
    return ScannedPredictions(PredictionsFile(path, scratch), label_map_of(classes, attributes), most)


def _scan(part: LinePart) -> ScannedPart:
    images: list[tuple[bytes, int]] = []
    classes: set[str] = set()
    attributes: set[str] = set()
    most, starts, error = 0, [], None
    for number, (start, line) in enumerate(part.lines()):
        starts.append(start)
        if not line.strip():
            continue
        columns = line.rstrip(b"\r\n").split(b"\t")
        name = columns[0].strip()
        try:
            image = f"image {name.decode('utf-8', 'replace')!r}"
            objects = read_objects(parse_json(columns[1] if len(columns) > 1 else b"", image), image)
        except UserError as wrong:
            cut = "" if line.endswith(b"\n") else " (the last line, without an end: the file may be cut off)"
            error = number, f"{cut}: {wrong}"
            break
        images.append((name, start))
        classes.update(objects.classes)
        attributes.update(*objects.attributes)
        most = max(most, *map(len, objects.attributes), 0)
    read = ReadPart([], np.array(starts, dtype=np.int64), part.stop, error)
    return ScannedPart(images, classes, attributes, most, read)
