"""One store file out of images that lie elsewhere, in any order: in memory, or in other store files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

import h5py
import numpy as np

from vinvl.regions.layout import CHECKSUMS, FEATURES, FORMAT_NAME, FORMAT_VERSION, PROVENANCE, ROW_DTYPES
from vinvl.regions.regions import LabelMap
from vinvl.regions.shard import Shard
from vinvl.regions.store import RegionStore
from vinvl.regions.verify import quick_problems, unlike_checksum
from vinvl.run.errors import UserError
from vinvl.run.files import put_in_place, work_folder

BLOCK_BYTES = 8 * 2**20
MOST_OPEN = 64  # files that are read from in turn; systems allow some hundreds
# Keeps every array on a cache line, so that mapped float32 and int64 arrays are aligned for NumPy and torch.
_ALIGNMENT = 64
# Since version 1.8 (2008) HDF5 can checksum its structures, so that damage is noticed rather than followed.
_HDF5_VERSIONS = ("v108", "v108")


class RowSource(Protocol):
    """N images with their rows.

    Attributes:
        offsets: (N+1,) int64, image n owns rows offsets[n] to offsets[n+1].
        sizes: (N, 2) int32, width and height.
        image_ids: (N,) UTF-8 bytes of fixed width.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    image_ids: np.ndarray

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of one of the six row arrays."""

    def close(self) -> None:
        """Close the file, which the next reading opens again."""


class ShardRows:
    """The images of a store file, which is open only while it is read.

    Args:
        checked: whether it is to be held against its checksums: it is read from its first row to its last then.

    Raises:
        UserError: it cannot be read, or (checked) is not as it was written; for features when all of it is read.
    """

    def __init__(self, shard: Shard, *, checked: bool = False) -> None:
        self._shard = shard
        self._checksums = dict.fromkeys(shard.header.arrays, 0) if checked else None
        self.offsets, self.sizes, self.image_ids = shard.offsets, shard.sizes, shard.image_ids
        for problem in quick_problems(shard) if checked else ():
            raise UserError(problem)
        self.close()

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        rows = self._shard.rows(name, start, stop)
        if self._checksums is not None:
            self._checksums[name] = crc32(rows.data, self._checksums[name])
            if stop == self._shard.header.num_regions:
                for problem in unlike_checksum(self._shard, name, self._checksums[name]):
                    raise UserError(problem)
        return rows

    def close(self) -> None:
        self._shard.close()


@dataclass(frozen=True)
class StoreAttributes:
    """What a store file says about all of its images; `provenance` is of types that JSON has."""

    feature_dim: int
    feature_dtype: np.dtype
    num_attributes: int
    detector: str
    label_map: LabelMap
    provenance: Mapping[str, Any] | None = None

    def row_layout(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Data type and shape of one row of a row array."""
        if name == FEATURES:
            return self.feature_dtype, (self.feature_dim,)
        tails: dict[str, tuple[int, ...]] = {"boxes": (4,), "classes": (), "class_scores": ()}
        return np.dtype(ROW_DTYPES[name]), tails.get(name, (self.num_attributes,))


