"""The published `.pt` files of VQA, GQA and NLVR2, {image id: tensor (R, D + 6)}, and the label pickles with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.regions.formats.oscar import ANOTHER_RUN, DetectedObjects, Joiner, label_map_of, read_objects, size_in
from vinvl.regions.formats.rows import GEOMETRY, MOST_BYTES, Done, Found, LeftOut, at, images_of_items
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
        self.path = path
        self._objects: dict[str, DetectedObjects] = {}
        for key, value in content.items():
            try:
                image_id = str(checked_id(key, f"{path}: an image id"))
                with at(f"{path}, image {image_id!r}"):
                    self._objects[image_id] = _pickled_objects(value)
            except UserError as error:
                left_out.add(error)
        self.label_map = label_map_of((name for one in self._objects.values() for name in one.classes), ())

    def objects(self, image_id: str) -> DetectedObjects:
        if image_id not in self._objects:
            raise UserError(f"{self.path} has no image {image_id!r}; {ANOTHER_RUN}.")
        return self._objects[image_id]

    def beyond(self, images: set[str]) -> list[str]:
        """The images that it has and features have not."""
        return [image_id for image_id in self._objects if image_id not in images]


def _pickled_objects(value: Any) -> DetectedObjects:
    if not isinstance(value, Mapping) or "class" not in value or "boxes" not in value:
        raise UserError("there are no class and boxes; the file may be of answers rather than of objects.")
    try:
        classes, boxes = list(value["class"]), np.asarray(value["boxes"], dtype=np.float64).reshape(-1, 4)
        scores = np.asarray(value.get("conf", np.zeros(len(classes))), dtype=np.float64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        raise UserError("class, boxes or conf are no lists of names and numbers.") from None
    if not len(classes) == len(boxes) == len(scores):
        raise UserError(f"there are {len(classes)} classes, {len(boxes)} boxes and {len(scores)} scores.")
    rows = zip(classes, boxes.tolist(), scores.tolist(), strict=True)
    entries = [{"class": name, "rect": box, "conf": score} for name, box, score in rows]
    size = size_in(value)
    return read_objects({"objects": entries} | ({"image_w": size[0], "image_h": size[1]} if size else {}))


def images_of_tensors(
    path: Path, labels: LabelPickle | None, joiner: Joiner, done: Done, note: Callable[[str], None]
) -> Iterator[Found]:
    """The images of a `.pt` file in its order; of one that is no table of region rows, or does not fit its labels, a
    sentence that names file and image.

    Raises:
        UserError: the file is damaged, wants to run a program, or holds anything else.
    """
    tensors, file_bytes = _load_tensors(path), path.stat().st_size

    def read(item: tuple[Any, Any]) -> Found:
        key, tensor = item
        place = f"{path}, image {shown(key)}"
        try:
            with at(str(path)):
                image_id = str(checked_id(key, "image id"))
            with at(f"{path}: image {image_id!r}"):
                rows = _rows_of(tensor, joiner.options.oscar_dim, file_bytes)
                objects = labels.objects(image_id) if labels else None
                return Found(place, joiner.joined_rows(image_id, rows, objects), rows.nbytes)
        except UserError as error:
            return Found(place, error, 0)

    yield from images_of_items(list(tensors.items()), read, 1, done)
    if labels and (more := labels.beyond({str(key) for key in tensors if isinstance(key, str | int)})):
        note(f"{labels.path} has {len(more):,} images that {path} does not have, such as {more[0]!r}")


def _load_tensors(path: Path) -> dict[Any, Any]:
    """{image id: tensor} of a `.pt` file, mapped into memory where its format (of torch 1.6) allows it."""
    from vinvl.run.tensor_files import load_tensor_file  # torch, which the other formats do without

    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        content = load_tensor_file(path, mmap=zipped)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
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
        return np.zeros((0, dim + GEOMETRY), dtype=np.float32)
    if tensor.ndim != 2 or tensor.shape[1] not in (dim, dim + GEOMETRY):
        expected = f"{dim} or {dim + GEOMETRY} numbers a region; features.dim=D tells another dimension"
        raise UserError(f"it has shape {tuple(tensor.shape)}, expected {expected}.")
    return tensor.detach().to(torch.float32).numpy()
