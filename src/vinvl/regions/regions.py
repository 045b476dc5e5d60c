"""The regions of one image: what a store gives out and a writer takes in."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np

from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes
from vinvl.run.values import decoded, shown

BACKGROUND = "__background__"
NO_ATTRIBUTE = "__no_attribute__"
BACKGROUND_NAMES = ("background", "bg")
NO_ATTRIBUTE_NAMES = ("no attribute", "no_attribute", "none", "", *BACKGROUND_NAMES)

MOST_NAMES, LONGEST_NAME = 100_000, 200
_Index = Annotated[int, msgspec.Meta(ge=0, lt=10**9)]


class _Category(msgspec.Struct):
    id: _Index
    name: str


class _LabelFile(msgspec.Struct):
    categories: list[_Category] | None = None
    label_to_idx: dict[str, _Index] | None = None
    idx_to_label: dict[_Index, str] | None = None
    attribute_to_idx: dict[str, _Index] | None = None
    idx_to_attribute: dict[_Index, str] | None = None


_LABEL_FILE = msgspec.json.Decoder(_LabelFile, strict=False)  # numbers in quotes too


@dataclass(frozen=True)
class LabelMap:
    """Names by index: `classes[0]` is the background, `attributes[0]` means "no attribute".

    An empty tuple says that the names are not known; indices are then only required not to be negative.
    """

    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The label map as ASCII JSON with the four keys of the published label-map files."""
        kinds = {"label": self.classes, "attribute": self.attributes}
        forward: dict[str, dict[str, Any]] = {f"{kind}_to_idx": first_indices(names) for kind, names in kinds.items()}
        backward = {f"idx_to_{kind}": {str(n): name for n, name in enumerate(names)} for kind, names in kinds.items()}
        return json.dumps(forward | backward)

    @classmethod
    def from_json(cls, text: str, source: str = "the label map") -> LabelMap:
        """Read the published label-map JSON; index 0 may be left out, as it is in the published files.

        `source` names the origin of the text in messages. Of `idx_to_label` and `label_to_idx` one may be missing, and
        of two they must agree; the attribute keys may both be missing. Instead there may be COCO's `categories` of id
        and name; ids between them that have none are classes without a name; or names with their indices and nothing
        else, as the published `vgcocooiobjects_v1_class2ind.json`. Raises UserError for all else.
        """
        remedy = "give the detector's label-map file"
        if (indices := flat_map(text, source)) is not None:
            return cls(_names(indices, {}, BACKGROUND, f"{source}: class"), ())
        found = decoded(text.encode("utf-8", "surrogatepass"), _LABEL_FILE, source, remedy=remedy)
        if found.categories:
            names: dict[int, str] = {}
            for one in found.categories:
                if names.setdefault(one.id, one.name) != one.name or one.id > MOST_NAMES:
                    raise UserError(f"{source} has category {one.id} twice, or not below {MOST_NAMES:,}; {remedy}.")
            unnamed = dict.fromkeys(range(1, max(names)), "")
            return cls(_names({}, unnamed | names, BACKGROUND, source), ()).with_background()
        if found.label_to_idx is None and found.idx_to_label is None:
            raise UserError(f"{source} has neither label_to_idx nor idx_to_label; {remedy}.")
        return cls(
            _names(found.label_to_idx or {}, found.idx_to_label or {}, BACKGROUND, f"{source}: label"),
            _names(found.attribute_to_idx or {}, found.idx_to_attribute or {}, NO_ATTRIBUTE, f"{source}: attribute"),
        )

    @classmethod
    def from_file(cls, path: str | Path) -> LabelMap:
        """Names from JSON, as `from_json`, or from a list of a name a line, which leaves the background out.

        Of a line with several names, separated by commas, the first counts, as bottom-up-attention's demo reads its
        `objects_vocab.txt`; the `attributes_vocab.txt` beside it is read too. Of a TSV (`train.labelmap.tsv`) the first
        column counts. Raises UserError for anything else.
        """
        text = _text_of(path)
        if text.lstrip()[:1] in ("{", "[", ""):
            return cls.from_json(text, str(path))
        beside = Path(path).with_name(Path(path).name.replace("objects", "attributes"))
        is_there = beside.name != Path(path).name and beside.is_file()
        return cls(
            _names_of_lines(text, path), _names_of_lines(_text_of(beside), beside) if is_there else ()
        ).with_background()

    def with_background(self) -> LabelMap:
        """The names behind that of the background, and of no attribute: some label maps count from 0 without these."""
        classes, attributes = self.classes, self.attributes
        if classes and classes[0].strip("_ ").lower() not in BACKGROUND_NAMES:
            classes = (BACKGROUND, *classes)
        if attributes and attributes[0].strip("_ ").lower() not in NO_ATTRIBUTE_NAMES:
            attributes = (NO_ATTRIBUTE, *attributes)
        return LabelMap(classes, attributes)


