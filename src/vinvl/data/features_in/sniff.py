"""Which format of features a file or folder has, told by its content rather than by its name."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

from vinvl.data.features_in.array_folders import image_files
from vinvl.data.features_in.lines import LONGEST_LINE
from vinvl.data.features_in.named_rows import BOTTOM_UP_COLUMNS, LXMERT_COLUMNS
from vinvl.data.store.manifest import MANIFEST_NAME
from vinvl.errors import UserError

FEATURES_TSV, PREDICTIONS_TSV = "features.tsv", "predictions.tsv"


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
    if source.suffix in (".h5", ".hdf5") or (source / MANIFEST_NAME).is_file():
        raise UserError(f"{source} is a store already; pass format=oscar_tsv or format=mmf_npy to write one of these.")
    if source.is_dir():
        return _in_folder(source)
    if source.suffix in (".pt", ".pth"):
        return FoundFiles(Format.TENSORS, source)
    if source.suffix in (".npy", ".npz"):
        raise UserError(f"{source} is the file of one image; give the folder that it lies in.")
    return FoundFiles(_tsv_format(source), source)


def _in_folder(folder: Path) -> FoundFiles:
    for name in (FEATURES_TSV, PREDICTIONS_TSV):
        if (folder / name).is_file():
            return FoundFiles(_tsv_format(folder / name), folder / name)
    if (folder / "data.mdb").is_file():
        return FoundFiles(Format.LMDB, folder, (folder / "data.mdb",))
    for suffix, kind in ((".npz", Format.NPZ_FOLDER), (".npy", Format.NPY_FOLDER)):
        if files := image_files(folder, suffix):
            return FoundFiles(kind, folder, tuple(files))
    raise UserError(
        f"{folder} has no {FEATURES_TSV}, {PREDICTIONS_TSV}, .npy or .npz files; give the file of features itself."
    )


def _tsv_format(path: Path) -> Format:
    try:
        with path.open("rb") as file:
            line = file.readline(LONGEST_LINE).rstrip(b"\r\n")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    if not line:
        raise UserError(f"{path} is empty or begins with an empty line; get the file again.")
    columns = line.split(b"\t")
    if len(columns) == len(LXMERT_COLUMNS):
        return Format.LXMERT_TSV
    if len(columns) == len(BOTTOM_UP_COLUMNS):
        return Format.BOTTOM_UP_TSV
    if len(columns) > 1 and columns[1].lstrip()[:1] in (b"{", b"["):
        return Format.OSCAR_TSV if b'"features"' in columns[1] else Format.PREDICTIONS_TSV
    if len(columns) > 2 and columns[1].strip().isdigit():
        return Format.OSCAR_TSV
    raise UserError(
        f"{path} is no TSV of features that is known: its first line has {len(columns)} columns; known are Oscar's "
        f"(id, number of boxes, features or id, JSON), bottom-up-attention's ({len(BOTTOM_UP_COLUMNS)} columns) and "
        f"LXMERT's ({len(LXMERT_COLUMNS)})."
    )
