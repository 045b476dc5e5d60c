"""One vocabulary of classes for several data sets: read, or merged by name with aliases; and each set's class map."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from vinvl.regions.regions import LabelMap, flat_map
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes
from vinvl.run.values import shown


def normal_form(name: str) -> str:
    """A name by which classes are compared: "Hot_air-Balloon " is "hot air balloon"."""
    return re.sub(r"[\s_-]+", " ", name).strip().lower()


@dataclass(frozen=True)
class ClassMap:
    """What the names of classes stand for in a vocabulary; several names may have one index.

    Attributes:
        indices: name → index, from 1.
        source: the file, for messages.
    """

    indices: Mapping[str, int]
    source: str

    def find(self, name: str) -> int | None:
        """The index of a name, as it is written or else without regard to capitals, spaces, "_" and "-"; or None.

        Raises UserError where names that differ in these alone have several indices and none is written so.
        """
        if (index := self.indices.get(name, self.indices.get(name.lower()))) is not None:
            return index
        alike = self._alike.get(normal_form(name), {})
        if len(alike) > 1:
            written = " and ".join(f"{shown(one)} ({index})" for index, one in alike.items())
            raise UserError(f"{self.source} has {written}: it must say which of them {shown(name)} is.")
        return next(iter(alike), None)

    @cached_property
    def _alike(self) -> dict[str, dict[int, str]]:
        forms: dict[str, dict[int, str]] = {}
        for name, index in self.indices.items():
            forms.setdefault(normal_form(name), {}).setdefault(index, name)
        return forms


def class_map_of(path: str | Path) -> ClassMap:
    """The class map in a file: flat JSON of names and indices (`*_class2ind.json`), or what `LabelMap.from_file` reads.

    Raises UserError, naming the file, if it is missing or none, or has a name with two indices.
    """
    return name_maps(path)[0]


def name_maps(path: str | Path) -> tuple[ClassMap, ClassMap]:
    """The class map in a file, as `class_map_of`, and the same of attributes, which is empty if it names none."""
    text = read_bytes(path).decode("utf-8-sig", "replace")
    indices = flat_map(text, str(path)) if text.lstrip().startswith("{") else None
    if indices is not None:
        return ClassMap({name: index for name, index in indices.items() if index > 0}, str(path)), ClassMap(
            {}, str(path)
        )
    labels = LabelMap.from_file(path)
    classes = map_of_names(labels.classes, str(path))
    for index, name in enumerate(labels.classes):
        if index > 0 and name and classes.indices[name] != index:
            raise UserError(f"{path} has {shown(name)} as {classes.indices[name]} and as {index}: give it one index.")
    return classes, map_of_names(labels.attributes, str(path))


def map_of_names(names: Sequence[str], source: str) -> ClassMap:
    """The index of each name from 1 on, the first where it comes twice; a blank is none."""
    indices: dict[str, int] = {}
    for index, name in enumerate(names):
        if index > 0 and name:
            indices.setdefault(name, index)
    return ClassMap(indices, source)