@dataclass(frozen=True)
class Selection:
    """Which images a store file gets, in order: image `images[i]` of source `sources[i]`, (N,) int64 each."""

    sources: np.ndarray
    images: np.ndarray

    @classmethod
    def whole(cls, *sources: RowSource) -> Selection:
        """All images of the sources, one source after the other."""
        counts = [len(source.offsets) - 1 for source in sources]
        nothing = np.zeros(0, dtype=np.int64)
        return cls(
            np.repeat(np.arange(len(counts)), counts),
            np.concatenate([nothing, *(np.arange(count) for count in counts)]),
        )

    def __len__(self) -> int:
        return len(self.sources)

    def at(self, chosen: np.ndarray | slice) -> Selection:
        """Some of the images, in the order that they are chosen in."""
        return Selection(self.sources[chosen], self.images[chosen])


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
            feature_dim=np.int64(attributes.feature_dim),
            detector=_fixed_text(attributes.detector),
            label_map=_fixed_text(attributes.label_map.to_json()),
        )
        if attributes.provenance is not None:
            file.attrs[PROVENANCE] = _fixed_text(json.dumps(attributes.provenance))
        spans = list(_spans(wanted.sources, starts, stops))
        checksums = {
            name: _copy(file.create_dataset(name, (int(offsets[-1]), *tail), dtype=dtype), name, sources, spans)
            for name in (FEATURES, *ROW_DTYPES)
            for dtype, tail in [attributes.row_layout(name)]
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
    ids = np.zeros(len(wanted), dtype=f"S{max([1, *(source.image_ids.dtype.itemsize for source in sources)])}")
    order = np.argsort(wanted.sources, kind="stable")
    firsts = np.searchsorted(wanted.sources[order], np.arange(len(sources) + 1))
    for number, source in enumerate(sources):
        own = order[firsts[number] : firsts[number + 1]]
        images = wanted.images[own]
        starts[own], stops[own] = source.offsets[images], source.offsets[images + 1]
        sizes[own], ids[own] = source.sizes[images], source.image_ids[images]
    width = int(np.char.str_len(ids).max()) if len(ids) else 1
    return starts, stops, sizes, ids.astype(f"S{max(1, width)}")


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
    block_rows = max(1, BLOCK_BYTES // row_bytes)
    block = np.empty((min(block_rows, len(dataset)), *dataset.shape[1:]), dtype=dataset.dtype)
    opened: dict[int, None] = {}  # the sources that were read last, the last at the end
    written = filled = 0
    for span in spans:
        opened.pop(span.source, None)
        opened[span.source] = None
        if len(opened) > MOST_OPEN:
            oldest = next(iter(opened))
            del opened[oldest]
            sources[oldest].close()
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
    for number in opened:
        sources[number].close()
    return checksum


def _fixed_text(text: str) -> np.ndarray:
    """A scalar of fixed-length UTF-8, which unlike variable-length text lies within the checksummed structures."""
    encoded = text.encode("utf-8")
    dtype = h5py.string_dtype("utf-8", max(1, len(encoded)))
    return np.array(encoded, dtype=f"S{max(1, len(encoded))}").astype(dtype)


# Several store files → one, by copying rows.


SHARD_NAME = re.compile(r"(?P<name>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)?")
NAMES_SHOWN = 5


def shard_path(path: Path, index: int, count: int) -> Path:
    """The name of part `index`, from 0, of `count` parts of a store: features.h5 → features-00003-of-00016.h5."""
    return path.with_name(f"{path.stem}-{index:05d}-of-{count:05d}{path.suffix}") if count > 1 else path


def merge_stores(files: Sequence[str | Path], target: str | Path, *, overwrite: bool = False) -> RegionStore:
    """One store file with the images of all, in the order of the files; returns it opened.

    Args:
        files: store files or folders of shards that are alike, with no image twice.
        target: the file to make.
        overwrite: whether a file of that name is replaced, once the new one is whole.

    Raises:
        UserError: `target` exists, files do not belong together, are damaged or missing, or the disk is full; nothing
            is changed then.
    """
    target = Path(target)
    if not overwrite and os.path.lexists(target):
        raise UserError(f"{target} exists already: give another name, or say --overwrite.")
    if target.is_dir():
        raise UserError(f"{target} is a folder: name a file to write.")
    _refuse_gaps([Path(file) for file in files])
    store = RegionStore(list(files))
    attributes = StoreAttributes(
        store.feature_dim,
        store.feature_dtype,
        store.num_attributes,
        store.detector,
        store.label_map,
        store.provenance or None,
    )
    with work_folder(target) as folder:
        made = folder / target.name
        sources = [ShardRows(source, checked=True) for source in store.sources]
        write_store_file(made, attributes, sources, Selection.whole(*sources))
        put_in_place(made, target)
    return RegionStore(target)


def _refuse_gaps(files: Sequence[Path]) -> None:
    """Files that call themselves parts of one store must be all of its parts."""
    parts: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if match := SHARD_NAME.fullmatch(file.name):
            whole = f"{match['name']}{match['suffix'] or ''}", int(match["count"])
            parts.setdefault(whole, set()).add(int(match["index"]))
    for (name, count), found in parts.items():
        missing = sorted(set(range(count)) - found)
        if missing:
            shown = ", ".join(map(str, missing[:NAMES_SHOWN])) + (" …" if len(missing) > NAMES_SHOWN else "")
            raise UserError(
                f"Of the {count} parts of {name}, {len(missing)} are not among the files (shard.index {shown}): "
                "extract them first."
            )
