"""Pictures in whatever form they are given → something that can be looked up in a store or looked at."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vinvl.detector.detector import padded_size, resized_pixels
from vinvl.detector.weights import OpenedDetector, device_of
from vinvl.extraction.feed import alike
from vinvl.extraction.run import store_regions
from vinvl.pictures import ReadingOptions, picture_size, read_picture, rgb_picture
from vinvl.regions.regions import LabelMap, Regions, RegionSource
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError

# On what device and in what precision a model computes, and how much at a time.


FLOAT32, BFLOAT16 = "float32", "bfloat16"
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Computing:
    """Device, precision, and examples in one forward pass.

    Args:
        device: that the model is on.
        dtype: float32, or bfloat16 for mixed precision: weights stay in float32.
        batch_size: examples at a time.
    """

    device: torch.device
    dtype: str
    batch_size: int

    @classmethod
    def of(cls, device: str | None, dtype: str, batch_size: int) -> Computing:
        """From what a person gives; device None is the GPU if there is one. Raises UserError for what cannot be."""
        if dtype not in (FLOAT32, BFLOAT16):
            raise UserError(f"dtype={dtype!r} is unknown: give {FLOAT32} or {BFLOAT16}.")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size={batch_size!r} must be a whole number of at least 1.")
        return cls(device_of(device), dtype, batch_size)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """No gradients, and mixed precision where it is wanted."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == BFLOAT16):
            yield

    def in_batches(
        self, items: Sequence[Item], cost: Callable[[Item], int], work: Callable[[list[Item]], Sequence[Result]]
    ) -> list[Result]:
        """What `work` makes of the items, in their order; those of like cost are worked on together, to pad little."""
        order = sorted(range(len(items)), key=lambda index: -cost(items[index]))
        results: dict[int, Result] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            with self.precision():
                found = work([items[index] for index in chosen])
            results |= dict(zip(chosen, found, strict=True))
        return [results[index] for index in range(len(items))]


Picture = str | os.PathLike[str] | Image.Image | np.ndarray
"""A path, an image id, a Pillow image of any mode, or uint8 (H, W, 3) in the order red, green, blue or (H, W)."""


def refuse_no_picture(image: object) -> None:
    """Raises UserError for what is neither a Pillow image nor an array of pixels, and for pictures without pixels."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise UserError(
                f"An array of {image.dtype} {image.shape} is no picture: give uint8 (height, width, 3), red, green and "
                "blue from 0 to 255, or (height, width)."
            )
        if image.size == 0:
            raise UserError(f"An array of the shape {image.shape} has nothing to see in it.")
    elif not isinstance(image, Image.Image):
        ids = ", and image ids are text" if isinstance(image, int) else ""
        raise UserError(
            f"A {type(image).__name__} is no picture{ids}: give a path, a Pillow image, a NumPy array or the id of an "
            "image in features."
        )
    elif image.width * image.height == 0:
        raise UserError(f"A picture of {image.width} × {image.height} pixels has nothing to see in it.")


def rgb_of(image: Image.Image | np.ndarray, reading: ReadingOptions, name: str) -> Image.Image:
    """A picture in memory as a Pillow image in RGB.

    Raises:
        UserError: it cannot be decoded, or has no colours to show.
    """
    if isinstance(image, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(image)).convert("RGB")
    try:
        return rgb_picture(image, reading, name)
    except UserError:
        raise
    except Exception as error:  # Pillow decodes late, and a damaged file may make a decoder raise anything
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise UserError(f"{name} is cut off or damaged ({reason}).") from None


# The regions of pictures: from a store, or by the detector, which looks at each picture of a call once.


KEPT = 512  # pictures whose regions a call keeps: 200 MB at 100 regions of 2,048 halves


@dataclass(frozen=True, eq=False)
class Taken:
    """A picture that was given.

    Attributes:
        key: the same for the same picture within one call.
        name: for messages and results.
        stored: its position in the store, None if it is not from there.
        image: the file, or what is in memory and stays as it is, Pillow's or NumPy's.
    """

    key: Hashable
    name: str
    stored: int | None = None
    image: Path | Image.Image | np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class FoundRegions:
    """What a detector has found in N pictures, like a store in memory."""

    found: tuple[Regions, ...]
    label_map: LabelMap
    feature_dim: int

    @property
    def num_regions(self) -> np.ndarray:
        """(N,) int64"""
        return np.array([len(regions) for regions in self.found], dtype=np.int64)

    def at(self, index: int) -> Regions:
        return self.found[index]

    def classes_at(self, index: int) -> np.ndarray:
        return self.found[index].classes


Place = tuple[RegionSource, int]
"""Where the regions of a picture are: a store or a detector's finds, and the position there."""


