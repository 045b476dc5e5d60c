"""Named arrays of one image, as MMF, bottom-up-attention and others save them, → `FoundImage`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vinvl.data.features_in.rows import FoundImage, ReadOptions, checked_regions, checked_size
from vinvl.data.store import Regions
from vinvl.errors import UserError

# What the several extractors call one thing.
FEATURES = ("features", "x", "feature", "feat")
BOXES = ("boxes", "bbox", "bboxes")
WIDTH = ("image_w", "image_width", "img_w", "width")
HEIGHT = ("image_h", "image_height", "img_h", "height")
COUNT = ("num_boxes", "num_bbox")
CLASSES = ("objects", "classes", "objects_id", "class_ids")
SCORES = ("cls_prob", "scores", "class_scores", "objects_conf", "confidence")
ATTRIBUTES = ("attributes", "attrs_id")
ATTRIBUTE_SCORES = ("attribute_scores", "attrs_conf", "attrs_scores")


def regions_of_fields(image_id: str, fields: Mapping[str, Any], options: ReadOptions) -> Regions:
    """The regions of an image from its named arrays; keys that are not known are left out.

    Score tables (R, C) count with their highest number; padding behind the number of boxes is dropped.

    Raises:
        UserError: features, boxes or size are missing, or an array is not what it should be.
    """
    features = _array(_required(fields, FEATURES, "features"), "features")
    boxes = _array(_required(fields, BOXES, "boxes"), "boxes")
    given = _optional(fields, COUNT)
    count = len(features) if given is None else checked_count(given, len(features))
    offset = options.class_offset or 0
    found = FoundImage(
        image_id,
        features=features[:count],
        boxes=boxes[:count],
        size=checked_size(_required(fields, WIDTH, "width"), _required(fields, HEIGHT, "height"), "the image"),
        classes=_shifted(_optional(fields, CLASSES), offset, count),
        class_scores=_highest(_optional(fields, SCORES), count),
        attributes=_shifted(_optional(fields, ATTRIBUTES), offset, count),
        attribute_scores=_shifted(_optional(fields, ATTRIBUTE_SCORES), 0, count),
    )
    return checked_regions(found, options)


def checked_count(given: Any, most: int) -> int:
    """The number of boxes that a file announces. Raises UserError if there are not so many rows."""
    array = np.asarray(given)
    if array.size != 1 or array.dtype.kind not in "iu" or not 0 <= int(array.item()) <= most:
        raise UserError(f"the number of boxes is {str(given)[:40]}, but there are {most} rows of features.")
    return int(array.item())


def _required(fields: Mapping[str, Any], names: tuple[str, ...], what: str) -> Any:
    value = _optional(fields, names)
    if value is None:
        present = ", ".join(sorted(map(str, fields))[:12]) or "nothing"
        raise UserError(f"there is no {what} (one of {', '.join(names)}); it has {present}.")
    return value


def _optional(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _array(value: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError:  # lists of unlike lengths
        array = np.zeros(0, dtype=object)
    if array.dtype.kind not in "fiu" or array.ndim == 0:
        raise UserError(f"{what} are {array.shape} of {array.dtype}, expected numbers.")
    return array


def _highest(scores: Any, count: int) -> np.ndarray | None:
    """(count,) scores, of a table (R, C) of all classes the highest of each region."""
    if scores is None:
        return None
    array = _array(scores, "scores")[:count]
    return array.max(axis=1) if array.ndim == 2 and array.size else array


def _shifted(value: Any, offset: int, count: int) -> np.ndarray | None:
    return None if value is None else _array(value, "classes or attributes")[:count] + offset
