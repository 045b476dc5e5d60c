"""Folders with a file for each image: MMF's `ID.npy` with `ID_info.npy`, and `ID.npz`."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from vinvl.data.features_in.array_fields import FIELDS, regions_of_fields
from vinvl.data.features_in.base64_arrays import MOST_BYTES
from vinvl.data.features_in.lines import Found
from vinvl.data.features_in.rows import KnownNames, ReadOptions
from vinvl.data.restricted_pickle import load_restricted, plain_array
from vinvl.data.store import Regions
from vinvl.data.worker_pool import in_order
from vinvl.errors import UserError

INFO = "_info"
BATCH_FILES = 16
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes; the others have no limit when reading

# The head of an npy file as NumPy writes it, of a plain data type. (NumPy's own reader runs a Python parser on it.)
HEAD = re.compile(
    rb"\s*\{\s*'descr':\s*'(?P<dtype>[<>|=]?(?:[biufc][0-9]{1,2}|[SU][0-9]{1,9}|O))',\s*'fortran_order':\s*(?P<fortran>True|False),"
    rb"\s*'shape':\s*\((?P<shape>(?:\s*[0-9]{1,18}L?\s*,?)*)\s*\),?\s*\}\s*"
)


def image_files(folder: Path, suffix: str) -> list[Path]:
    """The files of features below a folder, in the order of their names; only the names are held.

    Of an `ID_info.npy` without features, the name that these should have.
    """
    files = set(folder.rglob(f"*{suffix}"))
    infos = {path for path in files if path.stem.endswith(INFO)}
    return sorted(files - infos | {path.with_name(f"{path.stem.removesuffix(INFO)}{suffix}") for path in infos})


def size_of(path: Path) -> int:
    """Bytes of a file; 0 of one that is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def images_of_files(
    folder: Path, files: Sequence[Path], options: ReadOptions, known: KnownNames, workers: int
) -> Iterator[Found]:
    """The images of a folder; the id is the path below the folder without its suffix."""
    paths = iter(files)
    batches = iter(lambda: list(islice(paths, BATCH_FILES)), [])
    position = 0
    for images in in_order(partial(_read_batch, folder=folder, options=options, known=known), batches, workers):
        for path, size, regions in images:
            position += size
            yield Found(str(path), regions, position)


def _read_batch(
    paths: list[Path], folder: Path, options: ReadOptions, known: KnownNames
) -> list[tuple[Path, int, Regions | UserError]]:
    return [(path, *_read_file(path, folder, options, known)) for path in paths]


def _read_file(path: Path, folder: Path, options: ReadOptions, known: KnownNames) -> tuple[int, Regions | UserError]:
    image_id = path.relative_to(folder).with_suffix("").as_posix()
    try:
        size = size_of(path)
        fields = read_npz(path) if path.suffix == ".npz" else _read_npy_pair(path)
    except OSError as error:
        return 0, UserError(f"{path} cannot be read ({error.strerror or error}); check the path.")
    except UserError as error:
        return 0, error
    try:
        return size, regions_of_fields(image_id, fields, options, known)
    except UserError as error:
        return size, UserError(f"{path}: {error}")


def _read_npy_pair(path: Path) -> dict[str, Any]:
    info_path = path.with_name(f"{path.stem}{INFO}.npy")
    if not info_path.is_file():
        raise UserError(f"{path} has no {info_path.name} beside it, so its boxes are not known.")
    if not path.exists():
        raise UserError(f"{info_path} has no {path.name} beside it, so its image has no features.")
    with path.open("rb") as file, info_path.open("rb") as info_file:
        features = read_array(_all_of(file, MOST_BYTES, str(path)), str(path))
        info = _item(read_array(_all_of(info_file, MOST_BYTES, str(info_path)), str(info_path)))
    if not isinstance(info, dict):
        raise UserError(f"{info_path} holds {type(info).__name__}, expected a dict with bbox and the image's size.")
    return {**info, "features": features}


def _all_of(file: IO[bytes], most: int, place: str) -> bytes:
    content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{place} has more than the {MOST_BYTES:,} bytes that are read of one image.")
    return content


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays of an npz by name, None for those of no use; a dict in its member `info` is taken in too.

    Raises:
        UserError: it is damaged, or would fill the memory.
    """
    fields: dict[str, Any] = {}
    left = MOST_BYTES
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                place = f"{path}, {member.filename}"
                if name in fields or member.compress_type not in COMPRESSIONS:
                    raise UserError(f"{place} comes twice, or is compressed as no npz is; get the file again.")
                fields[name] = None
                if name in (*FIELDS, "info"):
                    with archive.open(member) as file:
                        content = _all_of(file, left, place)
                    left -= len(content)
                    fields[name] = read_array(content, place)
    except (OSError, UserError):
        raise
    except Exception as error:  # what a damaged archive runs into: zlib, struct, a codec, a checksum
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path} is no npz, or a damaged one ({reason}); get the file again.") from None
    info = _item(fields.pop("info", None))
    return {**info, **fields} if isinstance(info, dict) else fields


def _item(array: Any) -> Any:
    """What an array of no dimension holds."""
    return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else array


def read_array(content: bytes, place: str) -> Any:
    """The array of an npy file; of an array of objects, what the restricted unpickler allows.

    Raises:
        UserError: it is damaged or holds anything else.
    """
    begin = {b"\x93NUMPY\x01\x00": 10, b"\x93NUMPY\x02\x00": 12, b"\x93NUMPY\x03\x00": 12}.get(content[:8], 0)
    end = begin + int.from_bytes(content[8:begin], "little")
    head = HEAD.fullmatch(content[begin:end]) if begin and end <= len(content) else None
    if head is None:
        raise UserError(f"{place} is no npy file of plain numbers, or a damaged one; get the file again.")
    dtype_name = head["dtype"].decode()
    if dtype_name.endswith("O"):
        return load_restricted(content[end:], place)
    try:
        dtype = np.dtype(dtype_name)
        shape = tuple(int(length.strip(b" L")) for length in head["shape"].split(b",") if length.strip())
        expected = prod(shape) * dtype.itemsize
        if len(content) - end != expected:
            raise UserError(
                f"{place} has {len(content) - end:,} bytes of data, expected {expected:,}; it may be cut off."
            )
        return plain_array(dtype, shape, content[end:], fortran=head["fortran"] == b"True")
    except (ValueError, TypeError) as error:
        raise UserError(f"{place} is no npy file that can be read ({error}); get the file again.") from None
