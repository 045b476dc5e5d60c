"""Several data sets as one split: each with its own names, all with the indices of one label map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.module import checked_entry, plain
from vinvl.detector.annotations import is_annotations, open_annotations
from vinvl.detector.instances import InstanceOptions, read_instances
from vinvl.detector.records import PictureRecords, find_files
from vinvl.detector.sampling import SetSampling, sampled_rows
from vinvl.detector.tsv_sets import read_linelist
from vinvl.detector.vocabulary import ClassMap, class_map_of, map_of_names
from vinvl.pictures import ReadingOptions, name_of
from vinvl.pictures.reading import UPRIGHT, size_and_turn
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError
from vinvl.run.values import shown

SHOWN = 5  # names in a sentence
LOOKED_AT = 64  # pictures of a set whose size is compared before a training


@dataclass(frozen=True)
class SetEntry:
    """What the configuration says of one set of a split; `place` is where it says so: data.splits.train[2].

    `linelist`: a file of row numbers of the annotations, from 0, a line each: the pictures of an epoch, with repeats.
    """

    place: str
    annotations: str
    pictures: str | None  # None: they are not looked for
    class_map: str | None
    linelist: str | None
    sampling: SetSampling

    @classmethod
    def all_of(cls, entry: Any, place: str, *, with_pictures: bool = True) -> list[SetEntry]:
        """The sets of an entry of `data.splits`, which is one or a list; without pictures these need not be said.

        Raises UserError for anything else.
        """
        given = plain(entry)
        if given == []:
            raise UserError(f"{place} is an empty list: give {{annotations: …, pictures: …}}, or several of them.")
        several = isinstance(given, list)
        return [
            cls._of(one, f"{place}[{n}]" if several else place, with_pictures)
            for n, one in enumerate(given if several else [given])
        ]

    @classmethod
    def _of(cls, entry: Any, place: str, with_pictures: bool) -> SetEntry:
        optional = ("copies", "at_least", "repeat_threshold")
        needed = ("annotations", "pictures") if with_pictures else ("annotations",)
        known = {"annotations", "pictures", "class_map", "linelist"} - set(needed)
        files = checked_entry(entry, place, needed, (*sorted(known), *optional))
        for key, holds in (
            ("pictures", "pictures"),
            ("class_map", "names and indices"),
            ("linelist", "a row number a line"),
        ):
            if not isinstance(files.get(key), str | None):
                raise UserError(f"{place}.{key} is {shown(files[key])}: give a file of {holds}.")
        class_map, linelist = files.get("class_map"), files.get("linelist")
        sampling = SetSampling(**{key: files[key] for key in optional if key in files})
        if linelist is not None and replace(sampling, copies=1) != SetSampling():
            raise UserError(f"{place}: linelist says how often each picture comes, and so does a sampling: give one.")
        return cls(place, files["annotations"], files.get("pictures"), class_map, linelist, sampling)


@dataclass(frozen=True)
class UsedNames:
    """What became of a set's names, of classes or of attributes that it has objects of: name → how many.

    mapped: are in the label map; new: have come into it with this set; dropped: are in no map and left out.
    """

    mapped: Mapping[str, int]
    new: Mapping[str, int]
    dropped: Mapping[str, int]

    def __str__(self) -> str:
        told = [f"{len(self.mapped):,} names mapped"]
        for what, names in (("new", self.new), ("left out", self.dropped)):
            told += [f"{len(names):,} {what} ({_listed(names)})"] if names else []
        return ", ".join(told)


@dataclass(frozen=True)
class SetReport:
    """What is told of a set before it is used."""

    source: str
    pictures: int
    objects: int
    classes: UsedNames
    attributes: UsedNames

    def __str__(self) -> str:
        told = f"{self.source}: {self.pictures:,} pictures with {self.objects:,} objects; classes: {self.classes}"
        without = not (self.attributes.mapped or self.attributes.new or self.attributes.dropped)
        return told if without else f"{told}; attributes: {self.attributes}"


def _listed(names: Mapping[str, int]) -> str:
    """The most frequent names with their numbers."""
    most = sorted(names.items(), key=lambda one: (-one[1], one[0]))
    return ", ".join([*(f"{shown(name)} {count:,}" for name, count in most[:SHOWN]), *["…"][: len(most) > SHOWN]])


def read_sets(
    entries: Sequence[SetEntry], labels: LabelMap | None, options: InstanceOptions, source: str
) -> tuple[PictureRecords, LabelMap, list[SetReport]]:
    """The pictures of several sets, the label map that all their numbers are of, and what is to be told of each.

    Args:
        entries: the sets.
        labels: the classes and attributes that there are. A set's class map says which index a name of it has; without
            a class map that is the name's own. None: the names of all sets, in turn.
        options: what becomes of bad records, and of names that are in no map.
        source: where `labels` come from, for messages.

    Raises:
        UserError: a set cannot be used, two give one name two indices, or a class that has objects is in no map.
    """
    names = labels or LabelMap()
    parts, reports, known = [], [], dict[str, tuple[int, str]]()
    for entry in entries:
        records, own = _read(entry, options)
        before, names = names, _with_names_of(names, own) if labels is None else names
        class_map = _class_map(entry, labels, source) or map_of_names(names.classes, source)
        classes = _Naming.of("class", own.classes, class_map, len(before.classes))
        attributes = _Naming.of(
            "attribute", own.attributes, map_of_names(names.attributes, source), len(before.attributes)
        )
        classes.refuse_two_indices(known, entry)
        told = (
            classes.told(records, options.unknown_classes == "drop"),
            attributes.told(records, options.unknown_attributes == "drop"),
        )
        parts.append(records.of_set(classes=classes.indices, attributes=attributes.indices))
        reports.append(SetReport(entry.annotations, len(records), int(parts[-1].counts().sum()), *told))
    return PictureRecords.joined(parts), names, reports


def _read(entry: SetEntry, options: InstanceOptions) -> tuple[PictureRecords, LabelMap]:
    """The pictures of one set, by the content of its file, and its own label map."""
    path, pictures = Path(entry.annotations), None if entry.pictures is None else Path(entry.pictures)
    if not is_annotations(path):
        return read_instances(path, pictures, None, options)
    records, own = open_annotations(path)
    if pictures is None:
        return records, own
    return records.of_set(files=find_files(records["file_name"], records["image_id"], pictures)), own


def _with_names_of(names: LabelMap, own: LabelMap) -> LabelMap:
    """With what another set has besides, behind; the names of the first set stay as they are."""

    def joined(before: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
        known = map_of_names(before, "")
        return (*before, *(name for name in more[1:] if name and known.find(name) is None)) if before else more

    return LabelMap(joined(names.classes, own.classes), joined(names.attributes, own.attributes))


def _class_map(entry: SetEntry, labels: LabelMap | None, source: str) -> ClassMap | None:
    """The class map of a set, whose indices are all in the vocabulary; None if it has none."""
    if entry.class_map is None:
        return None
    if labels is None:
        raise UserError(f"{entry.place}.class_map gives classes of a vocabulary: give it, as data.label_map=FILE.")
    class_map = class_map_of(entry.class_map)
    for name, index in class_map.indices.items():
        if index >= len(labels.classes):
            raise UserError(
                f"{entry.class_map} has {shown(name)} as {index}, and {source} has {len(labels.classes) - 1:,} classes:"
                " give the class map and the label map of one vocabulary."
            )
    return class_map


@dataclass(frozen=True)
class _Naming:
    """What the names of a set are in the label map, of one `kind`: "class" or "attribute".

    names: (C,) its own. indices: (C,) int64, 0 for what is in no map. known: how many names there were before this set.
    """

    kind: str
    names: tuple[str, ...]
    indices: np.ndarray
    known: int
    source: str

    @classmethod
    def of(cls, kind: str, names: tuple[str, ...], given: ClassMap, known: int) -> _Naming:
        found = [given.find(name) or 0 if name and index else 0 for index, name in enumerate(names)]
        return cls(kind, names, np.array(found, dtype=np.int64), known, given.source)

    def refuse_two_indices(self, known: dict[str, tuple[int, str]], entry: SetEntry) -> None:
        """Raises UserError if a set before, of those in `known`, has another index for a name; adds this one's."""
        own = {
            name.lower(): (index, entry.annotations)
            for name, index in zip(self.names, self.indices.tolist(), strict=True)
            if index
        }
        for name, (index, _) in own.items():
            other, where = known.get(name, (index, ""))
            if other != index:
                raise UserError(
                    f"{entry.place}: {shown(name)} is class {index} in {self.source} and class {other} for {where}: "
                    "one name needs one index in all sets; correct the class maps."
                )
        known |= own

    def told(self, records: PictureRecords, dropping: bool) -> UsedNames:
        """How many objects each name has. Raises UserError for objects whose names are in no map, unless `dropping`."""
        counts = np.zeros(len(self.names), dtype=np.int64)
        for _, numbers in self._instances(records):
            counts += np.bincount(numbers, minlength=len(counts))
        mapped, new, dropped = (dict[str, int]() for _ in range(3))
        for index, count in enumerate(counts.tolist()):
            if count:
                target = self.indices[index]
                kind = dropped if not target else mapped if target < self.known or not self.known else new
                kind[self.names[index]] = count
        if dropped and not dropping:
            lost = np.flatnonzero((self.indices == 0) & (counts > 0))
            picture, index = next(
                (int(pictures[place[0]]), int(numbers[place[0]]))
                for pictures, numbers in self._instances(records)
                if len(place := np.flatnonzero(np.isin(numbers, lost)))
            )
            option = {"class": "unknown_classes", "attribute": "unknown_attributes"}[self.kind]
            remedy = "give the set a class_map" if self.kind == "class" else "add it"
            raise UserError(
                f"{records.sets[0].source}: image {shown(records['image_id'][picture])} has the {self.kind} "
                f"{shown(self.names[index])}, which {self.source} does not have ({len(dropped):,} such: "
                f"{_listed(dropped)}): {remedy}, or pass data.{option}=drop, which leaves them out."
            )
        return UsedNames(mapped, new, dropped)

    def _instances(self, records: PictureRecords) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(m,) pictures and (m,) numbers of the objects' names, of some pictures at a time; no classes of crowds."""
        if self.kind == "class":
            yield from records.labels(0).blocks()
            return
        first = 0
        for chunk in records.table["attributes"].chunks:
            objects = chunk.flatten()
            owners = np.repeat(np.arange(first, first + len(chunk)), chunk.value_lengths().to_numpy())
            yield np.repeat(owners, objects.value_lengths().to_numpy()), objects.flatten().to_numpy()
            first += len(chunk)


