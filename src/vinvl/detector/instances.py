"""COCO instances JSON, with attributes if there are any → annotated pictures as Arrow records."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from msgspec import Meta, Struct
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.table import TEXT, Column, as_lists
from vinvl.detector.records import PictureRecords, find_files
from vinvl.pictures import ReadingOptions, picture_size
from vinvl.regions.regions import BACKGROUND, NO_ATTRIBUTE, LabelMap, first_indices
from vinvl.run.errors import UserError
from vinvl.run.files import no_cycle_collection, reading
from vinvl.run.progress import progress
from vinvl.run.values import FilledText, Id, check_fields, json_listed, shown

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


TOLERANCE = 1.0  # pixels that a box may reach out of its image, as some of COCO's own do by rounding; it is clipped
ROUNDING = 1e-3  # by which shares of an image may exceed 1, or 100 %
FIRST_PIXEL = 16  # pixels of a side, up to which an image may hold nothing beyond its first one
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
    annotations: str | Path | Sequence[Path], pictures: str | Path | None, labels: None, options: InstanceOptions
) -> tuple[PictureRecords, LabelMap]:
    """The annotated pictures of a COCO instances file, and what their classes and attributes stand for.

    The file is an object with `images` (id, file_name, and width and height where known), `categories` (id, name),
    `annotations` (image_id, category_id, bbox as x, y, width, height, optionally iscrowd and `attributes`,
    a list of names or ids), and, if there are attributes, `attributes`: objects with id and name, or only names,
    which have the ids 1, 2, 3 … then. It is read a few megabytes at a time; about 60 bytes of an object are kept.

    Classes are in the order of the file's ids, and so are attributes, or, if it lists none, in that of the alphabet.

    Args:
        annotations: the file; or several of them, such as COCO's things and stuff, which are joined by image.
        pictures: the folder that file names start from, or a container of pictures; None does not look for them.
        labels: None. Earlier versions took a label map here, which is `read_sets`'s to bring names to now.
        options: what becomes of bad boxes, and how pictures are read whose size the file does not say.

    Raises:
        UserError: names the record that cannot be used, and what to do.
    """
    paths = [Path(annotations)] if isinstance(annotations, str | Path) else list(annotations)
    pictures = None if pictures is None else Path(pictures)
    with no_cycle_collection():
        images, found = _Images(pictures or Path()), _Objects(paths)
        named = [_read_file(number, path, images, found) for number, path in enumerate(paths)]
    records = images.records(" and ".join(map(str, paths)), pictures, options.reading)
    owners = images.places()[np.asarray(found.owners)]
    found.refuse_unknown(owners, named)
    own = LabelMap(
        (BACKGROUND, *_joined_names([one.classes for one in named], paths)),
        (NO_ATTRIBUTE, *_attribute_names([one.attributes for one in named], found)),
    )
    return _with_objects(records, found, owners, named, own, options.bad_boxes), own


class _Names(NamedTuple):
    """What the numbers of one file stand for; `attributes` are None where it lists none."""

    classes: dict[int, str]
    attributes: dict[int, str] | None


def _read_file(file: int, path: Path, images: _Images, found: _Objects) -> _Names:
    """Adds the images and annotations of one file."""
    kinds = {
        "images": Image,
        "annotations": Instance,
        "categories": Named | FilledText,
        "attributes": Named | FilledText,
    }
    entries: dict[str, list[Named | str]] = {"categories": [], "attributes": []}
    numbers, needed = Counter[str](), ("images", "annotations", "categories")
    with reading(path), progress("MB", path.stat().st_size / 1e6) as show:
        listed = json_listed(path, kinds, needed, "give a COCO instances file", lambda read: show(read / 1e6))
        for key, one in listed:
            numbers[key] += 1
            if key == "annotations":
                found.add(file, one, images.number(one.image_id))
            elif key == "images":
                images.add(one, path, numbers[key])
            else:
                entries[key].append(one)
    if not numbers["images"]:
        raise UserError(f"{path} holds no images; an empty split cannot be used.")
    if not entries["categories"]:
        raise UserError(f"{path}: Expected `array` of length >= 1 at $.categories; give a COCO instances file.")
    attributes = entries["attributes"]
    return _Names(
        _names_by_id(entries["categories"], f"{path} category"),
        _names_by_id(attributes, f"{path} attribute") if attributes else None,
    )


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


def _joined_names(classes: Sequence[Mapping[int, str]], paths: Sequence[Path]) -> list[str]:
    """The names of all files, each file's in the order of its ids; UserError if one has another id in another file."""
    ids: dict[str, int] = {}
    for path, of_file in zip(paths, classes, strict=True):
        for number, name in sorted(of_file.items()):
            if ids.setdefault(name, number) != number:
                raise UserError(
                    f"{path} has the category {shown(name)} with the id {number}, and a file before it with "
                    f"{ids[name]}: these are two classes of one name; rename one of them."
                )
    return list(ids)


