"""One store file: its arrays, read by the system where they are contiguous and by h5py elsewhere, and what is wrong.

A memory map would end the process with SIGBUS, without a word, when the file is cut short while it is read.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from functools import cached_property
from zlib import crc32

import h5py
import numpy as np

from vinvl.regions.layout import ShardHeader, open_hdf5
from vinvl.regions.regions import BOX_TOLERANCE, FEATURES, ROW_ARRAYS, Regions, inverted, out_of_bounds
from vinvl.run.errors import UserError

_BLOCK = 2**20
NAMED = ("classes", "class_scores", "attributes", "attribute_scores")  # what a view may leave out


class IdLookup:
    """Positions of ids in an array of UTF-8 bytes (N,): 8 bytes an image, where a dict of strings takes some 150.

    Those that are sorted already take none.
    """

    def __init__(self, ids: np.ndarray, is_sorted: bool = False) -> None:
        self._ids = ids
        self._order = None if is_sorted else np.argsort(ids, kind="stable")

    def repeats(self) -> tuple[int, tuple[int, int]]:
        """How many ids are those of an earlier image, and two images of the first such id."""
        ids, repeats, first = self._ids, 0, (-1, -1)
        order = np.arange(len(ids)) if self._order is None else self._order
        for start in range(0, len(ids), _BLOCK):
            sorted_ids = ids[order[start : start + _BLOCK + 1]]
            found = np.flatnonzero(sorted_ids[1:] == sorted_ids[:-1])
            if len(found) and not repeats:
                first = (int(order[start + found[0]]), int(order[start + found[0] + 1]))
            repeats += len(found)
        return repeats, first

    def problems(self) -> Iterator[str]:
        """A sentence for ids that come twice, and one for an id that is empty."""
        repeats, (first, _) = self.repeats()
        if repeats:
            yield f"image ids are repeated {repeats} times, such as {self._ids[first].decode('utf-8', 'replace')!r}."
        if (empty := self.find("")) >= 0:
            yield f"image number {empty} has an empty id."

    def __contains__(self, image_id: str) -> bool:
        return self.find(image_id) >= 0

    def find(self, image_id: str) -> int:
        """The index of an id, the first of it where it comes more than once; -1 if it is not there."""
        ids = self._ids
        try:
            key = image_id.encode()
        except UnicodeEncodeError:
            return -1
        # A longer key would make NumPy convert all ids to its length.
        if len(key) > ids.dtype.itemsize:
            return -1
        position = int(ids.searchsorted(np.array(key, dtype=ids.dtype), sorter=self._order))
        if position == len(ids):
            return -1
        index = position if self._order is None else int(self._order[position])
        return index if ids[index] == key else -1


class Shard:
    """One store file, opened on first use in each process.

    An open file survives a fork and is shared between the processes, for nothing depends on where it stands. An HDF5
    handle must not be: a forked process opens its own. Pickling keeps the header alone.
    """

    def __init__(self, header: ShardHeader) -> None:
        self.header = header
        self._stream: io.FileIO | None = None
        self._handle: h5py.File | None = None
        self._datasets: dict[str, h5py.Dataset] = {}  # those that only h5py can read
        self._process = 0

    def __getstate__(self) -> ShardHeader:
        return self.header

    def __setstate__(self, header: ShardHeader) -> None:
        self.__init__(header)  # type: ignore[misc]

    # These three are looked up in for every image, and stay in memory.

    @cached_property
    def offsets(self) -> np.ndarray:
        """(N+1,) int64"""
        return self.rows("offsets", 0, self.header.num_images + 1)

    @cached_property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32, width and height"""
        return self.rows("sizes", 0, self.header.num_images)

    @cached_property
    def image_ids(self) -> np.ndarray:
        """(N,) UTF-8 bytes"""
        ids, prefix = self.rows("image_ids", 0, self.header.num_images), self.header.view.id_prefix
        return np.char.add(prefix.encode(), ids) if prefix else ids

    def rows(self, name: str, start: int, stop: int, index: int | None = None) -> np.ndarray:
        """Rows start..stop of an array, of the image at `index` if a failure is to tell it.

        Raises UserError if they cannot be read.
        """
        layout = self.header.arrays[name]
        rows = np.empty((stop - start, *layout.shape[1:]), dtype=layout.dtype)
        self.rows_into(name, start, rows, index)
        return rows

    def rows_into(self, name: str, start: int, rows: np.ndarray, index: int | None = None) -> None:
        """Fills `rows`, contiguous and of the array's type, with those from `start` on. Raises UserError as `rows`."""
        layout = self.header.arrays[name]
        try:
            stream = self._open()
            if not rows.nbytes:
                return
            if layout.offset is None:
                rows[...] = self._datasets[name][start : start + len(rows)]
                # HDF5 takes zeros for what lies behind the end of a file.
                if os.fstat(stream.fileno()).st_size < self.header.file_bytes:
                    raise self._cut_short()
                return
            position = layout.offset + start * layout.row_bytes
            read = os.preadv(stream.fileno(), [rows.data], position)
            while read < rows.nbytes:  # the system reads 2 GiB at once, at most
                left = rows.reshape(-1).view(np.uint8).data[read:]
                count = os.preadv(stream.fileno(), [left], position + read)
                if count == 0:
                    raise self._cut_short()
                read += count
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            what = name if index is None else f"image number {index}"
            raise UserError(
                f"{self.header.path}: {what} cannot be read; copy or write the file again ({error})."
            ) from None

    def copied_to(self, descriptor: int, position: int, name: str) -> bool:
        """Copies all of an array into an open file without looking at it; False where only reading can do it."""
        layout, done = self.header.arrays[name], 0
        size, source = layout.shape[0] * layout.row_bytes, self._open().fileno()
        if layout.offset is None or not hasattr(os, "copy_file_range"):
            return False
        with suppress(OSError):  # some file systems cannot, and what is wrong the reading tells
            while done < size:
                count = os.copy_file_range(source, descriptor, size - done, layout.offset + done, position + done)
                if not count:
                    break
                done += count
        return done == size

    def _cut_short(self) -> UserError:
        again = "copy or write it again, then give the command again"
        return UserError(f"{self.header.path} was cut short while it was read: {again}.")

    def classes(self, index: int) -> np.ndarray:
        """(R,) int32 of the image at `index` of this file, 0 <= index < num_images."""
        return self.seen_rows("classes", *self._span(index), index)

    def seen_rows(self, name: str, start: int, stop: int, index: int) -> np.ndarray:
        """`rows` as the view of the header has them."""
        if self.header.view.classes or name not in NAMED:
            return self.rows(name, start, stop, index)
        shape = (stop - start, *self.header.attributes.row_shape(name))
        return np.zeros(shape, self.header.arrays[name].dtype)

    def features_into(self, index: int, out: np.ndarray) -> None:
        """Fills `out`, (r, D), with the features of the first r regions of the image at `index` of this file."""
        start, stop = self._span(index)
        if len(out) > stop - start:
            raise UserError(f"{self.header.path}: image number {index} has {stop - start} regions, not {len(out)}.")
        self.rows_into(FEATURES, start, out, index)

    def regions(self, index: int) -> Regions:
        """The regions of the image at `index` of this file, 0 <= index < num_images."""
        path = self.header.path
        start, stop = self._span(index)
        width, height = self.sizes[index].tolist()
        if width < 1 or height < 1:
            raise UserError(f"{path}: image number {index} has size {width} x {height}; write it again.")
        try:
            image_id = self.image_ids[index].decode()
        except UnicodeDecodeError:
            raise UserError(f"{path}: the id of image number {index} is not UTF-8; write it again.") from None
        regions: StoredRegions = object.__new__(StoredRegions)
        place = (self, index, start, stop)
        regions.__dict__.update(_place=place, image_id=image_id, width=width, height=height, source=str(path))
        self._open()
        if self._handle is not None:  # whose reading may fail, and says more of the image
            for name in ROW_ARRAYS:
                getattr(regions, name)
        return regions

    def __del__(self) -> None:
        """Nobody has to close a store: its file is closed with the last that holds it, and Python has no complaint."""
        if getattr(self, "_stream", None) is not None:
            self._stream.close()  # type: ignore[union-attr]

    def close(self) -> None:
        """Close the file; the next reading opens it again."""
        for opened in (self._stream, self._handle):
            if opened is not None:
                opened.close()
        self._stream = self._handle = None

    def _span(self, index: int) -> tuple[int, int]:
        """First row of an image and the row behind its last."""
        start, stop = self.offsets[index : index + 2].tolist()
        if not 0 <= start <= stop <= self.header.num_regions:
            raise UserError(f"{self.header.path}: the offsets of image number {index} are damaged ({start} to {stop}).")
        return start, stop

    def _open(self) -> io.FileIO:
        if self._handle is not None and self._process != os.getpid():
            # Closes this process's copy of the inherited handle only; HDF5 would share its state otherwise.
            self.close()
        if self._stream is None:
            header = self.header
            try:
                stream = header.path.open("rb", buffering=0)
                status = os.fstat(stream.fileno())
            except OSError as error:
                raise UserError(f"{header.path} cannot be opened: {error.strerror}.") from None
            # The offsets of the header hold for the file that was checked.
            if (status.st_size, status.st_mtime_ns) != (header.file_bytes, header.modified_ns):
                stream.close()
                raise UserError(f"{header.path} was changed after it was opened; start again.")
            chunked = [name for name, one in header.arrays.items() if one.offset is None and 0 not in one.shape]
            self._handle = open_hdf5(header.path) if chunked else None
            self._datasets = {} if self._handle is None else {name: self._handle[name] for name in chunked}
            self._stream, self._process = stream, os.getpid()
        return self._stream


