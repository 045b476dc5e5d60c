"""Named arrays of one image, as MMF, bottom-up-attention and others save them, → `FoundImage`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vinvl.data.features_in.class_numbers import offset_of
from vinvl.data.features_in.rows import FoundImage, KnownNames, ReadOptions, checked_regions, checked_size, shifted
from vinvl.data.record_fields import shown
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
OFFSET = ("class_offset",)  # what `features_out` says of the numbers in its files
FIELDS = (
    *FEATURES, *BOXES, *WIDTH, *HEIGHT, *COUNT, *CLASSES, *SCORES, *ATTRIBUTES, *ATTRIBUTE_SCORES, *OFFSET
)  # fmt: skip


def regions_of_fields(image_id: str, fields: Mapping[str, Any], options: ReadOptions, known: KnownNames) -> Regions:
    """The regions of an image from its named arrays; keys that are not known are left out.

    Score tables (R, C) count with their highest number; padding behind the number of boxes is dropped.

    Raises:
        UserError: features, boxes or size are missing, or an array is not what it should be, or nothing tells whether
            class numbers count the background.
    """
    features = _array(_required(fields, FEATURES, "features"), "features")
    boxes = _array(_required(fields, BOXES, "boxes"), "boxes")
    features, count = _of_boxes(features, boxes, _optional(fields, COUNT))
    size = checked_size(_required(fields, WIDTH, "width"), _required(fields, HEIGHT, "height"), "the image")
    classes, scores = _numbers(fields, CLASSES, count), _numbers(fields, SCORES, count)
    attributes, attribute_scores = _numbers(fields, ATTRIBUTES, count), _numbers(fields, ATTRIBUTE_SCORES, count)
    if (given := options.class_offset) is None and (said := _optional(fields, OFFSET)) is not None:
        given = checked_count(said, 1, "class_offset")
    if given is None:
        offset = offset_of(classes, scores, known.classes, "class")
        of_attributes = offset_of(attributes, attribute_scores, known.attributes, "attribute", otherwise=offset)
    else:
        offset = of_attributes = given
    found = FoundImage(
        image_id,
        features=features[:count],
        boxes=boxes[:count].reshape(count, -1) if count else np.zeros((0, 4)),
        size=size,
        classes=None if classes is None else shifted(classes, offset or 0, known.classes, "classes"),
        class_scores=_highest(scores),
        attributes=None
        if attributes is None
        else shifted(attributes, of_attributes or 0, known.attributes, "attributes"),
        attribute_scores=_highest(attribute_scores) if attributes is None or attributes.ndim == 1 else attribute_scores,
    )
    return checked_regions(found, options)


def checked_count(given: Any, most: int, what: str = "the number of boxes") -> int:
    """A whole number from 0 that a file announces. Raises UserError if it is more than `most`."""
    array = np.asarray(given)
    if array.size != 1 or array.dtype.kind not in "iu" or not 0 <= int(array.item()) <= most:
        raise UserError(f"{what} is {shown(given)}, expected a whole number from 0 to {most}.")
    return int(array.item())


def _of_boxes(features: np.ndarray, boxes: np.ndarray, given: Any) -> tuple[np.ndarray, int]:
    """Features (N, D) of N boxes or more, and how many count; features that lie (D, N) are turned.

    Raises:
        UserError: there are not as many features as boxes, and what there is more is not padding.
    """
    if features.ndim == 1 and not features.size:  # a list of none
        features = features.reshape(0, 0)
    if features.ndim != 2:
        raise UserError(f"features have shape {features.shape}, expected a row for each region.")
    if features.shape[1] == len(boxes) != len(features):
        features = features.T
    count = min(len(features), len(boxes)) if given is None else checked_count(given, min(len(features), len(boxes)))
    longer = features if len(features) > len(boxes) else boxes
    if len(features) != len(boxes) and (given is None or longer[count:].any()):
        raise UserError(f"features have shape {features.shape}, but there are {len(boxes)} boxes.")
    return features, count


def _required(fields: Mapping[str, Any], names: tuple[str, ...], what: str) -> Any:
    value = _optional(fields, names)
    if value is None:
        present = ", ".join(sorted(str(name) for name in fields if isinstance(name, str | bytes))[:12]) or "nothing"
        raise UserError(f"there is no {what} (one of {', '.join(names)}); it has {present}.")
    return value


def _optional(fields: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    return next((fields[name] for name in names if name in fields), None)


def _array(value: Any, what: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError):  # lists of unlike lengths, or of no numbers
        array = np.zeros(0, dtype=object)
    if array.dtype.kind not in "fiu" or array.ndim == 0:
        raise UserError(f"{what} are {array.shape} of {array.dtype}, expected numbers.")
    return array


def _numbers(fields: Mapping[str, Any], names: tuple[str, ...], count: int) -> np.ndarray | None:
    """The first `count` rows of what may be missing."""
    value = _optional(fields, names)
    return None if value is None else _array(value, names[0])[:count]


def _highest(scores: np.ndarray | None) -> np.ndarray | None:
    """(R,) scores, of a table (R, C) of all classes the highest of each region."""
    if scores is None or scores.ndim != 2:
        return scores
    return scores.max(axis=1) if scores.size else np.zeros(len(scores), dtype=np.float32)
