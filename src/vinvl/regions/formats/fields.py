"""Named arrays of one image, as programs save them in npy, npz, LMDB, HDF5 and TSV files → its regions.

features (R, 2048), bbox, objects, cls_prob    MMF, tools/scripts/features/extract_features_vmb.py
… with num_boxes beyond R                      MMF, frcnn/extract_features_frcnn.py: the most that it was asked for
features (R, 2054), bbox (R, 6) shares, labels MMF, extract_features_vinvl.py: the geometry is behind each feature, and
                                               AttrRCNN's labels count the background as 0
x (2048, R), bbox, num_bbox, image_h           MILVLG/openvqa and MCAN; (R, 2048) MILVLG/bottom-up-attention.pytorch
norm_bb (R, 6) shares, features, conf,         ChenRocks/UNITER: its scores of all classes begin with the background's,
  soft_labels                                  which is no target of its model (model/pretrain.py)
features (1, 2048, H, W), x (H * W, D)         grids: facebookresearch/grid-feats-vqa; openvqa, clevr_extract_feat.py
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vinvl.regions.formats.boxes import GEOMETRY_TOLERANCE, Sizes, cell_boxes, check_geometry, grid_rows
from vinvl.regions.formats.classes import best_classes, highest, offset_of, shifted
from vinvl.regions.formats.rows import (
    FeatureOptions,
    Found,
    at,
    base64_rows,
    checked_size,
    number_of_regions,
    numbers,
    regions_of,
)
from vinvl.regions.regions import BOX_NUMBERS, LabelMap, Regions
from vinvl.run.errors import UserError
from vinvl.run.values import shown

# What programs call one thing.
FIELDS = {
    "features": ("features", "x", "feature", "feat", "image_features", "image_feature"),
    "grid": ("grids",),
    "boxes": ("boxes", "bbox", "bboxes", "image_bb"),
    "shares": ("norm_bb", "normalized_boxes", "spatial_features"),  # x1/W, y1/H, x2/W, y2/H, w/W, h/H
    "width": ("image_w", "image_width", "img_w", "width"),
    "height": ("image_h", "image_height", "img_h", "height"),
    "size": ("size",),  # height and width
    "count": ("num_boxes", "num_bbox"),
    "kept": ("num_kept",),  # of files that say how many of the regions to take
    "image": ("image_id", "img_id", "feature_path"),
    "copy": ("box_features",),  # of the features without geometry
    "classes": ("objects", "classes", "objects_id", "class_ids", "labels"),
    "class_scores": ("cls_prob", "scores", "class_scores", "objects_conf", "confidence", "conf"),
    "class_table": ("soft_labels",),  # scores of all classes, the background's first
    "attributes": ("attributes", "attrs_id", "attr_labels"),
    "attribute_scores": ("attribute_scores", "attrs_conf", "attrs_scores", "attr_scores"),
    "class_offset": ("class_offset",),  # what `write_mmf_npy` says of the numbers in its files
}
OF_IMAGE = {name for what in ("width", "height", "count", "size") for name in FIELDS[what]}  # and not of a region
IN_ROWS = {name for what in ("features", "boxes", "shares") for name in FIELDS[what]}
ONE_VALUE = ("features", "boxes", "shares", "width", "height", "count")  # whatever it is called
KNOWN = {name for names in FIELDS.values() for name in names} | {"info"}
Arrays = dict[str, Any]
OTHER_COUNT = (
    "num_boxes is beyond the boxes, as MMF's FRCNN script writes how many it was asked for: these were counted"
)


@dataclass(frozen=True)
class FieldReader:
    """Named arrays of an image → its regions, as the options say; picklable."""

    options: FeatureOptions
    labels: LabelMap  # the names that classes and attributes are numbered by
    sizes: Sizes

    def found(self, place: str, image_id: str, fields: Mapping[str, Any], size: int) -> Found:
        """`size` is the number of bytes that were read."""
        try:
            with at(place):
                note = OTHER_COUNT if (asked_for := _counts_what_was_asked_for(fields)) else ""
                given = {**fields, "num_boxes": None} if asked_for else fields
                return Found(place, self.regions(image_id, given), size, note)
        except UserError as error:
            return Found(place, error, size)

    def regions(self, image_id: str, fields: Mapping[str, Any]) -> Regions:
        """The regions of an image; keys that are not known are left out.

        Score tables (R, C) count with their highest number; padding behind the number of boxes is dropped. Raises
        UserError if features, boxes or size are missing or not what they should be, or nothing tells what class numbers
        count.
        """
        given = _by_meaning(fields)
        if "image" in given and not same_image(given["image"], image_id):
            raise UserError(
                f"it says that it is of image {shown(given['image'])}; get both again, or name it after that."
            )
        is_grid = not given.keys() & {"boxes", "shares"} and ("grid" in given or _is_grid(given, self.options))
        wanted = () if is_grid else ("features", "shares" if "shares" in given else "boxes")
        for what in wanted:
            if what not in given:
                present = ", ".join(sorted(str(name) for name in fields if isinstance(name, str | bytes))[:12])
                more = ", or pass features.grid=[H,W] if its rows are cells of a grid" if what == "boxes" else ""
                raise UserError(
                    f"there is no {what} (one of {', '.join(FIELDS[what])}); it has {present or 'nothing'}{more}."
                )
        own = _own_size(given)
        if is_grid:
            return self._grid(image_id, given, own)
        if self.options.grid is not None:
            raise UserError("it has boxes, so its rows are no cells of a grid: leave out features.grid.")
        for what in {"features", "boxes"} & given.keys():
            if isinstance(given[what], str | bytes):  # of ViLBERT's LMDB, which has the columns of bottom-up-attention
                given["count"] = number_of_regions(given.get("count"))
                given[what] = base64_rows(given[what], given["count"], ENCODED[what][1], what, "<f4")
        boxes, geometry = _places(given)
        rows = len(geometry if boxes is None else boxes)  # type: ignore[arg-type]
        features, count = _of_boxes(numbers(given["features"], "features"), rows, given, self.options)
        boxes, geometry = (None if one is None else one[:count] for one in (boxes, geometry))
        features, geometry = _without_geometry(features, geometry, self.options)
        if (copy := given.get("copy")) is not None:
            same = np.shape(copy) == features.shape and np.allclose(
                numbers(copy, "box_features"), features, 1e-2, 1e-2, equal_nan=True
            )
            if not same:
                raise UserError("its features are not its box_features: not of one run, or other order.")
        boxes, size = self.sizes.boxes(image_id, geometry, boxes, own)
        lengths = {count, rows, *np.shape(given["features"])}
        return regions_of(image_id, features, boxes, size, self.options, **self._classes(given, count, lengths))

    def _grid(self, image_id: str, given: Arrays, own: tuple[int, int] | None) -> Regions:
        """Cells as regions; of a size that is assumed they are thousandths of the image."""
        grid = numbers(given.get("grid", given.get("features")), "features")
        features, height, width = grid_rows(grid, self.options)
        _, size = self.sizes.boxes(image_id, cell_boxes(height, width), None, own)
        return regions_of(image_id, features, cell_boxes(height, width, size), size, self.options)

    def _classes(self, given: Arrays, count: int, lengths: set[int]) -> dict[str, np.ndarray | None]:
        """Classes and attributes with their scores, as the store counts them.

        Of arrays of one of the `lengths`, which those of the regions have with their padding, the first `count` rows.
        """
        if not self.options.classes:
            return {}
        what = ("classes", "class_scores", "class_table", "attributes", "attribute_scores")
        classes, scores, table, attributes, attribute_scores = (
            None if one is None else one[:count] if len(one) in lengths else one
            for one in (None if given.get(name) is None else numbers(given[name], name) for name in what)
        )
        labels, offset = self.labels, self.options.class_offset
        if offset is None and "class_offset" in given and not (self.options.labels and "" in labels.classes):
            offset = _checked_count(given["class_offset"], 1, "class_offset")
        if not all(np.isfinite(one).all() for one in (scores, table, attribute_scores) if one is not None):
            raise UserError("some of its scores are NaN or infinite; get it again.")
        if classes is None and (table is not None or (scores is not None and scores.ndim == 2)):
            if table is not None:
                classes, best = best_classes(table, labels, 0)
                scores = best if scores is None else scores
            elif scores is not None and scores.shape[1] > 1:
                classes, scores = best_classes(scores, labels, offset)
            offset = 0
        of_attributes = offset
        if offset is None:
            offset = offset_of(classes, scores, labels.classes, "class")
            of_attributes = offset_of(attributes, attribute_scores, labels.attributes, "attribute", otherwise=offset)
        if classes is not None:
            classes = shifted(classes, offset or 0, labels.classes, "classes")
        if attributes is not None:
            attributes = shifted(attributes, of_attributes or 0, labels.attributes, "attributes")
        if attributes is None or attributes.ndim == 1:
            attribute_scores = highest(attribute_scores)
        return {
            "classes": classes,
            "class_scores": highest(scores),
            "attributes": attributes,
            "attribute_scores": attribute_scores,
        }


def _counts_what_was_asked_for(fields: Mapping[str, Any]) -> bool:
    """Whether the number of boxes in a file of MMF's is beyond the rows of boxes, features and objects alike."""
    count, arrays = fields.get("num_boxes"), [fields.get(name) for name in ("bbox", "features", "objects")]
    if type(count) is not int or not {"image_width", "image_height"} <= fields.keys():
        return False
    lengths = {len(array) if isinstance(array, np.ndarray) and array.ndim else count for array in arrays}
    return len(lengths) == 1 and count > lengths.pop()


