"""The published `.pt` files of VQA, GQA and NLVR2, {image id: tensor (R, D + 6)}, and the label pickles with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.regions.formats.oscar import (
    DetectedObjects,
    ObjectNames,
    SizesOrAssumed,
    joined,
    label_map_of,
    read_objects,
    size_in,
    split_geometry,
)
from vinvl.regions.formats.rows import GEOMETRY, MOST_BYTES, FeatureOptions, LeftOut, checked_regions
from vinvl.regions.formats.tsv import Done, Found
from vinvl.regions.regions import LabelMap, Regions
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes
from vinvl.run.restricted_pickle import load_restricted
from vinvl.run.values import checked_id, shown


class LabelPickle:
    """Objects by image id from a pickle {id: {"class", "boxes", "image_w", "image_h", "conf"}}; read whole.

    Raises:
        UserError: the pickle holds anything else, or (unless skipped) an image in it does.
    """

    def __init__(self, path: Path, left_out: LeftOut) -> None:
        content = load_restricted(read_bytes(path), str(path))
        if not isinstance(content, dict) or not content:
            raise UserError(f"{path} holds {type(content).__name__}, expected a dict of image ids with their objects.")
        self._path, self._note = path, left_out.notes.append
        self._objects: dict[str, DetectedObjects] = {}
        for key, value in content.items():
            try:
                image_id = str(checked_id(key, f"{path}: an image id"))
                self._objects[image_id] = _pickled_objects(value, f"{path}, image {image_id!r}")
            except UserError as error:
                left_out.add(error)

    def objects(self, image_id: str) -> DetectedObjects:
        if image_id not in self._objects:
            raise UserError(f"{self._path} has no image {image_id!r}; the two files are not of one run.")
        return self._objects[image_id]

    def held_against(self, images: set[str], tensors: Path) -> None:
        """Notes how many images more than the features it has."""
        if more := [image_id for image_id in self._objects if image_id not in images]:
            self._note(f"{self._path} has {len(more):,} images that {tensors} does not have, such as {more[0]!r}")

    def label_map(self) -> LabelMap:
        return label_map_of((name for objects in self._objects.values() for name in objects.classes), ())


def _pickled_objects(value: Any, image: str) -> DetectedObjects:
    if not isinstance(value, Mapping) or "class" not in value or "boxes" not in value:
        raise UserError(f"{image} has no class and boxes; the file may be of answers rather than of objects.")
    try:
        classes, boxes = list(value["class"]), np.asarray(value["boxes"], dtype=np.float64).reshape(-1, 4)
        scores = np.asarray(value.get("conf", np.zeros(len(classes))), dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{image}: class, boxes or conf are no lists of names and numbers.") from None
    if not len(classes) == len(boxes) == len(scores):
        raise UserError(f"{image} has {len(classes)} classes, {len(boxes)} boxes and {len(scores)} scores.")
    entries = [
        {"class": name, "rect": box, "conf": score}
        for name, box, score in zip(classes, boxes.tolist(), scores.tolist(), strict=True)
    ]
    size = size_in(value, image)
    return read_objects({"objects": entries} | ({"image_w": size[0], "image_h": size[1]} if size else {}), image)


def load_tensors(path: Path) -> dict[Any, Any]:
    """{image id: tensor} of a `.pt` file, mapped into memory where its format allows it.

    Files of torch before 1.6 cannot be mapped and are read whole.

    Raises:
        UserError: the file is damaged, wants to run a program, or holds anything else.
    """
    from vinvl.run.tensor_files import load_tensor_file  # torch, which the other formats do without

    try:
        content = load_tensor_file(path, mmap=_can_be_mapped(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except Exception as error:  # a hostile or damaged pickle may make the restricted loader raise anything
        reason = " ".join(str(error).partition("\n")[0].split())[:100]
        raise UserError(f"{path} is no file of tensors, or a damaged one ({reason}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, expected a dict of image ids with one tensor each.")
    return content


def _can_be_mapped(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error


def _rows_of(tensor: Any, dim: int, file_bytes: int) -> np.ndarray:
    """(R, D) or (R, D + 6) float32. Raises UserError if it is no plain tensor of that shape that the file holds."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise UserError(f"is {type(tensor).__name__}, a tensor was expected.")
    plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested or tensor.is_neg())
    if not plain or tensor.device.type != "cpu" or tensor.dtype.is_complex or tensor.dtype is torch.bool:
        raise UserError(f"is a {tensor.dtype} tensor ({tensor.layout}), a plain one of numbers was expected.")
    size = tensor.numel() * tensor.element_size()
    if size > min(tensor.untyped_storage().nbytes(), file_bytes, MOST_BYTES):
        raise UserError(f"is a tensor of {size:,} bytes, which the file does not hold, or more than {MOST_BYTES:,}.")
    if not tensor.numel() and tensor.ndim in (1, 2):
        return np.zeros((0, dim + GEOMETRY), dtype=np.float32)
    if tensor.ndim != 2 or tensor.shape[1] not in (dim, dim + GEOMETRY):
        raise UserError(
            f"has shape {tuple(tensor.shape)}, expected {dim} or {dim + GEOMETRY} numbers a region; features.dim=D "
            "tells another dimension."
        )
    return tensor.detach().to(torch.float32).numpy()


def images_of_tensors(
    path: Path,
    labels: LabelPickle | None,
    names: ObjectNames,
    sizes: SizesOrAssumed,
    options: FeatureOptions,
    done: Done,
) -> Iterator[Found]:
    """The images of a `.pt` file in its order; of one that is no table of region rows, or does not fit its labels, a
    sentence that names file and image.

    Raises:
        UserError: the file is damaged, wants to run a program, or holds anything else.
    """
    tensors, file_bytes = load_tensors(path), path.stat().st_size
    position = done.position
    for number, (key, tensor) in enumerate(tensors.items()):
        regions: Regions | UserError
        place = f"{path}, image {shown(key)}"
        if number < done.images:
            yield Found(place, None, position)
            continue
        try:
            image_id = str(checked_id(key, "image id"))
            try:
                rows = _rows_of(tensor, options.oscar_dim, file_bytes)
            except UserError as error:
                raise UserError(f"image {image_id!r} {error}") from None
            features, geometry = split_geometry(rows, options.oscar_dim)
            objects = labels.objects(image_id) if labels else None
            found = joined(image_id, features, geometry, objects, sizes.of(image_id, objects is None), names)
            regions = checked_regions(found, options)
            position += rows.nbytes
        except UserError as error:
            regions = UserError(f"{path}: {error}")
        yield Found(place, regions, position)
    if labels:
        labels.held_against({str(key) for key in tensors if isinstance(key, str | int)}, path)