def _attribute_names(listed: Sequence[Mapping[int, str] | None], found: _Objects) -> list[str]:
    given = sorted({name for file, name in found.attributes if isinstance(name, str) and listed[file] is None})
    names = dict.fromkeys(one[number] for one in listed if one is not None for number in sorted(one))
    return list(names | dict.fromkeys(given))


class _Images:
    """The images of all files, each once, in the order in which they come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers: dict[str, int] = {}  # id → number, given where it comes first: here or in an annotation
        self._order = array("q")  # the numbers of images
        self._names: list[str] = []
        self._sizes = array("i")  # of each width, height; 0 where it is not said
        self._known: dict[int, tuple[int, Path]] = {}  # number → place, file

    def number(self, image_id: int | str) -> int:
        return self._numbers.setdefault(str(image_id), len(self._numbers))

    def add(self, one: Image, path: Path, number: int) -> None:
        """Adds an image. Raises UserError if the file has it already, or another file has it otherwise."""
        self._refuse_outside(one.file_name, f"{path} image {number}")
        if (one.width is None) != (one.height is None):
            raise UserError(f"{path} image {number} has one of width and height: give both in pixels, or neither.")
        sides, own = (one.width or 0, one.height or 0), self.number(one.id)
        place, where = self._known.setdefault(own, (len(self._order), path))
        if place == len(self._order):
            self._order.append(own)
            self._names.append(one.file_name)
            self._sizes.extend(sides)
            return
        before = self._names[place], *self._sizes[2 * place : 2 * place + 2]
        if where == path:
            raise UserError(
                f"{path} image {number} has the image_id {one.id} of another one; give every image its own."
            )
        if before != (one.file_name, *sides):
            raise UserError(
                f"{path} image {number} (image_id {one.id}) is {shown(one.file_name)} of {sides[0]} × {sides[1]}, and "
                f"in {where} {shown(before[0])} of {before[1]} × {before[2]}: only files of the same images are joined."
            )
        self._known[own] = place, path

    def _refuse_outside(self, name: str, place: str) -> None:
        """Links in the folder are the folder's own and are followed."""
        below = Path(name)
        outside = below.is_absolute() and not below.is_relative_to(self._folder.absolute())
        if ".." in below.parts or "\0" in name or outside:
            raise UserError(
                f"{place}: the file_name {shown(name)} leads out of {self._folder}: name files below the "
                "folder of pictures, or give the folder that their names start from."
            )

    def places(self) -> np.ndarray:
        """(numbers,) int64: where the image of each number is; -1 for one that no file has."""
        places = np.full(len(self._numbers), -1, dtype=np.int64)
        places[np.array(self._order, dtype=np.int64)] = np.arange(len(self._order))
        return places

    def records(self, source: str, pictures: Path | None, options: ReadingOptions) -> PictureRecords:
        """Without objects; sizes that are not said are looked up in the pictures."""
        ids = list(self._numbers)
        columns = {"image_id": [ids[number] for number in self._order], "file_name": self._names}
        table = pa.table({name: pa.array(values, TEXT) for name, values in columns.items()})
        names, own = Column(table["file_name"]), Column(table["image_id"])
        records = PictureRecords.of(table, source, None if pictures is None else find_files(names, own, pictures))
        sizes = np.array(self._sizes, dtype=np.int32).reshape(-1, 2)
        for index in np.flatnonzero(sizes[:, 0] == 0).tolist():
            files = records.sets[0].files
            if files is None:
                raise UserError(f"{source} does not say how large images are: give pictures=FOLDER too, to look it up.")
            sizes[index] = picture_size(records.path(index), options) if files.present[index] else UNKNOWN_SIZE
        for side, values in zip(("width", "height"), sizes.T, strict=True):
            table = table.append_column(side, pa.array(values))
        return replace(records, table=table)


