"""Annotations of data sets as they are downloaded → a file in our form: `python -m vinvl.convert annotations=…`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from msgspec import Meta

from vinvl.detector.annotations import AnnotatedPicture, annotated_pictures, write_annotations
from vinvl.detector.instances import InstanceOptions, read_instances
from vinvl.detector.open_images import boxes_file, read_open_images
from vinvl.detector.tsv_sets import is_tsv_set, read_tsv_set
from vinvl.detector.visual_genome import OBJECTS, read_visual_genome
from vinvl.pictures import ReadingOptions
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes, refuse_existing, write_text_atomically
from vinvl.run.values import check_fields, shown


@dataclass(frozen=True)
class ConversionSettings:
    """What is taken of a data set's annotations. Raises UserError for a value that cannot be.

    Args:
        label_map: of Visual Genome and TSV sets: the classes and attributes to take; None: those that there are.
        least_instances: of Visual Genome without a label map: how many objects a class or an attribute has at least.
        bad_boxes, on_missing: see `InstanceOptions`.
        leave_out: names of classes to leave out with all of their objects.
        only, without: a text file of image ids, one a line, whose pictures alone are taken, or are left out.
        reading: how pictures are read whose size the annotations do not say.
    """

    label_map: str | None = None
    least_instances: Annotated[int, Meta(ge=1)] = 1
    bad_boxes: Literal["refuse", "clip"] = "refuse"
    on_missing: Literal["error", "skip"] = "error"
    leave_out: list[str] = field(default_factory=list)
    only: str | None = None
    without: str | None = None
    reading: ReadingOptions = ReadingOptions()  # noqa: RUF009, it is immutable

    def __post_init__(self) -> None:
        check_fields(self, "data.")

    @property
    def options(self) -> InstanceOptions:
        return InstanceOptions(self.bad_boxes, self.on_missing, reading=self.reading)


class ReadSet(NamedTuple):
    """What a reader gives; `rows`: (E,) int32, the picture in each place of an epoch, where the set says it."""

    labels: LabelMap
    pictures: Iterable[AnnotatedPicture]
    rows: np.ndarray | None = None


Reader = Callable[[Path, Path | None, LabelMap | None, ConversionSettings], ReadSet]


def _open_images(path: Path, pictures: Path | None, labels: LabelMap | None, settings: ConversionSettings) -> ReadSet:
    _refuse_labels(path, labels)
    if pictures is None:
        raise UserError(f"{path} does not say how large pictures are: give pictures=FOLDER, or a container of them.")
    return ReadSet(*read_open_images(path, pictures, settings.options))


def _visual_genome(folder: Path, _: Path | None, labels: LabelMap | None, settings: ConversionSettings) -> ReadSet:
    return ReadSet(*read_visual_genome(folder, labels, settings.least_instances, settings.bad_boxes))


def _tsv_set(path: Path, _: Path | None, labels: LabelMap | None, settings: ConversionSettings) -> ReadSet:
    found = read_tsv_set(path, settings.reading, labels)
    return ReadSet(found.labels, found.pictures, found.rows)


READERS: tuple[tuple[Callable[[Path], object], Reader], ...] = (
    (is_tsv_set, _tsv_set),
    (boxes_file, _open_images),
    (lambda path: (path / OBJECTS).is_file(), _visual_genome),
)
"""What tells whether a path is of a form, and its reader; all else is COCO's JSON."""


