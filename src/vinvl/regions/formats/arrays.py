"""Folders with a file for each image: MMF's `ID.npy` with `ID_info.npy`, `ID.npz`, and `ID.pth` of a grid."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from vinvl.regions.formats.fields import KNOWN, FieldReader, merged
from vinvl.regions.formats.rows import MOST_BYTES, Done, Found, images_of_items
from vinvl.run.errors import UserError
from vinvl.run.files import reading
from vinvl.run.restricted_pickle import load_restricted, plain_array

INFO = "_info"
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy writes; the others have no limit when reading

ENTRIES_BEFORE_END = 12  # the number of members, so many bytes before the end and the comment behind it

# The head of an npy file as NumPy writes it, of a plain data type. (NumPy's own reader runs a Python parser on it.)
PLAIN = re.compile(rb"[<>|=]?(?:[biufc][0-9]{1,2}|[SU][0-9]{1,9}|O)")
HEAD = re.compile(
    rb"\s*\{\s*'descr':\s*'(?P<dtype>" + PLAIN.pattern + rb")',\s*'fortran_order':\s*(?P<fortran>True|False),"
    rb"\s*'shape':\s*\((?P<shape>(?:\s*[0-9]{1,18}L?\s*,?)*)\s*\),?\s*\}\s*"
)


def image_files(folder: Path, suffix: str) -> list[Path]:
    """The files of features below a folder, in the order of their names; only the names are held.

    Of an `ID_info.npy` without features, the name that these should have.
    """
    files = set(folder.rglob(f"*{suffix}"))
    infos = {path for path in files if path.stem.endswith(INFO)}
    return sorted(files - infos | {path.with_name(f"{path.stem.removesuffix(INFO)}{suffix}") for path in infos})


def info_of(path: Path) -> Path:
    """The file that says more of a file of features."""
    return path.with_name(f"{path.stem}{INFO}.npy")


def images_of_files(
    folder: Path, files: Sequence[Path], reader: FieldReader, workers: int, done: Done
) -> Iterator[Found]:
    """The images of a folder; the id is the path below the folder without its suffix."""
    return images_of_items(files, partial(_read_file, folder=folder, reader=reader), workers, done)


def _read_file(path: Path, folder: Path, reader: FieldReader) -> Found:
    image_id = path.relative_to(folder).with_suffix("").as_posix()
    try:
        with reading(path):
            if path.suffix == ".npy":
                fields = _read_npy_pair(path, is_grid=reader.options.grid is not None)
            else:
                fields = read_npz(path, path) if path.suffix == ".npz" else _read_tensor(path)
            size = path.stat().st_size
    except UserError as error:
        return Found(str(path), error, 0)
    return reader.found(str(path), image_id, fields, size)


def _read_npy_pair(path: Path, is_grid: bool) -> dict[str, Any]:
    info_path = info_of(path)
    if not path.exists():
        raise UserError(f"{info_path} has no {path.name} beside it, so its image has no features.")
    features = read_array(_all_of(path.open("rb"), MOST_BYTES, path), path)
    if not info_path.is_file():
        if is_grid or np.ndim(features) > 2:
            return {"features": features}
        raise UserError(
            f"{path} has no {info_path.name} beside it, so its boxes are not known; if its rows are cells of a "
            "grid, pass features.grid=[H,W]."
        )
    info = _item(read_array(_all_of(info_path.open("rb"), MOST_BYTES, info_path), info_path))
    if not isinstance(info, dict):
        raise UserError(f"{info_path} holds {type(info).__name__}, expected a dict with bbox and the image's size.")
    return merged(info, {"features": features}, path)


def _read_tensor(path: Path) -> dict[str, Any]:
    """A tensor of features, or a dict of named tensors."""
    from vinvl.run.tensor_files import load_tensor_file, unlike_plain  # torch, which the other formats do without

    try:
        content = load_tensor_file(path, whole=True)
    except Exception as error:  # a hostile or damaged pickle may make the restricted loader raise anything
        reason = " ".join(str(error).partition("\n")[0].split())[:100]
        raise UserError(f"{path} is no file of tensors, or a damaged one ({reason}).") from None
    fields: dict[str, Any] = {}
    for name, value in (content if isinstance(content, dict) else {"features": content}).items():
        if name in KNOWN and hasattr(value, "detach"):
            if (problem := unlike_plain(value)) is not None:
                raise UserError(f"{path}: {name} {problem}; save its numbers as a dense tensor.")
            fields[name] = (value.float() if value.is_floating_point() else value).detach().numpy()
    return fields


def _all_of(file: IO[bytes], most: int, place: object) -> bytes:
    with file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{place} has more than the {MOST_BYTES:,} bytes that are read of one image.")
    return content


def read_npz(file: Path | IO[bytes], path: object) -> dict[str, Any]:
    """The arrays of an npz by name, None for those of no use; a dict in its member `info` is taken in too.

    `path` is what messages call it. Raises UserError if it is damaged, or would fill the memory.
    """
    fields: dict[str, Any] = {}
    left = MOST_BYTES
    try:
        with zipfile.ZipFile(file) as archive:
            for member in _members(archive):
                name = member.filename.removesuffix(".npy")
                place = f"{path}, {member.filename}"
                if name in fields or member.compress_type not in COMPRESSIONS:
                    raise UserError(f"{place} comes twice, or is compressed as no npz is; get the file again.")
                fields[name] = None
                opened = archive.open(member)  # which compares its name with that where it lies
                if name in KNOWN:
                    content = _all_of(opened, left, place)
                    left -= len(content)
                    fields[name] = read_array(content, place)
                opened.close()
    except (OSError, UserError):
        raise
    except Exception as error:  # what a damaged archive runs into: zlib, struct, a codec, a checksum
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{path} is no npz, or a damaged one ({reason}); get the file again.") from None
    info = _item(fields.pop("info", None))
    return merged(info, fields, path) if isinstance(info, dict) else fields


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """All members; BadZipFile if they are not as many as the end says."""
    members = archive.infolist()
    assert archive.fp is not None
    archive.fp.seek(-ENTRIES_BEFORE_END - len(archive.comment), os.SEEK_END)
    if len(members) != int.from_bytes(archive.fp.read(2), "little"):
        raise zipfile.BadZipFile("its list of arrays is not whole")
    return members


def _item(array: Any) -> Any:
    """What an array of no dimension holds."""
    return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else array


def read_array(content: bytes, place: object) -> Any:
    """The array of an npy file, of objects what the restricted unpickler allows. Raises UserError for anything else."""
    begin = {b"\x93NUMPY\x01\x00": 10, b"\x93NUMPY\x02\x00": 12, b"\x93NUMPY\x03\x00": 12}.get(content[:8], 0)
    end = begin + int.from_bytes(content[8:begin], "little")
    head = HEAD.fullmatch(content[begin:end]) if begin and end <= len(content) else None
    if head is None:
        raise UserError(f"{place} is no npy file of plain numbers, or a damaged one; get the file again.")
    dtype_name = head["dtype"].decode()
    if dtype_name.endswith("O"):
        return load_restricted(content[end:], str(place))
    try:
        dtype = np.dtype(dtype_name)
        shape = tuple(int(length.strip(b" L")) for length in head["shape"].split(b",") if length.strip())
        expected = prod(shape) * dtype.itemsize
        if len(content) - end != expected:
            had = f"{len(content) - end:,} bytes of data"
            raise UserError(f"{place} has {had}, expected {expected:,}; it may be cut off.")
        return plain_array(dtype, shape, content[end:], fortran=head["fortran"] == b"True")
    except (ValueError, TypeError) as error:
        raise UserError(f"{place} is no npy file that can be read ({error}); get the file again.") from None