# Which pictures are used, and how often.


def used_rows(
    records: PictureRecords, entries: Sequence[SetEntry], options: InstanceOptions, *, training: bool, seed: int
) -> np.ndarray:
    """(E,) int32, the picture of each row of an epoch: those that are there, as often as their sets say.

    Raises UserError if pictures are missing, or a set has none with objects; a set that is not trained on has each
    picture once.
    """
    kept = records.present()
    for number in range(len(entries)):
        _refuse_missing(records, number, kept, options)
    counts = records.counts()
    if training and options.empty_pictures == "skip":
        kept &= counts > 0
    for number, entry in enumerate(entries):
        own = slice(records.starts[number], records.starts[number + 1])
        if not counts[own][kept[own]].any():
            raise UserError(
                f"{entry.annotations} has no annotated objects, so it can be neither trained on nor scored."
            )
        if not training and (entry.linelist is not None or entry.sampling != SetSampling()):
            raise UserError(f"{entry.place} has copies or a sampling, which only a set that is trained on has.")
    rows = np.flatnonzero(kept).astype(np.int32)
    if not training:
        return rows
    sampling = []
    for number, entry in enumerate(entries):
        of_set = kept[records.starts[number] : records.starts[number + 1]]
        listed = _listed_pictures(entry.linelist, of_set, entry.annotations) if entry.linelist else None
        sampling.append((replace(records.labels(number, kept), listed=listed), entry.sampling))
    return rows[sampled_rows(sampling, seed)]


