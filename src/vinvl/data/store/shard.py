"""Reading one store file: memory maps where its arrays are contiguous, h5py elsewhere."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import h5py
import numpy as np

from vinvl.data.store.layout import ArrayLayout, ShardHeader, open_hdf5
from vinvl.data.store.regions import Regions
from vinvl.errors import UserError


@dataclass(frozen=True, eq=False)
class _OpenShard:
    """The arrays of an opened file. Row arrays slice alike, be they NumPy views of the map or HDF5 datasets."""

    process: int
    handle: h5py.File | None
    features: np.ndarray | h5py.Dataset
    boxes: np.ndarray | h5py.Dataset
    classes: np.ndarray | h5py.Dataset
    class_scores: np.ndarray | h5py.Dataset
    attributes: np.ndarray | h5py.Dataset
    attribute_scores: np.ndarray | h5py.Dataset
    offsets: np.ndarray
    sizes: np.ndarray
    image_ids: np.ndarray


class Shard:
    """One store file, opened on first use in each process.

    A memory map survives a fork and is shared between the processes. An HDF5 handle must not be: a forked process opens
    its own. Pickling keeps the header alone.
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
        """Rows start..stop of one of the six row arrays. Raises UserError if HDF5 cannot read them."""
        try:
            return getattr(self._open(), name)[start:stop]
        except (OSError, RuntimeError) as error:
            raise UserError(f"{self._source}: {name} cannot be read; copy or write the file again ({error}).") from None

    def features(self, index: int) -> np.ndarray:
        """(R, D) of the image at `index` of this file, 0 <= index < num_images."""
        opened = self._open()
        start, stop = opened.offsets[index], opened.offsets[index + 1]
        if not 0 <= start <= stop <= self.header.num_regions:
            raise UserError(f"{self._source}: the offsets of image number {index} are damaged ({start} to {stop}).")
        try:
            features: np.ndarray = opened.features[start:stop]
        except (OSError, RuntimeError) as error:
            raise UserError(f"{self._source}: image number {index} cannot be read ({error}).") from None
        return features

    def regions(self, index: int) -> Regions:
        """The regions of the image at `index` of this file, 0 <= index < num_images."""
        opened = self._open()
        start, stop = int(opened.offsets[index]), int(opened.offsets[index + 1])
        if not 0 <= start <= stop <= self.header.num_regions:
            raise UserError(f"{self._source}: the offsets of image number {index} are damaged ({start} to {stop}).")
        width, height = opened.sizes[index].tolist()
        if width < 1 or height < 1:
            raise UserError(f"{self._source}: image number {index} has size {width} x {height}; write it again.")
        try:
            return Regions(
                opened.image_ids[index].decode(),
                opened.features[start:stop],
                opened.boxes[start:stop],
                opened.classes[start:stop],
                opened.class_scores[start:stop],
                opened.attributes[start:stop],
                opened.attribute_scores[start:stop],
                width,
                height,
                self._source,
            )
        except UnicodeDecodeError:
            raise UserError(f"{self._source}: the id of image number {index} is not UTF-8; write it again.") from None
        except (OSError, RuntimeError) as error:
            raise UserError(f"{self._source}: image number {index} cannot be read ({error}).") from None

    def _open(self) -> _OpenShard:
        opened = self._opened
        if opened is None or (opened.handle is not None and opened.process != os.getpid()):
            if opened is not None and opened.handle is not None:
                # Closes this process's copy of the inherited handle only; HDF5 would share its state otherwise.
                opened.handle.close()
            opened = self._opened = _open_shard(self.header)
        return opened


def _open_shard(header: ShardHeader) -> _OpenShard:
    mapped = _map_file(header)
    handle = None
    if any(_needs_hdf5(layout) for layout in header.arrays.values()):
        handle = open_hdf5(header.path)
    arrays: dict[str, np.ndarray | h5py.Dataset] = {}
    try:
        for name, layout in header.arrays.items():
            arrays[name] = handle[name] if handle and _needs_hdf5(layout) else _view(mapped, layout)
        # These three are looked up in for every image; as chunked datasets they are loaded, being small.
        for name in ("offsets", "sizes", "image_ids"):
            arrays[name] = np.asarray(arrays[name][...])
    except (OSError, KeyError, RuntimeError, ValueError, MemoryError) as error:
        raise UserError(f"{header.path}: {name} cannot be read; copy or write the file again ({error}).") from None
    return _OpenShard(process=os.getpid(), handle=handle, **arrays)


def _needs_hdf5(layout: ArrayLayout) -> bool:
    return layout.offset is None and 0 not in layout.shape


def _view(mapped: mmap.mmap, layout: ArrayLayout) -> np.ndarray:
    """A read-only array over the mapped bytes of one dataset."""
    if layout.offset is None:
        empty = np.empty(layout.shape, dtype=layout.dtype)
        empty.flags.writeable = False
        return empty
    count = int(np.prod(layout.shape, dtype=np.int64))
    return np.frombuffer(mapped, dtype=layout.dtype, count=count, offset=layout.offset).reshape(layout.shape)


def _map_file(header: ShardHeader) -> mmap.mmap:
    """Map the whole file read-only; one map and one file descriptor serve all arrays."""
    try:
        with header.path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            # The offsets of the header hold for the file that was checked, and reading past a shorter one would
            # end the process with SIGBUS.
            if (status.st_size, status.st_mtime_ns) != (header.file_bytes, header.modified_ns):
                raise UserError(f"{header.path} was changed after it was opened; start again.")
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise UserError(f"{header.path} cannot be mapped into memory: {error}.") from None
