"""The HDF5 layout, version 1: its names, its data types, and the checks that a file must pass before it is read.

    features          (ΣR, D)  float16 or float32; other writers may have chunked and compressed it
    boxes             (ΣR, 4)  float32, absolute x1 y1 x2 y2 in pixels
    classes           (ΣR,)    int32
    class_scores      (ΣR,)    float32
    attributes        (ΣR, K)  int32
    attribute_scores  (ΣR, K)  float32
    offsets           (N+1,)   int64, image n owns rows offsets[n] to offsets[n+1]
    image_ids         (N,)     fixed-length UTF-8, padded with NUL
    sizes             (N, 2)   int32, width and height in pixels

Root attributes: `format` and `version`, `feature_dim`, `detector`, `label_map` (JSON text) and `complete`, which a
writer sets to 1 as the last thing; where the writer knows more of how the features were made, `provenance` (a JSON
object); but for files of earlier versions, `checksums` (a JSON object): the CRC-32 of the bytes of each array, by its
name. N images, ΣR regions, D feature dimension, K attributes a region; numbers are little-endian.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zlib import crc32

import h5py
import msgspec
import numpy as np

from vinvl.regions.regions import FEATURES, MAX_ID_BYTES, ROW_DTYPES, LabelMap, StoreAttributes
from vinvl.run.errors import UserError
from vinvl.run.files import PARTIAL_SUFFIX, write_text_atomically
from vinvl.run.values import decoded_file

FORMAT_NAME = "vinvl-regions"
FORMAT_VERSION = 1
FEATURE_DTYPES = ("float16", "float32")
PROVENANCE, CHECKSUMS = "provenance", "checksums"
IMAGE_DTYPES: dict[str, str] = {"offsets": "<i8", "sizes": "<i4"}
DATASETS = (FEATURES, *ROW_DTYPES, *IMAGE_DTYPES, "image_ids")

# Others are loaded from libraries of the system, or are not safe on damaged files.
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
_LARGEST_CHUNK = 2**30  # bytes; a chunk is read whole for a row of it
_LARGEST_RATIO = 1100  # of an array to its compressed bytes; deflate reaches 1032
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_OURS = "give a store written by RegionStoreWriter"
_AGAIN = "write the store again"


@dataclass(frozen=True)
class ArrayLayout:
    """Where one dataset lies: its bytes start at `offset` in the file, or (None) only HDF5 can find them."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int | None

    @cached_property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


