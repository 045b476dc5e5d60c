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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import h5py
import numpy as np

from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError
from vinvl.run.files import PARTIAL_SUFFIX, write_text_atomically

FORMAT_NAME = "vinvl-regions"
FORMAT_VERSION = 1
FEATURE_DTYPES = ("float16", "float32")
MAX_ID_BYTES = 255
FEATURES = "features"
PROVENANCE = "provenance"
CHECKSUMS = "checksums"

ROW_DTYPES: dict[str, str] = {
    "boxes": "<f4",
    "classes": "<i4",
    "class_scores": "<f4",
    "attributes": "<i4",
    "attribute_scores": "<f4",
}
IMAGE_DTYPES: dict[str, str] = {"offsets": "<i8", "sizes": "<i4"}

# Others are loaded from libraries of the system, or are not safe on damaged files.
_FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, h5py.h5z.FILTER_LZF}
_LARGEST_CHUNK = 2**30  # bytes; a chunk is read whole for a row of it
_LARGEST_RATIO = 1100  # of an array to its compressed bytes; deflate reaches 1032

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class ArrayLayout:
    """Where one dataset lies: its bytes start at `offset` in the file, or (None) only HDF5 can find them."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int | None

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


@dataclass(frozen=True)
class ShardHeader:
    """All that is needed to map one store file. Small and picklable; holds no handle."""

    path: Path
    file_bytes: int
    modified_ns: int
    feature_dim: int
    detector: str
    label_map: LabelMap
    provenance: str | None
    checksums: dict[str, int] | None
    storage: str
    arrays: dict[str, ArrayLayout]

    @property
    def num_images(self) -> int:
        return self.arrays["image_ids"].shape[0]

    @property
    def num_regions(self) -> int:
        return self.arrays["features"].shape[0]

    @property
    def num_attributes(self) -> int:
        return self.arrays["attributes"].shape[1]

    @property
    def feature_dtype(self) -> np.dtype:
        return self.arrays["features"].dtype


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading, without file locks (many read-only network folders have none).

    Raises UserError if the file is missing, is not HDF5, or is truncated.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no file; give a store written by RegionStoreWriter.")
        with path.open("rb") as stream:
            signature = stream.read(len(_HDF5_SIGNATURE))
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}.{_leftover_hint(path)}") from None
    # HDF5 also looks for its signature behind a user block of 512, 1024, … bytes.
    if signature != _HDF5_SIGNATURE and not h5py.is_hdf5(path):
        raise UserError(f"{path} is not an HDF5 file; give a store written by RegionStoreWriter.")
    try:
        return h5py.File(path, "r", locking=False)
    except (OSError, RuntimeError, ValueError) as error:
        if "truncated" in str(error):
            raise UserError(f"{path} is truncated; copy or write it again.") from None
        raise UserError(f"{path} is a damaged HDF5 file; copy or write it again ({error}).") from None


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
    _check_format(path, file)
    feature_dim = _integer_attribute(path, file, "feature_dim")
    detector = _text_attribute(path, file, "detector")
    label_map = LabelMap.from_json(_text_attribute(path, file, "label_map"), f"{path}: the label map")
    status = path.stat()
    arrays = {name: _array_layout(path, file, name, status.st_size) for name in dataset_names()}
    _check_shapes(path, arrays, feature_dim)
    offsets = file["offsets"]
    if int(offsets[0]) != 0 or int(offsets[-1]) != arrays["features"].shape[0]:
        raise UserError(
            f"{path}: offsets run from {int(offsets[0])} to {int(offsets[-1])}, features have "
            f"{arrays['features'].shape[0]} rows; write the store again."
        )
    features = file["features"]
    storage = "contiguous" if features.chunks is None else f"chunked by {features.chunks[0]} rows"
    return ShardHeader(
        path=path,
        file_bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        feature_dim=feature_dim,
        detector=detector,
        label_map=label_map,
        provenance=_text_attribute(path, file, PROVENANCE) if PROVENANCE in file.attrs else None,
        checksums=_read_checksums(path, file) if CHECKSUMS in file.attrs else None,
        storage=storage if features.compression is None else f"{storage}, {features.compression}",
        arrays=arrays,
    )


def dataset_names() -> tuple[str, ...]:
    """The names of the nine datasets of the layout."""
    return ("features", *ROW_DTYPES, *IMAGE_DTYPES, "image_ids")


def _check_format(path: Path, file: h5py.File) -> None:
    if "format" not in file.attrs or _text_attribute(path, file, "format") != FORMAT_NAME:
        raise UserError(f"{path} is an HDF5 file but not a region store; give one written by RegionStoreWriter.")
    version = _integer_attribute(path, file, "version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has layout version {version}, this vinvl reads version {FORMAT_VERSION}; "
            "update vinvl or write the store again."
        )
    if "complete" not in file.attrs or _integer_attribute(path, file, "complete") != 1:
        raise UserError(f"{path} is only half written: its writer did not finish; delete it and write it again.")


def _read_checksums(path: Path, file: h5py.File) -> dict[str, int]:
    try:
        content = json.loads(_text_attribute(path, file, CHECKSUMS))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.keys() != set(dataset_names()):
        raise UserError(f"{path}: root attribute {CHECKSUMS} is damaged; copy or write the file again.")
    return {name: content[name] for name in dataset_names()}


def _integer_attribute(path: Path, file: h5py.File, name: str) -> int:
    value = _scalar_attribute(file, name, h5py.h5t.INTEGER)
    if isinstance(value, (int, np.integer)):
        return int(value)
    raise UserError(f"{path}: root attribute {name} is missing or not a whole number; write the store again.")


def _text_attribute(path: Path, file: h5py.File, name: str) -> str:
    value = _scalar_attribute(file, name, h5py.h5t.STRING)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    # h5py smuggles bytes that are no UTF-8 through as lone surrogates, which nothing can print.
    if isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value):
        return value
    raise UserError(f"{path}: root attribute {name} is missing or not UTF-8 text; write the store again.")


def _scalar_attribute(file: h5py.File, name: str, type_class: int) -> object:
    """The value of a root attribute, or None if it is missing, no scalar, or of another class of types.

    The type is looked at before the value is read: HDF5 can crash on reading values of a damaged type.
    """
    if name not in file.attrs:
        return None
    attribute = file.attrs.get_id(name)
    if attribute.get_storage_size() > file.id.get_filesize():
        return None
    if attribute.shape != () or attribute.get_type().get_class() != type_class:
        return None
    return file.attrs[name]


def _array_layout(path: Path, file: h5py.File, name: str, file_bytes: int) -> ArrayLayout:
    """Where a dataset lies, after checking that it has the data type of the layout and ends within the file."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        raise UserError(f"{path} has no dataset {name}; write the store again.")
    dataset = file[name]
    _check_dtype(path, dataset, name)
    if dataset.shape is None:
        raise UserError(f"{path}: dataset {name} is empty of shape; write the store again.")
    _check_storage(path, dataset, name)
    if dataset.size == 0 or dataset.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        return ArrayLayout(dataset.dtype, dataset.shape, None)
    offset = dataset.id.get_offset()
    if offset is None:
        raise UserError(f"{path}: dataset {name} was declared but never written; write the store again.")
    if offset + dataset.size * dataset.dtype.itemsize > file_bytes:
        raise UserError(f"{path}: dataset {name} reaches beyond the end of the file; copy or write it again.")
    is_padded_text = name == "image_ids" and dataset.id.get_type().get_strpad() != h5py.h5t.STR_NULLPAD
    return ArrayLayout(dataset.dtype, dataset.shape, None if is_padded_text else offset)


