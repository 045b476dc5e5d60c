"""One store file out of images that lie elsewhere, in any order: in side files, or in other store files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from zlib import crc32

import h5py
import numpy as np

from vinvl.data.store.labels import LabelMap
from vinvl.data.store.layout import CHECKSUMS, FEATURES, FORMAT_NAME, FORMAT_VERSION, PROVENANCE, ROW_DTYPES
from vinvl.data.store.spool import RowShapes

_BLOCK_BYTES = 8 * 2**20
# Keeps every array on a cache line, so that mapped float32 and int64 arrays are aligned for NumPy and torch.
_ALIGNMENT = 64
# Since version 1.8 (2008) HDF5 can checksum its structures, so that damage is noticed rather than followed.
_HDF5_VERSIONS = ("v108", "v108")


class RowSource(Protocol):
    """N images with their rows; a `Shard` or a `SpoolRows`."""

    @property
    def offsets(self) -> np.ndarray:
        """(N+1,) int64, image n owns rows offsets[n] to offsets[n+1]"""

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32, width and height"""

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) UTF-8 bytes of fixed width"""

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of one of the six row arrays."""


@dataclass(frozen=True)
class StoreAttributes:
    """What a store file says about all of its images."""

    shapes: RowShapes
    detector: str
    label_map: LabelMap
    provenance: str | None = None  # JSON text


@dataclass(frozen=True)
class Selection:
    """Which images a store file gets, in order: image `images[i]` of source `sources[i]`, (N,) int64 each."""

    sources: np.ndarray
    images: np.ndarray

    @classmethod
    def whole(cls, *sources: RowSource) -> Selection:
        """All images of the sources, one source after the other."""
        counts = [len(source.offsets) - 1 for source in sources]
        return cls(
            np.repeat(np.arange(len(counts)), counts),
            np.concatenate([np.arange(count) for count in counts]) if counts else np.zeros(0, dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.sources)

    def of(self, number: int) -> np.ndarray:
        """(N,) bool: whether an image is of source `number`."""
        return self.sources == number


def write_store_file(
    path: Path, attributes: StoreAttributes, sources: Sequence[RowSource], wanted: Selection
) -> dict[str, int]:
    """Write the wanted images as one store file; `complete` is set when all else is written.

    Memory does not grow with the features. Returns the checksums of its arrays. Raises OSError where the file cannot be
    written.
    """
    starts, stops, sizes, ids = _collect(sources, wanted)
    counts = stops - starts
    offsets = np.concatenate([np.zeros(1, dtype="<i8"), np.cumsum(counts, dtype="<i8")])
    with h5py.File(path, "w", libver=_HDF5_VERSIONS, alignment_threshold=1, alignment_interval=_ALIGNMENT) as file:
        file.attrs.update(
            format=_fixed_text(FORMAT_NAME),
            version=np.int64(FORMAT_VERSION),
            complete=np.uint8(0),
            feature_dim=np.int64(attributes.shapes.feature_dim),
            detector=_fixed_text(attributes.detector),
            label_map=_fixed_text(attributes.label_map.to_json()),
        )
        if attributes.provenance is not None:
            file.attrs[PROVENANCE] = _fixed_text(attributes.provenance)
        spans = list(_spans(wanted.sources, starts, stops))
        checksums = {
            name: _copy(file.create_dataset(name, (int(offsets[-1]), *tail), dtype=dtype), name, sources, spans)
            for name in (FEATURES, *ROW_DTYPES)
            for dtype, tail in [attributes.shapes.of(name)]
        }
        file.create_dataset("offsets", data=offsets)
        file.create_dataset("sizes", data=sizes)
        dtype = h5py.string_dtype("utf-8", ids.dtype.itemsize)
        file.create_dataset("image_ids", data=ids.astype(dtype), dtype=dtype)
        checksums |= {"offsets": crc32(offsets.data), "sizes": crc32(sizes.data), "image_ids": crc32(ids.data)}
        file.attrs[CHECKSUMS] = _fixed_text(json.dumps(checksums))
        file.flush()
        file.attrs["complete"] = np.uint8(1)
    return checksums


def _collect(sources: Sequence[RowSource], wanted: Selection) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """First row and row behind the last of each wanted image in its source, their sizes and their ids."""
    starts, stops = np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=np.int64)
    sizes = np.zeros((len(wanted), 2), dtype="<i4")
    width = max([source.image_ids.dtype.itemsize for source in sources], default=1)
    ids = np.zeros(len(wanted), dtype=f"S{max(1, width)}")
    for number, source in enumerate(sources):
        own = wanted.of(number)
        images = wanted.images[own]
        starts[own], stops[own] = source.offsets[images], source.offsets[images + 1]
        sizes[own], ids[own] = source.sizes[images], source.image_ids[images]
    return starts, stops, sizes, ids


@dataclass(frozen=True)
class _Span:
    """Rows that follow each other in a source as they do in the file."""

    source: int
    start: int
    stop: int


def _spans(sources: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> Iterator[_Span]:
    """The images' rows in order, with those joined that lie side by side."""
    if len(sources) == 0:
        return
    breaks = np.flatnonzero((sources[1:] != sources[:-1]) | (starts[1:] != stops[:-1])) + 1
    firsts = np.concatenate([[0], breaks])
    lasts = np.concatenate([breaks, [len(sources)]]) - 1
    for source, start, stop in zip(sources[firsts], starts[firsts], stops[lasts], strict=True):
        if stop > start:
            yield _Span(int(source), int(start), int(stop))


def _copy(dataset: h5py.Dataset, name: str, sources: Sequence[RowSource], spans: Sequence[_Span]) -> int:
    """Fill a dataset some megabytes at a time. Returns the checksum."""
    row_bytes = int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize
    checksum = 0
    if row_bytes == 0 or len(dataset) == 0:
        return checksum
    block_rows = max(1, _BLOCK_BYTES // row_bytes)
    block = np.empty((min(block_rows, len(dataset)), *dataset.shape[1:]), dtype=dataset.dtype)
    written = filled = 0
    for span in spans:
        start = span.start
        while start < span.stop:
            stop = min(span.stop, start + len(block) - filled)
            block[filled : filled + stop - start] = sources[span.source].rows(name, start, stop)
            filled, start = filled + stop - start, stop
            if filled == len(block):
                dataset[written : written + filled] = block
                checksum = crc32(block.data, checksum)
                written, filled = written + filled, 0
    if filled:
        dataset[written : written + filled] = block[:filled]
        checksum = crc32(block[:filled].data, checksum)
    return checksum


def _fixed_text(text: str) -> np.ndarray:
    """A scalar of fixed-length UTF-8, which unlike variable-length text lies within the checksummed structures."""
    encoded = text.encode("utf-8")
    dtype = h5py.string_dtype("utf-8", max(1, len(encoded)))
    return np.array(encoded, dtype=f"S{max(1, len(encoded))}").astype(dtype)
