"""A predictions.tsv, what somebody's detector says of pictures, as VinVL's code writes it, scored by annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from vinvl.data.module import split_entry
from vinvl.detector.average_precision import LAST_PIXEL, FoundBoxes, TrueBoxes
from vinvl.detector.data import DetectionDataModule
from vinvl.detector.records import PictureRecords
from vinvl.detector.scores import DetectionScores
from vinvl.detector.sets import SetEntry, read_sets
from vinvl.detector.vocabulary import ClassMap, map_of_names
from vinvl.detector.weights import read_label_map
from vinvl.regions.formats.oscar import DetectedObject, DetectedObjects, objects_in
from vinvl.regions.formats.rows import at, id_in
from vinvl.regions.formats.tsv import line_parts
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError, say
from vinvl.run.progress import progress
from vinvl.run.values import shown

TOLERANCE = 2.0  # pixels that a box may reach out of its picture
FEW = 0.01  # share of the boxes that may reach further
IN_SHARES = 1.5  # pixels within which all boxes are only if they are given in something else
SHOWN = 5  # names
REFUSE, DROP = "refuse", "drop"
NOTHING = FoundBoxes(np.zeros((0, 4)), *np.zeros((2, 0), np.int64), *np.zeros((2, 0, 0), np.int64))


def read_annotated(data: DetectionDataModule) -> tuple[PictureRecords, LabelMap]:
    """The annotated pictures of the test split and what their numbers stand for; no picture is looked for.

    Raises UserError if the annotations cannot be used, or two pictures have one id.
    """
    split = data.split_of["test"]
    entries = SetEntry.all_of(split_entry(data.splits, split), f"data.splits.{split}", with_pictures=False)
    labels = None if data.label_map_file is None else read_label_map(data.label_map_file)
    source = data.label_map_file or f"data.splits.{split}"
    records, labels, reports = read_sets(entries, labels, data.options, source)
    say(*reports)
    return records, labels


@dataclass
class Names:
    """Which classes and attributes of a label map the names in a file are.

    Attributes:
        drop: unknown names are left out and counted, not refused.
        dropped: how often each was said.
    """

    classes: ClassMap
    attributes: ClassMap
    drop: bool
    dropped: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, labels: LabelMap, *, drop: bool) -> Names:
        source = "the label map"
        return cls(map_of_names(labels.classes, source), map_of_names(labels.attributes, source), drop)

    def found(self, objects: DetectedObjects) -> FoundBoxes:
        """What evaluation takes. Raises UserError for a name that is unknown, or a rect that is none."""
        boxes = np.array([one.rect for one in objects.objects], dtype=np.float64).reshape(-1, 4)
        if (wrong := (boxes[:, 2:] < boxes[:, :2]).any(axis=1)).any():
            rect = shown(boxes[wrong.argmax()].tolist())
            raise UserError(f"the rect {rect} of object {int(wrong.argmax()) + 1} is not x1, y1, x2, y2.")
        labels = np.array([self._index(self.classes, one.name, "class") for one in objects.objects], dtype=np.int64)
        scores = np.array([one.score for one in objects.objects], dtype=np.float64)
        named = [self._attributes(one) for one in objects.objects]
        most = max(map(len, named), default=0)
        attributes, sure = np.zeros((len(named), most), np.int64), np.zeros((len(named), most))
        for row, pairs in enumerate(named):
            for place, (score, index) in enumerate(pairs):
                attributes[row, place], sure[row, place] = index, score
        known = labels > 0
        return FoundBoxes(boxes[known] + LAST_PIXEL, labels[known], scores[known], attributes[known], sure[known])

    def _attributes(self, one: DetectedObject) -> list[tuple[float, int]]:
        """(score, index) of the attributes that have a score, the most likely first."""
        names = (one.attributes or ()) if one.attr_scores else ()
        said = ((score, name) for score, name in zip(one.attr_scores, names, strict=True) if score != 0)
        found = [(score, self._index(self.attributes, name, "attribute")) for score, name in said]
        return sorted((pair for pair in found if pair[1]), key=lambda pair: -pair[0])

    def _index(self, known: ClassMap, name: str, kind: str) -> int:
        index = known.find(name)
        if index is None and not self.drop:
            raise UserError(
                f"there is no {kind} {shown(name)} among those of the annotations: give the label map of both with "
                "data.label_map=FILE, or pass unknown_names=drop, which leaves such out."
            )
        if index is None:
            self.dropped[name] += 1
        return index or 0


@dataclass
class Frame:
    """Watches whether boxes are in pixels of the original pictures."""

    boxes: int = 0
    outside: int = 0
    largest: float = 0.0
    first: str = ""  # which reaches out of its picture

    def look(self, found: DetectedObjects, size: tuple[int, int], place: str) -> None:
        """Raises UserError if the file says another size of the picture than its annotations do."""
        if found.size is not None and found.size != size:
            (width, height), (other_width, other_height) = found.size, size
            raise UserError(
                f"the picture is {width} × {height} pixels, and its annotations say {other_width} × {other_height}: "
                "boxes must be of the original picture."
            )
        boxes = found.boxes
        limits = np.array(size) + TOLERANCE
        outside = ((boxes[:, :2] < -TOLERANCE) | (boxes[:, 2:] > limits)).any(axis=1)
        if outside.any() and not self.first:
            rect = ", ".join(f"{side:.0f}" for side in boxes[outside.argmax()])
            self.first = f"{place}: the rect {rect} in a picture of {size[0]} × {size[1]}"
        self.boxes += len(boxes)
        self.outside += int(outside.sum())
        self.largest = max(self.largest, float(boxes.max(initial=0.0)))

    def note(self, path: Path) -> str | None:
        """What is to be told. Raises UserError if the boxes of a file are in something else than these pixels."""
        if self.boxes and self.largest <= IN_SHARES:
            raise UserError(
                f"{path}: no box reaches beyond pixel {self.largest:.1f}: boxes are expected in pixels of the original "
                "pictures, not in shares of them."
            )
        if self.outside > FEW * self.boxes:
            raise UserError(
                f"{self.first} reaches out of it, and so do {self.outside:,} of {self.boxes:,} boxes: they are not in "
                "pixels of the original pictures, or of pictures that EXIF has turned; bring them into these."
            )
        return f"{self.outside:,} of {self.boxes:,} boxes reach out of their pictures" if self.outside else None


def read_predictions(path: Path) -> Iterator[tuple[str, str, DetectedObjects]]:
    """(place for messages, image id, objects) of each line of a TSV: key, and {"objects": […]} or the list alone.

    Raises UserError, naming the line, for what is none.
    """
    before = 0
    for part in line_parts(path):
        number = before
        for number, (_, columns, _, _) in enumerate(part.rows(), start=before + 1):
            if columns:
                with at(f"{path} line {number}"):
                    image_id = id_in(columns[0])
                place = f"{path} line {number}, image {image_id!r}"
                with at(place):
                    objects = objects_in(columns)
                yield place, image_id, objects
        before = number


Update = Callable[[int, FoundBoxes, TrueBoxes], None]


def score_file(path: Path, records: PictureRecords, names: Names, update: Update) -> tuple[np.ndarray, list[str]]:
    """Gives each picture that a file has to `update`, with its objects; nothing grows with the file.

    Returns bool (N,), which pictures these are, and what is to be told.

    Raises:
        UserError: the file has a line that is wrong, or an image that is not annotated, or twice; its boxes are not in
            pixels of the original pictures, or have no scores.
    """
    places, frame, scored, named, described = _places(records), Frame(), False, False, False
    seen = np.zeros(len(records), dtype=bool)
    with progress("images", len(records)) as show:
        for place, image_id, objects in read_predictions(path):
            if (index := places.get(image_id)) is None:
                raise UserError(f"{place} is not annotated: give the annotations that the file is for.")
            if seen[index]:
                raise UserError(f"{place} comes twice: give every image one line.")
            seen[index] = True
            with at(place):
                frame.look(objects, (int(records.sizes[index][0]), int(records.sizes[index][1])), place)
                found = names.found(objects)
            scored |= any(one.score for one in objects.objects)
            named |= any(one.attributes for one in objects.objects)
            described |= any(any(one.attr_scores) for one in objects.objects)
            update(index, found, records.objects(index))
            show(int(seen.sum()))
    if not seen.any():
        raise UserError(f"{path} holds no predictions.")
    if frame.boxes and not scored:
        raise UserError(f"{path}: no object has a conf, by which boxes are ordered: write the detector's scores too.")
    notes = [frame.note(path)]
    if named and not described:
        notes.append("its attributes have no scores (attr_scores), and so none of them counts")
    if names.dropped:
        most = ", ".join(f"{shown(name)} {count:,}" for name, count in names.dropped.most_common(SHOWN))
        notes.append(f"{len(names.dropped):,} unknown names left out ({most})")
    return seen, [f"{path}: {note}." for note in notes if note]


def score_predictions(
    path: Path,
    on_true_boxes: Path | None,
    records: PictureRecords,
    labels: LabelMap,
    scores: DetectionScores,
    unknown: str,
) -> list[str]:
    """Scores a detector's file of found boxes and, if there is one, that of what it says of the true boxes.

    Returns what is to be told. Annotated pictures that the file does not have count as pictures without boxes. Raises
    UserError as `score_file`, or for another `unknown` than "refuse" and "drop", what is done with unknown names.
    """
    if unknown not in (REFUSE, DROP):
        raise UserError(f"unknown_names={unknown} is unknown: give {REFUSE} or {DROP}.")
    seen, notes = score_file(path, records, Names.of(labels, drop=unknown == DROP), scores.update)
    missing = np.flatnonzero(~seen).tolist()
    for index in missing:
        scores.update(index, NOTHING, records.objects(index))
    if missing:
        notes.append(
            f"{path} lacks {len(missing):,} of the {len(records):,} annotated images, such as "
            f"{shown(records['image_id'][missing[0]])}: they count as images without boxes, whose objects Visual "
            "Genome's AP leaves out."
        )
    if on_true_boxes is not None:
        names = Names.of(labels, drop=unknown == DROP)
        notes += score_file(on_true_boxes, records, names, scores.update_on_true_boxes)[1]
    return notes


def _places(records: PictureRecords) -> dict[str, int]:
    """Image id → index. Raises UserError if two sets have one id, so that nobody knows which is meant."""
    places: dict[str, int] = {}
    for index, image_id in enumerate(records["image_id"]):
        if places.setdefault(image_id, index) != index:
            raise UserError(
                f"{records.source(index)} has an image {shown(image_id)}, and so has "
                f"{records.source(places[image_id])}: score predictions against one set at a time."
            )
    return places
