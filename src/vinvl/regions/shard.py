"""Reading one store file: straight from the file where its arrays are contiguous, h5py elsewhere.

A memory map would end the process with SIGBUS, without a word, when the file is cut short while it is read.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

import h5py
import numpy as np

from vinvl.regions.layout import FEATURES, ArrayLayout, ShardHeader, open_hdf5
from vinvl.regions.regions import ROW_ARRAYS, Regions, StoredRegions
from vinvl.run.errors import UserError

# Finding an image id among many.


_BLOCK = 2**20


class IdLookup:
    """Positions of ids in an array of UTF-8 bytes (N,): 8 bytes an image, where a dict of strings takes some 150."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids
        self._order = np.argsort(ids, kind="stable")

    def problems(self) -> Iterator[str]:
        """A sentence for ids that come twice, and one for an id that is empty."""
        ids, order = self._ids, self._order
        repeats, first = 0, b""
        for start in range(0, len(ids), _BLOCK):
            sorted_ids = ids[order[start : start + _BLOCK + 1]]
            found = np.flatnonzero(sorted_ids[1:] == sorted_ids[:-1])
            first = sorted_ids[found[0]] if len(found) and not repeats else first
            repeats += len(found)
        if repeats:
            yield f"image ids are repeated {repeats} times, such as {first.decode('utf-8', 'replace')!r}."
        if len(ids) and ids[order[0]] == b"":
            yield f"image number {order[0]} has an empty id."

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
        index = int(self._order[position])
        return index if ids[index] == key else -1


_READ_ERRORS = (OSError, RuntimeError, ValueError, MemoryError)
_INDEX_ARRAYS = ("offsets", "sizes", "image_ids")


class _FileRows:
    """Rows of a contiguous dataset."""

    def __init__(self, stream: io.FileIO, layout: ArrayLayout, source: str) -> None:
        self._stream = stream
        self._descriptor = stream.fileno()
        self._start = layout.offset or 0
        self._dtype, self._tail = layout.dtype, layout.shape[1:]
        self._row_bytes = layout.row_bytes
        self._source = source

    def read(self, start: int, stop: int) -> np.ndarray:
        rows = np.empty((stop - start, *self._tail), dtype=self._dtype)
        self.read_into(start, rows)
        return rows

    def read_into(self, start: int, rows: np.ndarray) -> None:
        if rows.nbytes == 0:
            return
        position = self._start + start * self._row_bytes
        read = os.preadv(self._descriptor, [rows.data], position)
        while read < rows.nbytes:  # the system reads 2 GiB at once, at most
            left = rows.reshape(-1).view(np.uint8).data[read:]
            count = os.preadv(self._descriptor, [left], position + read)
            if count == 0:
                raise _cut_short(self._source)
            read += count


class _HDF5Rows:
    """Rows of a chunked or compressed dataset."""

    def __init__(self, dataset: h5py.Dataset, stream: io.FileIO, header: ShardHeader) -> None:
        self._dataset, self._stream, self._header = dataset, stream, header

    def read(self, start: int, stop: int) -> np.ndarray:
        rows: np.ndarray = self._dataset[start:stop]
        # HDF5 takes zeros for what lies behind the end of a file.
        if os.fstat(self._stream.fileno()).st_size < self._header.file_bytes:
            raise _cut_short(str(self._header.path))
        return rows

    def read_into(self, start: int, rows: np.ndarray) -> None:
        rows[...] = self.read(start, start + len(rows))


def _cut_short(source: str) -> UserError:
    return UserError(f"{source} was cut short while it was read: copy or write it again, then give the command again.")


@dataclass(frozen=True, eq=False)
class _OpenShard:
    """The arrays of an opened file, those of rows as what reads them."""

    process: int
    stream: io.FileIO
    handle: h5py.File | None
    rows: dict[str, _FileRows | _HDF5Rows]
    offsets: np.ndarray
    sizes: np.ndarray
    image_ids: np.ndarray


