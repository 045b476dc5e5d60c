"""Oscar's and VinVL's features.tsv and .pt files, and what a detector says in JSON or a pickle about regions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np

from vinvl.regions.formats.boxes import Sizes, check_geometry
from vinvl.regions.formats.rows import (
    MOST_BYTES,
    Done,
    FeatureOptions,
    Found,
    Journal,
    at,
    base64_rows,
    checked_size,
    images_of_items,
    number_of_regions,
    regions_of,
)
from vinvl.regions.formats.tsv import (
    LONGEST_LINE,
    IdTable,
    LinePart,
    ReadPart,
    Refuse,
    held_parts,
    line_index,
    read_part,
)
from vinvl.regions.regions import BACKGROUND, BOX_NUMBERS, NO_ATTRIBUTE, LabelMap, Regions, first_indices
from vinvl.run.errors import UserError
from vinvl.run.files import parse_json, read_bytes, reading
from vinvl.run.restricted_pickle import load_restricted
from vinvl.run.values import checked_id, checked_text, decoded, shown, wrong_value

ANOTHER_RUN = "the two files are not of one run"

# The objects of an image.

Number = Annotated[float, msgspec.Meta(gt=-(2.0**31), lt=2.0**31)]
Names = Annotated[list[str], msgspec.Meta(max_length=1000)]


class DetectedObject(msgspec.Struct):
    """An object; attributes are called one thing or another."""

    rect: tuple[Number, Number, Number, Number]
    name: str = msgspec.field(name="class")
    conf: Number | None = None
    feature: Any = None
    attributes: Names | None = None
    attr_scores: list[Number] = []
    attr: Names = []
    attr_conf: list[Number] = []

    def __post_init__(self) -> None:
        self.name = self.name.strip()
        names = self.attr if self.attributes is None else self.attributes
        self.attributes, self.attr_scores = [name.strip() for name in names], self.attr_scores or self.attr_conf
        if len(self.attr_scores) not in {len(names), 0}:
            raise ValueError("attributes and their scores are not lists of one length")

    @property
    def score(self) -> float:
        return self.conf or 0.0


class DetectedObjects(msgspec.Struct):
    """The R objects of one image, in the order of its features."""

    objects: list[DetectedObject]
    image_w: Any = None
    image_h: Any = None

    def __post_init__(self) -> None:
        described = [one for one in self.objects if one.attributes]
        for what, known in (
            ("conf", [one.conf is not None for one in self.objects]),
            ("attribute scores", [bool(one.attr_scores) for one in described]),
        ):
            if any(known) and not all(known):
                raise ValueError(f"only some of the objects have {what}")

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def boxes(self) -> np.ndarray:
        """(R, 4) float32 in pixels"""
        return np.array([one.rect for one in self.objects], dtype=np.float32).reshape(-1, 4)

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height, None where the file does not say."""
        nothing = self.image_w is None and self.image_h is None
        return None if nothing else checked_size(self.image_w, self.image_h)


_OBJECTS = msgspec.json.Decoder(DetectedObjects | list[DetectedObject], strict=False)


def objects_in(columns: list[bytes]) -> DetectedObjects:
    """The objects of an image from {"objects": […], "image_w": …, "image_h": …}, or from the list alone."""
    content = columns[1] if len(columns) > 1 else b""
    found = decoded(content, _OBJECTS, "column 2")
    try:
        content.decode()  # msgspec does not look at fields that it does not know
    except UnicodeDecodeError:
        raise UserError("column 2 is not UTF-8 text; the row may be damaged.") from None
    try:
        return DetectedObjects(found) if isinstance(found, list) else found
    except ValueError as error:  # which msgspec puts in a sentence where it makes them itself
        raise UserError(f"column 2: {error}; correct the record, or leave it out.") from None


def _objects_of_pickle(value: Any) -> DetectedObjects:
    """Of {"class", "boxes", "image_w", "image_h", "conf"}."""
    if not isinstance(value, Mapping) or "class" not in value or "boxes" not in value:
        raise UserError("there are no class and boxes; the file may be of answers rather than of objects.")
    try:
        names, boxes = list(value["class"]), np.asarray(value["boxes"], dtype=np.float64)
        if boxes.size and boxes.shape != (len(names), 4):
            raise UserError(f"boxes have shape {boxes.shape}, expected x1 y1 x2 y2 for each of {len(names)} classes.")
        scores = np.asarray(value.get("conf", np.zeros(len(names))), dtype=np.float64).reshape(-1)
        texts = [str(checked_text(name, "the class of an object")) for name in names]
        rows = zip(texts, boxes.reshape(-1, 4).tolist(), scores.tolist(), strict=True)
        entries = [{"class": name, "rect": box, "conf": score} for name, box, score in rows]
        size = {name: value[name] for name in ("image_w", "image_h") if name in value}
        return msgspec.convert({"objects": entries, **size}, DetectedObjects)
    except msgspec.ValidationError as error:
        raise wrong_value(error, "class, boxes or conf") from None
    except (TypeError, ValueError, OverflowError):
        raise UserError("class, boxes or conf are no lists of names and numbers of one length.") from None


