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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vinvl.regions.formats.boxes import GEOMETRY_TOLERANCE, Sizes, cell_boxes, check_geometry, grid_rows
from vinvl.regions.formats.rows import (
    FeatureOptions,
    Found,
    at,
    base64_rows,
    checked_size,
    number_of_regions,
    numbers,
    regions_of,
    shifted,
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
    "classes": ("objects", "classes", "objects_id", "class_ids", "labels"),
    "class_scores": ("cls_prob", "scores", "class_scores", "objects_conf", "confidence", "conf"),
    "class_table": ("soft_labels",),  # scores of all classes, the background's first
    "attributes": ("attributes", "attrs_id", "attr_labels"),
    "attribute_scores": ("attribute_scores", "attrs_conf", "attrs_scores", "attr_scores"),
    "class_offset": ("class_offset",),  # what `write_mmf_npy` says of the numbers in its files
}
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
        boxes, size = self.sizes.boxes(image_id, geometry, boxes, own)
        return regions_of(image_id, features, boxes, size, self.options, **self._classes(given, count))

    def _grid(self, image_id: str, given: Arrays, own: tuple[int, int] | None) -> Regions:
        """Cells as regions; of a size that is assumed they are thousandths of the image."""
        grid = numbers(given.get("grid", given.get("features")), "features")
        features, height, width = grid_rows(grid, self.options)
        _, size = self.sizes.boxes(image_id, cell_boxes(height, width), None, own)
        return regions_of(image_id, features, cell_boxes(height, width, size), size, self.options)

    def _classes(self, given: Arrays, count: int) -> dict[str, np.ndarray | None]:
        """Classes and attributes with their scores, as the store counts them."""
        what = ("classes", "class_scores", "class_table", "attributes", "attribute_scores")
        classes, scores, table, attributes, attribute_scores = (
            None if given.get(name) is None else numbers(given[name], name)[:count] for name in what
        )
        labels, offset = self.labels, self.options.class_offset
        if offset is None and "class_offset" in given:
            offset = _checked_count(given["class_offset"], 1, "class_offset")
        if (
            classes is None
            and self.options.classes
            and (table is not None or (scores is not None and scores.ndim == 2))
        ):
            if table is not None:
                classes, best = _best_classes(table, labels, 0)
                scores = best if scores is None else scores
            elif scores is not None and scores.shape[1] > 1:
                classes, scores = _best_classes(scores, labels, offset)
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
            attribute_scores = _highest(attribute_scores)
        return {
            "classes": classes,
            "class_scores": _highest(scores),
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
    given = {
        what: fields[name]
        for what, names in FIELDS.items()
        for name in reversed(names)
        if name in fields and fields[name] is not None
    }
    if "boxes" in given and np.ndim(given["boxes"]) == 2 and np.shape(given["boxes"])[1] == BOX_NUMBERS:
        given["shares"] = given.pop("boxes")
        if "labels" in fields:
            given.setdefault("class_offset", 0)
    given["either_way"] = "x" in fields
    return given


def _is_grid(given: Arrays, options: FeatureOptions) -> bool:
    return "features" in given and (options.grid is not None or np.ndim(given["features"]) > 2)


def _own_size(given: Arrays) -> tuple[int, int] | None:
    if "width" in given or "height" in given:
        return checked_size(given.get("width"), given.get("height"))
    if "size" in given:
        height, width = numbers(given["size"], "size").reshape(-1) if np.size(given["size"]) == 2 else (0, 0)
        return checked_size(width, height)
    return None


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

    Raises UserError if there are not as many features as boxes, and what there is more is not padding, or if nothing
    tells how they lie.
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
    count = _checked_count(given["count"], most) if "count" in given else most
    padded = "count" in given and len(features) > regions and not features[count:].any()
    if len(features) < regions and "count" in given:
        padded = not any(np.asarray(given[name])[count:].any() for name in ("boxes", "shares") if name in given)
    if len(features) != regions and not padded:
        raise UserError(f"features have shape {shape}, but there are {regions} boxes.")
    return features[:count], count


def _best_classes(table: np.ndarray, labels: LabelMap, offset: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(R,) class numbers as the store counts them and their scores, of a table (R, C) of all classes.

    `offset` is 0 if the first column is the background's, 1 if there is none for it, None if the number of names tells.
    A region that has a score for the background alone is background. Raises UserError if that does not fit the names.
    """
    expected = len(labels.classes) or (USUAL_NAMES["class"] if offset is None else 0)
    columns = table.shape[1] if table.ndim == 2 else 0
    offset = expected - columns if offset is None else offset
    if offset not in (0, 1) or columns < 2 or (expected and columns + offset != expected):
        raise UserError(
            f"there are scores of {columns} class columns, expected were {expected - 1} or {expected} (with the "
            "background): give the detector's label map with features.labels=FILE, or pass features.classes=false."
        )
    classes = table if offset else table[:, 1:]
    scores = classes.max(axis=1, initial=0)
    numbers = np.where(scores > 0, classes.argmax(axis=1) + 1, 0)
    return numbers, scores if offset else np.where(scores > 0, scores, table[:, 0])


def _highest(scores: np.ndarray | None) -> np.ndarray | None:
    """(R,) scores, of a table (R, C) of all classes the highest of each region."""
    if scores is None or scores.ndim != 2:
        return scores
    return scores.max(axis=1) if scores.size else np.zeros(len(scores), dtype=np.float32)


# Whether the class numbers of a file count the background, as the store's do, or begin with the first class.

# Columns of the detectors of Visual Genome, classes and attributes, which need no label map: with what is 0 here.
USUAL_NAMES = {"class": 1601, "attribute": 401}


def offset_of(
    numbers: np.ndarray | None, table: np.ndarray | None, names: Sequence[str], kind: str, otherwise: int | None = None
) -> int | None:
    """What is to be added to class or attribute numbers (R,) or (R, K), 0 or 1, told by their table (R, C) of scores.

    A table with as many columns as there are names has the background, one with a column less leaves it out; which of
    its columns the numbers count shows in that they are those of the highest scores. `otherwise` is what holds where
    the table tells nothing: without that, UserError if there are names, which could be wrong.
    """
    if numbers is None or not numbers.size:
        return otherwise
    tells = False
    if numbers.ndim == 1 and table is not None and table.ndim == 2 and len(table) == len(numbers):
        columns, expected = table.shape[1], len(names) or USUAL_NAMES[kind]
        tells = columns in (expected, expected - 1)
        if not tells and names and columns > 1:
            raise UserError(
                f"there are scores of {columns} {kind} columns, but the label map has {len(names)} names, the "
                f"background's included: pass features.class_offset=0 or 1 ({kind} numbers with or without it)."
            )
        fits = _offsets_that_fit(numbers, table, with_background=columns == expected) if tells else []
        if len(fits) == 1:
            return fits[0]
    if (names or tells) and otherwise is None:
        raise UserError(
            f"nothing tells whether {kind} numbers count the background: pass features.class_offset=0 if 0 is the "
            f"background, or 1 if 0 is the first {kind}."
        )
    return otherwise


def _offsets_that_fit(numbers: np.ndarray, table: np.ndarray, *, with_background: bool) -> list[int]:
    """The offsets with which the numbers are those of the highest scores, in every row that has one highest."""
    # As the store counts: the best class, and where the table has the background, the best of all.
    best = [(table[:, 1:] if with_background else table, 1), *([(table, 0)] if with_background else [])]
    fits = {
        offset
        for scores, first in best
        for offset in ((0, 1) if first else (0,))
        if scores.shape[1]
        and (clear := (scores == scores.max(axis=1, keepdims=True)).sum(axis=1) == 1).any()
        and (numbers + offset == scores.argmax(axis=1) + first)[clear].all()
    }
    return sorted(fits)


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
