"""Annotated pictures in one file: the form that all data sets are brought into, read through a memory map.

An Arrow IPC file of record batches, each with its digest. A process that trains needs no memory for it but the pages
that it has read, which all processes of a machine share.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from vinvl.data.table import ABOUT, DIGEST, Column, about_of, as_lists, batch_digest
from vinvl.detector.instances import FEW, FIRST_PIXEL, ROUNDING
from vinvl.detector.records import SCHEMA, PictureRecords
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write, reading
from vinvl.run.values import checked_id, checked_text, shown

SUFFIX = ".arrow"
MAGIC = b"ARROW1"
FORMAT, VERSION = "vinvl annotations", 1
BATCH = 4096  # pictures
LEADS_OUT = r"(^|/)\.\.(/|$)|^/|\x00|^$"  # of the folder of pictures
REMEDY = "make it anew with python -m vinvl.convert annotations=…"


class About(msgspec.Struct):
    """What a file says about itself; `made_of` is for people."""

    format: str
    version: int
    label_map: str
    made_of: str


class AnnotatedPicture(NamedTuple):
    """A picture with its m objects."""

    image_id: str
    file_name: str  # below the folder of pictures, or the key in a container of pictures
    width: int
    height: int
    boxes: np.ndarray  # (m, 4) float32 x1 y1 x2 y2 in pixels, far edges not counted in
    labels: np.ndarray  # (m,) int32, from 1
    crowd: np.ndarray  # (m,) bool
    attributes: list[list[int]]  # of each object, from 1


def write_annotations(target: Path, pictures: Iterable[AnnotatedPicture], labels: LabelMap, made_of: str) -> int:
    """Writes pictures as they come; returns how many. `target` appears when it is whole.

    Held in memory are the ids and a few thousand pictures.

    Args:
        labels: what classes and attributes stand for, those at 0 are background and none.
        made_of: what the file is made of, for people.

    Raises:
        UserError: names the picture that has an id or a file name twice or of the wrong kind, boxes beyond its border,
            numbers of no class, or lists of other lengths; or there is none, or the file cannot be written.
    """
    about = msgspec.json.encode(About(FORMAT, VERSION, labels.to_json(), made_of))
    seen, shares = set[str](), _Shares()
    with atomic_write(target, "wb") as file, ipc.new_file(file, SCHEMA.with_metadata({ABOUT: about})) as writer:
        left = iter(pictures)
        while some := list(islice(left, BATCH)):
            batch = _batch_of(some, seen, made_of)
            try:
                _check(batch, labels, shares)
            except _PictureError as wrong:
                raise UserError(
                    f"{made_of}: the picture {shown(some[wrong.index].image_id)} ({shown(some[wrong.index].file_name)})"
                    f" {wrong}."
                ) from None
            writer.write_batch(batch, custom_metadata={DIGEST: batch_digest(batch, about)})
        if not seen:
            raise UserError(f"{made_of} holds no pictures, so there is nothing to write.")
        shares.refuse(made_of)
    return len(seen)


def annotated_pictures(records: PictureRecords) -> Iterator[AnnotatedPicture]:
    """The pictures of one set one by one, as they are in its table."""
    for batch in records.table.select(SCHEMA.names).to_batches(BATCH):
        columns = {name: batch.column(name) for name in SCHEMA.names}
        plain = zip(*(columns[name].to_pylist() for name in SCHEMA.names[:4]), strict=True)
        for index, (image_id, file_name, width, height) in enumerate(plain):
            boxes, labels, crowd = (
                columns[name][index].values.to_numpy(zero_copy_only=False) for name in ("boxes", "labels", "crowd")
            )
            named = columns["attributes"][index].as_py()
            yield AnnotatedPicture(image_id, file_name, width, height, boxes.reshape(-1, 4), labels, crowd, named)


def is_annotations(path: Path) -> bool:
    """Whether a file begins as one of this form does. Raises UserError if it cannot be read."""
    with reading(path), path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def open_annotations(path: Path) -> tuple[PictureRecords, LabelMap]:
    """The pictures of a file, which stay on the disk, and what their labels and attributes stand for.

    All of it is read and checked once. A file that is cut short while it is open ends the process; so files are only
    ever replaced.

    Raises:
        UserError: the file is missing, none of this form or version, changed since it was written, or damaged.
    """
    try:
        with reading(path), Path(path).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        with ipc.open_file(pa.py_buffer(mapped)) as reader:
            about = _about(reader.schema)
            labels = LabelMap.from_json(about.label_map, f"the label map in {path}")
            batches, shares = [], _Shares()
            for number in range(reader.num_record_batches):
                batch, metadata = reader.get_batch_with_custom_metadata(number)
                batch.validate(full=True)
                _check(batch, labels, shares)
                if metadata is None or metadata.get(DIGEST) != batch_digest(batch, about_of(reader.schema)).encode():
                    raise ValueError("it has been changed since it was written")
                batches.append(batch)
    except (ValueError, pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is {_damage(error)}; {REMEDY}.") from error
    if hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)  # they are read again where they are needed
    table = pa.Table.from_batches(batches, SCHEMA)
    if not len(table):
        raise UserError(f"{path} holds no pictures; {REMEDY}.")
    shares.refuse(path)
    return PictureRecords.of(table, str(path)), labels


class _Shares:
    """Counts the pictures whose boxes are all within the first pixel; where many are so, boxes are shares."""

    def __init__(self) -> None:
        self.annotated = self.within = 0
        self._example = ""

    def count(self, batch: pa.RecordBatch, sizes: np.ndarray, owners: np.ndarray, far: np.ndarray) -> None:
        """sizes (n, 2) of the pictures, owners (m,) and far corners (m, 2) of their objects."""
        furthest = np.full(len(batch), -1, dtype=np.float32)
        np.maximum.at(furthest, owners, far.max(axis=1, initial=0))
        within = (furthest >= 0) & (furthest <= 1 + ROUNDING) & (sizes.min(axis=1) > FIRST_PIXEL)
        if within.any() and not self._example:
            self._example = shown(batch.column("image_id")[int(within.argmax())].as_py())
        self.annotated += int((furthest >= 0).sum())
        self.within += int(within.sum())

    def refuse(self, source: object) -> None:
        if self.within > FEW * self.annotated:
            raise UserError(
                f"{source}: no box of the picture {self._example} reaches beyond pixel 1 ({self.within:,} of "
                f"{self.annotated:,} are so): boxes are expected in pixels, not in shares of the picture."
            )


class _PictureError(ValueError):
    """What is wrong with the picture at an index of a batch."""

    def __init__(self, index: int, what: str) -> None:
        super().__init__(what)
        self.index = index


def _damage(error: Exception) -> str:
    if isinstance(error, _PictureError):
        return f"damaged (picture {error.index + 1} of a batch {error})"
    return f"no file of annotations of this version, or damaged ({' '.join(str(error).split())[:200]})"


def _about(schema: pa.Schema) -> About:
    try:
        about = msgspec.json.decode(about_of(schema), type=About)
    except msgspec.MsgspecError:
        raise ValueError("it is another kind of Arrow file") from None
    if (about.format, about.version) != (FORMAT, VERSION):
        raise ValueError(f"it is of version {about.version}, and {VERSION} is read")
    if not schema.equals(SCHEMA):
        raise ValueError("its columns are others")
    return about


def _batch_of(pictures: list[AnnotatedPicture], seen: set[str], made_of: str) -> pa.RecordBatch:
    for one in pictures:
        checked_text(one.file_name, f"{made_of}: the file name of the picture {shown(one.image_id)}")
        if checked_id(one.image_id, f"{made_of}: the id of a picture") in seen:
            raise UserError(f"{made_of} has the picture {shown(one.image_id)} twice; give every picture an id.")
        seen.add(one.image_id)
        if not len(one.boxes) == len(one.labels) == len(one.crowd) == len(one.attributes):
            raise ValueError(f"The picture {one.image_id} has boxes, labels, crowd and attributes of unequal numbers.")
    boxes, labels, crowd = (
        pa.array(np.concatenate([np.ravel(one[field]) for one in pictures]).astype(kind))
        for field, kind in ((4, np.float32), (5, np.int32), (6, np.bool_))
    )
    attributes = pa.array([numbers for one in pictures for numbers in one.attributes], pa.list_(pa.int32()))
    counts = np.array([len(one.labels) for one in pictures])
    lists = [
        as_lists(Column(pa.chunked_array([values])), each * counts)
        for values, each in ((boxes, 4), (labels, 1), (crowd, 1), (attributes, 1))
    ]
    plain = [pa.array([one[index] for one in pictures], SCHEMA.field(index).type) for index in range(4)]
    return pa.RecordBatch.from_arrays([*plain, *lists], schema=SCHEMA)


def _check(batch: pa.RecordBatch, labels: LabelMap, shares: _Shares) -> None:
    """Raises _PictureError for the first picture of a batch that cannot be used, ValueError for one with nulls."""
    columns = {name: batch.column(name) for name in SCHEMA.names}
    flat = {name: columns[name].flatten() for name in ("boxes", "labels", "crowd", "attributes")}
    named = flat["attributes"].flatten()
    if any(one.null_count for one in (*columns.values(), *flat.values(), named)):
        raise ValueError("it has empty places")
    sizes = np.stack([columns[side].to_numpy() for side in ("width", "height")], axis=1)
    counts = columns["labels"].value_lengths().to_numpy()
    for name, each in (("boxes", 4), ("crowd", 1), ("attributes", 1)):
        lengths = columns[name].value_lengths().to_numpy()
        _refuse(lengths != each * counts, f"has {name} of another number than labels")
    _refuse(sizes.min(axis=1) < 1, "has no width or no height")
    leading_out = pc.match_substring_regex(columns["file_name"], LEADS_OUT).to_numpy(zero_copy_only=False)
    _refuse(leading_out, "has a file name that leads out of the folder of pictures, or none")
    owners = np.repeat(np.arange(len(batch)), counts)
    corners, limits = flat["boxes"].to_numpy().reshape(-1, 2, 2), sizes[owners]
    inside = (corners[:, 0] >= 0) & (corners[:, 0] <= corners[:, 1]) & (corners[:, 1] <= limits)  # never so of nan
    _refuse(~inside.all(axis=1), "has a box that is not x1 y1 x2 y2 within its width and height", owners)
    shares.count(batch, sizes, owners, corners[:, 1])
    of_attributes = np.repeat(owners, flat["attributes"].value_lengths().to_numpy())
    for what, numbers, names, own in (
        ("a class", flat["labels"].to_numpy(), labels.classes, owners),
        ("an attribute", named.to_numpy(), labels.attributes, of_attributes),
    ):
        known = max(len(names) - 1, 0)
        _refuse((numbers < 1) | (numbers > known), f"has {what} beyond the {known:,} of its label map", own)


def _refuse(wrong: Any, what: str, owners: np.ndarray | None = None) -> None:
    """Raises _PictureError for the first that is, of bool (n,); `owners` (n,): the pictures of n objects."""
    if wrong.any():
        first = int(wrong.argmax())
        raise _PictureError(first if owners is None else int(owners[first]), what)
