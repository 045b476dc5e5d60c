"""The regions of one image: what a store gives out and a writer takes in."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np

from vinvl.run.errors import UserError
from vinvl.run.values import shown

# The label map: which class and attribute name an index stands for.


BACKGROUND = "__background__"
NO_ATTRIBUTE = "__no_attribute__"


@dataclass(frozen=True)
class LabelMap:
    """Names by index: `classes[0]` is the background, `attributes[0]` means "no attribute".

    An empty tuple says that the names are not known; indices are then only required not to be negative.
    """

    classes: tuple[str, ...]
    attributes: tuple[str, ...]

    def to_json(self) -> str:
        """The label map as ASCII JSON with the four keys of the published label-map files."""
        return json.dumps(
            {
                "label_to_idx": _index_of_names(self.classes),
                "attribute_to_idx": _index_of_names(self.attributes),
                "idx_to_label": {str(index): name for index, name in enumerate(self.classes)},
                "idx_to_attribute": {str(index): name for index, name in enumerate(self.attributes)},
            }
        )

    @classmethod
    def from_json(cls, text: str, source: str = "the label map") -> LabelMap:
        """Read the published label-map JSON; index 0 may be left out, as it is in the published files.

        `source` names the origin of the text in messages. `idx_to_label` is read where present, `label_to_idx`
        otherwise, and the two must agree; the attribute keys may both be missing.
        Raises UserError for anything that is not such a label map.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source} is not valid JSON ({error}); give the detector's label-map file.") from None
        if not isinstance(content, dict):
            raise UserError(f"{source} is not a JSON object; give the detector's label-map file.")
        if "label_to_idx" not in content and "idx_to_label" not in content:
            raise UserError(f"{source} has neither label_to_idx nor idx_to_label; give the detector's label-map file.")
        return cls(
            classes=_read_names(content, "label", BACKGROUND, source),
            attributes=_read_names(content, "attribute", NO_ATTRIBUTE, source),
        )


def _index_of_names(names: tuple[str, ...]) -> dict[str, int]:
    indices: dict[str, int] = {}
    for index, name in enumerate(names):
        indices.setdefault(name, index)
    return indices


def _read_names(content: dict[str, object], kind: str, name_of_zero: str, source: str) -> tuple[str, ...]:
    """The names of one kind ("label" or "attribute") in the order of their indices."""
    forward, backward = content.get(f"{kind}_to_idx", {}), content.get(f"idx_to_{kind}", {})
    if not isinstance(forward, dict) or not isinstance(backward, dict):
        raise UserError(f"{source}: {kind}_to_idx and idx_to_{kind} must be JSON objects.")
    by_index: dict[int, str] = {}
    for key, name in backward.items():
        by_index[_checked_index(key, kind, source)] = _checked_name(name, kind, source)
    for name, value in forward.items():
        index = _checked_index(value, kind, source)
        if by_index.setdefault(index, _checked_name(name, kind, source)) != name:
            raise UserError(
                f"{source}: {kind} {index} has the names {shown(by_index[index])} and {shown(name)}, not one."
            )
    if not by_index:
        return ()
    by_index.setdefault(0, name_of_zero)
    missing = next((index for index in range(len(by_index)) if index not in by_index), None)
    if missing is not None:
        raise UserError(f"{source}: {kind} index {missing} has no name although higher indices do.")
    return tuple(by_index[index] for index in range(len(by_index)))


def _checked_index(value: object, kind: str, source: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**9:
        return value
    raise UserError(f"{source}: {str(value)[:40]!r} is not a {kind} index; indices are whole numbers from 0.")


def _checked_name(name: object, kind: str, source: str) -> str:
    if isinstance(name, str):
        try:
            name.encode("utf-8")
            return name
        except UnicodeEncodeError:
            pass
    raise UserError(f"{source}: a {kind} name is {ascii(name)[:40]}; names are Unicode text.")


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


# Where the regions of images come from: a store, or what a detector has just found.


class RegionSource(Protocol):
    """Images named by their position, 0 ≤ index < N, with their regions."""

    @property
    def num_regions(self) -> np.ndarray:
        """(N,) int64, regions of each image."""

    @property
    def feature_dim(self) -> int:
        """D"""

    @property
    def label_map(self) -> LabelMap:
        """The names of classes and attributes."""

    def at(self, index: int, /) -> Regions:
        """The regions of an image."""

    def classes_at(self, index: int, /) -> np.ndarray:
        """(R,) int32, `at(index).classes`."""
