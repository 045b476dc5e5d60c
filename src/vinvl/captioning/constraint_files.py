"""What constraints are made of, besides stores: detections, hierarchies and words in the files of NoCaps and Oscar."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from vinvl.regions.formats.oscar import objects_in
from vinvl.regions.formats.rows import id_in
from vinvl.run.errors import UserError
from vinvl.run.files import read_json, reading
from vinvl.run.values import checked_text

Content = TypeVar("Content")


def json_table(path: str | None, kind: type[Content], what: str) -> Content | None:
    """What a JSON file holds, which must be of such a kind; None for no file."""
    try:
        return None if path is None else msgspec.convert(read_json(Path(path)), kind)
    except msgspec.ValidationError:
        raise UserError(f"{path} holds no JSON {what}, which decoding.constraints needs there.") from None


def lines_of_tsv(path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """(file and line, columns) of every line that is not blank."""
    with reading(path), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield f"{path} line {number}", line.rstrip(b"\r\n").split(b"\t")


# Detections.


@dataclass(frozen=True)
class Detections:
    """What a detector found in an image: n names of classes, their scores (n,) and boxes (n, 4) float64."""

    classes: list[str]
    scores: np.ndarray
    boxes: np.ndarray


def read_detections(path: Path) -> Iterator[tuple[str, str, Detections]]:
    """(file and line, image id, detections) of each row of a TSV: id, JSON list of {"class", "rect", "conf"}.

    Raises UserError, naming the line, for what is no such row and for an image that comes twice.
    """
    seen: dict[str, str] = {}
    for place, columns in lines_of_tsv(path):
        try:
            image_id, found = id_in(columns[0]), objects_in(columns)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
        if (before := seen.setdefault(image_id, place)) != place:
            raise UserError(f"{place} has the image {image_id!r} of {before}; leave one of the two.")
        scores = np.array([one.score for one in found.objects], dtype=np.float64)
        yield place, image_id, Detections([one.name for one in found.objects], scores, found.boxes.astype(np.float64))


# Hierarchies of classes.


class Node(msgspec.Struct):
    """Of the tree of Open Images; `Part`, as the wheels of a car, are no kinds of it."""

    LabelName: str
    Subcategory: list["Node"] = []
    Part: list["Node"] = []


@dataclass(frozen=True)
class Hierarchy:
    """Classes in lower case.

    Attributes:
        parents: class → the class that it is a kind of.
        heights: (class, steps down to its farthest kind) in the order of a tree from the top; None if no tree was read.
    """

    parents: Mapping[str, str]
    heights: tuple[tuple[str, int], ...] | None = None

    @classmethod
    def read(cls, path: str | None) -> "Hierarchy":
        """From JSON of {class: parent} or Open Images' tree {"LabelName", "Subcategory"}; empty for no file."""
        what = "object of {class: parent}, and no tree of Open Images"
        content = json_table(path, dict[str, Any], what) or {}
        if "LabelName" not in content:
            parents = json_table(path, dict[str, str], what) or {}
            return cls({child.lower(): parent.lower() for child, parent in parents.items()})
        try:
            top = msgspec.convert(content, Node)
        except (msgspec.ValidationError, RecursionError):
            raise UserError(f"{path} holds no tree of LabelName and Subcategory; get it again.") from None
        if top.LabelName.startswith(("/m/", "/g/")):
            raise UserError(
                f"{path} calls its classes {top.LabelName!r} and so on, detections are called by names: have "
                "scripts/open_images_hierarchy.py translate it."
            )
        return cls(_parents(top), _heights(top))

    def height(self, name: str) -> int | None:
        """Of the first node whose name is within `name`, as the published filter matches them; None if none is."""
        return next((height for node, height in self.heights or () if node in name), None)


def _parents(top: Node) -> dict[str, str]:
    """Of all kinds; the top is no class, but harmless as a parent."""
    found: dict[str, str] = {}
    waiting = [top]
    while waiting:
        node = waiting.pop()
        found |= {child.LabelName.lower(): node.LabelName.lower() for child in node.Subcategory}
        waiting += [*node.Part, *node.Subcategory]
    return found


def _heights(top: Node) -> tuple[tuple[str, int], ...]:
    ordered: list[tuple[Node, int]] = []
    waiting = [(top, -1)]
    while waiting:
        node, above = waiting.pop()
        waiting += [(child, len(ordered)) for child in reversed(node.Subcategory)]
        ordered.append((node, above))
    heights = [0] * len(ordered)
    for place in range(len(ordered) - 1, 0, -1):  # kinds come after what they are kinds of
        above = ordered[place][1]
        heights[above] = max(heights[above], heights[place] + 1)
    return tuple((node.LabelName.lower(), height) for (node, _), height in zip(ordered, heights, strict=True))


# Words.


def read_word_lists(path: str | None) -> dict[str, list[str]]:
    """word → words, from JSON of {word: [word, …]} or a TSV of a word and others joined by commas; {} for no file.

    Raises UserError, naming the line, for a row of another form and a word that comes twice.
    """
    if path is None or not path.endswith(".tsv"):
        return json_table(path, dict[str, list[str]], "object of {word: [word, …]}") or {}
    found: dict[str, list[str]] = {}
    for place, columns in lines_of_tsv(Path(path)):
        try:
            texts = [checked_text(column.decode().strip(), "the row") for column in columns]
        except UnicodeDecodeError:
            raise UserError(f"{place} is no UTF-8 text; save the file as UTF-8.") from None
        words = [word.strip() for word in texts[-1].split(",") if word.strip()]
        if len(texts) != 2 or not texts[0] or not words:
            raise UserError(f"{place} is no word, tab and words joined by commas; correct the line.")
        if found.setdefault(texts[0], words) is not words:
            raise UserError(f"{place} has {texts[0]!r} a second time; leave one of the two.")
    return found
