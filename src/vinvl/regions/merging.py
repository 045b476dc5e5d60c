"""One store file out of images that lie elsewhere, in any order: in memory, or in other store files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import h5py
import numpy as np

from vinvl.regions.layout import CHECKSUMS, FORMAT_NAME, FORMAT_VERSION, PROVENANCE, ShardHeader
from vinvl.regions.regions import FEATURES, ROW_ARRAYS, StoreAttributes
from vinvl.regions.shard import Shard, problems, unlike_checksum
from vinvl.regions.store import NAMES_SHOWN, RegionStore
from vinvl.run.errors import UserError
from vinvl.run.files import put_in_place, work_folder

BLOCK_BYTES = 8 * 2**20
MOST_OPEN = 64  # files that are read from in turn; systems allow some hundreds
# Keeps every array on a cache line, so that mapped float32 and int64 arrays are aligned for NumPy and torch.
_ALIGNMENT = 64
# Since version 1.8 (2008) HDF5 can checksum its structures, so that damage is noticed rather than followed.
_HDF5_VERSIONS = ("v108", "v108")


class Waiting:
    """Images in memory, which are read as those of a `Shard` are."""

    def __init__(self, images: Sequence[tuple[bytes, dict[str, np.ndarray]]] = ()) -> None:
        self._images = [arrays for _, arrays in images]
        self.offsets = np.cumsum([0, *(len(arrays[FEATURES]) for arrays in self._images)], dtype="<i8")
        self.sizes = np.concatenate([np.zeros((0, 2), dtype="<i4"), *(arrays["sizes"] for arrays in self._images)])
        self.image_ids = np.array([key for key, _ in images], dtype=np.bytes_)

    def rows_into(self, name: str, start: int, rows: np.ndarray) -> None:
        image, filled = int(np.searchsorted(self.offsets, start, side="right")) - 1, 0
        while filled < len(rows):
            own = self._images[image][name][start + filled - int(self.offsets[image]) :][: len(rows) - filled]
            rows[filled : filled + len(own)] = own
            image, filled = image + 1, filled + len(own)

    def close(self) -> None:
        """There is no file."""


class _CheckedShard(Shard):
    """A file that is read from its first row to its last, and refused where it is not as it was written."""

    def __init__(self, header: ShardHeader) -> None:
        super().__init__(header)
        self._checksums: dict[str, int] = {}

    def rows_into(self, name: str, start: int, rows: np.ndarray, index: int | None = None) -> None:
        super().rows_into(name, start, rows, index)
        if name in ROW_ARRAYS and rows.nbytes:
            self._checksums[name] = crc32(rows.data, self._checksums.get(name, 0) if start else 0)
            if start + len(rows) == self.header.num_regions:
                for problem in unlike_checksum(self, name, self._checksums[name]):
                    raise UserError(problem)


def write_store_file(
    path: Path,
    attributes: StoreAttributes,
    sources: Sequence[Shard | Waiting],
    wanted: np.ndarray | slice = slice(None),
) -> dict[str, int]:
    """Write a store file of all images of the sources, or those `wanted`; `complete` is set when all else is written.

    `wanted` are (N,) numbers of images in their order, counted over the sources as they follow each other. Returns the
    checksums of its arrays; raises OSError if it cannot be written.
    """
    numbers = np.repeat(np.arange(len(sources)), [len(source.sizes) for source in sources])[wanted]
    starts = np.concatenate([source.offsets[:-1] for source in sources])[wanted]
    stops = np.concatenate([source.offsets[1:] for source in sources])[wanted]
    sizes = np.concatenate([source.sizes for source in sources]).astype("<i4")[wanted]
    ids = np.concatenate([source.image_ids for source in sources])[wanted]
    ids = ids.astype(f"S{max(1, int(np.char.str_len(ids).max()) if len(ids) else 1)}")
    offsets = np.concatenate([np.zeros(1, dtype="<i8"), np.cumsum(stops - starts, dtype="<i8")])
    # Images that lie side by side are read at once: (source, first row, row behind the last).
    begins = np.flatnonzero(np.diff(numbers, prepend=-1) | (starts != np.roll(stops, 1)))
    ends = np.append(begins[1:], len(numbers))[: len(begins)]
    spans = list(zip(numbers[begins].tolist(), starts[begins].tolist(), stops[ends - 1].tolist(), strict=True))
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
        checksums = {}
        placed = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        placed.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        with path.open("r+b", buffering=0) as stream:
            for name in ROW_ARRAYS:
                shape = (int(offsets[-1]), *attributes.row_shape(name))
                dataset = file.create_dataset(name, shape, dtype=attributes.row_dtype(name), dcpl=placed)
                checksums[name] = _copy(stream.fileno(), dataset, name, sources, spans)
        for name, array in (("offsets", offsets), ("sizes", sizes), ("image_ids", ids)):
            checksums[name] = crc32(array.data)
            dtype = h5py.string_dtype("utf-8", ids.dtype.itemsize) if name == "image_ids" else array.dtype
            file.create_dataset(name, data=array.astype(dtype), dtype=dtype)
        file.attrs[CHECKSUMS] = _fixed_text(json.dumps(checksums))
        file.flush()
        file.attrs["complete"] = np.uint8(1)
    return checksums


class _Filling:
    """An array of a file, filled from its first byte on past HDF5, which only says where it lies."""

    def __init__(self, descriptor: int, dataset: h5py.Dataset) -> None:
        self._descriptor, self._position, self.checksum = descriptor, dataset.id.get_offset(), 0

    def add(self, rows: np.ndarray) -> None:
        content = rows.reshape(-1).view(np.uint8).data
        self.checksum = crc32(content, self.checksum)
        while content:
            written = os.pwrite(self._descriptor, content, self._position)
            content, self._position = content[written:], self._position + written

    def add_all_of(self, shard: Shard, name: str) -> bool:
        """Whether a shard's array could be added as it is: unseen, so that its own checksum tells of any damage."""
        layout, checksums = shard.header.arrays[name], shard.header.checksums
        if checksums is None or not shard.copied_to(self._descriptor, self._position, name):
            return False
        size = layout.shape[0] * layout.row_bytes
        self.checksum = joined_checksum(self.checksum, checksums[name], size)
        self._position += size
        return True


