"""Writing a store: image by image, in constant memory, and either finished or not there at all."""

from __future__ import annotations

import json
import os
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from zlib import crc32

import h5py
import numpy as np

from vinvl.regions.checks import RegionChecker, encoded_id
from vinvl.regions.layout import (
    CHECKSUMS,
    FEATURE_DTYPES,
    FEATURES,
    FORMAT_NAME,
    FORMAT_VERSION,
    PROVENANCE,
    ROW_DTYPES,
    ShardEntry,
    write_manifest,
)
from vinvl.regions.regions import LabelMap, Regions
from vinvl.regions.shard import Shard
from vinvl.regions.spool import RowShapes, Spool, WorkFolder
from vinvl.regions.store import RegionStore
from vinvl.regions.verify import quick_problems, unlike_checksum
from vinvl.run.errors import UserError
from vinvl.run.files import PARTIAL_SUFFIX, failure_told, put_in_place, reserve_folder, work_folder

# One store file out of images that lie elsewhere, in any order: in side files, or in other store files.


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


# Several store files → one, by copying rows.


SHARD_NAME = re.compile(r"(?P<name>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)?")
NAMES_SHOWN = 5


def shard_path(path: Path, index: int, count: int) -> Path:
    """The name of part `index`, from 0, of `count` parts of a store: features.h5 → features-00003-of-00016.h5."""
    return path.with_name(f"{path.stem}-{index:05d}-of-{count:05d}{path.suffix}") if count > 1 else path


class CheckedShard:
    """A file that is read from its first row to its last, and held against its checksums on the way."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._checksums = dict.fromkeys(shard.header.arrays, 0)
        self.offsets, self.sizes, self.image_ids = shard.offsets, shard.sizes, shard.image_ids
        for problem in quick_problems(shard):
            raise UserError(problem)

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows start..stop of an array. Raises UserError once all are read, if they are not as they were written."""
        rows = self._shard.rows(name, start, stop)
        self._checksums[name] = crc32(rows.data, self._checksums[name])
        if stop == self._shard.header.num_regions:
            for problem in unlike_checksum(self._shard, name, self._checksums[name]):
                raise UserError(problem)
        return rows


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
        RowShapes(store.feature_dim, store.feature_dtype, store.num_attributes),
        store.detector,
        store.label_map,
        json.dumps(store.provenance) if store.provenance else None,
    )
    with work_folder(target) as folder:
        made = folder / target.name
        sources = [CheckedShard(source) for source in store.sources]
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


HOW_TO_GO_ON = "check folder and permissions, or make room for the store twice, then write it again"


