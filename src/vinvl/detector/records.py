"""Annotated pictures in a few arrays, which worker processes share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.data.columns import TextColumn
from vinvl.data.records import checked_record, checked_text, required, required_text, shown
from vinvl.detector.average_precision import TrueBoxes
from vinvl.regions.regions import BACKGROUND, NO_ATTRIBUTE, LabelMap
from vinvl.run.errors import UserError


@dataclass(frozen=True, eq=False)
class PictureRecords:
    """N pictures with M annotated objects in all; those of picture i are `offsets[i]` to `offsets[i + 1]`."""

    source: str  # the annotation file, for messages
    folder: Path  # of the pictures
    files: TextColumn  # (N,) paths below the folder
    image_ids: TextColumn  # (N,)
    sizes: np.ndarray  # (N, 2) int32 width, height
    offsets: np.ndarray  # (N + 1,) int64
    boxes: np.ndarray  # (M, 4) float64 x1 y1 x2 y2, pixels, the far edges not counted in
    labels: np.ndarray  # (M,) int64, class from 1
    crowd: np.ndarray  # (M,) bool: a box around many things
    attribute_offsets: np.ndarray  # (M + 1,) int64
    attributes: np.ndarray  # (sum of attributes,) int64, from 1

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, index: int) -> Path:
        """Where a picture lies."""
        return self.folder / self.files[index]

    def true_boxes(self, index: int) -> TrueBoxes:
        """The objects of a picture."""
        own = slice(self.offsets[index], self.offsets[index + 1])
        return TrueBoxes(self.boxes[own], self.labels[own], self.crowd[own])

    def true_attributes(self, index: int) -> np.ndarray:
        """Their attributes (m, K) int64, 0 for none."""
        first, last = int(self.offsets[index]), int(self.offsets[index + 1])
        counts = np.diff(self.attribute_offsets[first : last + 1])
        table = np.zeros((last - first, max(counts, default=0)), dtype=np.int64)
        own = self.attributes[self.attribute_offsets[first] : self.attribute_offsets[last]]
        table[np.arange(table.shape[1]) < counts[:, None]] = own
        return table

    def select(self, keep: np.ndarray) -> PictureRecords:
        """The pictures where `keep` (N,) bool is True, in their order, with their objects."""
        pictures = np.flatnonzero(keep)
        objects = np.flatnonzero(np.repeat(keep, np.diff(self.offsets)))
        counts = np.diff(self.attribute_offsets)
        attributes = np.repeat(np.isin(np.arange(len(counts)), objects), counts)
        return replace(
            self,
            files=TextColumn.from_texts(self.files[index] for index in pictures.tolist()),
            image_ids=TextColumn.from_texts(self.image_ids[index] for index in pictures.tolist()),
            sizes=self.sizes[pictures],
            offsets=starts(np.diff(self.offsets)[pictures]),
            boxes=self.boxes[objects],
            labels=self.labels[objects],
            crowd=self.crowd[objects],
            attribute_offsets=starts(counts[objects]),
            attributes=self.attributes[attributes],
        )


def starts(counts: np.ndarray) -> np.ndarray:
    """(n,) counts → (n + 1,) int64, where each begins and the last one ends."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)])


# The classes and attributes of an annotation file, and which index each has in the detector.


@dataclass(frozen=True)
class FileNames:
    """What an annotation file calls things: names by its own ids.

    attributes: None if the file has no list of them, so that annotations name them.
    """

    classes: dict[int, str]
    attributes: dict[int, str] | None

    @classmethod
    def of(cls, content: dict[str, Any], path: Path) -> FileNames:
        """The `categories` and `attributes` of a COCO file.

        Raises:
            UserError: there are none, or two have one id or name.
        """
        categories = content.get("categories")
        if not isinstance(categories, list) or not categories:
            raise UserError(f"{path} has no categories: expected a list of objects with id and name.")
        attributes = content.get("attributes")
        if attributes is not None and not isinstance(attributes, list):
            raise UserError(f"{path}: attributes is {shown(attributes)}, expected a list of names, or none.")
        return cls(
            classes=_names_by_id(categories, f"{path} category"),
            attributes=None if attributes is None else _names_by_id(attributes, f"{path} attribute"),
        )

    def label_map(self, named: Iterable[str]) -> LabelMap:
        """Classes and attributes in the order of their ids.

        named: all attribute names of the annotations; taken in alphabetical order if the file has no list.
        """
        classes = [self.classes[number] for number in sorted(self.classes)]
        listed = self.attributes
        attributes = sorted(set(named)) if listed is None else [listed[number] for number in sorted(listed)]
        return LabelMap((BACKGROUND, *classes), (NO_ATTRIBUTE, *attributes))