@dataclass(frozen=True)
class Looking:
    """What regions come from, and how.

    Attributes:
        store: where image ids are looked up first; None for none.
        detector: on its device; None for none.
        reading: how files, and Pillow's images, become pixels.
        feature_dtype: that features are rounded to, as in the store that the model was trained on.
        batch_size: pictures that go through the detector together, at most.
    """

    store: RegionStore | None
    detector: OpenedDetector | None
    reading: ReadingOptions
    computing: Computing
    feature_dtype: torch.dtype
    batch_size: int

    def take(self, image: Any) -> Taken:
        """A picture; if it is in memory it must not change during the call.

        Raises:
            UserError: it is no `Picture`, there is none of that name, or there is no detector to look at it with.
        """
        if isinstance(image, str) and self.store is not None and image in self.store:
            return Taken(("id", image), image, stored=self.store.index_of(image))
        if isinstance(image, str | os.PathLike):
            path = self._file(image)
            taken = Taken(("path", str(path)), str(path), image=path)
        else:
            refuse_no_picture(image)
            name = str(getattr(image, "filename", "") or "the picture")
            taken = Taken(("object", id(image)), name, image=image)
        if self.detector is None:
            instead = "" if self.store is None else ", or give the id of an image in features"
            raise UserError(
                f"{taken.name} cannot be looked at without a detector: give its weights, such as vinvl_vg_x152c4.pth, "
                f"as detector (on the command line weights=FILE){instead}."
            )
        return taken

    def _file(self, image: str | os.PathLike[str]) -> Path:
        path = Path(image).expanduser()
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the pictures in it.")
        if path.is_file():
            return path
        if self.store is None or not isinstance(image, str):
            raise UserError(f"There is no picture {path}.")
        holds = f", whose ids are like {self.store.at(0).image_id!r}" if len(self.store) else ""
        raise UserError(f"{image!r} is neither an image of {self.store!r}{holds}, nor a picture file.")

    def regions(self, pictures: Sequence[Taken]) -> list[Regions]:
        """The detector's regions of pictures that are not from the store, each as if it was alone.

        Raises:
            UserError: names a picture that is broken.
        """
        assert self.detector is not None
        detector, sizes = self.detector.detector, list[tuple[int, int]]()  # (width, height) before they are resized
        ready: dict[int, Tensor] = {}  # uint8 (height, width, 3), resized: files are read when their turn comes
        for number, one in enumerate(pictures):
            if isinstance(one.image, Path):
                sizes.append(picture_size(one.image, self.reading))
            else:
                assert one.image is not None
                rgb = rgb_of(one.image, self.reading, one.name)
                sizes.append(rgb.size)
                ready[number] = resized_pixels(rgb, detector.config)
        found: dict[int, Regions] = {}
        padded = [padded_size(*size, detector.config) for size in sizes]
        for batch in alike(range(len(pictures)), padded, self.batch_size, mixed_sizes=False):
            pixels = [ready[i] if i in ready else self._pixels(pictures[i]) for i in batch]
            with self.computing.precision():
                regions = detector.detect_pixels(pixels, [sizes[index] for index in batch])
            for index, seen in zip(batch, regions, strict=True):
                found[index] = store_regions(pictures[index].name, seen, self.feature_dtype)
        return [found[index] for index in range(len(pictures))]

    def _pixels(self, taken: Taken) -> Tensor:
        assert isinstance(taken.image, Path) and self.detector is not None
        return resized_pixels(read_picture(taken.image, self.reading), self.detector.detector.config)


def key_of(image: object) -> Hashable:
    """Tells pictures apart while the caller holds them: text by its content, objects by which they are."""
    return str(image) if isinstance(image, str | os.PathLike) else id(image)


class Finder:
    """Finds the regions of the pictures of one call, and remembers those of the last `KEPT`."""

    def __init__(self, looking: Looking) -> None:
        self._looking = looking
        self._kept: OrderedDict[Hashable, Regions] = OrderedDict()

    def find(self, pictures: Sequence[Taken]) -> list[Place]:
        """Where the regions of each picture are.

        Raises:
            UserError: a picture is broken.
        """
        wanted = {one.key: one for one in pictures if one.stored is None}
        new = [one for key, one in wanted.items() if key not in self._kept]
        self._kept.update(zip([one.key for one in new], self._looking.regions(new) if new else [], strict=True))
        for key in wanted:
            self._kept.move_to_end(key)
        numbers = {key: number for number, key in enumerate(wanted)}
        found = self._found([self._kept[key] for key in wanted]) if wanted else None
        places: list[Place] = []
        for one in pictures:
            source = found if one.stored is None else self._looking.store
            assert source is not None
            places.append((source, numbers[one.key] if one.stored is None else one.stored))
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return places

    def _found(self, regions: list[Regions]) -> FoundRegions:
        opened = self._looking.detector
        assert opened is not None
        return FoundRegions(tuple(regions), opened.label_map, opened.detector.config.architecture.c5_channels)