class RegionStoreWriter:
    """Writes images' regions to one store file, or to a folder of shards.

        with RegionStoreWriter("coco.h5", feature_dim=2048, detector="…", label_map=labels) as writer:
            writer.add(regions)

    Work goes on in a folder `.<name>.<random>.partial` beside `path`. Leaving the block normally moves the finished
    store to `path`; an exception, `abort`, or losing the writer removes the folder, and `path` is as it was. The image
    ids are all that is kept in memory, to refuse duplicates; the disk must have room for a file (or shard) twice.

    path                  the file, replaced if it exists; with `max_images_per_shard` a folder, new or empty
    feature_dim           D
    detector              which detector, with which settings, made the features; free text
    label_map             names of classes and attributes
    num_attributes        K, attributes a region
    feature_dtype         "float16" or "float32"
    max_images_per_shard  None writes one file
    provenance            what else is known of how the features were made, of types that JSON has; as it is when a file
                          is finished

    Raises UserError for bad arguments, for a path that cannot be written, and from `add` for a bad image.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        feature_dim: int,
        detector: str,
        label_map: LabelMap,
        num_attributes: int = 0,
        feature_dtype: str = "float16",
        max_images_per_shard: int | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        _check_arguments(self.path, feature_dim, num_attributes, feature_dtype)
        if max_images_per_shard is not None and max_images_per_shard < 1:
            raise UserError(f"{path}: max_images_per_shard is {max_images_per_shard}, it must be at least 1.")
        _check_target(self.path, is_folder=max_images_per_shard is not None)
        dtype = np.dtype(feature_dtype).newbyteorder("<")
        self._checker = RegionChecker(feature_dim, dtype, num_attributes, label_map)
        self._attributes = StoreAttributes(RowShapes(feature_dim, dtype, num_attributes), detector, label_map)
        self._provenance = provenance
        self._max_images_per_shard = max_images_per_shard
        self._seen: set[bytes] = set()
        self._shards: list[ShardEntry] = []
        self._failed = False
        with failure_told(self.path, HOW_TO_GO_ON):
            self._work = WorkFolder(*reserve_folder(self.path))
        # Also runs when the writer is dropped without being closed, and when the interpreter exits.
        self._discard = weakref.finalize(self, self._work.remove)
        (self._work.path / "store").mkdir()
        self._spool = Spool(self._work, self._attributes.shapes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def add(self, regions: Regions) -> None:
        """Write one image. A refused image (UserError) leaves the writer as it was.

        Refused are: duplicate and malformed ids, a wrong feature dimension, arrays of unlike numbers of rows, values
        that are not finite (in the data type of the store), indices outside of the label map, sizes that are not
        positive.
        """
        self._check_open()
        try:
            key = encoded_id(regions.image_id)
            if key in self._seen:
                raise UserError(f"image {regions.image_id!r} was added before; every image id may be added once.")
            arrays = self._checker.checked_arrays(regions)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None
        # Whatever interrupts the writing below leaves the side files out of step: nothing may be finished then.
        self._failed = True
        with failure_told(self.path, HOW_TO_GO_ON):
            if self._spool.length.images == self._max_images_per_shard:
                self._finish_shard()
                self._spool = Spool(self._work, self._attributes.shapes)
            self._spool.append(key, arrays)
        self._seen.add(key)
        self._failed = False

    def close(self) -> None:
        """Finish the store and move it to its path. Does nothing if it is finished or aborted already."""
        if not self._discard.alive:
            return
        try:
            if self._failed:
                raise UserError(f"{self.path}: an earlier write failed, so the store cannot be finished.")
            with failure_told(self.path, HOW_TO_GO_ON):
                self._finish_shard()
                self._move_into_place()
        finally:
            self.abort()

    def abort(self) -> None:
        """Drop all that was not finished; `path` is as it was before."""
        self._discard()

    def _check_open(self) -> None:
        if not self._discard.alive or self._failed:
            raise UserError(f"{self.path}: the writer is closed or has failed; start a new one.")

    def _finish_shard(self) -> None:
        name = f"shard-{len(self._shards):05d}.h5"
        rows = self._spool.rows()
        said = None if self._provenance is None else json.dumps(self._provenance)
        attributes = replace(self._attributes, provenance=said)
        made = self._work.path / "store" / name
        checksums = write_store_file(made, attributes, [rows], Selection.whole(rows))
        self._shards.append(ShardEntry.of(name, self._spool.length.images, checksums))
        self._spool.clear()

    def _move_into_place(self) -> None:
        store = self._work.path / "store"
        if self._max_images_per_shard is None:
            put_in_place(store / self._shards[0].file, self.path)
        else:
            write_manifest(store, self._shards)
            put_in_place(store, self.path)


def _check_arguments(path: Path, feature_dim: int, num_attributes: int, feature_dtype: str) -> None:
    if feature_dim < 1:
        raise UserError(f"{path}: feature_dim is {feature_dim}, it must be at least 1.")
    if num_attributes < 0:
        raise UserError(f"{path}: num_attributes is {num_attributes}, it must not be negative.")
    if feature_dtype not in FEATURE_DTYPES:
        raise UserError(f"{path}: feature_dtype is {feature_dtype!r}, choose one of {', '.join(FEATURE_DTYPES)}.")


def _check_target(path: Path, is_folder: bool) -> None:
    if path.name.endswith(PARTIAL_SUFFIX):
        raise UserError(f"{path}: names ending in {PARTIAL_SUFFIX} are for unfinished stores; choose another name.")
    if not is_folder and path.is_dir():
        raise UserError(f"{path} is a folder; name a file to write, or ask for shards.")
    if is_folder and path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already; delete it or choose another folder for the shards.")
