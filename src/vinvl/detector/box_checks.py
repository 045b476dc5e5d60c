"""Boxes of data sets that are read picture by picture: held against their picture, all together against the unit."""

from __future__ import annotations

from typing import Literal

import numpy as np

from vinvl.detector.instances import FEW, FIRST_PIXEL, ROUNDING, TOLERANCE
from vinvl.run.errors import UserError, say
from vinvl.run.values import shown

HALF = 0.5


class BoxChecks:
    """Clips boxes, and counts what speaks for another unit, or for other pictures, in a whole data set.

    Args:
        source: what is read, for messages.
        bad_boxes: "refuse" boxes that reach out of their picture or have no area; "clip" them to it, and leave out what
            has no area then; "keep" clips them as published, so that each has one pixel at least, and keeps all.
    """

    def __init__(self, source: str, bad_boxes: Literal["refuse", "clip", "keep"]) -> None:
        self.source, self.bad_boxes = source, bad_boxes
        self.boxes = self.outside = self.lost = self.annotated = self.in_shares = 0
        self._example, self._counted_in = "", int(bad_boxes == "keep")  # of given boxes' last pixels, before they came

    def within(self, boxes: np.ndarray, size: tuple[int, int], place: str) -> tuple[np.ndarray, np.ndarray]:
        """(m, 4) float64 x1 y1 x2 y2, clipped to their picture, and (m,) bool: which of them are left.

        boxes: (m, 4) numbers in pixels, far edges not counted in. size: (width, height). place: names the picture.

        Raises UserError for a bad box where these are refused.
        """
        limits = np.array([*size, *size], dtype=np.float64)
        clipped = np.clip(boxes, 0, limits)
        outside = (np.abs(clipped - boxes) > TOLERANCE).any(axis=1)
        empty = (clipped[:, :2] >= clipped[:, 2:]).any(axis=1)
        bad = outside | empty
        if self.bad_boxes == "refuse" and bad.any():
            first = int(bad.argmax())
            what = "has no area" if empty[first] and not outside[first] else "is not within its picture of"
            what += "" if what.endswith("area") else f" {size[0]} × {size[1]}"
            remedy = "correct it, or pass data.bad_boxes=clip, which cuts off at the border and leaves out what has no "
            raise UserError(f"{place}: box {first + 1}, {shown(_corners(boxes[first]))}, {what}: {remedy}area.")
        if len(boxes):
            self.annotated += 1
            if boxes.max() - self._counted_in <= 1 + ROUNDING and min(size) > FIRST_PIXEL:
                self.in_shares += 1
                self._example = self._example or f"{place} ({size[0]} × {size[1]})"
        self.boxes, self.outside = self.boxes + len(boxes), self.outside + int(outside.sum())
        self.lost += int(empty.sum())
        if self.bad_boxes == "keep":
            return np.clip(boxes, (0, 0, 1, 1), limits - (1, 1, 0, 0)), np.ones(len(boxes), dtype=bool)
        return clipped, ~empty

    def finish(self) -> None:
        """Tells what clipping has changed. Raises UserError for boxes in another unit, or of other pictures."""
        if self.in_shares > FEW * self.annotated:
            raise UserError(
                f"{self.source}: no box of {self._example} reaches beyond pixel 1 ({self.in_shares:,} of "
                f"{self.annotated:,} pictures are so): boxes are expected in pixels, not in shares of the picture."
            )
        if self.lost > HALF * self.boxes:
            raise UserError(
                f"{self.source}: {self.lost:,} of {self.boxes:,} boxes are outside their pictures or have no area: "
                "they are of other pictures, or of another size of them."
            )
        if self.outside or self.lost:
            kept = "kept, though not learnt from" if self.bad_boxes == "keep" else "left out"
            say(
                f"{self.source}: {self.outside:,} of {self.boxes:,} boxes reached out of their picture and are cut off "
                f"at its border; {self.lost:,} of all have no area within it and are {kept}."
            )


def _corners(box: np.ndarray) -> list[float]:
    return [round(float(side), 2) for side in box]
