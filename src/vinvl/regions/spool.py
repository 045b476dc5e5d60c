"""Rows on their way into a store file: one raw side file per array, which only ever grows.

A contiguous HDF5 dataset cannot grow, and how many rows there will be is known only at the end. So the rows go to side
files first, and `assembly` makes a store file of them. Memory stays bounded; the disk must have room for the store
twice while it is finished.
"""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from vinvl.regions.layout import FEATURES, IMAGE_DTYPES, MAX_ID_BYTES, ROW_DTYPES
from vinvl.run.errors import UserError

SIDE_FILES = (FEATURES, *ROW_DTYPES, "offsets", "sizes", "id_lengths", "image_ids")
_FIRST_OFFSET = np.dtype(IMAGE_DTYPES["offsets"]).itemsize  # bytes, all zero and in no checksum
_ID_BLOCK = 16384


class WorkFolder:
    """A folder for unfinished files, removed with all that it holds by `remove`, which only its own process may do.

    Args:
        path: of the folder.
        lock: an open file that is closed when the folder is removed.
    """

    def __init__(self, path: Path, lock: int | None = None) -> None:
        self.path = path
        self._lock = lock
        self._owner = os.getpid()
        self._open: list[io.FileIO] = []

    def open_file(self, name: str) -> io.FileIO:
        """An unbuffered file, made where it is missing: nothing waits in memory that a fork could write once more."""
        path = self.path / name
        file = io.FileIO(path, "r+" if path.exists() else "w+")
        self._open.append(file)
        return file

    def close_files(self) -> None:
        for file in self._open:
            file.close()
        self._open.clear()

    def remove(self) -> None:
        if os.getpid() == self._owner:
            self.close_files()
            shutil.rmtree(self.path, ignore_errors=True)
            if self._lock is not None:
                os.close(self._lock)