class _Objects:
    """The M annotations of all files as they are given, in columns."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self.boxes = array("d")  # of each x, y, width, height
        self.owners = array("i")  # the number of its image
        self.kinds = array("i")  # which of `categories`
        self.crowd = array("b")
        self.named = array("i")  # which of `attributes`, of all in turn
        self.named_counts = array("i")
        self.files = array("b")
        self.categories: dict[tuple[int, int], int] = {}  # file and category_id → number
        self.attributes: dict[tuple[int, int | str], int] = {}  # file and id or name → number

    def add(self, file: int, one: Instance, image: int) -> None:
        self.boxes.extend(one.bbox)
        self.owners.append(image)
        self.kinds.append(self.categories.setdefault((file, one.category_id), len(self.categories)))
        self.crowd.append(bool(one.iscrowd))
        named = one.named()
        self.named_counts.append(len(named))
        self.named.extend(self.attributes.setdefault((file, name), len(self.attributes)) for name in named)
        self.files.append(file)

    def refuse_unknown(self, owners: np.ndarray, named: Sequence[_Names]) -> None:
        """Raises UserError for the first annotation of an image, a category or an attribute that no file has."""
        unknown = np.array([number not in named[file].classes for file, number in self.categories], dtype=bool)
        kinds = np.array(self.kinds)
        wrong = (owners < 0) | unknown[kinds] if len(kinds) else np.zeros(0, dtype=bool)
        if wrong.any():
            first = int(wrong.argmax())
            one = self._again(first)
            what = f"the image {shown(one.image_id)}, which is none of the file's images"
            if owners[first] >= 0:
                what = (
                    f"the category_id {one.category_id}, which is none of {self.paths[self.files[first]]}'s categories"
                )
            raise self.refused(first, f" is of {what}")
        for (file, name), number in self.attributes.items():
            listed = named[file].attributes
            if isinstance(name, int) and name not in (listed or {}):
                missing = "of no list of attributes, for the file has none" if listed is None else "none of the file's"
                what = f"{name}, which is {missing}: give a name, or list the attribute"
            elif isinstance(name, str) and listed is not None and name not in listed.values():
                what = f"{shown(name)}, which is none of the file's: list it with the others, or leave it out"
            else:
                continue
            entry = int((np.array(self.named) == number).argmax())
            owner = int(np.searchsorted(np.cumsum(self.named_counts), entry, side="right"))
            raise self.refused(owner, f" has the attribute {what}")

    def refused(self, index: int, what: str) -> UserError:
        """The sentence about an annotation, which names its id if it has one."""
        number = index - self.files.index(self.files[index])
        return UserError(f"{self.paths[self.files[index]]} annotation {number + 1}{self._again(index)}{what}.")

    def _again(self, index: int) -> Instance:
        """An annotation, read anew."""
        file = self.files[index]
        items = json_listed(self.paths[file], {"annotations": Instance}, (), "")
        _, one = next(islice(items, index - self.files.index(file), None))
        assert isinstance(one, Instance)
        return one


def _with_objects(
    records: PictureRecords,
    found: _Objects,
    owners: np.ndarray,
    named: Sequence[_Names],
    labels: LabelMap,
    bad_boxes: str,
) -> PictureRecords:
    """The pictures with their objects; `owners` (M,) is the place of each object's image."""
    classes, attributes = first_indices(labels.classes), first_indices(labels.attributes)
    of_category = np.array([classes[named[file].classes[number]] for file, number in found.categories], dtype=np.int32)
    of_attribute = np.array(
        [attributes[(named[file].attributes or {}).get(one, one)] for file, one in found.attributes],  # type: ignore[arg-type]
        dtype=np.int32,
    )
    boxes = np.asarray(found.boxes).reshape(-1, 4)
    corners, left = _within(found, boxes, owners, records.sizes, bad_boxes)
    if len(left):
        _check_boxes(boxes, owners, int(left.sum()), records, bad_boxes == "clip")
    order = np.flatnonzero(left)[np.argsort(owners[left], kind="stable")]
    counts = np.bincount(owners[left], minlength=len(records))
    each = as_lists(
        Column(pa.chunked_array([pa.array(of_attribute[np.asarray(found.named)])])),
        np.asarray(found.named_counts),
    )
    table = records.table
    for name, values, length in (
        ("boxes", pa.array(corners[order].astype(np.float32).ravel()), 4),
        ("labels", pa.array(of_category[np.asarray(found.kinds)[order]]), 1),
        ("crowd", pa.array(np.array(found.crowd, dtype=bool)[order]), 1),
        ("attributes", each.take(pa.array(order)), 1),
    ):
        table = table.append_column(name, as_lists(Column(pa.chunked_array([values])), length * counts))
    return replace(records, table=table)


