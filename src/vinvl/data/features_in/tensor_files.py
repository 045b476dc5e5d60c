"""The published `.pt` files of VQA, GQA and NLVR2, {image id: tensor (R, D + 6)}, and the label pickles with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.data.features_in.lines import Found
from vinvl.data.features_in.objects import DetectedObjects, ObjectNames, joined, label_map_of, read_objects, size_in
from vinvl.data.features_in.oscar_rows import SizesOrAssumed, split_geometry
from vinvl.data.features_in.rows import GEOMETRY, ReadOptions, checked_regions
from vinvl.data.json_files import read_bytes
from vinvl.data.restricted_pickle import load_restricted
from vinvl.data.store import LabelMap
from vinvl.errors import UserError


class LabelPickle:
    """Objects by image id from a pickle {id: {"class", "boxes", "image_w", "image_h", "conf"}}; read whole.

    Raises:
        UserError: the pickle holds anything else.
    """

    def __init__(self, path: Path) -> None:
        content = load_restricted(read_bytes(path), str(path))
        if not isinstance(content, dict) or not content:
            raise UserError(f"{path} holds {type(content).__name__}, expected a dict of image ids with their objects.")
        self._path = path
        self._objects = {str(key): _pickled_objects(value, f"{path}, image {key!r}") for key, value in content.items()}

    def objects(self, image_id: str) -> DetectedObjects:
        if image_id not in self._objects:
            raise UserError(f"{self._path} has no image {image_id!r}; the two files are not of one run.")
        return self._objects[image_id]

    def label_map(self) -> LabelMap:
        return label_map_of((name for objects in self._objects.values() for name in objects.classes), ())


def _pickled_objects(value: Any, image: str) -> DetectedObjects:
    if not isinstance(value, Mapping) or "class" not in value or "boxes" not in value:
        raise UserError(f"{image} has no class and boxes; the file may be of answers rather than of objects.")
    try:
        classes, boxes = list(value["class"]), np.asarray(value["boxes"], dtype=np.float64).reshape(-1, 4)
        scores = np.asarray(value.get("conf", np.zeros(len(classes))), dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise UserError(f"{image}: class, boxes or conf are no lists of names and numbers.") from None
    if not len(classes) == len(boxes) == len(scores):
        raise UserError(f"{image} has {len(classes)} classes, {len(boxes)} boxes and {len(scores)} scores.")
    entries = [
        {"class": name, "rect": box, "conf": score}
        for name, box, score in zip(classes, boxes.tolist(), scores.tolist(), strict=True)
    ]
    size = size_in(value, image)
    return read_objects({"objects": entries} | ({"image_w": size[0], "image_h": size[1]} if size else {}), image)


def load_tensors(path: Path) -> dict[str, Any]:
    """{image id: tensor} of a `.pt` file, mapped into memory where its format allows it.

    Files of torch before 1.6 cannot be mapped and are read whole.

    Raises:
        UserError: the file is damaged, wants to run a program, or holds anything else.
    """
    import torch  # the other formats do without

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except Exception as error:  # a hostile or damaged pickle may make the restricted loader raise anything
        reason = str(error).partition("\n")[0][:100]
        raise UserError(f"{path} is no file of tensors, or a damaged one ({reason}).") from None
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(f"{path} holds {type(content).__name__}, expected a dict of image ids with one tensor each.")
    named = {str(key): value for key, value in content.items()}
    if len(named) != len(content):
        raise UserError(f"{path} has an image id both as a number and as a text, so one of the two would be lost.")
    return named


def _can_be_mapped(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def images_of_tensors(
    path: Path, labels: LabelPickle | None, names: ObjectNames, sizes: SizesOrAssumed, options: ReadOptions
) -> Iterator[Found]:
    """The images of a `.pt` file in its order.

    Raises:
        UserError: a tensor is no table of region rows, or does not fit its labels; the sentence names file and image.
    """
    position = 0
    for image_id, tensor in load_tensors(path).items():
        try:
            if tensor.ndim != 2 or tensor.shape[1] not in (options.feature_dim, options.feature_dim + GEOMETRY):
                raise UserError(
                    f"image {image_id!r} has shape {tuple(tensor.shape)}, expected {options.feature_dim} or "
                    f"{options.feature_dim + GEOMETRY} numbers a region; features.dim=D tells another dimension."
                )
            features, geometry = split_geometry(tensor.float().numpy(), options.feature_dim)
            objects = labels.objects(image_id) if labels else None
            found = joined(image_id, features, geometry, objects, sizes.of(image_id, objects is None), names)
            regions = checked_regions(found, options)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        position += tensor.numel() * tensor.element_size()
        yield Found(f"{path}, image {image_id!r}", regions, position)