class StoredRegions(Regions):
    """The regions of an image in a store: an array is read when it is first asked for."""

    _place: tuple[Shard, int, int, int]  # index of the image, its first row and the row behind its last

    @property
    def feature_layout(self) -> tuple[int, np.dtype]:
        attributes = self._place[0].header.attributes
        return attributes.feature_dim, attributes.feature_dtype

    def features_into(self, out: np.ndarray) -> None:
        if FEATURES in self.__dict__:
            super().features_into(out)
        else:
            self._place[0].features_into(self._place[1], out)

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in ROW_ARRAYS or "_place" not in self.__dict__:
            raise AttributeError(name)
        shard, index, start, stop = self._place
        array = self.__dict__[name] = shard.seen_rows(name, start, stop, index)
        return array

    def __reduce__(self) -> tuple[type[Regions], tuple[object, ...]]:
        """What travels to another process has its arrays with it."""
        return Regions, tuple(getattr(self, field.name) for field in fields(self))


# What a sound file is; arrays are looked at some megabytes at a time.

_BLOCK_BYTES = 8 * 2**20
_QUICK = ("classes", "attributes")

FindBad = Callable[[int, np.ndarray], np.ndarray]  # (first row, (r, …) rows) → (r,) bool


def problems(shard: Shard, *, written: bool = False, values: bool = False) -> Iterator[str]:
    """What is wrong with a store file, as sentences: one for each kind, with its count and first example.

    Looked at are offsets, sizes, classes, attributes and the checksums of these and of ids.

    Args:
        written: whether all else is read too and its checksums compared. A UserError that stops this is a sentence too.
        values: besides, whether ids come twice or are no text, features, boxes and scores are NaN, and boxes
            `inverted` or `out_of_bounds`.
    """
    path = shard.header.path
    try:
        offsets, ids = shard.offsets, shard.image_ids
        if values:
            yield from (f"{path}: {problem}" for problem in (*IdLookup(ids).problems(), *_undecodable(ids)))
        if len(falls := np.flatnonzero(np.diff(offsets) < 0)):
            yield f"{path}: offsets fall after image number {falls[0]}; they must never fall."
        if len(bad := np.flatnonzero((shard.sizes <= 0).any(axis=1))):
            yield f"{path}: {len(bad)} images have a size that is not positive, the first is image number {bad[0]}."
        for name in ("offsets", "sizes", "image_ids"):
            yield from unlike_checksum(shard, name, crc32(shard.rows(name, 0, shard.header.arrays[name].shape[0]).data))
        for name in (*_QUICK, *(name for name in ROW_ARRAYS if name not in _QUICK and (written or values))):
            checks = _checks(shard, name, sound=not len(falls)) if values or name in _QUICK else {}
            yield from _problems_of(shard, name, checks, sound=not len(falls))
    except UserError as error:
        if not (written or values):
            raise
        yield str(error)


