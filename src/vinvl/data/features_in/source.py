"""Opening a source: the images in it one after the other, and the label map that their numbers are of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vinvl.data.features_in.array_folders import images_of_files, size_of
from vinvl.data.features_in.left_out import SKIP, LeftOut
from vinvl.data.features_in.lines import Found, ImageIndex, RowFormat, images_of_lines, line_index
from vinvl.data.features_in.lmdb_folder import images_of_lmdb
from vinvl.data.features_in.named_rows import BottomUpRows, LxmertRows
from vinvl.data.features_in.objects import ObjectNames
from vinvl.data.features_in.oscar_rows import OscarRows, SizesOrAssumed
from vinvl.data.features_in.predictions import PredictedImages, ScannedPredictions, scan_predictions
from vinvl.data.features_in.rows import KnownNames, ReadOptions
from vinvl.data.features_in.sizes import write_sizes
from vinvl.data.features_in.sniff import FEATURES_TSV, PREDICTIONS_TSV, Format, FoundFiles
from vinvl.data.features_in.tensor_files import LabelPickle, images_of_tensors
from vinvl.data.store import LabelMap
from vinvl.errors import UserError

SMALL = 32 * 2**20  # bytes that are decoded sooner than processes are started
UNKNOWN = LabelMap((), ())
TSV_OF_OSCAR = (Format.OSCAR_TSV, Format.PREDICTIONS_TSV)


@dataclass(frozen=True)
class SourceFiles:
    """Files beside the features; None is what is not given."""

    predictions: Path | None
    sizes: Path | None
    labels: LabelMap | None


@dataclass(frozen=True)
class OpenedSource:
    """Images in the order of the source, the names of their classes and attributes, and the bytes of features."""

    images: Iterator[Found]
    label_map: LabelMap
    total_bytes: int


def open_source(
    found: FoundFiles, files: SourceFiles, options: ReadOptions, scratch: Path, workers: int, left_out: LeftOut
) -> OpenedSource:
    """Makes index tables in the folder `scratch`, which must stay while images are read.

    Raises:
        UserError: a file beside the features is missing, wrong, or of no use to this format.
    """
    for path, name in ((files.predictions, "predictions"), (files.sizes, "sizes")):
        if path is not None and not path.is_file():
            raise UserError(f"{path} does not exist; check features.{name}=FILE.")
        if path is not None and found.format not in (*TSV_OF_OSCAR, Format.TENSORS):
            raise UserError(f"{found.path} is a {found.format.value}, which features.{name} is of no use to.")
    total = sum(map(size_of, found.files or (found.path,)))
    workers = 1 if total < SMALL else workers
    sizes = scratch / "sizes" if files.sizes else None
    if files.sizes and sizes:
        write_sizes(files.sizes, sizes, left_out)
    if found.format is Format.TENSORS:
        return _tensors(found.path, files, sizes, options, total, left_out)
    if found.format in TSV_OF_OSCAR:
        return _oscar(found, files, sizes, options, scratch, workers, left_out)
    label_map = files.labels or UNKNOWN
    known = KnownNames(len(label_map.classes), len(label_map.attributes))
    if found.format is Format.LMDB:
        return OpenedSource(images_of_lmdb(found.path, options, known), label_map, total)
    if found.files:
        return OpenedSource(images_of_files(found.path, found.files, options, known, workers), label_map, total)
    rows: RowFormat = LxmertRows(options, known) if found.format is Format.LXMERT_TSV else BottomUpRows(options)
    images = images_of_lines(found.path, rows, line_index(found.path), workers, left_out)
    return OpenedSource(images, label_map, total)


def _oscar(
    found: FoundFiles,
    files: SourceFiles,
    sizes: Path | None,
    options: ReadOptions,
    scratch: Path,
    workers: int,
    left_out: LeftOut,
) -> OpenedSource:
    path, indices = found.path, line_index(found.path)
    beside = path.with_name(PREDICTIONS_TSV)
    predictions = files.predictions
    if path.name == FEATURES_TSV and predictions is None and beside.is_file():
        predictions = beside
    if path.name == FEATURES_TSV and (ids := path.with_name("imageid2idx.json")).is_file():
        indices.append(ImageIndex(ids, path, scratch / "images", left_out.skips, of_bytes=False))
    if (offsets := path.with_name(f"{path.stem}_offset_map.json")).is_file():
        indices.append(ImageIndex(offsets, path, scratch / "offsets", left_out.skips, of_bytes=True))
    of_predictions = found.format is Format.PREDICTIONS_TSV
    scanned: ScannedPredictions | None = None
    if of_predictions or predictions:
        of_objects = path if of_predictions else predictions or path
        told_later = LeftOut(SKIP, scratch) if of_predictions else left_out  # its rows are read once more as features
        scanned = scan_predictions(of_objects, scratch / "predictions", workers, told_later)
    if scanned and not of_predictions:
        indices.append(PredictedImages(scanned.file, path, left_out.notes.append if files.predictions else None))
    label_map = files.labels or (scanned.label_map if scanned else UNKNOWN)
    rows = OscarRows(
        options,
        ObjectNames.of(label_map, scanned.most_attributes if scanned else 0),
        predictions=scanned.file if scanned and not of_predictions else None,
        sizes=sizes,
        of_predictions=of_predictions,
    )
    return OpenedSource(images_of_lines(path, rows, indices, workers, left_out), label_map, size_of(path))


def _tensors(
    path: Path, files: SourceFiles, sizes: Path | None, options: ReadOptions, total_bytes: int, left_out: LeftOut
) -> OpenedSource:
    if files.predictions and files.predictions.suffix == ".tsv":
        raise UserError(f"{files.predictions}: boxes and classes for {path} are read from a label pickle, not a TSV.")
    labels = LabelPickle(files.predictions, left_out) if files.predictions else None
    label_map = files.labels or (labels.label_map() if labels else UNKNOWN)
    assumed = SizesOrAssumed(sizes, options.assume_size)
    images = images_of_tensors(path, labels, ObjectNames.of(label_map, 0), assumed, options)
    return OpenedSource(images, label_map, total_bytes)
