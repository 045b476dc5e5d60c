"""Open Images' boxes as they are downloaded: CSV files and a folder of pictures → annotated pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vinvl.data.open_images import class_descriptions, csv_batches
from vinvl.detector.annotations import AnnotatedPicture
from vinvl.detector.box_checks import BoxChecks
from vinvl.detector.instances import ROUNDING, InstanceOptions
from vinvl.pictures import look_for
from vinvl.pictures.containers import container_of
from vinvl.pictures.reading import size_and_turn, turned_shares
from vinvl.regions.regions import BACKGROUND, LabelMap
from vinvl.run.errors import UserError, say
from vinvl.run.files import reading
from vinvl.run.progress import progress
from vinvl.run.values import checked_id, shown

DESCRIPTIONS, BOXES = "class-descriptions-boxable.csv", "-annotations-bbox.csv"
IDS = (  # of the pictures of a split, behind its name
    "-images-boxable-with-rotation.csv",
    "-images-boxable.csv",
    "-images-with-rotation.csv",
    "-images.csv",
)
SHARES = ("XMin", "YMin", "XMax", "YMax")
COLUMNS = {**dict.fromkeys(("ImageID", "LabelName", "IsGroupOf"), pa.string()), **dict.fromkeys(SHARES, pa.float64())}
GROUP, UNKNOWN = "1", ("0", "-1")  # of IsGroupOf
BLOCK = 1 << 12  # pictures that are looked at together
PART = 128  # of them by one thread: for single pictures threads wait for each other
READERS = 16  # threads that look into pictures' heads: it is mostly waiting for the disk
SUFFIX = ".jpg"


class _Row(NamedTuple):
    """The objects of a picture, before it is looked for."""

    image_id: str
    shares: np.ndarray  # (m, 4) float64 x1 y1 x2 y2, from 0 to 1
    labels: np.ndarray  # (m,) int32
    crowd: np.ndarray  # (m,) bool


def boxes_file(path: Path) -> Path | None:
    """The CSV of boxes that a folder or a path names; None where it is neither.

    Raises UserError if a folder holds those of several splits.
    """
    if path.is_file():
        return path if path.name.endswith(BOXES) else None
    found = sorted(path.glob(f"*{BOXES}"))
    if len(found) > 1:
        raise UserError(f"{path} holds the boxes of several splits ({', '.join(one.name for one in found)}): name one.")
    return found[0] if found else None


def read_open_images(
    path: Path, pictures: Path, options: InstanceOptions
) -> tuple[LabelMap, Iterator[AnnotatedPicture]]:
    """The pictures of a CSV of boxes in its order, those without boxes behind them, and the names of the classes.

    Beside it lie `class-descriptions-boxable.csv`, whose order the classes have, and, if it shall be said which
    pictures there are at all, the list of image ids: `train-images-boxable-with-rotation.csv`. The `Rotation` in it is
    not applied, because boxes are of the pictures as they are stored; but where a picture itself says in EXIF how it is
    to be turned, and `options.reading` does that, its boxes are turned with it. A group (`IsGroupOf`) is a crowd.

    Args:
        path: the CSV (`train-annotations-bbox.csv`, `oidv6-train-annotations-bbox.csv`) or its folder, if that is the
            only one in it. The rows of a picture follow each other, as published.
        pictures: a folder with ID.jpg, or a container with such; sizes are read from the pictures' heads.
        options: what becomes of boxes without area, and of pictures that are missing.

    Raises:
        UserError: names file and line; of what is found on the way, as the pictures are read.
    """
    boxes = boxes_file(path)
    if boxes is None:
        raise UserError(f"{path} holds no file *{BOXES}: give the folder of Open Images' CSV files, or that file.")
    classes = class_descriptions(boxes.with_name(DESCRIPTIONS))
    split = boxes.name.removesuffix(BOXES)
    names = [one + ids for one in (split, split.removeprefix("oidv6-")) for ids in IDS]
    listed = next((boxes.with_name(name) for name in names if boxes.with_name(name).is_file()), None)
    found = _Pictures(pictures, options, BoxChecks(str(boxes), options.bad_boxes))
    rows = _grouped(boxes, pa.array(list(classes)), options.bad_boxes == "clip")
    return LabelMap((BACKGROUND, *classes.values()), ()), _annotated(boxes, listed, rows, found)


def _annotated(
    path: Path, listed: Path | None, blocks: Iterator[list[_Row]], pictures: _Pictures
) -> Iterator[AnnotatedPicture]:
    """The pictures of all rows, then those that are listed and have none."""
    left = None if listed is None else dict.fromkeys(_ids(listed))  # those without rows by now
    total, seen = len(left or ()), set[str]()
    with ThreadPoolExecutor(READERS) as readers:
        for rows in blocks:
            for row in rows:
                if left is None and row.image_id not in seen:
                    seen.add(row.image_id)
                elif left is None or row.image_id not in left:
                    raise _out_of_place(path, row.image_id, listed)
                else:
                    del left[row.image_id]
            yield from pictures.of(rows, readers)
        bare = list(left or ())
        for start in range(0, len(bare), BLOCK):
            empty = np.zeros((0, 4)), np.zeros(0, dtype=np.int32), np.zeros(0, dtype=bool)
            yield from pictures.of([_Row(one, *empty) for one in bare[start : start + BLOCK]], readers)
    pictures.finish()
    if bare:
        say(f"{listed} lists {len(bare):,} pictures, of {total:,}, that have no boxes in {path.name}.")


def _out_of_place(path: Path, image_id: str, listed: Path | None) -> UserError:
    """The sentence about a picture whose rows came before, or that is not listed."""
    if listed is not None and image_id not in _ids(listed):
        return UserError(
            f"{path} has boxes of the picture {shown(image_id)}, which {listed} does not list: get both files of one "
            "split and version."
        )
    return UserError(
        f"{path}: the rows of the picture {shown(image_id)} do not follow each other: sort them by ImageID, the line "
        "of the names staying first."
    )


class _Pictures:
    """Pictures found by their ids, and their heads read."""

    def __init__(self, source: Path, options: InstanceOptions, checks: BoxChecks) -> None:
        self._source, self._options, self._checks = source, options, checks
        self._found = self._missing = 0
        self._first_missing = ""
        self._folders, self._places = [""], dict[str, tuple[str, str]]()
        if source.is_file() or (source.is_dir() and container_of(source) is not None):
            entries = [one for one in look_for(source)[0] if not one.problem]
            self._places = {PurePosixPath(one.name).stem: (one.name, one.place) for one in entries}
        elif source.is_dir():
            below = (Path(place, name) for place, names, _ in os.walk(source) for name in sorted(names))
            self._folders += [one.relative_to(source).as_posix() for one in below]
        else:
            raise UserError(f"The pictures {source} do not exist: give the folder of Open Images' pictures.")

    def of(self, rows: Sequence[_Row], readers: ThreadPoolExecutor) -> Iterator[AnnotatedPicture]:
        """The pictures of some rows, without those that are missing where these are skipped."""
        ids = [row.image_id for row in rows]
        parts = readers.map(self._heads, [ids[start : start + PART] for start in range(0, len(ids), PART)])
        for (image_id, shares, labels, crowd), head in zip(rows, chain.from_iterable(parts), strict=True):
            if isinstance(head, UserError):
                if self._options.on_missing == "error":
                    raise UserError(f"{head} Or pass data.on_missing=skip, which leaves such pictures out.")
                self._missing, self._first_missing = self._missing + 1, self._first_missing or str(head)
                continue
            name, (width, height), turn = head
            place, self._found = f"{self._checks.source}: {image_id}", self._found + 1
            corners = turned_shares(shares, turn) * (width, height, width, height)
            boxes, left = self._checks.within(corners, (width, height), place)
            kept = boxes[left].astype(np.float32), labels[left], crowd[left]
            yield AnnotatedPicture(image_id, name, width, height, *kept, [[] for _ in kept[1]])

    def finish(self) -> None:
        """Tells what is missing. Raises UserError if all is, or boxes are wrong all together."""
        if self._missing and not self._found:
            raise UserError(
                f"{self._source} has none of {self._missing:,} pictures; of the first: {self._first_missing}"
            )
        self._checks.finish()
        if self._missing:
            say(f"data.on_missing=skip: {self._missing:,} pictures are left out; of the first: {self._first_missing}")

    def _heads(self, ids: Sequence[str]) -> list[tuple[str, tuple[int, int], int] | UserError]:
        return [self._head(image_id) for image_id in ids]

    def _head(self, image_id: str) -> tuple[str, tuple[int, int], int] | UserError:
        """File name, size and turn; called in threads, which may change what is looked at first."""
        try:
            name, place = self._places[image_id] if self._places else self._below(image_id)
            return name, *size_and_turn(place, self._options.reading)
        except KeyError:
            return UserError(f"{self._source} has no picture {shown(image_id)}.")
        except UserError as error:
            return error

    def _below(self, image_id: str) -> tuple[str, str]:
        name = image_id + SUFFIX
        for folder in self._folders[:]:
            place = self._source / folder / name
            if place.is_file():
                if folder != self._folders[0]:
                    self._folders = [folder, *(one for one in self._folders if one != folder)]
                return (f"{folder}/{name}" if folder else name), str(place)
        raise KeyError(image_id)


def _ids(path: Path) -> Iterator[str]:
    """The ids that a list of pictures has; titles in it may have commas and line ends."""
    for _, batch in csv_batches(path, {"ImageID": pa.string()}, newlines=True):
        yield from batch["ImageID"].to_pylist()


def _grouped(path: Path, classes: pa.Array, with_empty: bool) -> Iterator[list[_Row]]:
    """Blocks of pictures with their objects. classes: MIDs; with_empty: boxes without area are let through."""
    line, rest = 2, None
    with reading(path), progress("MB", path.stat().st_size / 1e6) as show:
        for read, table in csv_batches(path, COLUMNS):
            table = (pa.concat_tables([rest, table]) if rest is not None else table).combine_chunks()
            ids = table["ImageID"].to_numpy()
            starts = [0, *(np.flatnonzero(ids[1:] != ids[:-1]) + 1).tolist(), len(ids)]
            yield _rows(table, starts[:-1], classes, f"{path} line", line, with_empty)
            rest, line = table.slice(starts[-2]), line + starts[-2]
            show(read / 1e6)
    if rest is None or not len(rest):
        raise UserError(f"{path} holds no boxes: get the file again.")
    yield _rows(rest, [0, len(rest)], classes, f"{path} line", line, with_empty)


def _rows(table: pa.Table, starts: list[int], classes: pa.Array, place: str, line: int, with_empty: bool) -> list[_Row]:
    """The objects of each picture: those of picture i are the rows starts[i] to starts[i + 1]. line: that of row 0."""
    table = table.slice(0, starts[-1])
    indices = pc.fill_null(pc.index_in(table["LabelName"], classes), -1).to_numpy().astype(np.int32)
    shares = np.stack([table[name].to_numpy() for name in SHARES], axis=1)
    group = np.array(table["IsGroupOf"].to_pylist(), dtype=object)
    rules = (
        (indices < 0, "LabelName", f"is in no line of {DESCRIPTIONS}"),
        (~np.isin(group, (GROUP, *UNKNOWN)), "IsGroupOf", "is none of 1, 0 and -1"),
        *(
            (~((one >= -ROUNDING) & (one <= 1 + ROUNDING)), name, "is no share of the picture, from 0 to 1")
            for name, one in zip(SHARES, shares.T, strict=True)
        ),
        *(
            ((shares[:, axis] >= shares[:, axis + 2]) & (not with_empty), name, "is not less than its Max")
            for axis, name in enumerate(SHARES[:2])
        ),
    )
    for wrong, name, what in rules:
        if wrong.any():
            row = int(wrong.argmax())
            remedy = "; pass data.bad_boxes=clip to leave such boxes out" if what.startswith("is not less") else ""
            raise UserError(f"{place} {line + row}: {name} {shown(table[name][row].as_py())} {what}{remedy}.")
    ids = table["ImageID"]
    found = []
    for start, stop in pairwise(starts):
        image_id = str(checked_id(ids[start].as_py(), f"{place} {line + start}: ImageID"))
        if "/" in image_id:
            raise UserError(f"{place} {line + start}: ImageID {shown(image_id)} holds a slash, which no id does.")
        found.append(_Row(image_id, shares[start:stop], indices[start:stop] + 1, group[start:stop] == GROUP))
    return found
