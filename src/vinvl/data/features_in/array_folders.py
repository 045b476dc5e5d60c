"""Folders with a file for each image: MMF's `ID.npy` with `ID_info.npy`, and `ID.npz`."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from vinvl.data.features_in.array_fields import regions_of_fields
from vinvl.data.features_in.lines import Found
from vinvl.data.features_in.rows import ReadOptions
from vinvl.data.restricted_pickle import load_restricted
from vinvl.data.store import Regions
from vinvl.data.worker_pool import in_order
from vinvl.errors import UserError

INFO = "_info"
BATCH_FILES = 16


def image_files(folder: Path, suffix: str) -> list[Path]:
    """The files of features below a folder, in the order of their names; only the names are held."""
    return sorted(path for path in folder.rglob(f"*{suffix}") if not path.stem.endswith(INFO))


def images_of_files(folder: Path, files: Sequence[Path], options: ReadOptions, workers: int) -> Iterator[Found]:
    """The images of a folder; the id is the path below the folder without its suffix.

    Raises:
        UserError: a file is damaged or has no boxes; the sentence names it.
    """
    paths = iter(files)
    batches = iter(lambda: list(islice(paths, BATCH_FILES)), [])
    position = 0
    for images in in_order(partial(_read_batch, folder=folder, options=options), batches, workers):
        for path, size, regions in images:
            position += size
            yield Found(str(path), regions, position)


def _read_batch(paths: list[Path], folder: Path, options: ReadOptions) -> list[tuple[Path, int, Regions]]:
    return [(path, *_read_file(path, folder, options)) for path in paths]


def _read_file(path: Path, folder: Path, options: ReadOptions) -> tuple[int, Regions]:
    image_id = path.relative_to(folder).with_suffix("").as_posix()
    try:
        size = path.stat().st_size
        fields = read_npz(path) if path.suffix == ".npz" else _read_npy_pair(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check the path.") from error
    try:
        return size, regions_of_fields(image_id, fields, options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read_npy_pair(path: Path) -> dict[str, Any]:
    info_path = path.with_name(f"{path.stem}{INFO}.npy")
    if not info_path.is_file():
        raise UserError(f"{path} has no {info_path.name} beside it, so its boxes are not known.")
    with path.open("rb") as file:
        features = read_array(file, str(path))
    with info_path.open("rb") as file:
        info = read_array(file, str(info_path))
    info = info.item() if isinstance(info, np.ndarray) and info.ndim == 0 else info
    if not isinstance(info, dict):
        raise UserError(f"{info_path} holds {type(info).__name__}, expected a dict with bbox and the image's size.")
    return {**info, "features": features}


def read_npz(path: Path) -> dict[str, Any]:
    """The arrays of an npz by name; a dict in its member `info` is taken in too."""
    fields: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    fields[name.removesuffix(".npy")] = read_array(member, f"{path}, {name}")
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path} is no npz, or a damaged one ({error}); get the file again.") from None
    info = fields.pop("info", None)
    info = info.item() if isinstance(info, np.ndarray) and info.ndim == 0 else info
    return {**info, **fields} if isinstance(info, dict) else fields


def read_array(file: IO[bytes], place: str) -> Any:
    """The array of an npy file; of an array of objects, what the restricted unpickler allows.

    Raises:
        UserError: it is damaged or holds anything else.
    """
    try:
        version = np.lib.format.read_magic(file)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read_header:
            raise UserError(f"{place} is an npy file of version {version}, which is not known.")
        shape, fortran, dtype = read_header[version](file)
        content = file.read()
    except ValueError as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{place} is no npy file, or a damaged one ({reason}); get the file again.") from None
    if dtype.hasobject:
        return load_restricted(content, place)
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if len(content) != expected:
        raise UserError(f"{place} has {len(content):,} bytes of data, expected {expected:,}; it may be cut off.")
    return np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if fortran else "C")