def _checks(shard: Shard, name: str, sound: bool) -> dict[str, FindBad]:
    """What may be wrong with the rows of an array; only with `sound` offsets is known which image a row belongs to."""
    offsets, sizes = shard.offsets, shard.sizes

    def size_at(start: int, boxes: np.ndarray) -> np.ndarray:
        """(r, 2): width and height of each box's image."""
        rows = np.arange(start, start + len(boxes))
        return sizes[np.searchsorted(offsets, rows, side="right") - 1] if sound else np.full((1, 2), np.inf)

    def any_of(bad: np.ndarray) -> np.ndarray:
        return np.any(bad.reshape(len(bad), -1), axis=1)

    if name in _QUICK:  # without names any index but a negative one is as good as another
        limit = len(getattr(shard.header.attributes.label_map, name)) or np.iinfo(np.int32).max
        outside = f"have {name} outside of the label map (0 to {limit - 1})"
        return {outside: lambda start, block: any_of((block < 0) | (block >= limit))}
    found: dict[str, FindBad] = {
        f"have {name} that are NaN or infinite": lambda start, block: any_of(~np.isfinite(block))
    }
    if name == "boxes":
        outside = f"have boxes more than {BOX_TOLERANCE:.0%} of the image's size outside of the image"
        found["have inverted boxes (x2 < x1 or y2 < y1)"] = lambda start, boxes: inverted(boxes, size_at(start, boxes))
        found[outside] = lambda start, boxes: out_of_bounds(boxes, size_at(start, boxes))
    return found


