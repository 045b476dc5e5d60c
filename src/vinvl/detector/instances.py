"""COCO instances JSON, with attributes if there are any → picture records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.columns import TextColumn
from vinvl.data.records import Record, checked_record, record_list, required, required_id, required_text, shown
from vinvl.detector.records import FileNames, Indices, PictureRecords, attribute_names, starts
from vinvl.pictures import ReadingOptions, picture_size
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError
from vinvl.run.files import no_cycle_collection, read_json
from vinvl.run.values import check_fields

TOLERANCE = 1.0  # pixels that a box may reach out of its image, as some of COCO's own do by rounding; it is clipped
ROUNDING = 1e-3  # by which shares of an image may exceed 1, or 100 %
FEW = 0.01  # share of images that may hold nothing beyond their first pixel if boxes are clipped
MANY, LARGE = 20, 200  # boxes, and pixels of the images, from which what they have in common is not an accident
UNKNOWN_SIZE = (2**31 - 1, 2**31 - 1)  # of a picture that is missing, and so refused or left out


@dataclass(frozen=True)
class InstanceOptions:
    """What becomes of records that are not as they should be.

    Args:
        bad_boxes: "refuse" boxes that reach out of their image or have no area; "clip" them to it, and leave out what
            has no area then.
        on_missing: "error" or "skip" pictures whose file is missing.
        empty_pictures: "keep" or "skip" pictures without objects in training.
        reading: how pictures are read: boxes are those of a picture that EXIF has turned, or of one as stored.

    Raises:
        UserError: other values.
    """

    bad_boxes: Literal["refuse", "clip"] = "refuse"
    on_missing: Literal["error", "skip"] = "error"
    empty_pictures: Literal["keep", "skip"] = "keep"
    reading: ReadingOptions = ReadingOptions()  # noqa: RUF009, it is immutable

    def __post_init__(self) -> None:
        check_fields(self, "data.")


@dataclass(frozen=True)
class _Images:
    """The images of a file: place by id, and what is known of each."""

    places: dict[int | str, int]
    files: list[str]
    sizes: np.ndarray  # (N, 2) int32


def read_instances(
    annotations: str | Path, pictures: str | Path, labels: LabelMap | None, options: InstanceOptions
) -> tuple[PictureRecords, LabelMap]:
    """The annotated pictures of a COCO instances file, and what their classes and attributes stand for.

    The file is an object with `images` (id, file_name, and width and height where known), `categories` (id, name),
    `annotations` (image_id, category_id, bbox as x, y, width, height, optionally iscrowd and `attributes`,
    a list of names or ids), and, if there are attributes, `attributes`: objects with id and name, or only names,
    which have the ids 1, 2, 3 … then.

    Args:
        annotations: the file.
        pictures: the folder that file names start from.
        labels: which index a name has; None: as the file lists them.
        options: what becomes of bad records.

    Raises:
        UserError: names the record that cannot be used, and what to do.
    """
    path, folder = Path(annotations), Path(pictures)
    with no_cycle_collection():
        content = read_json(path)
        entries = record_list(content, "images", path, "COCO instances file")
        found = content.get("annotations")
        if not isinstance(found, list):
            raise UserError(f"{path} has no list of annotations, so it is no COCO instances file.")
        names = FileNames.of(content, path)
        labels = labels or names.label_map(attribute_names(found))
        present = _present_files(entries, folder)
        images = _read_images(entries, path, folder, present, options)
        records = _records(found, images, Indices(names, labels, path), options, path, folder)
    return _without_missing(records, present, options), labels


def _read_images(entries: list[Any], path: Path, folder: Path, present: set[str], options: InstanceOptions) -> _Images:
    places: dict[int | str, int] = {}
    files, sizes = [], []
    for number, entry in enumerate(entries, start=1):
        place = f"{path} image {number}"
        record = checked_record(entry, place, "id and file_name")
        identity = required_id(record, "id", place)
        if places.setdefault(identity, number - 1) != number - 1:
            raise UserError(f"{place} has the id {shown(identity)} of image {places[identity] + 1}: ids must differ.")
        file = _file_below(required_text(record, "file_name", place), folder, place)
        files.append(file)
        sizes.append(_size(record, place, folder / file if file in present else None, options))
    return _Images(places, files, np.array(sizes, dtype=np.int32).reshape(-1, 2))


def _file_below(name: str, folder: Path, place: str) -> str:
    """The name; links in the folder are the folder's own and are followed."""
    path = Path(name)
    if ".." in path.parts or "\0" in name or (path.is_absolute() and not path.is_relative_to(folder.absolute())):
        raise UserError(
            f"{place}: the file_name {shown(name)} leads out of {folder}: name files below the folder of pictures, or "
            "give the folder that their names start from."
        )
    return name


