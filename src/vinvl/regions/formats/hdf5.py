"""HDF5 files of features: arrays named by image, or one array of all images with an index beside it.

ID_features, ID_boxes, ID_cls_prob      aimagelab/meshed-memory-transformer, data/field.py
… and ID_grids, ID_size (height, width) luo3300612/image-captioning-DLCT, others/extract_region_feature.py
ID/features, ID/bboxes                  a group for each image
features (N, R, D), bboxes (N, R, 4)    GQA's gqa_objects_0.h5 …; gqa_objects_info.json has each image's file, row,
                                        number of objects and size (MILVLG/openvqa, data/gqa/gqa_feat_preproc.py;
                                        in one file: stanfordnlp/mac-network, merge.py)
features (N, D, H, W)                   gqa_spatial_0.h5 …: a grid, whose cells become boxes
image_features (N, R, D), image_bb, spatial_features
                                        hengyuan-hu/bottom-up-attention-vqa, tools/detection_features_converter.py;
                                        train36_imgid2idx.pkl is {image id: row}
image_features (ΣR, D) …, pos_boxes     jnhwkim/ban-vqa, tools/adaptive_detection_features_converter.py
features (N, R, D) …, image_id (N,)     nocaps-org/updown-baseline, updown/data/readers.py
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vinvl.regions.formats.fields import FIELDS, KNOWN, OF_IMAGE, FieldReader, same_image, without_padding
from vinvl.regions.formats.hdf5_file import Hdf5File, rows_at_once
from vinvl.regions.formats.rows import (
    ITEMS_AT_ONCE,
    MOST_BYTES,
    Done,
    Found,
    at,
    checked_size,
    images_of_items,
)
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes
from vinvl.run.restricted_pickle import load_restricted
from vinvl.run.values import checked_id, json_members, shown

SUFFIXES = (".h5", ".hdf5")
SPANS = "pos_boxes"
FIELDS_OF_IMAGE = KNOWN - {"info", "num_kept", *FIELDS["image"]}
NAMED = re.compile(rf"(?s)(.+)_({'|'.join(sorted(FIELDS_OF_IMAGE, key=len, reverse=True))})")
INDICES = ("_imgid2idx.pkl", "_imgid2idx.json", "_merged_info.json", "_info.json")
IDS = ("image_id", "image_ids", "img_ids", "img_id", "ids")
PART = re.compile(r"(.+)_(\d+)")  # gqa_objects_3
FIRST_NAMES = 64


def find_layout(path: Path) -> str:
    """What the arrays of a file are named by, "image" or "field". Raises UserError if neither is known."""
    file = Hdf5File(path)
    names = file.names(most=FIRST_NAMES)
    if KNOWN.intersection(names):
        return "field"
    if any(NAMED.fullmatch(name) or file.is_group(name) for name in names):
        return "image"
    told = ", ".join(ascii(name)[:40] for name in names[:3])
    raise UserError(f"{path} is an HDF5 file of other things ({told or 'nothing'} …) than features that are known.")


# Arrays named by image.


@dataclass(frozen=True)
class NamedArrays:
    """Reads an image by its id and the names of its fields; without names it is a group, which has them."""

    file: Hdf5File
    reader: FieldReader

    def __call__(self, item: tuple[str, tuple[str, ...]]) -> Found:
        image_id, names = item
        fields: dict[str, Any] = {}
        left = MOST_BYTES
        place, joint = f"{self.file.path}, image {image_id!r}", "_" if names else "/"
        try:
            for name in names or self.file.names(image_id, FIRST_NAMES):
                if name in FIELDS_OF_IMAGE:
                    fields[name] = self.file.whole(f"{image_id}{joint}{name}", left)
                    left -= fields[name].nbytes
        except UserError as error:
            return Found(place, error, MOST_BYTES - left)
        return self.reader.found(place, image_id, fields, MOST_BYTES - left)


def images_by_name(path: Path, reader: FieldReader, workers: int, done: Done) -> Iterator[Found]:
    """The images of a file whose arrays or groups are named by image, in the order of the names."""
    fields: dict[str, tuple[str, ...]] = {}
    kinds: dict[tuple[str, ...], tuple[str, ...]] = {}  # of which there are few
    with closing(Hdf5File(path)) as file:
        for name in file.names():
            match = NAMED.fullmatch(name)
            if name in fields if match is None else fields.get(match[1]) == ():
                raise UserError(f"{path} has {name!r} beside a group or arrays of that image; get it again.")
            if match:
                wanted = (*fields.get(match[1], ()), match[2])
                fields[match[1]] = kinds.setdefault(wanted, wanted)
            elif file.is_group(name):
                fields[name] = ()
    yield from images_of_items(list(fields.items()), NamedArrays(file, reader), workers, done)


# One array of all images.


class Row(NamedTuple):
    """Where an image lies, and what the index says of it besides."""

    image_id: str
    file: int
    row: int
    regions: int | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Table:
    """The arrays of one file; with `spans` the regions of all images follow each other."""

    file: Hdf5File
    names: tuple[str, ...]
    images: int
    spans: bool

    @classmethod
    def of(cls, path: Path) -> Table:
        """Raises UserError if there are no features, or arrays of other lengths beside them."""
        with closing(Hdf5File(path)) as file:
            found = file.names(most=FIRST_NAMES)
            lengths = {name: file.claimed(name) for name in found if name in {*FIELDS_OF_IMAGE, SPANS}}
        features = [name for name in lengths if name in (*FIELDS["features"], *FIELDS["grid"])]
        if not features:
            raise UserError(f"{path} has no features (one of {', '.join(FIELDS['features'])}); it has {found}.")
        spans, regions = SPANS in lengths, lengths[features[0]]
        images = lengths.pop(SPANS, regions)
        for name, length in lengths.items():
            if length != (images if name in OF_IMAGE else regions):
                raise UserError(
                    f"{path} has {length:,} rows of {name}, but {regions:,} of {features[0]}; get it again."
                )
        return cls(file, tuple(lengths), images, spans)

    def ids(self) -> list[str] | None:
        """The ids of its images, if an array tells them. Raises UserError if they are not as many."""
        path, name = self.file.path, next((name for name in IDS if name in self.file.names(most=FIRST_NAMES)), None)
        if name is None:
            return None
        ids = list(self.file.ids(name))
        if len(ids) != self.images:
            raise UserError(f"{path} has {len(ids):,} ids in {name}, but {self.images:,} images; get the file again.")
        return ids

    def fields(self, row: int) -> dict[str, np.ndarray]:
        """The arrays of an image."""
        start, stop = self.span(self.file.rows(SPANS, row, row + 1)[0]) if self.spans else (row, row + 1)
        fields = {}
        for name in self.names:
            if self.spans and name not in OF_IMAGE:
                fields[name] = self.file.rows(name, start, stop)
            else:
                fields[name] = self.file.rows(name, row, row + 1)[0]
        return fields

    def check_spans(self) -> None:
        """Raises UserError if regions are those of two images, or of none although they hold something."""
        total, end = len(self.file.dataset(self.names[0])), 0
        for start, stop in [*sorted(map(self.span, self.file.whole(SPANS))), (total, total)]:
            if start < end or (start > end and any(self.file.rows(name, end, start).any() for name in self.names[:1])):
                raise UserError(f"{self.file.path}: of row {min(start, end):,} {SPANS} makes two images, or none.")
            end = stop

    def span(self, given: np.ndarray) -> tuple[int, int]:
        """First row of an image and the row behind its last."""
        total = len(self.file.dataset(self.names[0]))
        start, stop = (int(number) for number in given) if given.shape == (2,) else (0, -1)
        if not 0 <= start <= stop <= total:
            raise UserError(f"{self.file.path}: {SPANS} sends to rows {given.tolist()} of {total:,}; get it again.")
        return start, stop

    def is_empty(self, row: int) -> bool:
        """Whether a row was never filled."""
        if self.spans:
            start, stop = self.span(self.file.rows(SPANS, row, row + 1)[0])
            return start == stop
        name = next((name for name in self.names if name in FIELDS["boxes"]), self.names[0])
        return not self.file.rows(name, row, row + 1).any()


@dataclass(frozen=True)
class TableRows:
    """Reads an image by its row."""

    tables: Sequence[Table]
    reader: FieldReader
    index: str  # the file that names the images

    def __call__(self, row: Row | str) -> Found:
        if isinstance(row, str):
            return Found("", UserError(row), 0)
        table = self.tables[row.file]
        place = f"{table.file.path} row {row.row:,} (from 0), image {row.image_id!r}{self.index}"
        try:
            fields: dict[str, Any] = table.fields(row.row)
            size = sum(array.nbytes for array in fields.values())
            if not (table.spans or fields.keys() & set(FIELDS["count"])):
                fields = without_padding(fields, row.regions, place)
        except UserError as error:
            return Found(place, error, 0)
        if row.size is not None:
            fields["image_w"], fields["image_h"] = row.size
        return self.reader.found(place, row.image_id, fields, size)


def images_by_row(
    files: Sequence[Path], index: Path | None, reader: FieldReader, workers: int, done: Done
) -> Iterator[Found]:
    """The images of files of one array each, in the order of the rows; first what is wrong with their index."""
    tables = [Table.of(path) for path in files]
    for table in tables:
        if table.spans:
            table.check_spans()
    if index is None:
        rows: list[str | Row] = list(_ids_within(tables[0]))
    else:
        rows = list(_indexed(tables, index))
        within = [table.ids() for table in tables]
        for row in (row for row in rows if isinstance(row, Row) and within[row.file]):
            if not same_image(said := within[row.file][row.row], row.image_id):  # type: ignore[index]
                place = f"row {row.row:,} (from 0) of {tables[row.file].file.path}"
                raise UserError(f"{index} sends image {row.image_id!r} to {place}, which is {said!r}; get both again.")
    at_once = max(rows_at_once(table.file.dataset(table.names[0])) for table in tables)
    for table in tables:
        table.file.close()
    read = TableRows(tables, reader, f" of {index.name}" if index else "")
    yield from images_of_items(rows, read, workers, done, max(ITEMS_AT_ONCE, at_once))


def _ids_within(table: Table) -> Iterator[Row]:
    """The rows of a file that has the ids of its images in an array."""
    path, ids = table.file.path, table.ids()
    if ids is None:
        names = f"{path.stem}{INDICES[0]} ({{image id: row}}), or GQA's NAME{INDICES[-1]}"
        raise UserError(f"{path} has {table.images:,} images, but nothing tells their ids: put {names} beside it.")
    yield from (Row(image_id, 0, number) for number, image_id in enumerate(ids))


def _indexed(tables: Sequence[Table], index: Path) -> Iterator[str | Row]:
    """What is wrong with an index, then the rows of all files that it names.

    Raises UserError if it names rows that are not there, or leaves out some that hold something: then it may be that of
    another file, and all of it wrong.
    """
    parts = [PART.fullmatch(table.file.path.stem) for table in tables]
    numbered = {int(part[2]): number for number, part in enumerate(parts) if part} or {0: 0}
    named: dict[tuple[int, int], list[Row]] = {}
    absent: Counter[int] = Counter()
    ids: set[str] = set()
    for name, value in _members(index):
        image_id = str(checked_id(name, f"{index}: an id"))
        with at(f"{index}: image {image_id!r}"):
            row, part = _row_of(image_id, value)
        file = numbered.get(part or 0, -1) if len(numbered) > 1 or (part is not None and parts[0]) else 0
        if file < 0:
            absent[part or 0] += 1
        elif image_id in ids:
            yield f"{index} has image {image_id!r} more than once."
        else:
            ids.add(image_id)
            named.setdefault((file, row.row), []).append(row._replace(file=file))
    if len(tables) > 1:
        for part, count in sorted(absent.items()):
            missing = f"file {part}, which is missing: get it, or give the others one by one"
            yield f"{index} has {count:,} images in {missing}."
    good = []
    for (file, number), rows in sorted(named.items()):
        table = tables[file]
        if number >= table.images:
            raise UserError(
                f"{index} sends image {rows[0].image_id!r} to row {number:,} (from 0) of {table.file.path}, which has "
                f"{table.images:,}: one of the two is of another split or cut off; get both again."
            )
        elif len(rows) > 1:
            both = f"images {rows[0].image_id!r} and {rows[1].image_id!r} both"
            yield f"{index} sends {both} to row {number:,} (from 0) of {table.file.path}; get the index again."
        else:
            good.append(rows[0])
    for file, table in enumerate(tables):
        for number in range(table.images):
            if (file, number) not in named and not table.is_empty(number):
                raise UserError(
                    f"{index} names {len(ids):,} images, but none for row {number:,} (from 0) of {table.file.path}, "
                    "which holds features: one of the two is of another split or cut off; get both again."
                )
    yield from good


def _members(index: Path) -> Iterator[tuple[Any, Any]]:
    """The ids of an index with what it says of them."""
    if index.suffix == ".json":
        yield from json_members(index, "image ids with their rows")
        return
    content = load_restricted(read_bytes(index), str(index))
    if not isinstance(content, dict):
        raise UserError(f"{index} holds {type(content).__name__}, expected a dict of image ids with their rows.")
    yield from content.items()


def _row_of(image_id: str, value: Any) -> tuple[Row, int | None]:
    """The row of an image, in the file of a number if there is one."""
    fields = value if isinstance(value, dict) else {"index": value}
    row, part, count = (
        None if given is None else _whole(given, name)
        for name, given in (
            ("its row", fields.get("index", fields.get("idx"))),  # of merged files `idx` is what it was before
            ("its file", fields.get("file")),
            ("its number of objects", fields.get("objectsNum")),
        )
    )
    if row is None:
        raise UserError(f"nothing tells its row (index or idx): {shown(value)}.")
    size = None
    if fields.get("width") is not None:
        size = checked_size(fields["width"], fields.get("height"))
    return Row(image_id, 0, row, count, size), part


def _whole(value: Any, what: str) -> int:
    number = value.item() if isinstance(value, np.generic) else value
    if type(number) is not int or not 0 <= number < 2**62:
        raise UserError(f"{what} is {shown(value)}, a whole number was expected.")
    return number