def _problems_of(shard: Shard, name: str, checks: dict[str, FindBad], sound: bool) -> Iterator[str]:
    """Sentences for the checks that find bad rows, and one if the array is not as it was written."""
    checksum, found = 0, {what: (0, -1) for what in checks}  # number of bad rows and the first of them
    row_bytes, total = shard.header.arrays[name].row_bytes, shard.header.num_regions
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, total if row_bytes else 0, step):
        block = shard.rows(name, start, min(start + step, total))
        checksum = crc32(block.data, checksum)
        for what, find_bad in checks.items():
            if len(bad := np.flatnonzero(find_bad(start, block))):
                count, first = found[what]
                found[what] = count + len(bad), first if count else start + int(bad[0])
    for what, (count, row) in found.items():
        if count:
            image = int(np.searchsorted(shard.offsets, row, side="right")) - 1
            place = f"image {shard.image_ids[image].decode('utf-8', 'replace')!r}, region {row - shard.offsets[image]}"
            yield f"{shard.header.path}: {count} regions {what}, first in {place if sound else f'row {row}'}."
    yield from unlike_checksum(shard, name, checksum)


def unlike_checksum(shard: Shard, name: str, checksum: int) -> Iterator[str]:
    """A sentence if an array of this checksum is not the one that was written; none where the file has no checksums."""
    checksums = shard.header.checksums
    if checksums is not None and checksums[name] != checksum:
        yield (
            f"{shard.header.path}: {name} are not as they were written (their checksum differs): the file was damaged "
            "or edited, copy or write it again."
        )


def _undecodable(ids: np.ndarray) -> Iterator[str]:
    for start in range(0, len(ids), 65536):
        try:
            np.char.decode(ids[start : start + 65536], "utf-8")
        except UnicodeDecodeError:
            yield "image_ids hold bytes that are not UTF-8."
            return