def _check_storage(path: Path, dataset: h5py.Dataset, name: str) -> None:
    """Refuses what lies in other files, and what would take far more memory than the file has bytes."""
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or plist.get_external_count() or dataset.id.get_type().committed():
        raise UserError(f"{path}: the data of {name} lie elsewhere; a store has its arrays in itself: write it again.")
    for number in range(plist.get_nfilters()):
        if plist.get_filter(number)[0] not in _FILTERS:
            raise UserError(f"{path}: {name} is compressed in a way that is not read; write it with gzip, lzf or none.")
    if plist.get_layout() == h5py.h5d.CONTIGUOUS:
        return
    stored = dataset.id.get_storage_size()
    chunk = math.prod(dataset.chunks or ()) * dataset.dtype.itemsize
    if dataset.nbytes > _LARGEST_RATIO * stored or chunk > _LARGEST_CHUNK:
        sizes = f"{dataset.nbytes:,} bytes, in chunks of {chunk:,}"
        raise UserError(f"{path}: {name} has {stored:,} bytes that claim to be {sizes}; write the store again.")


def _check_dtype(path: Path, dataset: h5py.Dataset, name: str) -> None:
    dtype = dataset.dtype
    if name == "image_ids":
        if dtype.kind != "S" or dtype.itemsize > MAX_ID_BYTES:
            raise UserError(f"{path}: image_ids must be fixed-length UTF-8 text of at most {MAX_ID_BYTES} bytes.")
        return
    wanted = FEATURE_DTYPES if name == "features" else (str(np.dtype((ROW_DTYPES | IMAGE_DTYPES)[name])),)
    # The raw type is compared as well: NumPy has no name for some number formats that HDF5 can hold.
    if str(dtype) not in wanted or dataset.id.get_type() != h5py.h5t.py_create(dtype):
        raise UserError(f"{path}: dataset {name} is stored as {dtype}, the layout wants {' or '.join(wanted)}.")


