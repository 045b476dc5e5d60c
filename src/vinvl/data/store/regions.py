"""The regions of one image: what a store gives out and a writer takes in."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from vinvl.errors import UserError

ROW_ARRAYS = ("features", "boxes", "classes", "class_scores", "attributes", "attribute_scores")
BOX_NUMBERS = 6  # a region row is the feature followed by six numbers of its box


@dataclass(frozen=True, eq=False)
class Regions:
    """R regions of one image.

    image_id          text; COCO's integer ids are written in decimal
    features          (R, D) float16 or float32, the detector's region features
    boxes             (R, 4) float32, absolute x1 y1 x2 y2 in pixels, not clipped to the image
    classes           (R,) int32, index into `LabelMap.classes`, 0 = background
    class_scores      (R,) float32
    attributes        (R, K) int32, index into `LabelMap.attributes`, 0 = none; K may be 0
    attribute_scores  (R, K) float32
    width, height     of the image in pixels
    source            the file that the regions were read from, "" if made in memory
    """

    image_id: str
    features: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    class_scores: np.ndarray
    attributes: np.ndarray
    attribute_scores: np.ndarray
    width: int
    height: int
    source: str = ""

    def __len__(self) -> int:
        return len(self.boxes)

    def box_geometry(self) -> np.ndarray:
        """(R, 6) float32: x1/W, y1/H, x2/W, y2/H, (x2-x1)/W, (y2-y1)/H, all computed in float32.

        The six numbers that the published region rows append to each feature (Oscar, VinVL).
        """
        return box_geometry(self.boxes, np.array([(self.width, self.height)], dtype=np.float32))

    def rows(self, limit: int | None = None) -> np.ndarray:
        """(min(R, limit), D+6) float32 region rows: the feature followed by the box geometry.

        The first `limit` regions are taken in the order of the store; None takes all.
        """
        count = len(self) if limit is None else min(len(self), limit)
        rows = np.empty((count, self.features.shape[1] + BOX_NUMBERS), dtype=np.float32)
        rows[:, :-BOX_NUMBERS] = self.features[:count]
        rows[:, -BOX_NUMBERS:] = self.box_geometry()[:count]
        return rows

    @property
    def feature_layout(self) -> tuple[int, np.dtype]:
        """D and the data type of the features."""
        return self.features.shape[1], self.features.dtype

    def features_into(self, out: np.ndarray) -> None:
        """Fills `out`, (r, D) of the features' data type, with the features of the first r regions, r <= R."""
        out[...] = self.features[: len(out)]

    def check_finite(self) -> None:
        """Raise UserError if a feature or a box coordinate is NaN or infinite.

        `rows` does not look, being called for every sample; call this where a run first meets its data.
        """
        for name, array in (("features", self.features), ("boxes", self.boxes)):
            finite = np.isfinite(array).all(axis=1)
            if not finite.all():
                raise UserError(
                    f"{self.source or 'the store'}: image {self.image_id!r} has NaN or infinite {name} in region "
                    f"{int(np.argmin(finite))}; extract the image again."
                )


class StoredImage(Protocol):
    """What reads the arrays of one image of a file."""

    @property
    def feature_layout(self) -> tuple[int, np.dtype]: ...

    def read(self, name: str, /) -> np.ndarray: ...

    def features_into(self, out: np.ndarray, /) -> None: ...


class StoredRegions(Regions):
    """The regions of an image in a store: an array is read when it is first asked for."""

    @classmethod
    def of(cls, stored: StoredImage, image_id: str, width: int, height: int, source: str) -> StoredRegions:
        regions = object.__new__(cls)
        regions.__dict__.update(_stored=stored, image_id=image_id, width=width, height=height, source=source)
        return regions

    @property
    def feature_layout(self) -> tuple[int, np.dtype]:
        layout: tuple[int, np.dtype] = self.__dict__["_stored"].feature_layout
        return layout

    def features_into(self, out: np.ndarray) -> None:
        if "features" in self.__dict__:
            super().features_into(out)
        else:
            self.__dict__["_stored"].features_into(out)

    def __getattr__(self, name: str) -> np.ndarray:
        if name not in ROW_ARRAYS or "_stored" not in self.__dict__:
            raise AttributeError(name)
        array: np.ndarray = self.__dict__["_stored"].read(name)
        self.__dict__[name] = array
        return array

    def __reduce__(self) -> tuple[type[Regions], tuple[object, ...]]:
        """What travels to another process has its arrays with it."""
        return Regions, tuple(getattr(self, field.name) for field in fields(self))


def box_geometry(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(R, 6) float32 of boxes (R, 4) float32, as `Regions.box_geometry`.

    Args:
        sizes: (R, 2) or (1, 2) float32, width and height of each box's image.
    """
    geometry = np.empty((len(boxes), BOX_NUMBERS), dtype=np.float32)
    np.divide(boxes[:, 0:2], sizes, out=geometry[:, 0:2])
    np.divide(boxes[:, 2:4], sizes, out=geometry[:, 2:4])
    np.divide(boxes[:, 2:4] - boxes[:, 0:2], sizes, out=geometry[:, 4:6])
    return geometry
