"""Opening a source: the images in it one after the other, and the label map that their numbers are of."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

from vinvl.regions.formats.arrays import image_files, images_of_files, info_of
from vinvl.regions.formats.boxes import Sizes, sizes_in
from vinvl.regions.formats.fields import BOTTOM_UP_COLUMNS, LXMERT_COLUMNS, FieldReader, regions_of_columns
from vinvl.regions.formats.hdf5 import INDICES, PART, SUFFIXES, find_layout, images_by_name, images_by_row
from vinvl.regions.formats.lmdb_folder import counts_beside, images_of_lmdb
from vinvl.regions.formats.oscar import (
    Joiner,
    LabelPickle,
    images_of_tensors,
    regions_of_objects,
    regions_of_row,
    scan_predictions,
)
from vinvl.regions.formats.rows import FeatureOptions, Found, Journal
from vinvl.regions.formats.tsv import (
    LONGEST_LINE,
    IdTable,
    ImageIndex,
    images_of_lines,
    line_index,
    places_in,
)
from vinvl.regions.layout import MANIFEST_NAME, open_hdf5
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError
from vinvl.run.files import reading
from vinvl.run.machine import cores, workers_here

# Which format of features a file or folder has, told by its content rather than by its name.

FEATURES_TSV, PREDICTIONS_TSV = "features.tsv", "predictions.tsv"
FEATURE_TSV, SIZES_TSV = ".feature.tsv", ".hw.tsv"  # of captioning: train.feature.tsv beside train.hw.tsv
LABEL_MAP = "label_map.json"
FIRST_ROWS = 16
TENSORS = (".pt", ".pth")
HDF5 = b"\x89HDF\r\n\x1a\n"
A_STORE = "{} is a store already; pass format=oscar_tsv, mmf_npy or m2_hdf5 to write one of these."
READ = (
    "read are features.tsv (id, number of boxes, features or id, JSON) and predictions.tsv, the TSVs of bottom-up-"
    "attention (6 columns) and LXMERT (10), a .pt of tensors, HDF5 of meshed-memory, GQA and bottom-up-attention-vqa, "
    "and folders of .npy with _info.npy, of .npz, of .pth of grids or an LMDB"
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
    TENSOR_FOLDER = "folder of .pth"
    LMDB = "LMDB of features"
    HDF5_BY_IMAGE = "HDF5 of arrays named by image"
    HDF5_BY_ROW = "HDF5 of arrays of all images"


HDF5_FORMATS = (Format.HDF5_BY_IMAGE, Format.HDF5_BY_ROW)
TSV_OF_OSCAR = (Format.OSCAR_TSV, Format.PREDICTIONS_TSV)


@dataclass(frozen=True)
class FoundFiles:
    """The format, and the file or folder that has the features; `files` are those in a folder."""

    format: Format
    path: Path
    files: tuple[Path, ...] = ()

    @property
    def label_map(self) -> Path | None:
        """What our own files have beside their class numbers."""
        names = (self.path if self.path.is_dir() else self.path.parent) / LABEL_MAP
        return names if self.format in (Format.NPY_FOLDER, Format.HDF5_BY_IMAGE) and names.is_file() else None

    def read_with(self, predictions: Path | None) -> list[Path]:
        """The files that images are read of."""
        path, names = self.path, [self.label_map] if self.label_map else []
        if self.format is Format.NPY_FOLDER:
            return [*self.files, *map(info_of, self.files), *names]
        beside = [path.with_suffix(".lineidx"), *(path.with_name(name) for name in _indices_of(path))]
        beside += [one for one in (sizes_beside(path),) if one]
        if path.name == FEATURES_TSV and predictions is None:
            beside.append(path.with_name(PREDICTIONS_TSV))
        return [*self.files, *names] or [path, *beside]


def _indices_of(path: Path) -> dict[str, str]:
    """The names of index files beside a TSV with what their numbers are."""
    return {"imageid2idx.json": "row", f"{path.stem}_offset_map.json": "byte"}


def sizes_beside(path: Path) -> Path | None:
    """The `train.hw.tsv` of a `train.feature.tsv`, or `hw.tsv` of `features.tsv`, if there is one."""
    if path.name == FEATURES_TSV:
        sizes = path.with_name(SIZES_TSV[1:])
    elif path.name.endswith(FEATURE_TSV):
        sizes = path.with_name(path.name.removesuffix(FEATURE_TSV) + SIZES_TSV)
    else:
        return None
    return sizes if sizes.is_file() else None


def find_features(source: Path) -> FoundFiles:
    """Raises UserError if there is nothing, or nothing that is known."""
    if not source.exists():
        raise UserError(f"{source} does not exist; check from=PATH.")
    if (source / MANIFEST_NAME).is_file():
        raise UserError(A_STORE.format(source))
    if source.is_dir():
        return _in_folder(source)
    with reading(source), source.open("rb") as file:
        start = file.read(len(HDF5))
    if start == HDF5 or source.suffix in SUFFIXES:
        return _hdf5_format(source)
    if source.suffix in TENSORS:
        return FoundFiles(Format.TENSORS, source)
    if source.suffix in (".npy", ".npz"):
        raise UserError(f"{source} is the file of one image; give the folder that it lies in.")
    return FoundFiles(_tsv_format(source), source)


def index_beside(path: Path) -> Path | None:
    """The file that names the rows of a file of features, None if there is none or it is not clear which."""
    part = PART.fullmatch(path.stem)
    names = [f"{path.stem}{end}" for end in INDICES] + ([f"{part[1]}{INDICES[-1]}"] if part else [])
    known = next((path.with_name(name) for name in names if path.with_name(name).is_file()), None)
    others = sorted(path.parent.glob("*imgid2idx*"))
    return known or (others[0] if len(others) == 1 else None)


def _hdf5_format(path: Path) -> FoundFiles:
    with open_hdf5(path) as file:
        try:
            is_store = "format" in file.attrs and "image_ids" in file
        except (OSError, RuntimeError, ValueError, KeyError):
            raise UserError(f"{path} is a damaged HDF5 file; get it again.") from None
    if is_store:
        raise UserError(A_STORE.format(path))
    if find_layout(path) == "image":
        return FoundFiles(Format.HDF5_BY_IMAGE, path, (path,))
    index = index_beside(path)
    return FoundFiles(Format.HDF5_BY_ROW, path, (path, index) if index else (path,))


def _in_hdf5_folder(folder: Path, files: list[Path]) -> FoundFiles:
    """One file, or the numbered parts of one."""
    first = _hdf5_format(files[0])
    if len(files) == 1:
        return first
    numbers = {int(part[2]): path for path in files if (part := PART.fullmatch(path.stem))}
    names = {part[1] for path in files if (part := PART.fullmatch(path.stem))}
    if len(numbers) != len(files) or len(names) != 1 or first.format is not Format.HDF5_BY_ROW or not first.files[1:]:
        told = ", ".join(path.name for path in files[:6])
        raise UserError(f"{folder} has several HDF5 files ({told}): give one of these files.")
    parts = [numbers[number] for number in sorted(numbers)]
    return FoundFiles(first.format, folder, (*parts, first.files[1]))


def _in_folder(folder: Path) -> FoundFiles:
    for name in (FEATURES_TSV, PREDICTIONS_TSV):
        if (folder / name).is_file():
            return FoundFiles(_tsv_format(folder / name), folder / name)
    if (folder / "data.mdb").is_file():
        counts = counts_beside(folder)
        return FoundFiles(Format.LMDB, folder, (folder / "data.mdb", *([counts] if counts else [])))
    kinds = {".npz": Format.NPZ_FOLDER, ".npy": Format.NPY_FOLDER} | dict.fromkeys(TENSORS, Format.TENSOR_FOLDER)
    found = [
        FoundFiles(kind, folder, tuple(files))
        for suffix, kind in kinds.items()
        if (files := image_files(folder, suffix))
    ]
    if len(found) > 1:
        both = " and ".join(one.files[0].suffix for one in found)
        raise UserError(f"{folder} has both {both} files of features; put them into folders of their own.")
    if found:
        return found[0]
    if given := sorted(folder.glob(f"*{FEATURE_TSV}")):  # of captioning, one a split
        if len(given) > 1:
            names = ", ".join(path.name for path in given)
            raise UserError(f"{folder} has features of several splits ({names}): give one of these files.")
        return FoundFiles(_tsv_format(given[0]), given[0])
    if chunks := sorted(path.parent.name for path in folder.glob(f"*/{FEATURES_TSV}")):
        raise UserError(
            f"{folder} has {FEATURES_TSV} in folders of chunks ({', '.join(chunks[:12])}), within which alone ids "
            f"are unique: convert each, from={folder / chunks[0]} features.id_prefix=NAME_{chunks[0]}_, or a run does "
            f"it, data.regions={{from: {folder}/*, to: STORES/*.h5, id_prefix: NAME_*_, classes: false}}."
        )
    if hdf5 := sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES):
        return _in_hdf5_folder(folder, hdf5)
    raise UserError(f"{folder} has no file of features; {READ}.")


def _tsv_format(path: Path) -> Format:
    """The format of most of the first rows, one of which may be damaged."""
    with reading(path), path.open("rb") as file:
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


SMALL = 32 * 2**20  # bytes that are decoded sooner than processes are started


@dataclass(frozen=True)
class Source:
    """Features that were found, and all that their reading asks for; `scratch` stays while images are read."""

    found: FoundFiles
    options: FeatureOptions
    labels: LabelMap | None
    scratch: Path
    journal: Journal

    @cached_property
    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.found.files or (self.found.path,) if path.exists())

    @property
    def workers(self) -> int:
        if self.total_bytes < SMALL:
            return 1
        return cores() if self.options.workers is None else workers_here(self.options.workers, "features.workers")

    def open(self) -> tuple[Iterator[Found], LabelMap]:
        """Images in the order of the source, and the names of their classes and attributes.

        Raises UserError if a file beside the features is missing, wrong, or of no use to this format.
        """
        found, options = self.found, self.options
        for path, name in ((options.predictions, "predictions"), (options.sizes, "sizes")):
            if path is not None and not path.is_file():
                raise UserError(f"{path} does not exist; check features.{name}=FILE.")
        if options.predictions is not None and found.format not in (*TSV_OF_OSCAR, Format.TENSORS):
            raise UserError(f"{found.path} is a {found.format.value}, which features.predictions is of no use to.")
        sizes = Sizes(options)
        if (path := options.sizes or sizes_beside(found.path)) is not None:
            IdTable.of_members(self.scratch / "sizes", path, sizes_in(path), self.journal.add)
            sizes = Sizes(options, path, self.scratch / "sizes")
        if found.format is Format.TENSORS:
            return self._tensors(sizes)
        if found.format in TSV_OF_OSCAR:
            return self._oscar(sizes)
        labels = self.labels or LabelMap((), ())
        if self.labels is None and (names := found.label_map) is not None:
            labels = LabelMap.from_file(names).with_background()
        reader, done = FieldReader(options, labels, sizes), self.journal.done
        if found.format is Format.HDF5_BY_IMAGE:
            return images_by_name(found.path, reader, self.workers, done), reader.labels
        if found.format is Format.HDF5_BY_ROW:
            files = [path for path in found.files if path.suffix in SUFFIXES] or [found.path]
            index = next((path for path in found.files if path not in files), None)
            return images_by_row(files, index, reader, self.workers, done), reader.labels
        if found.format is Format.LMDB:
            return images_of_lmdb(found.path, reader, self.workers, done), reader.labels
        if found.files:
            return images_of_files(found.path, found.files, reader, self.workers, done), reader.labels
        columns = LXMERT_COLUMNS if found.format is Format.LXMERT_TSV else BOTTOM_UP_COLUMNS
        read = partial(regions_of_columns, columns=columns, reader=reader)
        return images_of_lines(found.path, read, line_index(found.path), self.workers, self.journal), reader.labels

    def _oscar(self, sizes: Sizes) -> tuple[Iterator[Found], LabelMap]:
        path, journal, given = self.found.path, self.journal, self.options.predictions
        indices, beside, of_objects = line_index(path), path.with_name(PREDICTIONS_TSV), given
        for name, unit in _indices_of(path).items():
            index = path.with_name(name)
            if index.is_file() and (unit == "byte" or path.name == FEATURES_TSV):
                table = IdTable.of_members(self.scratch / unit, index, places_in(index))
                indices.append(ImageIndex(index, path, table, unit, journal.skips))
        if given is None and path.name == FEATURES_TSV and beside.is_file():
            of_objects = beside
        with_features = self.found.format is Format.PREDICTIONS_TSV
        if with_features:  # whose rows are read again as features, which tells their damage
            of_objects = path
        scanned = None
        if of_objects:
            refuse = (lambda error: None) if with_features else journal.add
            scanned = scan_predictions(of_objects, self.scratch / "predictions", self.workers, refuse)
        label_map = self.labels or (scanned.label_map if scanned else LabelMap((), ()))
        joiner = Joiner(self.options, label_map, scanned.most_attributes if scanned else 0, sizes)
        read: Callable[..., Any] = partial(regions_of_objects, joiner=joiner)
        if not with_features:
            read = partial(regions_of_row, joiner=joiner, predictions=scanned)
            if scanned:
                note, table = journal.notes.append if given else None, IdTable(scanned.table)
                remedy = "the features are cut off, or a part: pass features.predictions=FILE then"
                indices.append(ImageIndex(scanned.path, path, table, note=note, remedy=remedy))
        return images_of_lines(path, read, indices, self.workers, journal), label_map

    def _tensors(self, sizes: Sizes) -> tuple[Iterator[Found], LabelMap]:
        path, given = self.found.path, self.options.predictions
        if given and given.suffix == ".tsv":
            raise UserError(f"{given}: boxes and classes for {path} are read from a label pickle, not a TSV.")
        labels = LabelPickle(given, self.journal.add) if given else None
        label_map = self.labels or (labels.label_map if labels else LabelMap((), ()))
        joiner = Joiner(self.options, label_map, 0, sizes)
        return images_of_tensors(path, labels, joiner, self.journal), label_map