def _check_shapes(path: Path, arrays: dict[str, ArrayLayout], feature_dim: int) -> None:
    """Check all shapes against the numbers of images and regions, K and the declared feature dimension."""
    for name, rank in (("features", 2), ("attributes", 2), ("image_ids", 1)):
        if len(arrays[name].shape) != rank:
            raise UserError(f"{path}: dataset {name} has shape {arrays[name].shape}, the layout wants rank {rank}.")
    if arrays["features"].shape[1] != feature_dim:
        raise UserError(
            f"{path}: features have dimension {arrays['features'].shape[1]} but the file declares {feature_dim}; "
            "write the store again."
        )
    regions, images = arrays["features"].shape[0], arrays["image_ids"].shape[0]
    attributes = arrays["attributes"].shape[1]
    wanted: dict[str, tuple[int, ...]] = {
        "boxes": (regions, 4),
        "classes": (regions,),
        "class_scores": (regions,),
        "attributes": (regions, attributes),
        "attribute_scores": (regions, attributes),
        "offsets": (images + 1,),
        "sizes": (images, 2),
    }
    for name, shape in wanted.items():
        if arrays[name].shape != shape:
            raise UserError(f"{path}: dataset {name} has shape {arrays[name].shape}, {shape} was expected.")


def _leftover_hint(path: Path) -> str:
    """Tell of the working folder of an interrupted writer, if one lies beside the missing file."""
    if path.with_name(path.name + PARTIAL_SUFFIX).is_dir():  # finished shards, which nobody should delete
        return " It is being made, or that was stopped: the same command goes on with it."
    prefix = f".{path.name}."
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    leftover = next((name for name in names if name.startswith(prefix) and name.endswith(PARTIAL_SUFFIX)), None)
    return "" if leftover is None else f" Its writer did not finish: {leftover} is what it left; delete that and rerun."


# What store files say of how their features were made, beyond the name of the detector.


