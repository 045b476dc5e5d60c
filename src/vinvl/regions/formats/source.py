"""Opening a source: the images in it one after the other, and the label map that their numbers are of."""

from __future__ import annotations

import enum
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import IO

from vinvl.regions.formats.arrays import image_files, images_of_files, info_of, size_of
from vinvl.regions.formats.lmdb_folder import images_of_lmdb
from vinvl.regions.formats.oscar import FeatureRows, Joiner, PredictionRows, scan_predictions
from vinvl.regions.formats.rows import SKIP, Done, FeatureOptions, Found, KnownNames, LeftOut
from vinvl.regions.formats.tensors import LabelPickle, images_of_tensors
from vinvl.regions.formats.tsv import (
    BOTTOM_UP_COLUMNS,
    LONGEST_LINE,
    LXMERT_COLUMNS,
    ColumnRows,
    ImageIndex,
    PredictedImages,
    ReadRow,
    TsvIndex,
    images_of_lines,
    line_index,
    write_sizes,
)
from vinvl.regions.layout import MANIFEST_NAME, open_hdf5
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError

# Which format of features a file or folder has, told by its content rather than by its name.

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


SMALL = 32 * 2**20  # bytes that are decoded sooner than processes are started
TSV_OF_OSCAR = (Format.OSCAR_TSV, Format.PREDICTIONS_TSV)


@dataclass(frozen=True)
class OpenedSource:
    """Images in the order of the source, the names of their classes and attributes, and the bytes of features."""

    images: Iterator[Found]
    label_map: LabelMap
    total_bytes: int


def files_read(found: FoundFiles, predictions: Path | None) -> dict[str, list[Path]]:
    """The files that images are read of, by what a person calls them."""
    path = found.path
    if found.format is Format.NPY_FOLDER:
        return {"from": [*found.files, *(info_of(file) for file in found.files)]}
    beside = [
        path.with_suffix(".lineidx"),
        path.with_name("imageid2idx.json"),
        path.with_name(f"{path.stem}_offset_map.json"),
    ]
    if path.name == FEATURES_TSV and predictions is None:
        beside.append(path.with_name(PREDICTIONS_TSV))
    read = {"from": list(found.files) or [path, *beside]}
    return read | ({"predictions": [predictions]} if predictions else {})


@dataclass(frozen=True)
class Source:
    """Features that were found, and all that their reading asks for.

    Attributes:
        labels: label map that is given.
        scratch: folder for index tables, which must stay while images are read.
        done: by an earlier run.
    """

    found: FoundFiles
    options: FeatureOptions
    labels: LabelMap | None
    scratch: Path
    left_out: LeftOut
    done: Done

    @cached_property
    def total_bytes(self) -> int:
        return sum(map(size_of, self.found.files or (self.found.path,)))

    @property
    def workers(self) -> int:
        given = self.options.workers if self.options.workers is not None else os.cpu_count() or 1
        return 1 if self.total_bytes < SMALL else given

    @cached_property
    def sizes(self) -> Path | None:
        """Folder of a table of image sizes, if a file of them is given."""
        if self.options.sizes:
            write_sizes(self.options.sizes, self.scratch / "sizes", self.left_out)
        return self.scratch / "sizes" if self.options.sizes else None

    def images_of(self, read: ReadRow, indices: list[TsvIndex]) -> Iterator[Found]:
        """The images of a TSV."""
        return images_of_lines(self.found.path, read, indices, self.workers, self.left_out, self.done)


def open_source(source: Source) -> OpenedSource:
    """
    Raises:
        UserError: a file beside the features is missing, wrong, or of no use to this format.
    """
    found, options, done = source.found, source.options, source.done
    for path, name in ((options.predictions, "predictions"), (options.sizes, "sizes")):
        if path is not None and not path.is_file():
            raise UserError(f"{path} does not exist; check features.{name}=FILE.")
        if path is not None and found.format not in (*TSV_OF_OSCAR, Format.TENSORS):
            raise UserError(f"{found.path} is a {found.format.value}, which features.{name} is of no use to.")
    if found.format in TSV_OF_OSCAR:
        return _oscar(source)
    if found.format is Format.TENSORS:
        return _tensors(source)
    label_map = source.labels or LabelMap((), ())
    known = KnownNames(len(label_map.classes), len(label_map.attributes))
    if found.format is Format.LMDB:
        images = images_of_lmdb(found.path, options, known, source.workers, done)
    elif found.files:
        images = images_of_files(found.path, found.files, options, known, source.workers, done)
    else:
        columns = LXMERT_COLUMNS if found.format is Format.LXMERT_TSV else BOTTOM_UP_COLUMNS
        images = source.images_of(ColumnRows(columns, options, known), line_index(found.path))
    return OpenedSource(images, label_map, source.total_bytes)


def _oscar(source: Source) -> OpenedSource:
    path, left_out, given = source.found.path, source.left_out, source.options.predictions
    sizes, indices = source.sizes, line_index(path)
    beside = path.with_name(PREDICTIONS_TSV)
    of_objects = given or (beside if path.name == FEATURES_TSV and beside.is_file() else None)
    if path.name == FEATURES_TSV and (ids := path.with_name("imageid2idx.json")).is_file():
        indices.append(ImageIndex(ids, path, source.scratch / "images", left_out.skips, of_bytes=False))
    if (offsets := path.with_name(f"{path.stem}_offset_map.json")).is_file():
        indices.append(ImageIndex(offsets, path, source.scratch / "offsets", left_out.skips, of_bytes=True))
    if source.found.format is Format.PREDICTIONS_TSV:  # whose rows are read again as features, which tells their damage
        of_objects, left_out = path, LeftOut(SKIP, source.scratch)
    scanned = None
    if of_objects:
        scanned = scan_predictions(of_objects, source.scratch / "predictions", source.workers, left_out)
    label_map = source.labels or (scanned.label_map if scanned else LabelMap((), ()))
    joiner = Joiner(source.options, label_map, scanned.most_attributes if scanned else 0, sizes)
    if source.found.format is Format.PREDICTIONS_TSV:
        return OpenedSource(source.images_of(PredictionRows(joiner), indices), label_map, source.total_bytes)
    if scanned:
        indices.append(PredictedImages(scanned.path, scanned.table, path, left_out.notes.append if given else None))
    return OpenedSource(source.images_of(FeatureRows(joiner, scanned), indices), label_map, source.total_bytes)


def _tensors(source: Source) -> OpenedSource:
    path, given = source.found.path, source.options.predictions
    if given and given.suffix == ".tsv":
        raise UserError(f"{given}: boxes and classes for {path} are read from a label pickle, not a TSV.")
    labels = LabelPickle(given, source.left_out) if given else None
    label_map = source.labels or (labels.label_map if labels else LabelMap((), ()))
    joiner = Joiner(source.options, label_map, 0, source.sizes)
    images = images_of_tensors(path, labels, joiner, source.done, source.left_out.notes.append)
    return OpenedSource(images, label_map, source.total_bytes)