def label_map_of(classes: Iterable[str], attributes: Iterable[str]) -> LabelMap:
    """A label map of names as they were found, in alphabetical order; 0 is the background, and no attribute."""
    return LabelMap(
        (BACKGROUND, *sorted(set(classes) - {BACKGROUND})), (NO_ATTRIBUTE, *sorted(set(attributes) - {NO_ATTRIBUTE}))
    )


# Features and their objects in one.


@dataclass(frozen=True)
class Joiner:
    """What makes regions of features and objects; picklable."""

    options: FeatureOptions
    labels: LabelMap  # the names that classes and attributes are numbered by
    most_attributes: int  # K; objects with fewer are filled up with 0, none
    sizes: Sizes

    @cached_property
    def _numbers(self) -> tuple[dict[str, int], dict[str, int]]:
        return first_indices(self.labels.classes), first_indices(self.labels.attributes)

    def joined_rows(self, image_id: str, rows: np.ndarray, objects: DetectedObjects | None) -> Regions:
        """Of rows (R, D) or (R, D + 6) with their geometry; of a D that nothing tells they must have it."""
        dim, width = self.options.oscar_dim, rows.shape[1]
        if self.options.dim is None and width not in (dim, dim + BOX_NUMBERS) and width > BOX_NUMBERS:
            dim = width - BOX_NUMBERS
        has_geometry = width > dim or not len(rows)
        geometry = rows[:, dim:].reshape(-1, BOX_NUMBERS) if has_geometry else None
        return self.joined(image_id, rows[:, :dim], geometry, objects)

    def joined(
        self, image_id: str, features: np.ndarray, geometry: np.ndarray | None, objects: DetectedObjects | None
    ) -> Regions:
        """Of features (R, D), their geometry (R, 6) or None, and objects if there are, which `Sizes.boxes` joins.

        Raises UserError if the three do not belong together, or boxes or size are not to be had.
        """
        if objects is not None and len(objects) != len(features):
            raise UserError(
                f"it has {len(features)} features and {len(objects)} predicted objects: not of one run. "
                "Labels of another detection are tags: pass data.tags=FILE to the run that reads the store."
            )
        if geometry is not None:
            remedy = "; pass features.dim=NUMBER if the features are not of dimension 2048"
            check_geometry(geometry, "the last six numbers of a row", remedy)
        elif objects is None:
            raise UserError("its rows have no geometry, so its boxes are not known: pass predictions=FILE.")
        predicted, own = (None, None) if objects is None else (objects.boxes, objects.size)
        boxes, size = self.sizes.boxes(image_id, geometry, predicted, own)
        more = {} if objects is None else self._numbered(objects.objects)
        return regions_of(image_id, features, boxes, size, self.options, **more)

    def _numbered(self, objects: list[DetectedObject]) -> dict[str, np.ndarray]:
        """(R,) classes and scores, (R, K) attributes and theirs. Raises UserError for a name that is not known."""
        class_of, attribute_of = self._numbers
        attributes = np.zeros((len(objects), self.most_attributes), dtype=np.int32)
        scores = np.zeros((len(objects), self.most_attributes), dtype=np.float32)
        try:
            classes = np.array([class_of[one.name] for one in objects], dtype=np.int32)
            for region, one in enumerate(objects):
                names = one.attributes or []
                attributes[region, : len(names)] = [attribute_of[name] for name in names]
                scores[region, : len(one.attr_scores)] = one.attr_scores
        except KeyError as error:
            raise UserError(
                f"the label map has no {str(error.args[0])[:40]!r}; give that of the detector with "
                "features.labels=FILE, or leave it out to take the names as they come."
            ) from None
        confidences = np.array([one.score for one in objects], dtype=np.float32)
        return {"classes": classes, "class_scores": confidences, "attributes": attributes, "attribute_scores": scores}


# A `predictions.tsv` (or `labels.tsv`) of objects, indexed once so that the features find theirs by image id.


