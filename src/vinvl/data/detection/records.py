"""Annotated pictures in a few arrays, which worker processes share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vinvl.data.columns import TextColumn
from vinvl.metrics.detection_matching import TrueBoxes


@dataclass(frozen=True, eq=False)
class PictureRecords:
    """N pictures with M annotated objects in all; those of picture i are `offsets[i]` to `offsets[i + 1]`."""

    source: str  # the annotation file, for messages
    folder: Path  # where the pictures lie
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