def _size(record: Record, place: str, file: Path | None, options: InstanceOptions) -> tuple[int, int]:
    """Width and height as the record says; else of the picture, if it is there."""
    width, height = record.get("width"), record.get("height")
    if width is None and height is None:
        return picture_size(file, options.reading) if file is not None else UNKNOWN_SIZE
    for value in (width, height):
        if type(value) is not int or not 0 < value < 2**31:
            raise UserError(f"{place} is {shown(width)} wide and {shown(height)} high, expected pixels, or neither.")
    assert isinstance(width, int) and isinstance(height, int)
    return width, height


def _records(
    annotations: list[Any], images: _Images, indices: Indices, options: InstanceOptions, path: Path, folder: Path
) -> PictureRecords:
    image, boxes, labels, crowd, attributes = [], [], [], [], []
    given, owners = [], []  # of all boxes, those that nothing is left of included
    for number, annotation in enumerate(annotations, start=1):
        record = checked_record(annotation, f"{path} annotation {number}", "image_id, category_id and bbox")
        place = f"{path} annotation {number}" + (f" (id {shown(record['id'])})" if "id" in record else "")
        owner = _owner(record, images, place)
        owners.append(owner)
        given.append(_numbers(record, place))
        box = _within(given[-1], images.sizes[owner].tolist(), place, options)
        label = indices.of_class(required(record, "category_id", place), place)
        named = indices.of_attributes(record.get("attributes"), place)
        if record.get("iscrowd") not in (None, 0, 1):
            raise UserError(f"{place} has the iscrowd {shown(record['iscrowd'])}, expected 0 or 1.")
        if box is not None:
            image.append(owner)
            boxes.append(box)
            labels.append(label)
            crowd.append(bool(record.get("iscrowd")))
            attributes.append(named)
    if given:
        _check_boxes(np.array(given, dtype=np.float64), np.array(owners), len(boxes), images, options, path)
    order = np.argsort(np.array(image, dtype=np.int64), kind="stable")
    ordered = [attributes[index] for index in order.tolist()]
    return PictureRecords(
        source=str(path),
        folder=folder,
        files=TextColumn.from_texts(images.files),
        image_ids=TextColumn.from_texts(str(identity) for identity in images.places),
        sizes=images.sizes,
        offsets=starts(np.bincount(np.array(image, dtype=np.int64), minlength=len(images.files))),
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4)[order],
        labels=np.array(labels, dtype=np.int64)[order],
        crowd=np.array(crowd, dtype=bool)[order],
        attribute_offsets=starts(np.array([len(one) for one in ordered], dtype=np.int64)),
        attributes=np.array([one for several in ordered for one in several], dtype=np.int64),
    )


def _owner(record: Record, images: _Images, place: str) -> int:
    identity = required_id(record, "image_id", place)
    if identity not in images.places:
        raise UserError(f"{place} is of the image {shown(identity)}, which is none of the file's images.")
    return images.places[identity]


def _numbers(record: Record, place: str) -> list[float]:
    """The bbox: x, y, width, height."""
    box = required(record, "bbox", place)
    numbers = isinstance(box, list) and len(box) == 4 and all(type(side) in (int, float) for side in box)
    if not numbers or not all(abs(side) < 1e9 for side in box):  # which is never true of nan
        raise UserError(f"{place} has the bbox {shown(box)}, expected x, y, width and height in pixels.")
    return list(box)


def _within(box: list[float], size: list[int], place: str, options: InstanceOptions) -> tuple[float, ...] | None:
    """x1 y1 x2 y2, clipped to an image of (width, height); None: nothing is left of it, and that is allowed."""
    x, y, width, height = box
    clipped = (max(x, 0.0), max(y, 0.0), min(x + width, float(size[0])), min(y + height, float(size[1])))
    empty = not (width > 0 and height > 0 and clipped[0] < clipped[2] and clipped[1] < clipped[3])
    outside = max(-x, -y, x + width - size[0], y + height - size[1]) > TOLERANCE
    if options.bad_boxes == "refuse" and (empty or outside):
        what = "has no area" if not (width > 0 and height > 0) else f"is not within its image of {size[0]} × {size[1]}"
        if 0 <= x < width <= size[0] and 0 <= y < height <= size[1]:
            what += " (its corners would be: give x, y, width and height)"
        raise UserError(
            f"{place}: the bbox {shown(box)} {what}: mend it, or pass data.bad_boxes=clip, which cuts boxes off at "
            "the border and leaves those without area out."
        )
    return None if empty else clipped