def _by_meaning(fields: Mapping[str, Any]) -> Arrays:
    """What is there of `FIELDS`, and two conventions that only a layout as a whole tells."""
    given: Arrays = {}
    for what, names in FIELDS.items():
        for name in names:
            if fields.get(name) is None:
                continue
            if what in ONE_VALUE and _unlike(given.setdefault(what, fields[name]), fields[name]):
                first = next(one for one in names if fields.get(one) is not None)
                raise UserError(f"its {first} and its {name} are not the same; {LEAVE_OUT}.")
            given.setdefault(what, fields[name])
    if "boxes" in given and np.ndim(given["boxes"]) == 2 and np.shape(given["boxes"])[1] == BOX_NUMBERS:
        boxes = given.pop("boxes")
        if _unlike(given.setdefault("shares", boxes), boxes):
            raise UserError(f"its boxes and its shares of the image are not the same; {LEAVE_OUT}.")
        if "labels" in fields:
            given.setdefault("class_offset", 0)
    given["either_way"] = "x" in fields
    return given


LEAVE_OUT = "get it again, or leave out the one that is wrong"


def _unlike(one: Any, other: Any) -> bool:
    """Whether two values that a file gives for one thing differ."""
    if one is other:
        return False
    try:
        return not np.array_equal(np.asarray(one, np.float64).reshape(-1), np.asarray(other, np.float64).reshape(-1))
    except (ValueError, TypeError, OverflowError):
        return type(one) is not type(other) or bool(np.any(one != other))