class Shard:
    """One store file, opened on first use in each process.

    An open file survives a fork and is shared between the processes, for nothing depends on where it stands. An HDF5
    handle must not be: a forked process opens its own. Pickling keeps the header alone.
    """

    def __init__(self, header: ShardHeader) -> None:
        self.header = header
        self._source = str(header.path)
        self._opened: _OpenShard | None = None

    def __getstate__(self) -> ShardHeader:
        return self.header

    def __setstate__(self, header: ShardHeader) -> None:
        self.__init__(header)  # type: ignore[misc]

    @property
    def offsets(self) -> np.ndarray:
        """(N+1,) int64"""
        return self._open().offsets

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32, width and height"""
        return self._open().sizes

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) UTF-8 bytes"""
        return self._open().image_ids

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of one of the six row arrays. Raises UserError if they cannot be read."""
        return self._read(name, name, start, stop)

    def classes(self, index: int) -> np.ndarray:
        """(R,) int32 of the image at `index` of this file, 0 <= index < num_images."""
        return self._read(index, "classes", *self._span(index))

    def features_into(self, index: int, out: np.ndarray) -> None:
        """Fills `out`, (r, D), with the features of the first r regions of the image at `index` of this file."""
        start, stop = self._span(index)
        _ImageRows(self, index, start, stop).features_into(out)

    def regions(self, index: int) -> Regions:
        """The regions of the image at `index` of this file, 0 <= index < num_images."""
        opened = self._open()
        start, stop = self._span(index)
        width, height = opened.sizes[index].tolist()
        if width < 1 or height < 1:
            raise UserError(f"{self._source}: image number {index} has size {width} x {height}; write it again.")
        try:
            image_id = opened.image_ids[index].decode()
        except UnicodeDecodeError:
            raise UserError(f"{self._source}: the id of image number {index} is not UTF-8; write it again.") from None
        regions = StoredRegions.of(_ImageRows(self, index, start, stop), image_id, width, height, self._source)
        if opened.handle is not None:  # whose reading may fail, and says more of the image
            for name in ROW_ARRAYS:
                getattr(regions, name)
        return regions

    def close(self) -> None:
        """Close the file; the next reading opens it again."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.stream.close()
            if opened.handle is not None:
                opened.handle.close()

    def _read(self, what: int | str, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of an array; `what` is the number of the image, or the name of the array, that a failure tells."""
        try:
            return self._open().rows[name].read(start, stop)
        except _READ_ERRORS as error:
            raise self._failure(what, error) from None

    def _read_into(self, index: int, start: int, out: np.ndarray) -> None:
        """Fills `out` with rows of features, from `start` on; `index` is of their image, for a failure."""
        try:
            self._open().rows[FEATURES].read_into(start, out)
        except _READ_ERRORS as error:
            raise self._failure(index, error) from None

    def _failure(self, what: int | str, error: Exception) -> UserError:
        what = f"image number {what}" if isinstance(what, int) else what
        return UserError(f"{self._source}: {what} cannot be read; copy or write the file again ({error}).")

    def _span(self, index: int) -> tuple[int, int]:
        """First row of an image and the row behind its last."""
        start, stop = self._open().offsets[index : index + 2].tolist()
        if not 0 <= start <= stop <= self.header.num_regions:
            raise UserError(f"{self._source}: the offsets of image number {index} are damaged ({start} to {stop}).")
        return start, stop

    def _open(self) -> _OpenShard:
        opened = self._opened
        if opened is None or (opened.handle is not None and opened.process != os.getpid()):
            if opened is not None and opened.handle is not None:
                # Closes this process's copy of the inherited handle only; HDF5 would share its state otherwise.
                opened.handle.close()
            opened = self._opened = _open_shard(self.header)
        return opened


@dataclass(frozen=True, slots=True)
class _ImageRows:
    """Rows start..stop of a file, which are those of image number `index` (`StoredImage`)."""

    shard: Shard
    index: int
    start: int
    stop: int

    @property
    def feature_layout(self) -> tuple[int, np.dtype]:
        header = self.shard.header
        return header.feature_dim, header.feature_dtype

    def read(self, name: str) -> np.ndarray:
        return self.shard._read(self.index, name, self.start, self.stop)

    def features_into(self, out: np.ndarray) -> None:
        count = self.stop - self.start
        if len(out) > count:
            raise UserError(f"{self.shard.header.path}: image number {self.index} has {count} regions, not {len(out)}.")
        self.shard._read_into(self.index, self.start, out)


def _open_shard(header: ShardHeader) -> _OpenShard:
    stream = _open_file(header)
    chunked = [name for name, layout in header.arrays.items() if layout.offset is None and 0 not in layout.shape]
    handle = open_hdf5(header.path) if chunked else None
    arrays: dict[str, _FileRows | _HDF5Rows] = {}
    for name, layout in header.arrays.items():
        if handle is not None and name in chunked:
            arrays[name] = _HDF5Rows(handle[name], stream, header)
        else:
            arrays[name] = _FileRows(stream, layout, str(header.path))
    try:
        # These three are looked up in for every image.
        whole = {name: arrays.pop(name).read(0, header.arrays[name].shape[0]) for name in _INDEX_ARRAYS}
    except _READ_ERRORS as error:
        raise UserError(f"{header.path} cannot be read; copy or write the file again ({error}).") from None
    return _OpenShard(os.getpid(), stream, handle, arrays, **whole)


def _open_file(header: ShardHeader) -> io.FileIO:
    try:
        stream = header.path.open("rb", buffering=0)
        status = os.fstat(stream.fileno())
    except OSError as error:
        raise UserError(f"{header.path} cannot be opened: {error.strerror}.") from None
    # The offsets of the header hold for the file that was checked.
    if (status.st_size, status.st_mtime_ns) != (header.file_bytes, header.modified_ns):
        stream.close()
        raise UserError(f"{header.path} was changed after it was opened; start again.")
    return stream