def _listed_pictures(linelist: str, kept: np.ndarray, source: str) -> np.ndarray:
    """(L,) int32, which of the `kept` pictures, bool (n,), each line asks for; without those that are not."""
    rows = read_linelist(Path(linelist), len(kept), source)
    if not kept[rows].any():
        raise UserError(f"{linelist} lists no picture of {source} that is there and has objects.")
    return (np.cumsum(kept, dtype=np.int32) - 1)[rows[kept[rows]]]


def _refuse_missing(records: PictureRecords, number: int, present: np.ndarray, options: InstanceOptions) -> None:
    start, stop = records.starts[number : number + 2]
    missing, one = int((~present[start:stop]).sum()), records.sets[number]
    if not missing:
        return
    first = start + int(present[start:stop].argmin())
    assert one.files is not None
    sentence = (
        f"{one.files.folder} lacks {missing:,} of the {stop - start:,} pictures of {one.source}, the first being "
        f"{records['file_name'][first]!r} (image {records['image_id'][first]})"
    )
    if options.on_missing == "error" or missing == stop - start:
        raise UserError(f"{sentence}: give the folder that file names start from, or pass data.on_missing=skip.")
    rank_zero_warn(f"data.on_missing=skip: {sentence}; they are left out until the folder has them.")


def look_at_some(records: PictureRecords, rows: np.ndarray, reading: ReadingOptions) -> list[str]:
    """What is to be told of some pictures of each set: how many of them EXIF turns.

    Raises UserError where one is not as large as the annotations say.
    """
    used, told = np.unique(rows), []
    bounds = np.searchsorted(used, records.starts).tolist()
    for one, (start, stop) in zip(records.sets, pairwise(bounds), strict=True):
        places = np.unique(np.linspace(start, stop - 1, LOOKED_AT).astype(np.int64)).tolist()
        turned = 0
        for index in used[places].tolist():
            size, turn = size_and_turn(records.path(index), reading)
            check_size(records, index, size)
            turned += turn != UPRIGHT
        if turned:
            told.append(
                f"{one.source}: EXIF turns {turned:,} of {len(places):,} pictures that were looked at; boxes are taken "
                "to be of what a viewer shows (data.reading.exif_orientation=apply)."
            )
    return told


def check_size(records: PictureRecords, index: int, size: tuple[int, int]) -> None:
    """Raises UserError if the (width, height) of a picture as it was read is not that of its annotations."""
    width, height = records.sizes[index].tolist()
    if size != (width, height):
        raise UserError(
            f"{name_of(records.path(index))} is {size[0]} × {size[1]} pixels, and {records.source(index)} says "
            f"{width} × {height}: its boxes are of another picture, or of this one resized or not turned as EXIF says "
            "(data.reading.exif_orientation=ignore)."
        )
