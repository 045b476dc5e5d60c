"""One store file: its arrays, read by the system where they are contiguous and by h5py elsewhere, and what is wrong.

A memory map would end the process with SIGBUS, without a word, when the file is cut short while it is read.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from zlib import crc32

import h5py
import numpy as np

from vinvl.regions.layout import ShardHeader, open_hdf5
from vinvl.regions.regions import FEATURES, ROW_ARRAYS, Regions
from vinvl.run.errors import UserError

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


@dataclass(frozen=True, eq=False)
class _OpenFile:
    """A file that is open in a process; `datasets` are those that only h5py can read."""

    process: int
    stream: io.FileIO
    handle: h5py.File | None
    datasets: dict[str, h5py.Dataset]


class Shard:
    """One store file, opened on first use in each process.

    An open file survives a fork and is shared between the processes, for nothing depends on where it stands. An HDF5
    handle must not be: a forked process opens its own. Pickling keeps the header alone.
    """

    def __init__(self, header: ShardHeader) -> None:
        self.header = header
        self._opened: _OpenFile | None = None
        self._index: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __getstate__(self) -> ShardHeader:
        return self.header

    def __setstate__(self, header: ShardHeader) -> None:
        self.__init__(header)  # type: ignore[misc]

    @property
    def offsets(self) -> np.ndarray:
        """(N+1,) int64"""
        return self._indices()[0]

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32, width and height"""
        return self._indices()[1]

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) UTF-8 bytes"""
        return self._indices()[2]

    def _indices(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """These three are looked up in for every image, and stay in memory."""
        if self._index is None:
            arrays = self.header.arrays
            offsets, sizes, ids = (
                self.rows(name, 0, arrays[name].shape[0]) for name in ("offsets", "sizes", "image_ids")
            )
            self._index = offsets, sizes, ids
        return self._index

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
        try:
            opened = self._open()
            if (dataset := opened.datasets.get(name)) is not None:
                rows[...] = dataset[start : start + len(rows)]
                # HDF5 takes zeros for what lies behind the end of a file.
                if os.fstat(opened.stream.fileno()).st_size < self.header.file_bytes:
                    raise self._cut_short()
            elif rows.nbytes:
                layout = self.header.arrays[name]
                position = (layout.offset or 0) + start * layout.row_bytes
                read = os.preadv(opened.stream.fileno(), [rows.data], position)
                while read < rows.nbytes:  # the system reads 2 GiB at once, at most
                    left = rows.reshape(-1).view(np.uint8).data[read:]
                    count = os.preadv(opened.stream.fileno(), [left], position + read)
                    if count == 0:
                        raise self._cut_short()
                    read += count
        except _READ_ERRORS as error:
            what = name if index is None else f"image number {index}"
            raise UserError(
                f"{self.header.path}: {what} cannot be read; copy or write the file again ({error})."
            ) from None

    def _cut_short(self) -> UserError:
        again = "copy or write it again, then give the command again"
        return UserError(f"{self.header.path} was cut short while it was read: {again}.")

    def classes(self, index: int) -> np.ndarray:
        """(R,) int32 of the image at `index` of this file, 0 <= index < num_images."""
        return self.rows("classes", *self._span(index), index)

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
        if self._open().handle is not None:  # whose reading may fail, and says more of the image
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

    def _span(self, index: int) -> tuple[int, int]:
        """First row of an image and the row behind its last."""
        start, stop = self.offsets[index : index + 2].tolist()
        if not 0 <= start <= stop <= self.header.num_regions:
            raise UserError(f"{self.header.path}: the offsets of image number {index} are damaged ({start} to {stop}).")
        return start, stop

    def _open(self) -> _OpenFile:
        opened = self._opened
        if opened is None or (opened.handle is not None and opened.process != os.getpid()):
            if opened is not None and opened.handle is not None:
                # Closes this process's copy of the inherited handle only; HDF5 would share its state otherwise.
                opened.handle.close()
            arrays, stream = self.header.arrays, _open_file(self.header)
            chunked = [name for name, layout in arrays.items() if layout.offset is None and 0 not in layout.shape]
            handle = open_hdf5(self.header.path) if chunked else None
            datasets = {} if handle is None else {name: handle[name] for name in chunked}
            opened = self._opened = _OpenFile(os.getpid(), stream, handle, datasets)
        return opened


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
        array = self.__dict__[name] = shard.rows(name, start, stop, index)
        return array

    def __reduce__(self) -> tuple[type[Regions], tuple[object, ...]]:
        """What travels to another process has its arrays with it."""
        return Regions, tuple(getattr(self, field.name) for field in fields(self))


# What is wrong in a file, found some megabytes at a time.

# Detectors do not clip the boxes that they regress, so a sound box may stick out a little.
BOX_TOLERANCE = 0.05
# Nor do they keep a box that they shrink to nothing from turning over: the published box coder counts its last pixel,
# so such a box is up to one pixel of the network's input less than nothing wide.
INVERSION_TOLERANCE = 0.01
_BLOCK_BYTES = 8 * 2**20
_QUICK = ("offsets", "sizes", "image_ids", "classes", "attributes")

FindBad = Callable[[int, np.ndarray], np.ndarray]  # (first row, (r, …) rows) → (r,) bool


def verify_shard(shard: Shard) -> list[str]:
    """The problems of one store file as sentences: one for each kind, with its count and first example.

    A box is out of bounds if it sticks out of its image by more than `BOX_TOLERANCE` of the image's width or height,
    and inverted if it ends by more than `INVERSION_TOLERANCE` of that before it begins.
    """
    problems: list[str] = []
    try:
        for problem in (*IdLookup(shard.image_ids).problems(), *_undecodable_ids(shard.image_ids)):
            problems.append(f"{shard.header.path}: {problem}")
        problems.extend((*quick_problems(shard), *_problems_of_rows(shard)))
    except UserError as error:
        problems.append(str(error))
    return problems


def quick_problems(shard: Shard) -> Iterator[str]:
    """What is wrong with offsets, sizes, classes, attributes and the checksums of these and of ids, as sentences."""
    path, labels = shard.header.path, shard.header.attributes.label_map
    falls = _falls(shard)
    if len(falls):
        yield f"{path}: offsets fall after image number {falls[0]}; they must never fall."
    bad = np.flatnonzero((shard.sizes <= 0).any(axis=1))
    if len(bad):
        yield f"{path}: {len(bad)} images have a size that is not positive, the first is image number {bad[0]}."
    for name in ("offsets", "sizes", "image_ids"):
        yield from unlike_checksum(shard, name, crc32(getattr(shard, name).data))
    for name, names in (("classes", labels.classes), ("attributes", labels.attributes)):
        # Without names any index but a negative one is as good as another.
        limit = len(names) or np.iinfo(np.int32).max

        def outside(start: int, block: np.ndarray, limit: int = limit) -> np.ndarray:
            bad = (block < 0) | (block >= limit)
            return np.any(bad.reshape(len(block), -1), axis=1)

        yield from _problems_of(shard, name, {f"have {name} outside of the label map (0 to {limit - 1})": outside})


def unlike_written(shard: Shard) -> Iterator[str]:
    """What of a file is not as it was written, as sentences; all of it is read."""
    try:
        yield from quick_problems(shard)
        for name in ROW_ARRAYS:
            if name not in _QUICK:
                yield from _problems_of(shard, name, {})
    except UserError as error:
        yield str(error)


def unlike_checksum(shard: Shard, name: str, checksum: int) -> Iterator[str]:
    """A sentence if an array of this checksum is not the one that was written; none where the file has no checksums."""
    checksums = shard.header.checksums
    if checksums is not None and checksums[name] != checksum:
        yield (
            f"{shard.header.path}: {name} are not as they were written (their checksum differs): the file was damaged "
            "or edited, copy or write it again."
        )


def _falls(shard: Shard) -> np.ndarray:
    """The images whose rows end before they begin."""
    return np.flatnonzero(np.diff(shard.offsets) < 0)


def _undecodable_ids(ids: np.ndarray) -> Iterator[str]:
    for start in range(0, len(ids), 65536):
        try:
            np.char.decode(ids[start : start + 65536], "utf-8")
        except UnicodeDecodeError:
            yield "image_ids hold bytes that are not UTF-8."
            return


def _problems_of_rows(shard: Shard) -> Iterator[str]:
    """What is wrong with features, boxes and scores."""
    offsets, sizes, sound_offsets = shard.offsets, shard.sizes, not len(_falls(shard))

    def size_at(start: int, boxes: np.ndarray) -> np.ndarray:
        """(r, 2): width and height of each box's image."""
        return sizes[np.searchsorted(offsets, np.arange(start, start + len(boxes)), side="right") - 1]

    def inverted(start: int, boxes: np.ndarray) -> np.ndarray:
        allowed = INVERSION_TOLERANCE * size_at(start, boxes) if sound_offsets else 0
        return np.any(boxes[:, :2] - boxes[:, 2:] > allowed, axis=1)

    def out_of_bounds(start: int, boxes: np.ndarray) -> np.ndarray:
        if not sound_offsets:  # only with those is known which image a row belongs to
            return np.zeros(len(boxes), dtype=bool)
        size = np.tile(size_at(start, boxes), 2)  # (r, 4): W, H, W, H
        return np.any((boxes < -BOX_TOLERANCE * size) | (boxes > (1 + BOX_TOLERANCE) * size), axis=1)

    def not_finite(start: int, block: np.ndarray) -> np.ndarray:
        return ~np.isfinite(block).reshape(len(block), -1).all(axis=1)

    outside = f"have boxes more than {BOX_TOLERANCE:.0%} of the image's size outside of the image"
    of_boxes: dict[str, FindBad] = {
        "have inverted boxes (x2 < x1 or y2 < y1)": inverted,
        outside: out_of_bounds,
    }
    for name in ROW_ARRAYS:
        if name not in _QUICK:
            finite: dict[str, FindBad] = {f"have {name} that are NaN or infinite": not_finite}
            yield from _problems_of(shard, name, finite | of_boxes if name == "boxes" else finite)