def merged(info: Mapping[str, Any], fields: Mapping[str, Any], place: object) -> dict[str, Any]:
    """Fields of a file and of the dict that lies in it or beside it. Raises UserError where the two say otherwise."""
    for name in KNOWN & info.keys() & fields.keys():
        if info[name] is not None and fields[name] is not None and _unlike(info[name], fields[name]):
            raise UserError(f"{place}: its {name} and that in its info are not the same; {LEAVE_OUT}.")
    return {**info, **{name: value for name, value in fields.items() if value is not None or name not in info}}


ENDS = re.compile(r"(?:.*/)?(?P<stem>.*?(?P<number>[0-9]*))(?:\.[A-Za-z]{3,4})?", re.DOTALL)


def same_image(said: Any, image_id: str) -> bool:
    """Whether what a file says of itself names this image, with or without folder and suffix, or by number alone."""
    value = said.item() if isinstance(said, np.ndarray | np.generic) and np.size(said) == 1 else said
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    one, two = (ENDS.fullmatch(name.strip()) for name in (text, image_id))
    assert one and two
    numbered = bool(one["number"]) and bool(two["number"])
    return one["stem"] == two["stem"] or (numbered and one["number"].lstrip("0") == two["number"].lstrip("0"))


def _is_grid(given: Arrays, options: FeatureOptions) -> bool:
    return "features" in given and (options.grid is not None or np.ndim(given["features"]) > 2)