def _within(
    found: _Objects, boxes: np.ndarray, owners: np.ndarray, sizes: np.ndarray, bad_boxes: str
) -> tuple[np.ndarray, np.ndarray]:
    """(M, 4) x1 y1 x2 y2, clipped to their images, and (M,) bool: of which something is left.

    Raises UserError for a box without area within its image, or that reaches out of it, where these are refused.
    """
    near, sides, limits = boxes[:, :2], boxes[:, 2:], sizes[owners].astype(np.float64)
    clipped = np.concatenate([np.maximum(near, 0), np.minimum(near + sides, limits)], axis=1)
    empty = (sides <= 0).any(axis=1) | (clipped[:, :2] >= clipped[:, 2:]).any(axis=1)
    outside = np.maximum(-near, near + sides - limits).max(axis=1, initial=-np.inf) > TOLERANCE
    bad: np.ndarray = empty | outside
    if bad_boxes == "refuse" and bad.any():
        first = int(bad.argmax())
        (x, y, width, height), (right, below) = boxes[first].tolist(), sizes[owners[first]].tolist()
        what = "has no area" if not (width > 0 and height > 0) else f"is not within its image of {right} × {below}"
        if 0 <= x < width <= right and 0 <= y < height <= below:
            what += " (its corners would be: give x, y, width and height)"
        remedy = "data.bad_boxes=clip, which cuts boxes off at the border and leaves those without area out"
        raise found.refused(first, f": the bbox {shown([x, y, width, height])} {what}: correct it, or pass {remedy}")
    return clipped, np.logical_not(empty)


def _check_boxes(boxes: np.ndarray, owners: np.ndarray, left: int, records: PictureRecords, clipping: bool) -> None:
    """Refuses boxes in other units, which all of them together show; tells what clipping has changed.

    `left` is how many have an area within their image.
    """
    path = records.sets[0].source
    expected = "boxes are expected as x, y, width and height in pixels"
    far, sizes = boxes[:, :2] + boxes[:, 2:], records.sizes[owners]
    furthest = np.full(len(records), -np.inf)
    np.maximum.at(furthest, owners, far.max(axis=1))
    annotated = np.isfinite(furthest)
    in_shares = annotated & (furthest <= 1 + ROUNDING) & (records.sizes.min(axis=1) > FIRST_PIXEL)
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
            f"their image; {lost:,} of all have no area within it and are left out: mend them to have them all."
        )