@dataclass(frozen=True)
class Predictions:
    """A TSV of image id and JSON, read through once."""

    path: Path
    table: Path  # folder of an `IdTable` of the byte where each image's line begins
    label_map: LabelMap  # of all names in it
    most_attributes: int  # that an object has

    @cached_property
    def _table(self) -> IdTable:
        return IdTable(self.table)

    def __getstate__(self) -> dict[str, Any]:  # small: what is opened or large stays in this process
        return {"path": self.path, "table": self.table}

    def objects(self, image_id: str) -> DetectedObjects:
        """The objects of an image. Raises UserError if the file does not have it."""
        start = self._table.find(image_id)
        if start is None:
            raise UserError(f"{self.path} has no image {image_id!r}; {ANOTHER_RUN}.")
        with self.path.open("rb") as file:
            file.seek(int(start[0]))
            line = file.readline(LONGEST_LINE).rstrip(b"\r\n")
        with at(f"{self.path}, image {image_id!r}"):
            return objects_in(line.split(b"\t"))


@dataclass
class _Names:
    """The names in a part of the TSV, and the most attributes of an object; as `ReadRow` it finds them."""

    classes: set[str] = field(default_factory=set)
    attributes: set[str] = field(default_factory=set)
    most_attributes: int = 0

    def __call__(self, image_id: str, columns: list[bytes]) -> None:
        for one in objects_in(columns).objects:
            names = one.attributes or []
            self.take(_Names({one.name}, set(names), len(names)))

    def take(self, other: _Names) -> None:
        self.classes |= other.classes
        self.attributes |= other.attributes
        self.most_attributes = max(self.most_attributes, other.most_attributes)


def scan_predictions(path: Path, scratch: Path, workers: int, refuse: Refuse) -> Predictions:
    """Reads the file through; makes the table in a new folder.

    Raises UserError (unless skipped) if a line is wrong, an image comes twice, or the `.lineidx` is of another file.
    """
    names, blocks = _Names(), []
    for before, part in held_parts(path, _scan, line_index(path), workers, refuse):
        for number, _, wrong in part.images:
            if wrong is not None:
                refuse(UserError(f"{path} line {before + number + 1}{wrong}"))
        if images := [(number, image_id.encode()) for number, image_id, wrong in part.images if wrong is None]:
            starts = part.starts[[number for number, _ in images]]
            blocks.append((np.array([image_id for _, image_id in images], dtype=np.bytes_), starts[:, None]))
        names.take(part.more)
    IdTable.write(scratch, blocks, path, refuse)
    return Predictions(path, scratch, label_map_of(names.classes, names.attributes), names.most_attributes)


def _scan(part: LinePart) -> ReadPart:
    names = _Names()
    return read_part(part, names, Done())._replace(more=names)


# Rows of the TSV files of Oscar and VinVL: `features.tsv` of either dialect, and `predictions.tsv` with features.


def regions_of_row(
    image_id: str, columns: list[bytes], *, joiner: Joiner, predictions: Predictions | None = None
) -> Regions:
    """`ReadRow` of `features.tsv`, whose rows are joined to `predictions.tsv` by image id where there is one.

    They are `id, {"num_boxes", "features"}` or `id, number of boxes, …, features`, of (R, D) or (R, D + 6) float32.
    """
    count: Any = columns[1] if len(columns) > 2 else b""
    features: bytes | str = columns[-1]
    if len(columns) > 1 and columns[1].lstrip().startswith(b"{"):
        content = parse_json(columns[1], "column 2")
        if not isinstance(content, dict) or not isinstance(content.get("features"), str):
            raise UserError(f"column 2 is {shown(content)}, expected num_boxes and features.")
        count, features = content.get("num_boxes"), content["features"]
    elif len(columns) < 3:
        raise UserError(f"the row has {len(columns)} columns, expected an image id, a number of boxes and features.")
    dim = joiner.options.dim
    widths = (dim + BOX_NUMBERS, dim) if dim else None
    rows = base64_rows(features, number_of_regions(count), widths, "features", "<f4")
    return joiner.joined_rows(image_id, rows, predictions.objects(image_id) if predictions else None)


def regions_of_objects(image_id: str, columns: list[bytes], *, joiner: Joiner) -> Regions:
    """`ReadRow` of a `predictions.tsv` whose objects carry their features."""
    objects = objects_in(columns)
    if not all(isinstance(one.feature, str) for one in objects.objects):
        raise UserError("not every object has a feature; give the TSV of features, which lies beside it.")
    rows = [base64_rows(one.feature, 1, None, "features", "<f4") for one in objects.objects]
    if len(lengths := {row.shape[1] for row in rows}) > 1:
        raise UserError(f"its features have the lengths {sorted(lengths)}, not one.")
    features = np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.float32)
    return joiner.joined(image_id, features, None, objects)


