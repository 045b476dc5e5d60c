"""Annotated pictures of one data set or of several: where each lies, how large it is and what is in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vinvl.data.table import BLOCK, TEXT, Column
from vinvl.detector.average_precision import TrueBoxes
from vinvl.detector.sampling import SetLabels
from vinvl.pictures.containers import container_of
from vinvl.run.errors import UserError

SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "file_name": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "boxes": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int32()),
        "crowd": pa.list_(pa.bool_()),
        "attributes": pa.list_(pa.list_(pa.int32())),
    }
)
"""Of a picture; of its m objects there are lists of 4·m (x1 y1 x2 y2 in pixels), m, m and m entries."""


@dataclass(frozen=True, eq=False)
class PictureFiles:
    """Where n pictures lie: in a folder, or in a container of pictures, whose `places` they are then."""

    folder: Path
    present: np.ndarray  # (n,) bool
    places: pa.ChunkedArray | None = None  # (n,) text, null where a picture is not there


@dataclass(frozen=True, eq=False)
class PictureSet:
    """What is to be known of the pictures of one data set besides its table.

    Attributes:
        source: the annotation file, for messages.
        files: where the pictures lie; None until they are looked for.
        classes, attributes: (C,), (A,) integers: what labels and attributes of the table stand for in the label map of
            all sets, 0 for those that are left out. None: they stay.
    """

    source: str
    files: PictureFiles | None = None
    classes: np.ndarray | None = None
    attributes: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class PictureRecords:
    """N pictures of S data sets, one set after the other.

    Attributes:
        table: columns as in `SCHEMA`, and whatever else; often those of mapped files.
        sets: each of the sets.
        starts: (S + 1,) where each begins, and the last ends.
    """

    table: pa.Table
    sets: tuple[PictureSet, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, table: pa.Table, source: str, files: PictureFiles | None = None) -> PictureRecords:
        """The pictures of one set."""
        return cls(table, (PictureSet(source, files),), (0, len(table)))

    @classmethod
    def joined(cls, parts: Sequence[PictureRecords]) -> PictureRecords:
        """The pictures of all parts; nothing is copied."""
        starts = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        tables = [part.table.select(SCHEMA.names).replace_schema_metadata(None) for part in parts]
        return cls(pa.concat_tables(tables), tuple(one for part in parts for one in part.sets), tuple(starts))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, name: str) -> Column:
        return Column(self.table[name])

    def set_of(self, index: int) -> PictureSet:
        """The set that a picture is of."""
        return self.sets[int(np.searchsorted(self.starts, index, side="right")) - 1]

    def source(self, index: int) -> str:
        """The annotation file of a picture, for messages."""
        return self.set_of(index).source

    def path(self, index: int) -> Path | str:
        """Where a picture lies: its file, or its place in a container."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        files = self.sets[number].files
        assert files is not None, "the pictures were not looked for"
        if files.places is not None:
            return str(files.places[index - self.starts[number]])
        return files.folder / self["file_name"][index]

    @cached_property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32 width, height."""
        return np.stack([self[side].numpy() for side in ("width", "height")], axis=1)

    def objects(self, index: int) -> TrueBoxes:
        """The objects of a picture, of classes that are not left out."""
        row, own = self.table.slice(index, 1), self.set_of(index)
        boxes, labels, crowd = (Column(row[name]).flat().numpy() for name in ("boxes", "labels", "crowd"))
        boxes, labels = boxes.reshape(-1, 4).astype(np.float64), labels.astype(np.int64)
        named: list[list[int]] = row["attributes"][0].as_py()
        if own.attributes is not None:
            named = [[one for one in own.attributes[numbers].tolist() if one] if numbers else [] for numbers in named]
        attributes = np.zeros((len(labels), max(map(len, named), default=0)), dtype=np.int64)
        for line, numbers in zip(attributes, named, strict=True):
            line[: len(numbers)] = numbers
        if own.classes is None:
            return TrueBoxes(boxes, labels, crowd, attributes)
        labels = own.classes[labels]
        left = labels > 0
        return TrueBoxes(boxes[left], labels[left], crowd[left], attributes[left])

    def labels(self, number: int, kept: np.ndarray | None = None) -> SetLabels:
        """The classes in the pictures of a set, or in those that are kept: bool (N,), of the pictures of all sets."""
        part = self.table.select(["labels", "crowd"]).slice(self.starts[number], self._length(number))
        if kept is not None and not (own := kept[self.starts[number] : self.starts[number + 1]]).all():
            part = part.filter(pa.array(own))
        return SetLabels(part["labels"], part["crowd"], self.sets[number].classes)

    def _length(self, number: int) -> int:
        return self.starts[number + 1] - self.starts[number]

    def counts(self) -> np.ndarray:
        """(N,) int64: the objects of each picture; a crowd is none."""
        parts = [np.zeros(self._length(number), dtype=np.int64) for number in range(len(self.sets))]
        for number, part in enumerate(parts):
            for pictures, _ in self.labels(number).blocks():
                if len(pictures):
                    found = np.bincount(pictures - pictures[0])
                    part[pictures[0] : pictures[0] + len(found)] += found
        return np.concatenate(parts)

    def present(self) -> np.ndarray:
        """(N,) bool: whose file is there."""
        return np.concatenate([one.files.present for one in self.sets if one.files is not None])

    def of_set(self, **changes: object) -> PictureRecords:
        """The pictures of one set, of which something else is known."""
        (own,) = self.sets
        return replace(self, sets=(replace(own, **changes),))  # type: ignore[arg-type]


def find_files(names: Column, ids: Column, pictures: Path) -> PictureFiles:
    """Which of n pictures are in a folder, or in a TSV, zip archive or LMDB of pictures.

    Each folder is listed once, which is fast where single files are not. In a container a picture's key is its file
    name, that name below the one folder of the archive, or without its suffix, or the image id: whichever finds most.

    Args:
        names: (n,) file names.
        ids: (n,) image ids.
        pictures: what file names start from.

    Raises:
        UserError: there is nothing, or something else.
    """
    if not pictures.exists():
        raise UserError(f"The folder of pictures {pictures} does not exist: check the path.")
    if (entries := container_of(pictures)) is not None:
        usable, keys, places = (one for one in entries if not one.problem), [], []
        while some := list(islice(usable, BLOCK)):
            keys.append(pa.array([one.name for one in some], TEXT))
            places.append(pa.array([one.place for one in some], TEXT))
        there = pa.chunked_array(keys, TEXT), pa.chunked_array(places, TEXT)
        return _in_container(names.values, ids.values, *there, pictures)
    if not pictures.is_dir():
        raise UserError(f"{pictures} is no folder, and no TSV, zip or LMDB of pictures: check the path.")
    listed: dict[str, set[str]] = {}
    present = np.zeros(len(names), dtype=bool)
    for index, name in enumerate(names):
        below, file = os.path.split(name)
        if below not in listed:
            listed[below] = set()
            with suppress(OSError), os.scandir(pictures / below) as inside:
                listed[below] = {entry.name for entry in inside if not entry.is_dir()}
        present[index] = file in listed[below]
    return PictureFiles(pictures, present)


def _in_container(
    names: pa.ChunkedArray, ids: pa.ChunkedArray, keys: pa.ChunkedArray, places: pa.ChunkedArray, container: Path
) -> PictureFiles:
    below = pc.replace_substring_regex(keys, "^[^/]*/", "")
    wanted = ((names, keys), (names, below), (pc.replace_substring_regex(names, r"\.[^./]*$", ""), keys), (ids, keys))
    found = max((pc.index_in(own, value_set=those) for own, those in wanted), key=lambda one: len(one) - one.null_count)
    return PictureFiles(container, found.is_valid().to_numpy(), places.take(found))
