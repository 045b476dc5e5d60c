"""The checks that one image's regions must pass to be written."""

from __future__ import annotations

import operator
from dataclasses import dataclass

import numpy as np

from vinvl.regions.layout import MAX_ID_BYTES
from vinvl.regions.regions import LabelMap, Regions
from vinvl.run.errors import UserError

_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True)
class RegionChecker:
    """What all images of one store have in common, and the check of an image against it."""

    feature_dim: int
    feature_dtype: np.dtype
    num_attributes: int
    label_map: LabelMap

    def checked_arrays(self, regions: Regions) -> dict[str, np.ndarray]:
        """The six row arrays in the data types of the layout, and `sizes` (1, 2).

        Boxes must be finite but may leave the image: detectors do not clip them. Raises UserError naming the image.
        """
        image = f"image {regions.image_id!r}"
        count, attributes = np.shape(regions.features)[0] if np.ndim(regions.features) else 0, self.num_attributes
        arrays = {
            "features": _numbers(regions.features, "features", (count, self.feature_dim), self.feature_dtype, image),
            "boxes": _numbers(regions.boxes, "boxes", (count, 4), np.dtype("<f4"), image),
            "class_scores": _numbers(regions.class_scores, "class_scores", (count,), np.dtype("<f4"), image),
            "attribute_scores": _numbers(
                regions.attribute_scores, "attribute_scores", (count, attributes), np.dtype("<f4"), image
            ),
            "classes": _indices(regions.classes, "classes", (count,), len(self.label_map.classes), image),
            "attributes": _indices(
                regions.attributes, "attributes", (count, attributes), len(self.label_map.attributes), image
            ),
        }
        width, height = _size(regions.width, "width", image), _size(regions.height, "height", image)
        arrays["sizes"] = np.array([[width, height]], dtype="<i4")
        return arrays


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


def _numbers(values: object, name: str, shape: tuple[int, ...], dtype: np.dtype, image: str) -> np.ndarray:
    array = _shaped(values, name, shape, image)
    if array.dtype.kind not in "fiu" and array.size:
        raise UserError(f"{image}: {name} are of type {array.dtype}, numbers were expected.")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(array, dtype=dtype)
    if not all_finite(converted):
        reason = "NaN or infinite values" if not np.isfinite(array).all() else f"values too large for {dtype}"
        raise UserError(f"{image}: {name} hold {reason}; extract the image again.")
    return converted


def all_finite(array: np.ndarray) -> bool:
    """Whether a C-contiguous array of floats is free of NaN and infinity."""
    if array.dtype == np.float16:  # of which NumPy looks at one number after the other: 30 times as long
        return int((array.view(np.uint16) & 0x7FFF).max(initial=0)) < 0x7C00
    return bool(np.isfinite(array).all())


def _indices(values: object, name: str, shape: tuple[int, ...], names: int, image: str) -> np.ndarray:
    """Indices into a list of `names` names; 0 names means that the list is not known."""
    array = _shaped(values, name, shape, image)
    if array.size:
        if array.dtype.kind not in "iu":
            raise UserError(f"{image}: {name} are of type {array.dtype}, whole numbers were expected.")
        low, high = int(array.min()), int(array.max())
        limit = names - 1 if names else _MAX_INT32
        if low < 0 or high > limit:
            raise UserError(f"{image}: {name} run from {low} to {high}, the label map allows 0 to {limit}.")
    return np.ascontiguousarray(array, dtype="<i4")


def _shaped(values: object, name: str, shape: tuple[int, ...], image: str) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != shape:
        raise UserError(f"{image}: {name} have shape {array.shape}, {shape} was expected.")
    return array


def _size(value: object, name: str, image: str) -> int:
    try:
        size = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        size = 0
    if not 0 < size <= _MAX_INT32:
        raise UserError(f"{image}: {name} is {value!r}, a positive number of pixels was expected.")
    return size