class View(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a store file is read where others read it as it is: with a prefix on its ids, without its classes."""

    id_prefix: str = ""
    classes: bool = True  # and attributes


AS_IT_IS = View()


@dataclass(frozen=True)
class ShardHeader:
    """All that is needed to read one store file. Small and picklable; holds no handle."""

    path: Path
    file_bytes: int
    modified_ns: int
    attributes: StoreAttributes  # but for the provenance, whose JSON nobody has looked at
    provenance: str | None
    checksums: dict[str, int] | None
    storage: str
    arrays: dict[str, ArrayLayout]
    view: View = AS_IT_IS

    def seen(self, view: View) -> ShardHeader:
        """The same file read by a view."""
        bare = replace(self.attributes, label_map=LabelMap((), ()), num_attributes=0)
        return replace(self, view=view, attributes=self.attributes if view.classes else bare)

    @property
    def num_images(self) -> int:
        return self.arrays["image_ids"].shape[0]

    @property
    def num_regions(self) -> int:
        return self.arrays[FEATURES].shape[0]


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, without file locks (many read-only network folders have none).

    Raises UserError if the file is missing, is not HDF5, or is truncated.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; {_OURS}.")
        with path.open("rb") as stream:
            signature = stream.read(len(_HDF5_SIGNATURE))
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}.{_leftover_hint(path)}") from None
    # HDF5 also looks for its signature behind a user block of 512, 1024, … bytes.
    if signature != _HDF5_SIGNATURE and not h5py.is_hdf5(path):
        raise UserError(f"{path} is not an HDF5 file; {_OURS}.")
    try:
        return h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError, ValueError) as error:
        if "truncated" in str(error):
            raise UserError(f"{path} is truncated; copy or write it again.") from None
        raise UserError(f"{path} is a damaged HDF5 file; copy or write it again ({error}).") from None


# Where a file says that it ends, by the version of its superblock; before that stands the place where it begins.
_END = {0: 40, 1: 44, 2: 28, 3: 28}


def check_end(path: Path) -> None:
    """Raises UserError for a file that goes on behind its end, which HDF5 does not mind: something was put into it."""
    with path.open("rb") as stream:
        start, size = stream.read(64), stream.seek(0, os.SEEK_END)
    place = _END.get(start[8], 0) if start.startswith(_HDF5_SIGNATURE) else 0
    begin, end = (int.from_bytes(start[at : at + 8], "little") for at in (place - 16, place))
    if place and not begin and end < size:
        raise UserError(f"{path} has {size:,} bytes, but says that it ends at {end:,}; it is damaged, get it again.")


def read_header(path: Path) -> ShardHeader:
    """Check one store file against the layout and tell where its arrays lie; reads no features.

    Raises UserError, naming the file, for anything that is not a finished store of this version.
    """
    with open_hdf5(path) as file:
        try:
            return _parse_header(path, file)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise UserError(f"{path} is a damaged store; copy or write it again ({error}).") from None


def _parse_header(path: Path, file: h5py.File) -> ShardHeader:
    if "format" not in file.attrs or _attribute(path, file, "format") != FORMAT_NAME:
        raise UserError(f"{path} is an HDF5 file but not a region store; {_OURS}.")
    _check_version(path, _attribute(path, file, "version", is_text=False))
    if "complete" not in file.attrs or _attribute(path, file, "complete", is_text=False) != 1:
        raise UserError(f"{path} is only half written: its writer did not finish; delete it and write it again.")
    feature_dim, detector = _attribute(path, file, "feature_dim", is_text=False), _attribute(path, file, "detector")
    label_map = LabelMap.from_json(_attribute(path, file, "label_map"), f"{path}: the label map")
    status = path.stat()
    arrays = {name: _array_layout(path, file, name, status.st_size) for name in DATASETS}
    for name, rank in ((FEATURES, 2), ("attributes", 2), ("image_ids", 1)):
        if len(arrays[name].shape) != rank:
            raise UserError(f"{path}: dataset {name} has shape {arrays[name].shape}, the layout wants rank {rank}.")
    (regions, dim), images = arrays[FEATURES].shape, arrays["image_ids"].shape[0]
    if dim != feature_dim:
        raise UserError(f"{path}: features have dimension {dim} but the file declares {feature_dim}; {_AGAIN}.")
    attributes = StoreAttributes(dim, arrays[FEATURES].dtype, arrays["attributes"].shape[1], detector, label_map)
    shapes: dict[str, tuple[int, ...]] = {name: (regions, *attributes.row_shape(name)) for name in ROW_DTYPES}
    for name, shape in (shapes | {"offsets": (images + 1,), "sizes": (images, 2)}).items():
        if arrays[name].shape != shape:
            raise UserError(f"{path}: dataset {name} has shape {arrays[name].shape}, {shape} was expected.")
    first, last = (int(file["offsets"][place]) for place in (0, -1))
    if first != 0 or last != regions:
        raise UserError(f"{path}: offsets run from {first} to {last}, features have {regions} rows; {_AGAIN}.")
    features = file[FEATURES]
    storage = "contiguous" if features.chunks is None else f"chunked by {features.chunks[0]} rows"
    return ShardHeader(
        path=path,
        file_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        attributes=attributes,
        provenance=_attribute(path, file, PROVENANCE) if PROVENANCE in file.attrs else None,
        checksums=_read_checksums(path, file) if CHECKSUMS in file.attrs else None,
        storage=storage if features.compression is None else f"{storage}, {features.compression}",
        arrays=arrays,
    )


def _check_version(path: Path, version: object) -> None:
    if version != FORMAT_VERSION:
        reads = f"this vinvl reads version {FORMAT_VERSION}; update vinvl or {_AGAIN}"
        raise UserError(f"{path} has layout version {str(version)[:20]}, {reads}.")


def _read_checksums(path: Path, file: h5py.File) -> dict[str, int]:
    content = parsed_json(_attribute(path, file, CHECKSUMS))
    if not isinstance(content, dict) or content.keys() != set(DATASETS):
        raise UserError(f"{path}: root attribute {CHECKSUMS} is damaged; copy or write the file again.")
    return content


def parsed_json(text: str) -> Any:
    """The value of a JSON text, None where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _attribute(path: Path, file: h5py.File, name: str, *, is_text: bool = True) -> Any:
    """A root attribute: a text, or a whole number. Raises UserError for anything else.

    The type is looked at before the value is read: HDF5 can crash on reading values of a damaged type.
    """
    kind, told = (h5py.h5t.STRING, "UTF-8 text") if is_text else (h5py.h5t.INTEGER, "a whole number")
    if name in file.attrs:
        stored = file.attrs.get_id(name)
        fits = stored.get_storage_size() <= file.id.get_filesize()
        if fits and stored.shape == () and stored.get_type().get_class() == kind:
            value = file.attrs[name]
            if not is_text and isinstance(value, (int, np.integer)):
                return int(value)
            if isinstance(value, bytes):
                value = value.decode("utf-8", "surrogateescape")
            # h5py too smuggles bytes that are no UTF-8 through as lone surrogates, which nothing can print.
            if isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value):
                return value
    raise UserError(f"{path}: root attribute {name} is missing or not {told}; {_AGAIN}.")