def joined_checksum(first: int, second: int, length: int) -> int:
    """The CRC-32 of two pieces of bytes, of that of each and the length of the second, as zlib's `crc32_combine`."""
    power, shift = 1 << 23, 1 << 31  # of polynomials whose highest bit is the 1: x^8, for a byte, and 1
    while length:
        shift = _times(shift, power) if length & 1 else shift
        power, length = _times(power, power), length >> 1
    return _times(first, shift) ^ second


def _times(one: int, other: int) -> int:
    """The product of two polynomials modulo that of CRC-32."""
    product = 0
    for bit in range(31, -1, -1):
        product ^= other if one >> bit & 1 else 0
        other = other >> 1 ^ (0xEDB88320 if other & 1 else 0)
    return product


def _copy(
    descriptor: int,
    dataset: h5py.Dataset,
    name: str,
    sources: Sequence[Shard | Waiting],
    spans: Sequence[tuple[int, int, int]],
) -> int:
    """Fill a dataset some megabytes at a time. Returns the checksum."""
    if dataset.size == 0:
        return 0
    filling, filled = _Filling(descriptor, dataset), 0
    rows_at_once = min(max(1, BLOCK_BYTES * len(dataset) // dataset.nbytes), len(dataset))
    block = np.empty((rows_at_once, *dataset.shape[1:]), dtype=dataset.dtype)
    opened: dict[int, None] = {}  # the sources that were read last, the last at the end
    for number, start, stop in spans:
        opened.pop(number, None)
        opened[number] = None
        if len(opened) > MOST_OPEN:
            oldest = next(iter(opened))
            del opened[oldest]
            sources[oldest].close()
        source = sources[number]
        if type(source) is Shard and (start, stop) == (0, source.header.num_regions):  # one that is checked is read
            filling.add(block[:filled])
            filled = 0
            if filling.add_all_of(source, name):
                continue
        while start < stop:
            rows = block[filled : filled + stop - start]
            source.rows_into(name, start, rows)
            filled, start = filled + len(rows), start + len(rows)
            if filled == len(block):
                filling.add(block)
                filled = 0
    filling.add(block[:filled])
    for number in opened:
        sources[number].close()
    return filling.checksum


def _fixed_text(text: str) -> np.ndarray:
    """A scalar of fixed-length UTF-8, which unlike variable-length text lies within the checksummed structures."""
    encoded = text.encode("utf-8")
    dtype = h5py.string_dtype("utf-8", max(1, len(encoded)))
    return np.array(encoded, dtype=f"S{max(1, len(encoded))}").astype(dtype)


# Several store files → one, by copying rows.

SHARD_NAME = re.compile(r"(?P<name>.*)-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)?")


def shard_path(path: Path, index: int, count: int) -> Path:
    """The name of part `index`, from 0, of `count` parts of a store: features.h5 → features-00003-of-00016.h5."""
    return path.with_name(f"{path.stem}-{index:05d}-of-{count:05d}{path.suffix}") if count > 1 else path


def merge_stores(files: Sequence[str | Path], target: str | Path, *, overwrite: bool = False) -> RegionStore:
    """One store file with the images of all, in the order of the files, opened; it may replace one if `overwrite`.

    Raises UserError, with nothing changed, if `target` exists, files do not belong together, are damaged or missing, or
    the disk is full.
    """
    target = Path(target)
    if not overwrite and os.path.lexists(target):
        raise UserError(f"{target} exists already: give another name, or say --overwrite.")
    if target.is_dir():
        raise UserError(f"{target} is a folder: name a file to write.")
    _refuse_gaps([Path(file) for file in files])
    store = RegionStore(list(files))
    with work_folder(target) as folder:
        for shard in store.sources:
            for problem in problems(shard):
                raise UserError(problem)
            shard.close()
        write_store_file(folder / target.name, store.attributes, [_CheckedShard(header) for header in store.headers])
        put_in_place(folder / target.name, target)
    return RegionStore(target)


def _refuse_gaps(files: Sequence[Path]) -> None:
    """Files that call themselves parts of one store must be all of its parts."""
    parts: dict[tuple[str, int], set[int]] = {}
    for match in filter(None, (SHARD_NAME.fullmatch(file.name) for file in files)):
        whole = f"{match['name']}{match['suffix'] or ''}", int(match["count"])
        parts.setdefault(whole, set()).add(int(match["index"]))
    for (name, count), found in parts.items():
        if missing := sorted(set(range(count)) - found):
            shown = ", ".join(map(str, missing[:NAMES_SHOWN])) + (" …" if len(missing) > NAMES_SHOWN else "")
            raise UserError(
                f"Of the {count} parts of {name}, {len(missing)} are not among the files (shard.index {shown}): "
                "extract them first."
            )