def _text_of(path: str | Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: give a label-map file.") from None


def _names_of_lines(text: str, path: str | Path) -> tuple[str, ...]:
    mark = "\t" if Path(path).suffix == ".tsv" else ","
    names = tuple(line.split(mark)[0].strip() for line in text.rstrip().splitlines())
    if not names or "" in names or max(map(len, names)) > LONGEST_NAME or len(names) > MOST_NAMES:
        place = f"line {names.index('') + 1} names none" if "" in names else "it is something else"
        raise UserError(f"{path} is no list of a name a line ({place}): give a label-map file.")
    return names


NO_NAMES = LabelMap()


def flat_map(text: str, source: str) -> dict[str, int] | None:
    """Names with their indices, where JSON is an object of these alone, None where it is something else.

    Raises UserError if a name is there twice with two indices, or an index is out of range; 0 is the background's.
    """
    try:
        indices = msgspec.json.decode(text.encode("utf-8", "surrogatepass"), type=dict[str, int])
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    for name, index in json.loads(text, object_pairs_hook=list):
        least = 0 if name.strip("_ ").lower() in BACKGROUND_NAMES else 1
        if indices[name] != index or not least <= index <= MOST_NAMES:
            what = f"with the indices {index} and {indices[name]}" if indices[name] != index else f"as {index}"
            raise UserError(f"{source} has {shown(name)} {what}: give every name one index, from 1 on.")
    return indices or None


def first_indices(names: Sequence[str]) -> dict[str, int]:
    """The index of each name, the first where it comes twice, as in the published label map."""
    indices: dict[str, int] = {}
    for index, name in enumerate(names):
        indices.setdefault(name, index)
    return indices


def _names(indices: Mapping[str, int], by_index: dict[int, str], name_of_zero: str, what: str) -> tuple[str, ...]:
    """The names of one kind in the order of their indices."""
    for name, index in indices.items():
        if by_index.setdefault(index, name) != name:
            raise UserError(f"{what} {index} has the names {shown(by_index[index])} and {shown(name)}, not one.")
    lost = next((index for index, name in by_index.items() if indices and index and name not in indices), None)
    if lost is not None:
        raise UserError(f"{what} {lost} is {shown(by_index[lost])}, which has no index in the other half of the file.")
    if by_index:
        by_index.setdefault(0, name_of_zero)
    missing = next((index for index in range(len(by_index)) if index not in by_index), None)
    if missing is not None:
        raise UserError(f"{what} index {missing} has no name although higher indices do.")
    return tuple(by_index[index] for index in range(len(by_index)))


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


def _not_given() -> Any:
    """None, which becomes zeros. (A default of the class would hide what a store reads when it is asked for.)"""


@dataclass(frozen=True, eq=False)
class Regions:
    """R regions of one image.

    image_id          text; COCO's integer ids are written in decimal
    features          (R, D) float16 or float32, the detector's region features
    boxes             (R, 4) float32, absolute x1 y1 x2 y2 in pixels, not clipped to the image
    classes           (R,) int32, index into `LabelMap.classes`, 0 = background; not given: 0
    class_scores      (R,) float32; not given: 0
    attributes        (R, K) int32, index into `LabelMap.attributes`, 0 = none; K may be 0; not given: (R, 0)
    attribute_scores  (R, K) float32; not given: 0
    width, height     of the image in pixels; must be given
    source            the file that the regions were read from, "" if made in memory
    """

    image_id: str
    features: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray = field(default_factory=_not_given)
    class_scores: np.ndarray = field(default_factory=_not_given)
    attributes: np.ndarray = field(default_factory=_not_given)
    attribute_scores: np.ndarray = field(default_factory=_not_given)
    width: int = 0
    height: int = 0
    source: str = ""

    def __post_init__(self) -> None:
        """What was not given is zeros, so that whoever reads regions finds all arrays."""
        for name, dtype in ROW_DTYPES.items():
            if getattr(self, name) is None:
                shape = np.shape(self.attributes) if name == "attribute_scores" else np.shape(self.boxes)[:1]
                zeros = np.zeros((*shape, 0) if name == "attributes" else shape, dtype)
                object.__setattr__(self, name, zeros)

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
            if not all_finite(array):
                raise UserError(
                    f"{self.source or 'the store'}: image {self.image_id!r} has NaN or infinite {name} in region "
                    f"{_first_odd(array)}; extract the image again."
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


# What sound regions are.

# Detectors do not clip the boxes that they regress, so a sound box may stick out a little.
BOX_TOLERANCE = 0.05
# Nor do they keep a box that they shrink to nothing from turning over: the published box coder counts its last pixel,
# so such a box is up to one pixel of the network's input less than nothing wide.
INVERSION_TOLERANCE = 0.01


def inverted(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(R,) whether boxes (R, 4) of images (R, 2) or (1, 2), width and height, end 1 % before they begin."""
    return np.any(boxes[:, :2] - boxes[:, 2:] > INVERSION_TOLERANCE * sizes, axis=1)


def out_of_bounds(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(R,) whether boxes, as in `inverted`, stick out of their image by more than 5 % of its size."""
    edges = np.tile(sizes, 2)  # W, H, W, H
    return np.any((boxes < -BOX_TOLERANCE * edges) | (boxes > (1 + BOX_TOLERANCE) * edges), axis=1)


def is_number(image_id: object) -> bool:
    """Whether an image is named by a whole number, which stands for its digits."""
    return isinstance(image_id, int | np.integer) and not isinstance(image_id, bool)


def encoded_id(image_id: object) -> bytes:
    """The UTF-8 bytes of an image id. Raises UserError if it is no text or number, empty, too long or holds NUL."""
    if is_number(image_id):
        image_id = str(image_id)
    if not isinstance(image_id, str):
        kind = type(image_id).__name__
        raise UserError(f"image id {image_id!r} is of type {kind}; image ids are text or whole numbers.")
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
    """Floats (R, …) of that type, C-contiguous. Raises UserError for NaN, infinity and what the type cannot hold."""
    if array.dtype.kind not in "fiu" and array.size:
        raise UserError(f"{name} are of type {array.dtype}, numbers were expected.")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = _halves(array) if (array.dtype, dtype) == (np.float32, np.float16) else array
        converted = np.ascontiguousarray(converted, dtype=dtype)
    if not all_finite(converted):
        region = _first_odd(converted)
        if np.isfinite(array[region]).all():
            raise UserError(f"{name} of region {region} are too large for {dtype}; ask for features in float32.")
        raise UserError(f"{name} of region {region} are NaN or infinite; extract the image again.")
    return converted


HALVES_AT_ONCE = 2**15  # for more torch starts threads, which a forked process must not


def _halves(array: np.ndarray) -> np.ndarray:
    """float32 → float16, rounded to the nearest as NumPy does.

    NumPy has no vector instructions for that; torch, where it is loaded anyway, takes a tenth of the time.
    """
    torch: Any = sys.modules.get("torch")
    halves = np.empty(array.shape, dtype=np.float16)
    if torch is None or not array.size:
        halves[...] = array
        return halves
    given, flat = np.ascontiguousarray(array).reshape(-1), halves.reshape(-1)
    for start in range(0, len(flat), HALVES_AT_ONCE):
        part = given[start : start + HALVES_AT_ONCE]
        part = part if part.flags.writeable else part.copy()  # torch warns of what cannot be written to
        torch.from_numpy(flat[start : start + HALVES_AT_ONCE]).copy_(torch.from_numpy(part))
    return halves


def all_finite(array: np.ndarray) -> bool:
    """Whether an array of floats is free of NaN and infinity."""
    if array.dtype == np.float16:  # of which NumPy looks at one number after the other: 30 times as long
        return int((array.view(np.uint16) & 0x7FFF).max(initial=0)) < 0x7C00
    return bool(np.isfinite(array).all())


def _first_odd(array: np.ndarray) -> int:
    """The first row with a number that is not finite."""
    return int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(axis=1)))
