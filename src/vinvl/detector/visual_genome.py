"""Visual Genome as it is downloaded: objects.json, attributes.json and image_data.json → annotated pictures."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
from msgspec import Struct

from vinvl.detector.annotations import AnnotatedPicture
from vinvl.detector.box_checks import BoxChecks
from vinvl.detector.instances import Pixels, Side
from vinvl.detector.vocabulary import alias_groups
from vinvl.regions.regions import BACKGROUND, NO_ATTRIBUTE, LabelMap
from vinvl.run.errors import UserError, say
from vinvl.run.files import no_cycle_collection
from vinvl.run.progress import progress
from vinvl.run.values import FilledText, Id, json_items, shown

OBJECTS, ATTRIBUTES, IMAGES = "objects.json", "attributes.json", "image_data.json"
OBJECT_ALIASES, ATTRIBUTE_ALIASES = "object_alias.txt", "attribute_alias.txt"
SHOWN = 5  # names in a sentence

Aliases = dict[str, str]
"""Another name → the one that counts, both in lower case."""


class ImageData(Struct, gc=False):
    image_id: Id
    width: Pixels
    height: Pixels
    url: FilledText


class VgObject(Struct, gc=False):
    object_id: int
    x: Side
    y: Side
    w: Side
    h: Side
    names: list[str]
    merged_object_ids: list[int] = []  # of version 1.4, whose attributes are still those of 1.2


class ImageObjects(Struct, gc=False):
    image_id: Id
    objects: list[VgObject]


class Described(Struct, gc=False):
    object_id: int
    attributes: list[str] | None = None


class ImageAttributes(Struct, gc=False):
    image_id: Id
    attributes: list[Described]


def read_visual_genome(
    folder: Path,
    labels: LabelMap | None = None,
    least_instances: int = 1,
    bad_boxes: Literal["refuse", "clip"] = "refuse",
) -> tuple[LabelMap, Iterator[AnnotatedPicture]]:
    """The pictures of the three files, in the order of objects.json, and what their labels stand for.

    An object's class is the first of its `names`, its attributes are those that attributes.json lists under its id (and
    under ids that version 1.4 has merged into it), each once; all in lower case. Where the folder holds
    `object_alias.txt` or `attribute_alias.txt`, names of a line become its first one, unless the label map has them.
    File names are the last two parts of a picture's address: VG_100K_2/1.jpg.

    Args:
        folder: where the files lie.
        labels: the classes and attributes to take, as VinVL's VG-SGG-dicts-vgoi6-clipped.json has them; objects of
            other classes are left out, and other attributes not taken over. None takes every name that at least
            `least_instances` objects have, in the order of the alphabet, of attributes too.
        bad_boxes: as in `BoxChecks`. Visual Genome has boxes that reach out of their pictures.

    Raises:
        UserError: names file and record; of what is found on the way, as the pictures are read.
    """
    aliases = _aliases(folder / OBJECT_ALIASES), _aliases(folder / ATTRIBUTE_ALIASES)
    images = _images(folder / IMAGES)
    with no_cycle_collection():
        described = _Attributes.read(folder / ATTRIBUTES, len(images))
        if labels is None:
            classes = _frequent(_class_counts(folder / OBJECTS, aliases[0], len(images)), least_instances)
            if not classes:
                raise UserError(f"{folder / OBJECTS} has no class of {least_instances:,} objects: ask for fewer.")
            attributes = _frequent(described.counts(aliases[1]), least_instances)
            labels = LabelMap((BACKGROUND, *classes), (NO_ATTRIBUTE, *attributes) if attributes else ())
    described = described.indexed(_indices(labels.attributes, aliases[1]))
    checks = BoxChecks(str(folder / OBJECTS), bad_boxes)
    return labels, _pictures(folder, _indices(labels.classes, aliases[0]), images, described, checks)


def _pictures(
    folder: Path,
    classes: Mapping[str, int],
    images: Mapping[str, ImageData],
    described: _Attributes,
    checks: BoxChecks,
) -> Iterator[AnnotatedPicture]:
    path, dropped, seen = folder / OBJECTS, Counter[str](), set[str]()
    with progress("pictures", len(images)) as show:
        for number, one in enumerate(json_items(path, ImageObjects, "images with their objects"), start=1):
            place = f"{path} record {number} (image {one.image_id})"
            image = images.get(str(one.image_id))
            if image is None:
                raise UserError(f"{place} is of an image that {folder / IMAGES} does not have: get both again.")
            named = [_plain(of_object.names[0]) if of_object.names else "" for of_object in one.objects]
            known = [index for index, name in enumerate(named) if name in classes]
            dropped.update(name for name in named if name not in classes)
            objects = [one.objects[index] for index in known]
            corners = np.array([(o.x, o.y, o.x + o.w, o.y + o.h) for o in objects], dtype=np.float64).reshape(-1, 4)
            boxes, left = checks.within(corners, (image.width, image.height), place)
            seen.add(str(one.image_id))
            yield AnnotatedPicture(
                str(one.image_id),
                _file_name(image, folder / IMAGES),
                image.width,
                image.height,
                boxes[left].astype(np.float32),
                np.array([classes[named[index]] for index in known], dtype=np.int32)[left],
                np.zeros(int(left.sum()), dtype=bool),
                [one for one, is_left in zip(described.of(objects), left, strict=True) if is_left],
            )
            show(number)
    checks.finish()
    _tell(path, dropped, checks.boxes, len(images) - len(seen))
    described.refuse_unused(folder)


def _tell(path: Path, dropped: Counter[str], taken: int, absent: int) -> None:
    if not taken:
        raise UserError(f"{path} has no object of a class in the label map: it is the label map of another data set.")
    if dropped:
        most = ", ".join(f"{shown(name)} {count:,}" for name, count in dropped.most_common(SHOWN))
        say(
            f"{path}: {dropped.total():,} of {dropped.total() + taken:,} objects are of {len(dropped):,} names without "
            f"a class and are left out, most often {most}."
        )
    if absent:
        say(f"{path} does not name {absent:,} images of {IMAGES}, which are left out.")


def _images(path: Path) -> dict[str, ImageData]:
    images: dict[str, ImageData] = {}
    for number, one in enumerate(json_items(path, ImageData, "images with width, height and url"), start=1):
        if images.setdefault(str(one.image_id), one) is not one:
            raise UserError(
                f"{path} record {number} has the image_id {one.image_id} of another one: get the file again."
            )
    return images


def _file_name(image: ImageData, path: Path) -> str:
    parts = urlsplit(image.url).path.split("/")[-2:]
    if len(parts) < 2 or not all(parts) or ".." in parts:
        raise UserError(f"{path}: the url {shown(image.url)} of image {image.image_id} does not end in FOLDER/FILE.")
    return "/".join(parts)


def _plain(name: str) -> str:
    """In lower case, with one space between words."""
    return " ".join(name.lower().split())


def _aliases(path: Path) -> Aliases:
    """Names to the first one of their line; {} without the file.

    A later line counts, and a first name that is itself an alias is followed, as the published scene-graph code
    (danfeiX/scene-graph-TF-release, make_alias_dict) has it.
    """
    if not path.is_file():
        return {}
    aliases: Aliases = {}
    for group in filter(None, alias_groups(str(path))):
        names = list(map(_plain, group))
        target = aliases.get(names[0], names[0])
        aliases.update(dict.fromkeys(names, target))
    return aliases


def _indices(names: tuple[str, ...], aliases: Aliases) -> dict[str, int]:
    """The index of every name, and of every other name of it that is none itself."""
    indices: dict[str, int] = {}
    for index, name in enumerate(names):
        if index:
            indices.setdefault(_plain(name), index)
    return {name: indices[target] for name, target in aliases.items() if target in indices} | indices


def _frequent(counts: Counter[str], least: int) -> list[str]:
    return sorted(name for name, count in counts.items() if name and count >= least)


def _class_counts(path: Path, aliases: Aliases, total: int) -> Counter[str]:
    counts: Counter[str] = Counter()
    with progress("pictures counted", total) as show:
        for number, one in enumerate(json_items(path, ImageObjects, "images with their objects"), start=1):
            names = (_plain(of_object.names[0]) for of_object in one.objects if of_object.names)
            counts.update(aliases.get(name, name) for name in names)
            show(number)
    return counts


class _Attributes:
    """The attributes of N objects as numbers, `names` being what they stand for; some bytes an object."""

    def __init__(self, ids: np.ndarray, starts: np.ndarray, numbers: np.ndarray, names: list[str]) -> None:
        order = np.argsort(ids, kind="stable")
        self._ids, self._order = ids[order], order  # (N,) int64 each
        self._starts, self._numbers, self._names = starts, numbers, names  # (N + 1,) int64, (M,) int32
        self._used = 0

    @classmethod
    def read(cls, path: Path, total: int) -> _Attributes:
        """Of attributes.json, in one pass."""
        ids, starts, numbers, known = array("q"), array("q", [0]), array("i"), dict[str, int]()
        with progress("pictures with attributes", total) as show:
            items = json_items(path, ImageAttributes, "images with their objects' attributes")
            for number, one in enumerate(items, start=1):
                for of_object in one.attributes:
                    if not -(2**63) <= of_object.object_id < 2**63:
                        place = f"{path} record {number} (image {one.image_id})"
                        raise UserError(f"{place} has an object_id beyond 64 bits: get the file again.")
                    if names := of_object.attributes:
                        ids.append(of_object.object_id)
                        numbers.extend(known.setdefault(_plain(name), len(known)) for name in names)
                        starts.append(len(numbers))
                show(number)
        return cls(np.array(ids), np.array(starts), np.array(numbers, dtype=np.int32), list(known))

    def counts(self, aliases: Aliases) -> Counter[str]:
        """How often each name is given, under the one that counts."""
        counts: Counter[str] = Counter()
        for name, count in zip(self._names, np.bincount(self._numbers, minlength=len(self._names)), strict=True):
            counts[aliases.get(name, name)] += int(count)
        return counts

    def indexed(self, index_of: Mapping[str, int]) -> _Attributes:
        """The same objects, whose numbers are indices of a label map now, 0 for names that it does not have."""
        indices = np.array([index_of.get(name, 0) for name in self._names], dtype=np.int32)
        self._numbers, self._names = indices[self._numbers] if len(indices) else self._numbers, []
        return self

    def of(self, objects: Sequence[VgObject]) -> list[list[int]]:
        """The indices of each object's attributes, each once."""
        pairs = [(index, one) for index, o in enumerate(objects) for one in (o.object_id, *o.merged_object_ids)]
        ids = np.array([one for _, one in pairs], dtype=np.int64)
        low, high = (np.searchsorted(self._ids, ids, side) for side in ("left", "right"))
        found: list[dict[int, None]] = [{} for _ in objects]
        for pair in np.flatnonzero(low < high).tolist():
            for place in self._order[low[pair] : high[pair]].tolist():
                numbers = self._numbers[self._starts[place] : self._starts[place + 1]].tolist()
                found[pairs[pair][0]].update(dict.fromkeys(number for number in numbers if number))
                self._used += 1
        return [list(one) for one in found]

    def refuse_unused(self, folder: Path) -> None:
        """Raises UserError where not one object is one of those with attributes: the two files are of two versions."""
        if len(self._ids) and not self._used:
            raise UserError(f"{folder / ATTRIBUTES} has attributes of no object in {OBJECTS}: get both of one version.")