class Indices:
    """Looks up the detector's index of what an annotation says.

    Args:
        names: the file's.
        labels: the detector's.
        path: the file, for messages.
    """

    def __init__(self, names: FileNames, labels: LabelMap, path: Path) -> None:
        self.path = path
        class_of = {name: index for index, name in enumerate(labels.classes) if index > 0}
        self.attribute_of = {name: index for index, name in enumerate(labels.attributes) if index > 0}
        self.classes = {number: class_of.get(name) for number, name in names.classes.items()}
        self.names = names

    def of_class(self, category: Any, place: str) -> int:
        """The class, from 1, of a category id."""
        if type(category) is not int or category not in self.classes:
            raise UserError(
                f"{place} has the category_id {shown(category)}, which is none of {self.path}'s categories."
            )
        index = self.classes[category]
        if index is None:
            raise UserError(
                f"{place} is a {shown(self.names.classes[category])}, a class that the detector is not trained on: add "
                "it to the training file's categories, or leave such annotations out."
            )
        return index

    def of_attributes(self, attributes: Any, place: str) -> list[int]:
        """The attributes, from 1, of a list of names or ids, or of an object of true and false.

        Of what is missing or null, none.
        """
        listed = _listed(attributes)
        if listed is None:
            raise UserError(
                f"{place} has the attributes {shown(attributes)}, expected a list of names or ids, or an object of "
                "true and false."
            )
        return [self._of_attribute(one, place) for one in listed]

    def _of_attribute(self, attribute: Any, place: str) -> int:
        name = attribute
        if type(attribute) is int and self.names.attributes is not None:
            if attribute not in self.names.attributes:
                raise UserError(f"{place} has the attribute {attribute}, which is none of {self.path}'s attributes.")
            name = self.names.attributes[attribute]
        if not isinstance(name, str):
            listed = "a name, or an id of the file's list of attributes, which is missing"
            raise UserError(f"{place} has the attribute {shown(attribute)}, expected {listed}.")
        if name not in self.attribute_of:
            raise UserError(
                f"{place} has the attribute {shown(name)}, which the detector is not trained on: add it to the "
                "training file's attributes, or leave it out."
            )
        return self.attribute_of[name]


def attribute_names(annotations: list[Any]) -> Iterable[str]:
    """All attributes that annotations give by name, whatever else is wrong with them."""
    for annotation in annotations:
        found = _listed(annotation.get("attributes")) if isinstance(annotation, dict) else None
        yield from (one for one in found or () if isinstance(one, str))


def _listed(attributes: Any) -> list[Any] | None:
    """A list as it is; of an object, as CVAT writes it, the names of what is true (numbers say nothing); else None."""
    if attributes is None or isinstance(attributes, list):
        return attributes or []
    if not isinstance(attributes, dict) or not all(isinstance(one, int | float | None) for one in attributes.values()):
        return None
    return [name for name, value in attributes.items() if value is True]


def _names_by_id(entries: list[Any], place: str) -> dict[int, str]:
    """Ids and names of a list of objects with id and name, or of names, which are numbered from 1."""
    names: dict[int, str] = {}
    for number, entry in enumerate(entries, start=1):
        here = f"{place} {number}"
        if isinstance(entry, str) and entry.strip():
            identity, name = number, checked_text(entry, here)
        else:
            record = checked_record(entry, here, "id and name")
            identity, name = required(record, "id", here), required_text(record, "name", here)
        if type(identity) is not int:
            raise UserError(f"{here} has the id {shown(identity)}, expected a whole number.")
        if identity in names:
            raise UserError(f"{here} has the id {identity} of another one: every id must be there once.")
        if name in names.values():
            raise UserError(f"{here} has the name {shown(name)} of another one: every name must be there once.")
        names[identity] = name
    return names