def _problems_of(shard: Shard, name: str, checks: dict[str, FindBad]) -> Iterator[str]:
    """Sentences for the checks that find bad rows, and one if the array is not as it was written."""
    checksum, found = 0, {what: (0, -1) for what in checks}  # number of bad rows and the first of them
    row_bytes, total = shard.header.arrays[name].row_bytes, shard.header.num_regions
    step = max(1, _BLOCK_BYTES // max(1, row_bytes))
    for start in range(0, total if row_bytes else 0, step):
        block = shard.rows(name, start, min(start + step, total))
        checksum = crc32(block.data, checksum)
        for what, find_bad in checks.items():
            bad = np.flatnonzero(find_bad(start, block))
            if len(bad):
                count, first = found[what]
                found[what] = count + len(bad), first if count else start + int(bad[0])
    for what, (count, first) in found.items():
        if count:
            yield f"{shard.header.path}: {count} regions {what}, first in {_place(shard, first)}."
    yield from unlike_checksum(shard, name, checksum)


def _place(shard: Shard, row: int) -> str:
    if len(_falls(shard)):
        return f"row {row}"
    image = int(np.searchsorted(shard.offsets, row, side="right")) - 1
    return f"image {shard.image_ids[image].decode('utf-8', 'replace')!r}, region {row - int(shard.offsets[image])}"