def _own_size(given: Arrays) -> tuple[int, int] | None:
    own = size = None
    if "width" in given or "height" in given:
        own = checked_size(given.get("width"), given.get("height"))
    if "size" in given and (own is None or np.size(given["size"]) == 2):
        height, width = numbers(given["size"], "size").reshape(-1) if np.size(given["size"]) == 2 else (0, 0)
        size = checked_size(width, height)
    if own and size and set(own) != set(size):
        raise UserError(
            f"its size is {size[0]} x {size[1]}, but its width and height {own[0]} x {own[1]}; {LEAVE_OUT}."
        )
    return own or size


def _places(given: Arrays) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Boxes (R, 4) and geometry (R, 6), of which one may be None. Raises UserError if they are something else."""
    boxes, geometry = (
        None if given.get(what) is None else numbers(given[what], "boxes") for what in ("boxes", "shares")
    )
    if boxes is not None:
        boxes = boxes if boxes.size else boxes.reshape(0, 4)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise UserError(f"boxes have shape {boxes.shape}, expected x1 y1 x2 y2 for each region.")
    if geometry is not None:
        geometry = geometry.astype(np.float32) if geometry.size else np.zeros((0, BOX_NUMBERS), dtype=np.float32)
        check_geometry(geometry, "boxes")
    if boxes is not None and geometry is not None and len(boxes) != len(geometry):
        raise UserError(f"there are {len(boxes)} boxes, but {len(geometry)} of them as shares of the image.")
    return boxes, geometry


def _without_geometry(
    features: np.ndarray, geometry: np.ndarray | None, options: FeatureOptions
) -> tuple[np.ndarray, np.ndarray | None]:
    """Features (R, D) and the geometry of their boxes, which may be behind each feature."""
    if features.shape[1] != options.oscar_dim + BOX_NUMBERS:
        return features, geometry
    features, behind = features[:, :-BOX_NUMBERS], features[:, -BOX_NUMBERS:].astype(np.float32)
    check_geometry(behind, "the last six numbers of a row", "; pass features.dim=NUMBER if features have more numbers")
    if geometry is not None and not (np.abs(behind[:, :4] - geometry[:, :4]) <= GEOMETRY_TOLERANCE).all():
        raise UserError("its boxes are not those behind its features: not of one run, or other order.")
    return features, behind


def _checked_count(given: Any, most: int, what: str = "the number of boxes") -> int:
    array = np.asarray(given)
    if array.size != 1 or array.dtype.kind not in "iu" or not 0 <= int(array.item()) <= most:
        raise UserError(f"{what} is {shown(given)}, expected a whole number from 0 to {most}.")
    return int(array.item())


def _of_boxes(features: np.ndarray, regions: int, given: Arrays, options: FeatureOptions) -> tuple[np.ndarray, int]:
    """Features (R, D) of the R boxes that count; features that lie (D, N) are turned.

    Raises UserError if there are not as many features as boxes, and what there is more is not padding, if the file
    counts otherwise, or if nothing tells how they lie.
    """
    if features.ndim == 1 and not features.size:  # a list of none
        features = features.reshape(0, 0)
    if features.ndim != 2:
        raise UserError(f"features have shape {features.shape}, expected a row for each region.")
    shape = rows, columns = features.shape
    turned = columns == regions != rows
    if options.transposed is not None:
        turned = options.transposed
    elif rows == columns == regions and given["either_way"]:
        raise UserError(
            f"x has shape {shape}, of which nothing tells whether rows or columns are regions: pass "
            "features.transposed=true (MCAN's and OpenVQA's columns) or false."
        )
    elif regions not in shape:  # padded
        dims = (options.oscar_dim, options.oscar_dim + BOX_NUMBERS)
        turned = rows in dims and columns not in dims
    features = features.T if turned else features
    most = min(len(features), regions)
    told = given.get("kept", given.get("count"))
    count = most if told is None else _checked_count(told, most)
    rows_of = [features, *(np.asarray(given[name]) for name in ("boxes", "shares") if name in given)]
    padded = told is not None and not any(one[count:].any() for one in rows_of)
    if len(features) != regions and not padded:
        raise UserError(f"features have shape {shape}, but there are {regions} boxes.")
    if "count" in given and "kept" not in given and not padded:
        raise UserError(f"the number of boxes is {count}, but there are {most} that are not zeros; get it again.")
    if told is not None and count > 1 and not any(one[count - 1].any() for one in rows_of):
        raise UserError(f"the number of boxes is {count}, but the last of them is zeros; get it again.")
    return features[:count], count


def without_padding(fields: Mapping[str, np.ndarray], told: int | None, place: str) -> dict[str, Any]:
    """The arrays of an image without regions of zeros at the end, of which an index tells a number, or None.

    Raises UserError if there is nothing else, or if features, boxes and the number do not agree how many there are.
    """
    of_regions = {name: array for name, array in fields.items() if name not in OF_IMAGE and array.ndim}
    ends = {name: _end(array) for name, array in of_regions.items() if name in IN_ROWS}
    lengths = {len(of_regions[name]) for name in ends}
    if told != 0 and not any(ends.values()):
        raise UserError(f"{place}: it holds nothing but zeros, so it was never written; get the file again.")
    if len(ends) < 2 or len(lengths) > 1:  # a grid; or what is wrong with it is told by whoever joins them
        return {**fields, **({} if told is None else {"num_kept": told})}
    if len({*ends.values()}) > 1:
        listed = ", ".join(f"{name} at region {end}" for name, end in ends.items())
        raise UserError(f"{place}: the zeros behind its regions do not begin together ({listed}); get the file again.")
    count = min(ends.values())
    if told is not None and (told > count or told < count < min(lengths)):
        raise UserError(f"{place}: the number of boxes is {told}, but {count} are not zeros; get both again.")
    count = count if told is None else told
    return {name: array[:count] if name in of_regions else array for name, array in fields.items()}


def _end(array: np.ndarray) -> int:
    """The row behind the last that is not zeros."""
    filled = np.flatnonzero(array.reshape(len(array), -1).any(axis=1))
    return int(filled[-1]) + 1 if len(filled) else 0


# Rows of the TSV files of bottom-up-attention and of LXMERT, whose columns have fixed places.

BOTTOM_UP_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT_COLUMNS = (
    "img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features"
)  # fmt: skip
ENCODED: dict[str, tuple[str, tuple[int, ...] | None]] = {
    "boxes": ("<f4", (4,)),
    "features": ("<f4", None),
    "objects_id": ("<i8", (1,)),
    "objects_conf": ("<f4", (1,)),
    "attrs_id": ("<i8", (1,)),
    "attrs_conf": ("<f4", (1,)),
}


def regions_of_columns(image_id: str, values: list[bytes], *, columns: tuple[str, ...], reader: FieldReader) -> Regions:
    """`ReadRow` of a TSV with these columns. LXMERT's numbers leave the background out: its 0 is the store's 1."""
    if len(values) != len(columns):
        raise UserError(f"the row has {len(values)} columns, expected {len(columns)}: {', '.join(columns)}.")
    fields: Arrays = dict(zip(columns, values, strict=True))
    count = fields["num_boxes"] = number_of_regions(fields["num_boxes"])
    for name, (dtype, widths) in ENCODED.items():
        if name in fields:
            decoded = base64_rows(fields[name], count, widths, name, dtype)
            fields[name] = decoded[:, 0] if widths == (1,) else decoded
    return reader.regions(image_id, fields | ({"class_offset": 1} if "objects_id" in fields else {}))