def _array_layout(path: Path, file: h5py.File, name: str, file_bytes: int) -> ArrayLayout:
    """Where a dataset lies, after checking that it has the data type of the layout and ends within the file."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        raise UserError(f"{path} has no dataset {name}; {_AGAIN}.")
    dataset, dtype = file[name], file[name].dtype
    if name == "image_ids":
        if dtype.kind != "S" or dtype.itemsize > MAX_ID_BYTES:
            raise UserError(f"{path}: image_ids must be fixed-length UTF-8 text of at most {MAX_ID_BYTES} bytes.")
    else:
        wanted = FEATURE_DTYPES if name == FEATURES else (str(np.dtype((ROW_DTYPES | IMAGE_DTYPES)[name])),)
        # The raw type is compared as well: NumPy has no name for some number formats that HDF5 can hold.
        if str(dtype) not in wanted or dataset.id.get_type() != h5py.h5t.py_create(dtype):
            raise UserError(f"{path}: dataset {name} is stored as {dtype}, the layout wants {' or '.join(wanted)}.")
    if dataset.shape is None:
        raise UserError(f"{path}: dataset {name} is empty of shape; {_AGAIN}.")
    offset = stored_at(path, dataset.id, name, file_bytes)
    is_padded_text = name == "image_ids" and dataset.id.get_type().get_strpad() != h5py.h5t.STR_NULLPAD
    return ArrayLayout(dtype, dataset.shape, None if is_padded_text else offset)


def stored_at(path: Path, dataset: h5py.h5d.DatasetID, name: str, file_bytes: int) -> int | None:
    """The byte where a contiguous array begins, None where only HDF5 can find its parts.

    Raises UserError for one that lies in other files, was not written whole or is cut off, and for one that would take
    far more memory than the file has bytes. A file may have an array for each image, so HDF5 is asked for little.
    """
    plist, kind, shape = dataset.get_create_plist(), dataset.get_type(), dataset.shape
    layout, size = plist.get_layout(), math.prod(shape) * kind.get_size()
    if layout == h5py.h5d.VIRTUAL or plist.get_external_count() or kind.committed():
        raise UserError(
            f"{path}: the data of {name} lie elsewhere; a file must hold its arrays itself: write it again."
        )
    if any(plist.get_filter(number)[0] not in _FILTERS for number in range(plist.get_nfilters())):
        raise UserError(f"{path}: {name} is compressed in a way that is not read; write it with gzip, lzf or none.")
    if layout != h5py.h5d.CONTIGUOUS:
        stored = dataset.get_storage_size()
        chunk = math.prod(plist.get_chunk() if layout == h5py.h5d.CHUNKED else ()) * kind.get_size()
        if size > _LARGEST_RATIO * stored or chunk > _LARGEST_CHUNK:
            sizes = f"{size:,} bytes, in chunks of {chunk:,}"
            raise UserError(f"{path}: {name} has {stored:,} bytes that claim to be {sizes}; write it again.")
        return None
    if size == 0:
        return None
    offset = dataset.get_offset()
    if offset is None:
        raise UserError(f"{path}: dataset {name} was declared but never written; write it again.")
    if offset + size > file_bytes:
        raise UserError(f"{path}: dataset {name} reaches beyond the end of the file; copy or write it again.")
    return int(offset)


def _leftover_hint(path: Path) -> str:
    """Tell of the working folder of an interrupted writer, if one lies beside the missing file."""
    if path.with_name(path.name + PARTIAL_SUFFIX).is_dir():  # finished shards, which nobody should delete
        return " It is being made, or that was stopped: the same command goes on with it."
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    leftover = next((name for name in names if name.startswith(f".{path.name}.") and name.endswith(PARTIAL_SUFFIX)), "")
    return leftover and f" Its writer did not finish: {leftover} is what it left; delete that and rerun."


# A store is a file, or a folder of shards with `manifest.json`, which lists files, their images and checksums.

MANIFEST_NAME = "manifest.json"


class ShardEntry(msgspec.Struct, frozen=True):
    """What a manifest says of a shard; `checksum` of its checksums, None in manifests of earlier versions."""

    file: str
    images: int
    checksum: int | None = None

    @classmethod
    def of(cls, file: str, images: int, checksums: Mapping[str, int] | None) -> ShardEntry:
        text = None if checksums is None else json.dumps(checksums, sort_keys=True)
        return cls(file, images, None if text is None else crc32(text.encode()))


class _Manifest(msgspec.Struct):
    format: Any = None
    version: Any = None
    shards: Any = None


def write_manifest(folder: Path, shards: Sequence[ShardEntry]) -> None:
    content = {"format": FORMAT_NAME, "version": FORMAT_VERSION, "shards": msgspec.to_builtins(shards)}
    write_text_atomically(folder / MANIFEST_NAME, json.dumps(content, indent=1) + "\n")


def read_headers(path: Path) -> list[ShardHeader]:
    """What each file of a store says of itself. Raises UserError as `read_header` does, or for an unsound manifest."""
    if path.name.endswith(PARTIAL_SUFFIX) or path.parent.name.endswith(PARTIAL_SUFFIX):
        raise UserError(f"{path} was left by a writer that did not finish; delete it and {_AGAIN}.")
    if not path.is_dir():
        return [read_header(path)]
    headers, manifest = [], path / MANIFEST_NAME
    for entry in _read_manifest(manifest):
        header = read_header(path / entry.file)
        if header.num_images != entry.images:
            counts = f"holds {header.num_images} images but {manifest} says {entry.images}"
            raise UserError(f"{header.path} {counts}; {_AGAIN}.")
        if entry.checksum is not None and ShardEntry.of(entry.file, entry.images, header.checksums) != entry:
            raise UserError(f"{header.path} is not the file that {manifest} was written for; copy it again.")
        headers.append(header)
    return headers


def _read_manifest(path: Path) -> list[ShardEntry]:
    """The shards of a folder, in order."""
    if not path.exists():
        raise UserError(f"{path.parent} is a folder without {MANIFEST_NAME}; name its .h5 files one by one.")
    content = decoded_file(path, _Manifest, "manifest of a region store")
    if content.format != FORMAT_NAME:
        raise UserError(f"{path} is not the manifest of a region store; its format is not {FORMAT_NAME}.")
    _check_version(path, content.version)
    try:
        shards = msgspec.convert(content.shards, list[ShardEntry])
    except msgspec.ValidationError as error:
        raise UserError(f"{path} has a shard entry without file and images ({error}); copy or {_AGAIN}.") from None
    if not shards:
        raise UserError(f"{path} lists no shards; {_AGAIN}.")
    for name in (shard.file for shard in shards):
        names = f"{path} names the shard {name!a}, which is"
        # A manifest must not lead out of its folder.
        if name != Path(name).name or "\0" in name or len(name.encode()) > 255:
            raise UserError(f"{names} not a plain file name; {_AGAIN}.")
        if not (path.parent / name).is_file():
            raise UserError(f"{names} missing; copy it here or {_AGAIN}.")
        # Where the manifest too is a link, somebody made a folder of links, as caches of downloads do.
        if not path.is_symlink() and (path.parent / name).resolve().parent != path.parent.resolve():
            raise UserError(
                f"{names} a link out of its folder; name the .h5 files one by one, or link the whole folder."
            )
    return shards


def refuse_shares(boxes: np.ndarray, width: int, height: int) -> None:
    """Raises UserError for boxes in shares of the image, where pixels are expected: all from 0 to 1, not all whole."""
    if boxes.size and min(width, height) > 2 and boxes.min() >= 0 and 0 < boxes.max() <= 1 and (boxes % 1).any():
        raise UserError(
            f"boxes run from {boxes.min():g} to {boxes.max():g} in {width} × {height} pixels, so they are shares: "
            "multiply x by the width and y by the height of the image."
        )
