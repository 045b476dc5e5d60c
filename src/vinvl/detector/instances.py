"""COCO instances JSON, with attributes if there are any → annotated pictures as Arrow records."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta, Raw, Struct
from msgspec.json import Decoder
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.table import TEXT, Column, Form, RecordTable, as_lists
from vinvl.detector.records import PictureFiles, PictureRecords, find_files
from vinvl.pictures import ReadingOptions, picture_size
from vinvl.regions.regions import BACKGROUND, NO_ATTRIBUTE, LabelMap
from vinvl.run.errors import UserError
from vinvl.run.files import no_cycle_collection
from vinvl.run.values import FilledText, Id, check_fields, decoded_file, decoded_items, shown

PICTURES = Form(
    noun="images",
    called="image",
    columns={"image_id": TEXT, "file_name": TEXT, "width": pa.int32(), "height": pa.int32()},
    remedy="give every image an id of its own",
)
"""Of each image; its objects come to it as further columns, see `vinvl.detector.records.SCHEMA`."""

OF_VIDEOS, UNSAID = ("keyframe", "outside", "track_id"), ("", "false", "__undefined__")  # in what CVAT writes
Side = Annotated[float, Meta(gt=-1e9, lt=1e9)]
Pixels = Annotated[int, Meta(ge=1, lt=2**31)]


class Named(Struct, gc=False):
    id: int
    name: FilledText


class Image(Struct, gc=False):
    id: Id
    file_name: FilledText
    width: Pixels | None = None
    height: Pixels | None = None


class Instance(Struct, gc=False):
    image_id: Id
    category_id: int
    bbox: tuple[Side, Side, Side, Side]
    iscrowd: Annotated[int, Meta(ge=0, le=1)] | bool | None = None
    attributes: list[int | str] | dict[str, bool | float | str | None] | None = None
    id: Any = None

    def named(self) -> Sequence[int | str]:
        """Names or ids of attributes; of an object, as CVAT writes it, the name of what is true, NAME=value of a text.

        Numbers, such as CVAT's rotation, name nothing, and neither does what CVAT says of its videos or leaves open.
        """
        if not isinstance(self.attributes, dict):
            return self.attributes or ()
        found = []
        for name, value in self.attributes.items():
            text = str(value) if isinstance(value, bool) else value.strip() if isinstance(value, str) else ""
            if name not in OF_VIDEOS and text.lower() not in UNSAID:
                found.append(name if text.lower() == "true" else f"{name}={text}")
        return found

    def __str__(self) -> str:
        return "" if self.id is None else f" (id {shown(self.id)})"


class InstanceFile(Struct):
    images: list[Raw]
    annotations: list[Raw]
    categories: Annotated[list[Named | FilledText], Meta(min_length=1)]
    attributes: list[Named | FilledText] | None = None


TOLERANCE = 1.0  # pixels that a box may reach out of its image, as some of COCO's own do by rounding; it is clipped
ROUNDING = 1e-3  # by which shares of an image may exceed 1, or 100 %
FEW = 0.01  # share of images that may hold nothing beyond their first pixel if boxes are clipped
SOME, MANY, LARGE = 5, 20, 200  # boxes, and pixels of the images, from which what they share is not an accident
UNKNOWN_SIZE = (2**31 - 1, 2**31 - 1)  # of a picture that is missing, and so refused or left out


@dataclass(frozen=True)
class InstanceOptions:
    """What becomes of records that are not as they should be. Raises UserError for other values.

    Args:
        bad_boxes: "refuse" boxes that reach out of their image or have no area; "clip" them to it, and leave out what
            has no area then.
        on_missing: "error" or "skip" pictures whose file is missing.
        empty_pictures: "keep" or "skip" pictures without objects in training.
        unknown_classes, unknown_attributes: "refuse" what is in no map; or "drop" objects of such a class, and such an
            attribute of an object.
        reading: how pictures are read: boxes are those of a picture that EXIF has turned, or of one as stored.
    """

    bad_boxes: Literal["refuse", "clip"] = "refuse"
    on_missing: Literal["error", "skip"] = "error"
    empty_pictures: Literal["keep", "skip"] = "keep"
    unknown_classes: Literal["refuse", "drop"] = "refuse"
    unknown_attributes: Literal["refuse", "drop"] = "refuse"
    reading: ReadingOptions = ReadingOptions()  # noqa: RUF009, it is immutable

    def __post_init__(self) -> None:
        check_fields(self, "data.")


def read_instances(
    annotations: str | Path, pictures: str | Path, options: InstanceOptions
) -> tuple[PictureRecords, LabelMap]:
    """The annotated pictures of a COCO instances file, and what their classes and attributes stand for.

    Classes are in the order of the file's ids, and so are attributes, or, if it lists none, in that of the alphabet.

    The file is an object with `images` (id, file_name, and width and height where known), `categories` (id, name),
    `annotations` (image_id, category_id, bbox as x, y, width, height, optionally iscrowd and `attributes`,
    a list of names or ids), and, if there are attributes, `attributes`: objects with id and name, or only names,
    which have the ids 1, 2, 3 … then.

    Args:
        annotations: the file.
        pictures: the folder that file names start from, or a container of pictures.
        options: what becomes of bad boxes, and how pictures are read whose size the file does not say.

    Raises:
        UserError: names the record that cannot be used, and what to do.
    """
    path, folder = Path(annotations), Path(pictures)
    with no_cycle_collection():
        content = decoded_file(path, InstanceFile, "COCO instances file")
        classes = _names_by_id(content.categories, f"{path} category")
        listed = None if content.attributes is None else _names_by_id(content.attributes, f"{path} attribute")
        images = RecordTable.of(PICTURES, _image_rows(content.images, path, folder), path)
        files = find_files(images["file_name"], images["image_id"], folder)
        records = _sized(images.table, files, str(path), options.reading)
        found = _Objects.read(content.annotations, records, classes)
        attributes = sorted({name for name in chain.from_iterable(found.named) if isinstance(name, str)})
        if listed is not None:
            attributes = [listed[number] for number in sorted(listed)]
        names = [classes[number] for number in sorted(classes)]
        labels = LabelMap((BACKGROUND, *names), (NO_ATTRIBUTE, *attributes))
        return _with_objects(records, found, classes, listed, labels, options.bad_boxes), labels


def _names_by_id(entries: Sequence[Named | str], place: str) -> dict[int, str]:
    """Names without ids are numbered from 1. UserError if two have one id or name."""
    names: dict[int, str] = {}
    for number, entry in enumerate(entries, start=1):
        identity, name = (number, entry) if isinstance(entry, str) else (entry.id, entry.name)
        if identity in names:
            raise UserError(f"{place} {number} has the id {identity} of another one: every id must be there once.")
        if name in names.values():
            raise UserError(f"{place} {number} has the name {shown(name)} of another one; every name is needed once.")
        names[identity] = name
    return names


def _image_rows(images: list[Raw], path: Path, folder: Path) -> Iterator[tuple[Any, ...]]:
    for number, one in enumerate(decoded_items(images, Decoder(Image), path, "$.images"), start=1):
        name, below = one.file_name, Path(one.file_name)
        outside = below.is_absolute() and not below.is_relative_to(folder.absolute())
        if ".." in below.parts or "\0" in name or outside:  # links in the folder are the folder's own and are followed
            raise UserError(
                f"{path} image {number}: the file_name {shown(name)} leads out of {folder}: name files below the "
                "folder of pictures, or give the folder that their names start from."
            )
        if (one.width is None) != (one.height is None):
            raise UserError(f"{path} image {number} has one of width and height: give both in pixels, or neither.")
        yield f"{path} image", number, one.id, name, one.width, one.height


def _sized(images: pa.Table, files: PictureFiles, source: str, reading: ReadingOptions) -> PictureRecords:
    """With the size of every picture, which is looked up where the file does not say it."""
    records = PictureRecords.of(images, source, files)
    given = [records[side] if side in images.column_names else [None] * len(images) for side in ("width", "height")]
    widths, heights = map(list, given)
    for index, width in enumerate(widths):
        if width is None:
            known = files.present[index]
            widths[index], heights[index] = picture_size(records.path(index), reading) if known else UNKNOWN_SIZE
    table = images.select(["file", "number", "image_id", "file_name"])
    for side, values in (("width", widths), ("height", heights)):
        table = table.append_column(side, pa.array(values, pa.int32()))
    return replace(records, table=table)


class _Objects(NamedTuple):
    """The M annotations of a file as they are given; `categories` and `named` are what the file calls things."""

    annotations: list[Raw]
    path: str
    boxes: np.ndarray  # (M, 4) float64 x, y, width, height
    owners: np.ndarray  # (M,) int64, the image of each
    categories: list[int]
    crowd: list[bool]
    named: list[Sequence[int | str]]  # attributes

    @classmethod
    def read(cls, annotations: list[Raw], records: PictureRecords, classes: Mapping[int, str]) -> _Objects:
        source = records.sets[0].source
        places = {image_id: index for index, image_id in enumerate(records["image_id"])}
        boxes, owners = array("d"), array("q")
        categories, crowd, named = [], [], []
        decoded = decoded_items(annotations, Decoder(Instance), source, "$.annotations")
        for number, one in enumerate(decoded, start=1):
            owner = places.get(str(one.image_id))
            if owner is None or one.category_id not in classes:
                what = f"the image {shown(one.image_id)}, which is none of the file's images"
                if owner is not None:
                    what = f"the category_id {one.category_id}, which is none of {source}'s categories"
                raise UserError(f"{source} annotation {number}{one} is of {what}.")
            boxes.extend(one.bbox)
            owners.append(owner)
            categories.append(one.category_id)
            crowd.append(bool(one.iscrowd))
            named.append(one.named())
        sides, images = np.array(boxes).reshape(-1, 4), np.array(owners, dtype=np.int64)
        return cls(annotations, source, sides, images, categories, crowd, named)

    def refused(self, index: int, what: str) -> UserError:
        """The sentence about an annotation, which names its id if it has one."""
        one = msgspec.json.decode(self.annotations[index], type=Instance)
        return UserError(f"{self.path} annotation {index + 1}{one}{what}.")


def _with_objects(
    records: PictureRecords,
    found: _Objects,
    classes: Mapping[int, str],
    listed: Mapping[int, str] | None,
    labels: LabelMap,
    bad_boxes: str,
) -> PictureRecords:
    """The pictures with their objects, whose classes and attributes are those of the label map."""
    class_of = {name: index for index, name in enumerate(labels.classes)}
    index_of = {number: class_of[name] for number, name in classes.items()}
    attributes = _attributes(found, listed, labels)
    corners, left = _within(found, records.sizes, bad_boxes)
    if len(left):
        _check_boxes(found, int(left.sum()), records, bad_boxes == "clip")
    order = np.flatnonzero(left)[np.argsort(found.owners[left], kind="stable")]
    counts = np.bincount(found.owners[left], minlength=len(records))
    numbers, table = order.tolist(), records.table
    for name, values, each in (
        ("boxes", pa.array(corners[order].astype(np.float32).ravel()), 4),
        ("labels", pa.array([index_of[found.categories[index]] for index in numbers], pa.int32()), 1),
        ("crowd", pa.array([found.crowd[index] for index in numbers], pa.bool_()), 1),
        ("attributes", pa.array([attributes[index] for index in numbers], pa.list_(pa.int32())), 1),
    ):
        table = table.append_column(name, as_lists(Column(pa.chunked_array([values])), each * counts))
    return replace(records, table=table)


def _attributes(found: _Objects, listed: Mapping[int, str] | None, labels: LabelMap) -> list[Sequence[int]]:
    """The attributes of each annotation, from 1."""
    index_of: dict[int | str, int] = {name: index for index, name in enumerate(labels.attributes) if index > 0}
    known = listed or {}
    for index, named in enumerate(found.named):
        for name in named:
            if isinstance(name, int) and name not in known:
                missing = "of no list of attributes, for the file has none" if listed is None else "none of the file's"
                what = f"{name}, which is {missing}: give a name, or list the attribute"
            elif isinstance(name, str) and name not in index_of:
                what = f"{shown(name)}, which is none of the file's: list it with the others, or leave it out"
            else:
                continue
            raise found.refused(index, f" has the attribute {what}")
    index_of |= {number: index_of[name] for number, name in known.items()}
    return [[index_of[name] for name in named] if named else () for named in found.named]


def _within(found: _Objects, sizes: np.ndarray, bad_boxes: str) -> tuple[np.ndarray, np.ndarray]:
    """(M, 4) x1 y1 x2 y2, clipped to their images, and (M,) bool: of which something is left.

    Raises UserError for a box without area within its image, or that reaches out of it, where these are refused.
    """
    near, sides, limits = found.boxes[:, :2], found.boxes[:, 2:], sizes[found.owners].astype(np.float64)
    clipped = np.concatenate([np.maximum(near, 0), np.minimum(near + sides, limits)], axis=1)
    empty = (sides <= 0).any(axis=1) | (clipped[:, :2] >= clipped[:, 2:]).any(axis=1)
    outside = np.maximum(-near, near + sides - limits).max(axis=1, initial=-np.inf) > TOLERANCE
    bad: np.ndarray = empty | outside
    if bad_boxes == "refuse" and bad.any():
        first = int(bad.argmax())
        (x, y, width, height), (right, below) = found.boxes[first].tolist(), sizes[found.owners[first]].tolist()
        what = "has no area" if not (width > 0 and height > 0) else f"is not within its image of {right} × {below}"
        if 0 <= x < width <= right and 0 <= y < height <= below:
            what += " (its corners would be: give x, y, width and height)"
        remedy = "data.bad_boxes=clip, which cuts boxes off at the border and leaves those without area out"
        raise found.refused(first, f": the bbox {shown([x, y, width, height])} {what}: correct it, or pass {remedy}")
    return clipped, np.logical_not(empty)


def _check_boxes(found: _Objects, left: int, records: PictureRecords, clipping: bool) -> None:
    """Refuses boxes in other units, which all of them together show; tells what clipping has changed.

    `left` is how many have an area within their image.
    """
    path, boxes, owners = found.path, found.boxes, found.owners
    expected = "boxes are expected as x, y, width and height in pixels"
    far, sizes = boxes[:, :2] + boxes[:, 2:], records.sizes[owners]
    furthest = np.full(len(records), -np.inf)
    np.maximum.at(furthest, owners, far.max(axis=1))
    annotated = np.isfinite(furthest)
    in_shares = annotated & (furthest <= 1 + ROUNDING) & (records.sizes.min(axis=1) > 16)
    many = len(boxes) >= MANY and int(sizes.min()) >= LARGE
    outside = ((boxes[:, :2] < -TOLERANCE) | (far > sizes + TOLERANCE)).any(axis=1)
    as_corners = ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] <= sizes + TOLERANCE)).all()
    total, lost = f"{len(boxes):,}", len(boxes) - left
    what = None
    if in_shares.sum() > (FEW * annotated.sum() if clipping else 0):
        image = int(in_shares.argmax())
        width, height = records.sizes[image].tolist()
        what = (
            f"no box of image {image + 1} ({shown(records['file_name'][image])}) reaches beyond pixel 1 of {width} × "
            f"{height} ({int(in_shares.sum()):,} of {int(annotated.sum()):,} images are so): {expected}, not in shares "
            "of the image"
        )
    elif many and far.max() <= 100 * (1 + ROUNDING):
        what = f"none of {total} boxes reaches beyond pixel 100, and all images have {LARGE} and more: {expected}, not "
        what += "in per cent of the image"
    elif as_corners and ((many and outside.mean() > 0.25) or (len(boxes) >= SOME and outside.mean() > 0.5)):
        what = f"{int(outside.sum()):,} of {total} boxes reach out of their images, and none would as x1, y1, x2, y2: "
        what += expected
    elif lost > len(boxes) / 2:
        what = f"{lost:,} of {total} boxes are outside their images or have no area: they are of other pictures, or of "
        what += "another size of them"
    if what is not None:
        raise UserError(f"{path}: {what}.")
    if outside.any() or lost:
        rank_zero_warn(
            f"data.bad_boxes=clip: {path} has {int(outside.sum()):,} boxes, of {total}, that reach out of "
            f"their image; {lost:,} of all have no area within it and are left out."
        )