@dataclass(frozen=True)
class RowShapes:
    """What decides how many bytes a region takes in each side file."""

    feature_dim: int
    feature_dtype: np.dtype
    num_attributes: int

    def of(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Data type and shape of one row of a row array."""
        if name == FEATURES:
            return self.feature_dtype, (self.feature_dim,)
        tails: dict[str, tuple[int, ...]] = {"boxes": (4,), "classes": (), "class_scores": ()}
        return np.dtype(ROW_DTYPES[name]), tails.get(name, (self.num_attributes,))

    def row_bytes(self, name: str) -> int:
        dtype, shape = self.of(name)
        return dtype.itemsize * int(np.prod(shape, dtype=np.int64))


@dataclass(frozen=True)
class SpoolLength:
    """How much is in a spool: images, regions, bytes of their ids, and the CRC-32 of each of `SIDE_FILES`."""

    images: int = 0
    regions: int = 0
    id_bytes: int = 0
    checksums: tuple[int, ...] = (0,) * len(SIDE_FILES)

    def file_bytes(self, shapes: RowShapes) -> dict[str, int]:
        """The length of each side file, in bytes."""
        lengths = {name: self.regions * shapes.row_bytes(name) for name in (FEATURES, *ROW_DTYPES)}
        return lengths | {
            "offsets": (self.images + 1) * np.dtype(IMAGE_DTYPES["offsets"]).itemsize,
            "sizes": self.images * 2 * np.dtype(IMAGE_DTYPES["sizes"]).itemsize,
            "id_lengths": self.images * 4,
            "image_ids": self.id_bytes,
        }


class Spool:
    """Images in side files `<array>.raw` of a work folder, to which more can be added.

    Args:
        folder: new, or of a spool that goes on.
        shapes: of the rows.
        length: what is kept of the spool that goes on; what lies behind that is cut off.
    """

    def __init__(self, folder: WorkFolder, shapes: RowShapes, length: SpoolLength = SpoolLength()) -> None:
        self.length = length
        self.shapes = shapes
        self.folder = folder
        self._files: dict[str, io.FileIO] = {}
        for name, size in length.file_bytes(shapes).items():
            file = self._files[name] = folder.open_file(f"{name}.raw")
            file.truncate(size)  # a longer file is filled with zeros: the first offset, where there is nothing yet
            file.seek(0, io.SEEK_END)

    def append(self, encoded_id: bytes, arrays: dict[str, np.ndarray]) -> None:
        """Write one checked image: its row arrays and `sizes` as `RegionChecker.checked_arrays` returns them."""
        length = self.length
        regions = length.regions + len(arrays[FEATURES])
        written = arrays | {
            "offsets": np.array([regions], dtype="<i8"),
            "id_lengths": np.array([len(encoded_id)], dtype="<i4"),
            "image_ids": np.frombuffer(encoded_id, dtype=np.uint8),
        }
        for name, array in written.items():
            _write_all(self._files[name], array)
        checksums = (
            crc32(_bytes(written[name]), before) for name, before in zip(SIDE_FILES, length.checksums, strict=True)
        )
        self.length = SpoolLength(length.images + 1, regions, length.id_bytes + len(encoded_id), tuple(checksums))

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def rows(self) -> SpoolRows:
        """What is in the spool now, for reading."""
        return SpoolRows(self.folder.path, self.shapes, self.length)

    def clear(self) -> None:
        """Close and remove the side files."""
        self.folder.close_files()
        for side_file in self.folder.path.glob("*.raw"):
            side_file.unlink()


class SpoolRows:
    """The images of a spool, mapped into memory; see `assembly.RowSource`."""

    def __init__(self, folder: Path, shapes: RowShapes, length: SpoolLength) -> None:
        self._folder, self._shapes, self._length = folder, shapes, length
        try:
            self.offsets = self._map("offsets", np.dtype("<i8"), (length.images + 1,))
            self.sizes = self._map("sizes", np.dtype("<i4"), (length.images, 2))
            self._arrays = {name: self._row_array(name) for name in (FEATURES, *ROW_DTYPES)}
            lengths = self._map("id_lengths", np.dtype("<i4"), (length.images,))
            text = self._map("image_ids", np.dtype("u1"), (length.id_bytes,))
        except (OSError, ValueError, OverflowError):
            raise self._damaged() from None
        ends = (int(self.offsets[0]), int(self.offsets[-1]), int(lengths.sum(dtype=np.int64)))
        rising = (np.diff(self.offsets) >= 0).all() and ((lengths > 0) & (lengths <= MAX_ID_BYTES)).all()
        if ends != (0, length.regions, length.id_bytes) or not rising:
            raise self._damaged()
        self.image_ids = _ids(text.tobytes(), lengths)
        self._arrays |= {"offsets": self.offsets, "sizes": self.sizes, "id_lengths": lengths, "image_ids": text}

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of one of the six row arrays."""
        return self._arrays[name][start:stop]

    def require_sound(self) -> None:
        """Reads everything. Raises UserError if it is not what was written."""
        for name, checksum in zip(SIDE_FILES, self._length.checksums, strict=True):
            if crc32(_bytes(self._arrays[name])[_FIRST_OFFSET if name == "offsets" else 0 :]) != checksum:
                raise self._damaged()

    def _damaged(self) -> UserError:
        return UserError(
            f"{self._folder} is damaged: delete it and give the same command again, which does its images anew."
        )

    def _row_array(self, name: str) -> np.ndarray:
        dtype, shape = self._shapes.of(name)
        return self._map(name, dtype, (self._length.regions, *shape))

    def _map(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        if 0 in shape:
            return np.empty(shape, dtype=dtype)
        return np.memmap(self._folder / f"{name}.raw", dtype=dtype, mode="r", shape=shape)


def _ids(text: bytes, lengths: np.ndarray) -> np.ndarray:
    """(N,) bytes of fixed width, padded with NUL, that lie in `text` one after the other; of their lengths (N,)."""
    ends = np.cumsum(lengths, dtype=np.int64)
    width = int(lengths.max()) if len(lengths) else 1
    ids = np.zeros(len(lengths), dtype=f"S{max(1, width)}")
    for first in range(0, len(ids), _ID_BLOCK):
        stops = ends[first : first + _ID_BLOCK].tolist()
        starts = [int(ends[first - 1]) if first else 0, *stops[:-1]]
        ids[first : first + len(stops)] = [text[i:j] for i, j in zip(starts, stops, strict=True)]
    return ids


def _write_all(file: io.FileIO, array: np.ndarray) -> None:
    """Write a C-contiguous array; an unbuffered file may take it in parts."""
    remaining = _bytes(array)
    while len(remaining):
        remaining = remaining[file.write(remaining) or 0 :]


def _bytes(array: np.ndarray) -> memoryview:
    """The bytes of a C-contiguous array."""
    return array.reshape(-1).view(np.uint8).data