def convert_annotations(
    sources: Sequence[Path], pictures: Path | None, target: Path, settings: ConversionSettings
) -> list[str]:
    """Writes a data set's annotations to `target`, which must not exist; what is told of it.

    Pictures that the set lists more than once are written once, and its list beside the file, as NAME.linelist.tsv.

    Args:
        sources: COCO instances files, several of which are joined by image; or one set of another form.
        pictures: the folder or container of its pictures, where sizes are to be looked up in them.

    Raises:
        UserError: names file and record of what cannot be used; nothing is written then.
    """
    refuse_existing(target)
    for source in sources:
        if not source.exists():
            raise UserError(f"{source} does not exist; check the path.")
    labels = None if settings.label_map is None else LabelMap.from_file(settings.label_map)
    made_of = " and ".join(map(str, sources))
    reader = next((read for is_of, read in READERS if is_of(sources[0])), None)
    if reader is not None and len(sources) > 1:
        raise UserError(f"{made_of}: only COCO's JSON files are joined; convert each, and train on a list of sets.")
    if reader is not None:
        given = reader(sources[0], pictures, labels, settings)
    else:
        _refuse_labels(sources[0], labels)
        records, names = read_instances(list(sources), pictures, None, settings.options)
        given = ReadSet(names, annotated_pictures(records))
    linelist = target.with_suffix(".linelist.tsv")
    if given.rows is not None:
        refuse_existing(linelist)
    choice = _Choice(given.labels, settings)
    number = write_annotations(target, choice.of(given.pictures), choice.labels, made_of)
    lists = " and ".join(filter(None, (settings.only, settings.without)))
    left_out = [f"{choice.pictures:,} pictures by {lists}"] if choice.pictures else []
    left_out += [f"{choice.objects:,} objects of {', '.join(settings.leave_out)}"] if choice.objects else []
    told = [f"{target}: {number:,} pictures with {choice.kept:,} objects of {len(choice.labels.classes) - 1:,} classes"]
    if given.rows is not None:
        rows = choice.rows(given.rows)
        write_text_atomically(linelist, "".join(f"{row}\n" for row in rows.tolist()))
        told.append(f"{linelist}: {len(rows):,} rows, as {made_of} repeats pictures: data.splits.train.linelist=FILE")
    return told + ([f"Left out: {', '.join(left_out)}"] if left_out else [])


def _refuse_labels(path: Path, labels: LabelMap | None) -> None:
    if labels is not None:
        raise UserError(
            f"{path} says itself which classes there are: leave data.label_map out, and map them in training."
        )


def _ids(path: str) -> set[str]:
    found = set(read_bytes(path).decode("utf-8-sig", "replace").split())
    if not found:
        raise UserError(f"{path} holds no image ids: give a text file of an id a line.")
    return found


class _Choice:
    """Leaves pictures and classes out, and counts."""

    def __init__(self, names: LabelMap, settings: ConversionSettings) -> None:
        unknown = [name for name in settings.leave_out if name not in names.classes[1:]]
        if unknown:
            raise UserError(f"data.leave_out: there is no class {shown(unknown[0])}; write it as the data set does.")
        kept = [index for index, name in enumerate(names.classes) if not index or name not in settings.leave_out]
        self.labels = LabelMap(tuple(names.classes[index] for index in kept), names.attributes)
        self._indices = np.zeros(len(names.classes), dtype=np.int32)
        self._indices[kept] = np.arange(len(kept))
        self._only = None if settings.only is None else _ids(settings.only)
        self._without = set[str]() if settings.without is None else _ids(settings.without)
        self.pictures = self.objects = self.kept = 0
        self._left = bytearray()  # of each picture, whether it is taken

    def of(self, pictures: Iterable[AnnotatedPicture]) -> Iterator[AnnotatedPicture]:
        for one in pictures:
            self._left.append(False)
            if one.image_id in self._without or (self._only is not None and one.image_id not in self._only):
                self.pictures += 1
                continue
            labels = self._indices[one.labels]
            left = labels > 0
            self.objects += int((~left).sum())
            self.kept += int(left.sum())
            named = [numbers for numbers, keep in zip(one.attributes, left, strict=True) if keep]
            self._left[-1] = True
            yield one._replace(boxes=one.boxes[left], labels=labels[left], crowd=one.crowd[left], attributes=named)

    def rows(self, given: np.ndarray) -> np.ndarray:
        """Rows (E,) of all pictures as rows of those that are left, behind `of`; without those of others."""
        left = np.frombuffer(self._left, dtype=bool)
        numbers: np.ndarray = np.cumsum(left) - 1
        return numbers[given[left[given]]]