def _check_boxes(
    boxes: np.ndarray, owners: np.ndarray, left: int, images: _Images, options: InstanceOptions, path: Path
) -> None:
    """Refuses boxes in other units, which all of them together show; tells what clipping has changed.

    Args:
        boxes: (M, 4) float64 x, y, width, height as they are given.
        owners: (M,) int64, the image of each.
        left: how many have an area within their image.
    """
    expected = "boxes are expected as x, y, width and height in pixels"
    far, sizes = boxes[:, :2] + boxes[:, 2:], images.sizes[owners]
    furthest = np.full(len(images.files), -np.inf)
    np.maximum.at(furthest, owners, far.max(axis=1))
    annotated = np.isfinite(furthest)
    in_shares = annotated & (furthest <= 1 + ROUNDING) & (images.sizes.min(axis=1) > 16)
    if in_shares.sum() > (FEW * annotated.sum() if options.bad_boxes == "clip" else 0):
        image = int(in_shares.argmax())
        width, height = images.sizes[image].tolist()
        raise UserError(
            f"{path}: no box of image {image + 1} ({shown(images.files[image])}) reaches beyond pixel 1 of {width} × "
            f"{height} ({int(in_shares.sum()):,} of {int(annotated.sum()):,} images are so): {expected}, not in shares "
            "of the image."
        )
    many = len(boxes) >= MANY and int(sizes.min()) >= LARGE
    if many and far.max() <= 100 * (1 + ROUNDING):
        raise UserError(
            f"{path}: none of {len(boxes):,} boxes reaches beyond pixel 100, and all images have {LARGE} and more: "
            f"{expected}, not in per cent of the image."
        )
    outside = ((boxes[:, :2] < -TOLERANCE) | (far > sizes + TOLERANCE)).any(axis=1)
    as_corners = ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes + TOLERANCE)).all()
    if many and as_corners and outside.mean() > 0.25:
        raise UserError(
            f"{path}: {int(outside.sum()):,} of {len(boxes):,} boxes reach out of their images, and none would as x1, "
            f"y1, x2, y2: {expected}."
        )
    lost = len(boxes) - left
    if lost > len(boxes) / 2:
        raise UserError(
            f"{path}: {lost:,} of {len(boxes):,} boxes are outside their images or have no area: they are of other "
            "pictures, or of another size of them."
        )
    if outside.any() or lost:
        rank_zero_warn(
            f"data.bad_boxes=clip: {path} has {int(outside.sum()):,} boxes, of {len(boxes):,}, that reach out of "
            f"their image; {lost:,} of all have no area within it and are left out."
        )


def _present_files(entries: list[Any], folder: Path) -> set[str]:
    """The file names of images that are there; each folder is listed once, which is fast where single files are not.

    Raises:
        UserError: the folder is none.
    """
    if not folder.is_dir():
        raise UserError(f"The folder of pictures {folder} does not exist: check the path.")
    wanted: dict[str, list[str]] = {}
    for entry in entries:
        name = entry.get("file_name") if isinstance(entry, Mapping) else None
        if isinstance(name, str) and "\0" not in name:
            wanted.setdefault(os.path.dirname(name), []).append(name)
    present: set[str] = set()
    for below, names in wanted.items():
        there = set(_files_in(folder / below))
        present.update(name for name in names if os.path.basename(name) in there)
    return present


def _files_in(folder: Path) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if not entry.is_dir())
    except OSError:
        return


def _without_missing(records: PictureRecords, present: set[str], options: InstanceOptions) -> PictureRecords:
    keep = np.array([file in present for file in records.files], dtype=bool)
    if keep.all():
        return records
    first, missing = int(np.flatnonzero(~keep)[0]), int((~keep).sum())
    sentence = (
        f"{records.folder} lacks {missing:,} of the {len(keep):,} pictures of {records.source}, the first being "
        f"{records.files[first]!r} (image {records.image_ids[first]})"
    )
    if options.on_missing == "error" or not keep.any():
        raise UserError(f"{sentence}: give the folder that file names start from, or pass data.on_missing=skip.")
    rank_zero_warn(f"data.on_missing=skip: {sentence}; they are left out.")
    return records.select(keep)
