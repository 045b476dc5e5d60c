"""The regions of one image: what a store gives out and a writer takes in."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from vinvl.run.errors import UserError
from vinvl.run.values import shown

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
        kinds = {"label": self.classes, "attribute": self.attributes}
        forward: dict[str, dict[str, Any]] = {f"{kind}_to_idx": first_indices(names) for kind, names in kinds.items()}
        backward = {f"idx_to_{kind}": {str(n): name for n, name in enumerate(names)} for kind, names in kinds.items()}
        return json.dumps(forward | backward)

    @classmethod
    def from_json(cls, text: str, source: str = "the label map") -> LabelMap:
        """Read the published label-map JSON; index 0 may be left out, as it is in the published files.

        `source` names the origin of the text in messages. `idx_to_label` is read where present, `label_to_idx`
        otherwise, and the two must agree; the attribute keys may both be missing.
        Raises UserError for anything that is not such a label map.
        """
        remedy = "give the detector's label-map file"
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source} is not valid JSON ({error}); {remedy}.") from None
        if not isinstance(content, dict):
            raise UserError(f"{source} is not a JSON object; {remedy}.")
        if not content.keys() & {"label_to_idx", "idx_to_label"}:
            raise UserError(f"{source} has neither label_to_idx nor idx_to_label; {remedy}.")
        classes = _read_names(content, "label", BACKGROUND, source)
        return cls(classes, _read_names(content, "attribute", NO_ATTRIBUTE, source))


def first_indices(names: Sequence[str]) -> dict[str, int]:
    """The index of each name, the first where it comes twice, as in the published label map."""
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
    # Of two names of one index in idx_to_… (1 and 01) the last counts.
    for key, given in backward.items():
        by_index[_checked_index(key, kind, source)] = _checked_name(given, kind, source)
    for given, value in forward.items():
        index, name = _checked_index(value, kind, source), _checked_name(given, kind, source)
        if by_index.setdefault(index, name) != name:
            both = f"{shown(by_index[index])} and {shown(name)}"
            raise UserError(f"{source}: {kind} {index} has the names {both}, not one.")
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
    if type(value) is int and 0 <= value < 10**9:
        return value
    raise UserError(f"{source}: {str(value)[:40]!r} is not a {kind} index; indices are whole numbers from 0.")


def _checked_name(name: object, kind: str, source: str) -> str:
    if isinstance(name, str) and not any("\ud800" <= character <= "\udfff" for character in name):
        return name
    raise UserError(f"{source}: a {kind} name is {ascii(name)[:40]}; names are Unicode text.")


FEATURES = "features"
ROW_DTYPES: dict[str, str] = {
    "boxes": "<f4",
    "classes": "<i4",
    "class_scores": "<f4",
    "attributes": "<i4",
    "attribute_scores": "<f4",
}
ROW_ARRAYS = (FEATURES, *ROW_DTYPES)
MAX_ID_BYTES = 255
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
        """(min(R, limit), D+6) float32 region rows in the order of the store: the feature, then the box geometry."""
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


@dataclass(frozen=True)
class StoreAttributes:
    """What a store file says about all of its images; the provenance, of types that JSON has, makes no difference."""

    feature_dim: int
    feature_dtype: np.dtype
    num_attributes: int
    detector: str
    label_map: LabelMap
    provenance: Mapping[str, Any] | None = field(default=None, compare=False)

    def row_shape(self, name: str) -> tuple[int, ...]:
        """The shape of one row of a row array."""
        own: dict[str, tuple[int, ...]] = {FEATURES: (self.feature_dim,), "boxes": (4,)}
        return own.get(name, (self.num_attributes,) if name.startswith("attribute") else ())

    def row_dtype(self, name: str) -> np.dtype:
        return self.feature_dtype if name == FEATURES else np.dtype(ROW_DTYPES[name])


# The checks that one image's regions must pass to be written.

_MAX_INT32 = 2**31 - 1


def checked_arrays(regions: Regions, attributes: StoreAttributes) -> dict[str, np.ndarray]:
    """The six row arrays in the data types of the layout, and `sizes` (1, 2).

    Boxes must be finite but may leave the image: detectors do not clip them. Raises UserError naming the image.
    """
    try:
        count = np.shape(regions.features)[0] if np.ndim(regions.features) else 0
        arrays = {}
        for name in ROW_ARRAYS:
            shape, dtype = (count, *attributes.row_shape(name)), attributes.row_dtype(name)
            array = np.asarray(getattr(regions, name))
            if array.shape != shape:
                raise UserError(f"{name} have shape {array.shape}, {shape} was expected.")
            if dtype.kind == "f":
                arrays[name] = finite(array, name, dtype)
            else:
                arrays[name] = _indices(array, name, len(getattr(attributes.label_map, name)))
        sizes = _size(regions.width, "width"), _size(regions.height, "height")
        return arrays | {"sizes": np.array([sizes], dtype="<i4")}
    except UserError as error:
        raise UserError(f"image {regions.image_id!r}: {error}") from None


def encoded_id(image_id: object) -> bytes:
    """The UTF-8 bytes of an image id. Raises UserError if it is no text, empty, too long or holds NUL."""
    if not isinstance(image_id, str):
        kind = type(image_id).__name__
        raise UserError(f"image id {image_id!r} is of type {kind}; image ids are text: pass str(id).")
    try:
        encoded = image_id.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"image id {image_id!r} is not valid Unicode text; choose another id.") from None
    if not encoded or b"\0" in encoded or len(encoded) > MAX_ID_BYTES:
        raise UserError(
            f"image id {image_id[:40]!r} ({len(encoded)} bytes) is refused; ids have 1 to {MAX_ID_BYTES} bytes, no NUL."
        )
    return encoded


def finite(array: np.ndarray, name: str, dtype: np.dtype) -> np.ndarray:
    """Floats of that type, C-contiguous. Raises UserError for NaN, infinity and what the type cannot hold."""
    if array.dtype.kind not in "fiu" and array.size:
        raise UserError(f"{name} are of type {array.dtype}, numbers were expected.")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(array, dtype=dtype)
    if not all_finite(converted):
        reason = "NaN or infinite values" if not np.isfinite(array).all() else f"values too large for {dtype}"
        raise UserError(f"{name} hold {reason}; extract the image again.")
    return converted


def all_finite(array: np.ndarray) -> bool:
    """Whether a C-contiguous array of floats is free of NaN and infinity."""
    if array.dtype == np.float16:  # of which NumPy looks at one number after the other: 30 times as long
        return int((array.view(np.uint16) & 0x7FFF).max(initial=0)) < 0x7C00
    return bool(np.isfinite(array).all())


def _indices(array: np.ndarray, name: str, names: int) -> np.ndarray:
    """Indices into a list of `names` names; 0 names means that the list is not known."""
    if array.size:
        if array.dtype.kind not in "iu":
            raise UserError(f"{name} are of type {array.dtype}, whole numbers were expected.")
        low, high = int(array.min()), int(array.max())
        limit = names - 1 if names else _MAX_INT32
        if low < 0 or high > limit:
            raise UserError(f"{name} run from {low} to {high}, the label map allows 0 to {limit}.")
    return np.ascontiguousarray(array, dtype="<i4")


def _size(value: object, name: str) -> int:
    try:
        size = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        size = 0
    if not 0 < size <= _MAX_INT32:
        raise UserError(f"{name} is {value!r}, a positive number of pixels was expected.")
    return size


class RegionSource(Protocol):
    """Images named by their position, 0 ≤ index < N, with their regions: a store, or what a detector has just found."""

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
