"""What a model says of a picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vinvl.data.store import LabelMap, Regions
from vinvl.errors import printable

SHOWN = 20  # regions, when they are printed
ATTRIBUTES_SHOWN = 3  # of a region


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        answer: the best one.
        score: its probability; of models trained with the bce loss independent of the other answers'.
        top: the best answers with their probabilities, best first.
    """

    answer: str
    score: float
    top: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return printable(f"{self.answer} ({self.score:.3f})")


@dataclass(frozen=True)
class Caption:
    """The caption of a picture.

    Attributes:
        text: the best one.
        score: its log-probability, as the search scores it (`GeneratedCaptions`); compares captions of one search.
        top: all `num_return_sequences` captions with their scores, best first; samples in the order they were drawn.
    """

    text: str
    score: float
    top: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return printable(self.text)


@dataclass(frozen=True, eq=False, repr=False)
class PictureRegions:
    """The R regions of a picture, by falling score.

    Attributes:
        name: of the picture: its path, or its image id in a store.
        regions: with boxes, features, scores and numbers of classes and attributes.
        label_map: what the numbers mean; may be without names.
    """

    name: str
    regions: Regions
    label_map: LabelMap

    def __len__(self) -> int:
        return len(self.regions)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels"""
        return self.regions.width, self.regions.height

    @property
    def boxes(self) -> np.ndarray:
        """(R, 4) float32: x1, y1, x2, y2 in pixels"""
        return self.regions.boxes

    @property
    def features(self) -> np.ndarray:
        """(R, D) in the data type of stores"""
        return self.regions.features

    @property
    def scores(self) -> np.ndarray:
        """(R,) float32, of the classes"""
        return self.regions.class_scores

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """R names"""
        return tuple(_name(self.label_map.classes, "class", int(index)) for index in self.regions.classes)

    @cached_property
    def attributes(self) -> tuple[tuple[tuple[str, float], ...], ...]:
        """Of each region the names and scores of its attributes, surest first."""
        names, found = self.label_map.attributes, self.regions
        return tuple(
            tuple((_name(names, "attribute", int(i)), float(score)) for i, score in zip(row, scores, strict=True) if i)
            for row, scores in zip(found.attributes, found.attribute_scores, strict=True)
        )

    def __repr__(self) -> str:
        width, height = self.size
        return f"PictureRegions({self.name!r}: {len(self)} regions of {width} × {height} pixels)"

    def __str__(self) -> str:
        width, height = self.size
        lines = [f"{self.name}: {len(self)} regions of {width} × {height} pixels"]
        longest = max((len(name) for name in self.classes[:SHOWN]), default=0)
        for name, score, attributes, box in zip(
            self.classes[:SHOWN], self.scores, self.attributes, self.boxes, strict=False
        ):
            place = " ".join(f"{value:6.0f}" for value in box)
            described = ", ".join(f"{word} {share:.2f}" for word, share in attributes[:ATTRIBUTES_SHOWN])
            lines.append(f"  {score:.2f}  {name:<{longest}}  {place}  {described}".rstrip())
        if len(self) > SHOWN:
            lines.append(f"  … and {len(self) - SHOWN} more")
        return "\n".join(map(printable, lines))


def _name(names: tuple[str, ...], kind: str, index: int) -> str:
    return names[index] if names else f"{kind} {index}"