def common_provenance(headers: Sequence[ShardHeader]) -> dict[str, Any]:
    """What all files say, each key once; a list of the different values, by file, where they do not agree.

    Raises UserError, naming the file, if a provenance is no JSON object.
    """
    said = [_parse(header) for header in headers if header.provenance is not None]
    common: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in said for key in one):
        values = [one.get(key) for one in said]
        distinct = [value for number, value in enumerate(values) if value not in values[:number]]
        common[key] = distinct[0] if len(distinct) == 1 else distinct
    return common


def _parse(header: ShardHeader) -> dict[str, Any]:
    try:
        content = json.loads(header.provenance or "")
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{header.path}: root attribute provenance is no JSON object; copy or write the file again.")
    return content


# The manifest of a folder of shards: `manifest.json`, which lists files, their numbers of images and checksums.


MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True)
class ShardEntry:
    """What a manifest says of a shard; `checksum` of its checksums, None in manifests of earlier versions."""

    file: str
    images: int
    checksum: int | None = None

    @classmethod
    def of(cls, file: str, images: int, checksums: Mapping[str, int] | None) -> ShardEntry:
        text = None if checksums is None else json.dumps(checksums, sort_keys=True)
        return cls(file, images, None if text is None else crc32(text.encode()))


def write_manifest(folder: Path, shards: Sequence[ShardEntry]) -> None:
    """Write the manifest of all shards."""
    content = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "shards": [asdict(shard) for shard in shards],
    }
    write_text_atomically(folder / MANIFEST_NAME, json.dumps(content, indent=1) + "\n")


def read_manifest(folder: Path) -> list[ShardEntry]:
    """The shards of a folder, in order.

    Raises UserError if the folder has no sound manifest of this version, or names a shard that is missing.
    """
    path = folder / MANIFEST_NAME
    if folder.name.endswith(PARTIAL_SUFFIX) or folder.parent.name.endswith(PARTIAL_SUFFIX):
        raise UserError(f"{folder} was left by a writer that did not finish; delete it and write the store again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is a folder without {MANIFEST_NAME}; name its .h5 files one by one.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be opened: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); write the store again.") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT_NAME:
        raise UserError(f"{path} is not the manifest of a region store; its format is not {FORMAT_NAME}.")
    if content.get("version") != FORMAT_VERSION:
        raise UserError(
            f"{path} has layout version {str(content.get('version'))[:20]}, this vinvl reads version "
            f"{FORMAT_VERSION}; update vinvl or write the store again."
        )
    shards = content.get("shards")
    if not isinstance(shards, list) or not shards:
        raise UserError(f"{path} lists no shards; write the store again.")
    return [_read_entry(path, entry) for entry in shards]


def _read_entry(path: Path, entry: object) -> ShardEntry:
    entry = entry if isinstance(entry, dict) else {}
    name, images, checksum = entry.get("file"), entry.get("images"), entry.get("checksum")
    if not isinstance(name, str) or not isinstance(images, int) or isinstance(images, bool):
        raise UserError(f"{path} has a shard entry without file and images; write the store again.")
    if checksum is not None and (not isinstance(checksum, int) or isinstance(checksum, bool)):
        raise UserError(f"{path}: the checksum of {name!a} is no whole number; copy or write the store again.")
    # A manifest must not lead out of its folder.
    if name != Path(name).name or "\0" in name:
        raise UserError(f"{path} names the shard {name!a}, which is not a plain file name; write the store again.")
    if not (path.parent / name).is_file():
        raise UserError(f"{path} names the shard {name!a}, which is missing; copy it here or write the store again.")
    # Where the manifest too is a link, somebody made a folder of links, as caches of downloads do.
    if not path.is_symlink() and (path.parent / name).resolve().parent != path.parent.resolve():
        raise UserError(
            f"{path} names the shard {name!a}, which is a link out of its folder; name the .h5 files one by one, or "
            "link the whole folder."
        )
    return ShardEntry(name, images, checksum)
