"""Rows on their way into a store file: spooled to raw side files, then copied block by block into HDF5.

A contiguous HDF5 dataset cannot grow, and how many rows there will be is known only at the end. So the rows of one
shard go to one raw file per array first. Memory stays bounded; the disk must have room for the shard twice while it
finishes.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from vinvl.data.store.labels import LabelMap
from vinvl.data.store.layout import FORMAT_NAME, FORMAT_VERSION, IMAGE_DTYPES, ROW_DTYPES

_BLOCK_BYTES = 8 * 2**20
# Keeps every array on a cache line, so that mapped float32 and int64 arrays are aligned for NumPy and torch.
_ALIGNMENT = 64
# Since version 1.8 (2008) HDF5 can checksum its structures, so that damage is noticed rather than followed.
_HDF5_VERSIONS = ("v108", "v108")


class WorkFolder:
    """A folder for unfinished files, removed with all that it holds by `remove`, which only its own process may do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = os.getpid()
        self._open: list[io.FileIO] = []

    def create_file(self, name: str) -> io.FileIO:
        """A new unbuffered file: nothing waits in memory that a forked child could write a second time."""
        file = io.FileIO(self.path / name, "w+")
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


@dataclass(frozen=True)
class StoreAttributes:
    """What a store file says about all of its images, and how its features are laid out."""

    feature_dim: int
    feature_dtype: np.dtype
    num_attributes: int
    detector: str
    label_map: LabelMap
    compression: str | None
    chunk_rows: int | None


class ShardSpool:
    """The images of one shard in raw side files `<array>.raw` of a work folder."""

    def __init__(self, folder: WorkFolder) -> None:
        self.num_images = 0
        self.num_regions = 0
        self._folder = folder
        self._longest_id = 1
        names = ("features", *ROW_DTYPES, *IMAGE_DTYPES, "image_ids", "id_lengths")
        self._files = {name: folder.create_file(f"{name}.raw") for name in names}
        _write_all(self._files["offsets"], np.zeros(1, dtype="<i8"))

    def append(self, encoded_id: bytes, arrays: dict[str, np.ndarray]) -> None:
        """Write one checked image: its row arrays and `sizes` as `RegionChecker.checked_arrays` returns them."""
        for name, array in arrays.items():
            _write_all(self._files[name], array)
        self.num_images += 1
        self.num_regions += len(arrays["features"])
        self._longest_id = max(self._longest_id, len(encoded_id))
        _write_all(self._files["offsets"], np.array([self.num_regions], dtype="<i8"))
        _write_all(self._files["id_lengths"], np.array([len(encoded_id)], dtype="<i4"))
        _write_all(self._files["image_ids"], np.frombuffer(encoded_id, dtype=np.uint8))

    def write_store(self, path: Path, attributes: StoreAttributes) -> None:
        """Write the spooled images as one store file; `complete` is set when all else is on the disk.

        The side files are closed and removed afterwards.
        """
        with h5py.File(path, "w", libver=_HDF5_VERSIONS, alignment_threshold=1, alignment_interval=_ALIGNMENT) as file:
            file.attrs.update(
                format=_fixed_text(FORMAT_NAME),
                version=np.int64(FORMAT_VERSION),
                complete=np.uint8(0),
                feature_dim=np.int64(attributes.feature_dim),
                detector=_fixed_text(attributes.detector),
                label_map=_fixed_text(attributes.label_map.to_json()),
            )
            self._copy_features(file, attributes)
            for name, dtype in ROW_DTYPES.items():
                tail = {"boxes": (4,), "classes": (), "class_scores": ()}.get(name, (attributes.num_attributes,))
                self._copy(file.create_dataset(name, (self.num_regions, *tail), dtype=dtype), name)
            self._copy(file.create_dataset("offsets", (self.num_images + 1,), dtype="<i8"), "offsets")
            self._copy(file.create_dataset("sizes", (self.num_images, 2), dtype="<i4"), "sizes")
            self._copy_ids(file)
            file.flush()
            file.attrs["complete"] = np.uint8(1)
        _sync(path)
        self._folder.close_files()
        for side_file in self._folder.path.glob("*.raw"):
            side_file.unlink()

    def _copy_features(self, file: h5py.File, attributes: StoreAttributes) -> None:
        shape = (self.num_regions, attributes.feature_dim)
        if attributes.chunk_rows is None or self.num_regions == 0:
            dataset = file.create_dataset("features", shape, dtype=attributes.feature_dtype)
        else:
            dataset = file.create_dataset(
                "features",
                shape,
                dtype=attributes.feature_dtype,
                chunks=(min(attributes.chunk_rows, self.num_regions), attributes.feature_dim),
                compression=attributes.compression,
                shuffle=attributes.compression is not None,
            )
        self._copy(dataset, "features")

    def _copy(self, dataset: h5py.Dataset, name: str) -> None:
        """Copy a side file into its dataset, some megabytes at a time."""
        file = self._files[name]
        file.seek(0)
        row_shape = dataset.shape[1:]
        row_bytes = int(np.prod(row_shape, dtype=np.int64)) * dataset.dtype.itemsize
        if row_bytes == 0:
            return
        chunk_rows = dataset.chunks[0] if dataset.chunks else 1
        block_rows = max(1, _BLOCK_BYTES // (row_bytes * chunk_rows)) * chunk_rows
        for start in range(0, len(dataset), block_rows):
            stop = min(start + block_rows, len(dataset))
            block = np.frombuffer(_read_exactly(file, (stop - start) * row_bytes), dtype=dataset.dtype)
            dataset[start:stop] = block.reshape(stop - start, *row_shape)

    def _copy_ids(self, file: h5py.File) -> None:
        dtype = h5py.string_dtype("utf-8", self._longest_id)
        dataset = file.create_dataset("image_ids", (self.num_images,), dtype=dtype)
        start = 0
        for block in self._id_blocks():
            dataset[start : start + len(block)] = np.array(block, dtype=f"S{self._longest_id}").astype(dtype)
            start += len(block)

    def _id_blocks(self) -> Iterator[list[bytes]]:
        ids, lengths = self._files["image_ids"], self._files["id_lengths"]
        ids.seek(0)
        lengths.seek(0)
        block_images = 16384
        for start in range(0, self.num_images, block_images):
            count = min(block_images, self.num_images - start)
            ends = np.cumsum(np.frombuffer(_read_exactly(lengths, count * 4), dtype="<i4"))
            text = _read_exactly(ids, int(ends[-1]))
            yield [text[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def _fixed_text(text: str) -> np.ndarray:
    """A scalar of fixed-length UTF-8, which unlike variable-length text lies within the checksummed structures."""
    encoded = text.encode("utf-8")
    dtype = h5py.string_dtype("utf-8", max(1, len(encoded)))
    return np.array(encoded, dtype=f"S{max(1, len(encoded))}").astype(dtype)


def _write_all(file: io.FileIO, array: np.ndarray) -> None:
    """Write the bytes of a C-contiguous array; an unbuffered file may take them in parts."""
    remaining = array.reshape(-1).view(np.uint8).data
    while len(remaining):
        remaining = remaining[file.write(remaining) or 0 :]


def _read_exactly(file: io.FileIO, count: int) -> bytes:
    parts = []
    while count:
        part = file.read(count)
        if not part:
            raise OSError("a side file is shorter than what was written to it")
        parts.append(part)
        count -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _sync(path: Path) -> None:
    """Wait until the file is on the disk, so that the rename that follows can never outlive its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
