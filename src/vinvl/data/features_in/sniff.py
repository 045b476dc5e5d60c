"""Which format of features a file or folder has, told by its content rather than by its name."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO

from vinvl.data.features_in.array_folders import image_files
from vinvl.data.features_in.lines import LONGEST_LINE
from vinvl.data.features_in.named_rows import BOTTOM_UP_COLUMNS, LXMERT_COLUMNS
from vinvl.data.store.layout import open_hdf5
from vinvl.data.store.manifest import MANIFEST_NAME
from vinvl.errors import UserError

FEATURES_TSV, PREDICTIONS_TSV = "features.tsv", "predictions.tsv"
FIRST_ROWS = 16
HDF5 = b"\x89HDF\r\n\x1a\n"
A_STORE = "{} is a store already; pass format=oscar_tsv or format=mmf_npy to write one of these."
READ = (
    "read are features.tsv (id, number of boxes, features or id, JSON) and predictions.tsv, the TSVs of bottom-up-"
    "attention (6 columns) and LXMERT (10), a .pt of tensors, and folders of .npy with _info.npy, of .npz or an LMDB"
)


class Format(enum.Enum):
    """The formats that are read, as people call them."""

    OSCAR_TSV = "Oscar/VinVL features.tsv"
    PREDICTIONS_TSV = "VinVL predictions.tsv with features"
    BOTTOM_UP_TSV = "bottom-up-attention TSV"
    LXMERT_TSV = "LXMERT TSV"
    TENSORS = "Oscar .pt of tensors"
    NPY_FOLDER = "MMF .npy with _info.npy"
    NPZ_FOLDER = "folder of .npz"
    LMDB = "MMF LMDB"


@dataclass(frozen=True)
class FoundFiles:
    """The format, and the file or folder that has the features; `files` are those in a folder."""

    format: Format
    path: Path
    files: tuple[Path, ...] = ()


def find_features(source: Path) -> FoundFiles:
    """
    Raises:
        UserError: there is nothing, or nothing that is known.
    """
    if not source.exists():
        raise UserError(f"{source} does not exist; check from=PATH.")
    if (source / MANIFEST_NAME).is_file():
        raise UserError(A_STORE.format(source))
    if source.is_dir():
        return _in_folder(source)
    with _opened(source) as file:
        start = file.read(len(HDF5))
    if start == HDF5 or source.suffix in (".h5", ".hdf5"):
        raise _refused_hdf5(source)
    if source.suffix in (".pt", ".pth"):
        return FoundFiles(Format.TENSORS, source)
    if source.suffix in (".npy", ".npz"):
        raise UserError(f"{source} is the file of one image; give the folder that it lies in.")
    return FoundFiles(_tsv_format(source), source)


def _refused_hdf5(path: Path) -> UserError:
    with open_hdf5(path) as file:
        try:
            names = ", ".join(ascii(name)[:40] for name in islice(file, 3))
            is_store = "format" in file.attrs and "image_ids" in file
        except (OSError, RuntimeError, ValueError, KeyError):
            return UserError(f"{path} is a damaged HDF5 file; get it again.")
    if is_store:
        return UserError(A_STORE.format(path))
    return UserError(f"{path} is an HDF5 file of another program (of {names} …), which is not read; {READ}.")


def _in_folder(folder: Path) -> FoundFiles:
    for name in (FEATURES_TSV, PREDICTIONS_TSV):
        if (folder / name).is_file():
            return FoundFiles(_tsv_format(folder / name), folder / name)
    if (folder / "data.mdb").is_file():
        return FoundFiles(Format.LMDB, folder, (folder / "data.mdb",))
    kinds = (".npz", Format.NPZ_FOLDER), (".npy", Format.NPY_FOLDER)
    found = [FoundFiles(kind, folder, tuple(files)) for suffix, kind in kinds if (files := image_files(folder, suffix))]
    if len(found) > 1:
        raise UserError(f"{folder} has both .npz and .npy files of features; put them into folders of their own.")
    if found:
        return found[0]
    if hdf5 := sorted(path for path in folder.iterdir() if path.suffix in (".h5", ".hdf5")):
        raise _refused_hdf5(hdf5[0])
    raise UserError(f"{folder} has no file of features; {READ}.")


def _tsv_format(path: Path) -> Format:
    """The format of most of the first rows, one of which may be damaged."""
    with _opened(path) as file:
        lines = (line.strip(b"\r\n").split(b"\t") for line in iter(lambda: file.readline(LONGEST_LINE), b""))
        rows = [(_row_format(columns), len(columns)) for columns in islice(lines, FIRST_ROWS) if columns != [b""]]
    if not rows:
        raise UserError(f"{path} is empty or begins with empty lines; get the file again.")
    known = Counter(kind for kind, _ in rows if kind)
    if not known:
        raise UserError(f"{path} is no TSV of features: its first line has {rows[0][1]} columns; {READ}.")
    return known.most_common(1)[0][0]


def _row_format(columns: list[bytes]) -> Format | None:
    if len(columns) == len(LXMERT_COLUMNS):
        return Format.LXMERT_TSV
    if len(columns) == len(BOTTOM_UP_COLUMNS):
        return Format.BOTTOM_UP_TSV
    if len(columns) > 1 and columns[1].lstrip()[:1] in (b"{", b"["):
        return Format.OSCAR_TSV if b'"features"' in columns[1] else Format.PREDICTIONS_TSV
    return Format.OSCAR_TSV if len(columns) > 2 and columns[1].strip().isdigit() else None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