# The published `.pt` files of VQA, GQA and NLVR2, {image id: tensor (R, D + 6)}, and the label pickles with them.


class LabelPickle:
    """Objects by image id from a pickle {id: {"class", "boxes", "image_w", "image_h", "conf"}}; read whole.

    Raises UserError if the pickle holds anything else, or (unless skipped) an image in it does.
    """

    def __init__(self, path: Path, refuse: Refuse) -> None:
        content = load_restricted(read_bytes(path), str(path))
        if not isinstance(content, dict) or not content:
            raise UserError(f"{path} holds {type(content).__name__}, expected a dict of image ids with their objects.")
        self.path = path
        self.images: dict[str, DetectedObjects] = {}
        for key, value in content.items():
            try:
                image_id = str(checked_id(key, f"{path}: an image id"))
                with at(f"{path}, image {image_id!r}"):
                    objects = _objects_of_pickle(value)
                if image_id in self.images:
                    raise UserError(f"{path} has image {image_id!r} more than once, as a number and as a text.")
                self.images[image_id] = objects
            except UserError as error:
                refuse(error)
        self.label_map = label_map_of((one.name for image in self.images.values() for one in image.objects), ())


def images_of_tensors(path: Path, labels: LabelPickle | None, joiner: Joiner, journal: Journal) -> Iterator[Found]:
    """The images of a `.pt` file in its order. Raises UserError if it is damaged, or wants to run a program."""
    tensors, file_bytes = _load_tensors(path), path.stat().st_size

    def read(item: tuple[Any, Any]) -> Found:
        key, tensor = item
        place = f"{path}, image {shown(key)}"
        try:
            with at(str(path)):
                image_id = str(checked_id(key, "image id"))
            with at(f"{path}: image {image_id!r}"):
                rows = _rows_of(tensor, joiner.options.oscar_dim, file_bytes)
                if labels and image_id not in labels.images:
                    raise UserError(f"{labels.path} has no image {image_id!r}; {ANOTHER_RUN}.")
                objects = labels.images[image_id] if labels else None
                return Found(place, joiner.joined_rows(image_id, rows, objects), rows.nbytes)
        except UserError as error:
            return Found(place, error, 0)

    yield from images_of_items(list(tensors.items()), read, 1, journal.done)
    if labels and (more := labels.images.keys() - {str(key) for key in tensors if isinstance(key, str | int)}):
        journal.notes.append(f"{labels.path} has {len(more):,} images that {path} does not have, such as {min(more)!r}")


def _load_tensors(path: Path) -> dict[Any, Any]:
    """{image id: tensor} of a `.pt` file, mapped into memory where its format (of torch 1.6) allows it."""
    from vinvl.run.tensor_files import load_tensor_file  # torch, which the other formats do without

    try:
        with reading(path), path.open("rb") as file:
            content = load_tensor_file(path, mmap=file.read(4) == b"PK\x03\x04", whole=True)
    except UserError:
        raise
    except Exception as error:  # a hostile or damaged pickle may make the restricted loader raise anything
        reason = " ".join(str(error).partition("\n")[0].split())[:100]
        raise UserError(f"{path} is no file of tensors, or a damaged one ({reason}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, expected a dict of image ids with one tensor each.")
    return content


def _rows_of(tensor: Any, dim: int, file_bytes: int) -> np.ndarray:
    """(R, D) or (R, D + 6) float32. Raises UserError if it is no plain tensor of that shape that the file holds."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise UserError(f"it is {type(tensor).__name__}, a tensor was expected.")
    plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested or tensor.is_neg())
    if not plain or tensor.device.type != "cpu" or tensor.dtype.is_complex or tensor.dtype is torch.bool:
        raise UserError(f"it is a {tensor.dtype} tensor ({tensor.layout}), a plain one of numbers was expected.")
    size = tensor.numel() * tensor.element_size()
    if size > min(tensor.untyped_storage().nbytes(), file_bytes, MOST_BYTES):
        raise UserError(f"it is a tensor of {size:,} bytes, which the file does not hold, or more than {MOST_BYTES:,}.")
    if not tensor.numel() and tensor.ndim in (1, 2):
        return np.zeros((0, dim + BOX_NUMBERS), dtype=np.float32)
    if tensor.ndim != 2 or tensor.shape[1] not in (dim, dim + BOX_NUMBERS):
        expected = f"{dim} or {dim + BOX_NUMBERS} numbers a region; features.dim=D tells another dimension"
        raise UserError(f"it has shape {tuple(tensor.shape)}, expected {expected}.")
    return tensor.detach().to(torch.float32).numpy()
