"""Pictures in whatever form they are given → something that can be looked up in a store or looked at."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vinvl.detector.config import DetectorConfig
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


@dataclass(frozen=True, eq=False)
class Taken:
    """A picture that was given.

    Attributes:
        key: the same for the same picture within one call.
        name: for messages and results.
        stored: its position in the store, None where it is not from there.
        path: the file, None for what is in memory.
        image: what is in memory and stays as it is, Pillow's or NumPy's.
        pixels: uint8 (height, width, 3), resized for the detector, once it has been made ready.
        size: (width, height) before it was resized, once that is known.
    """

    key: Hashable
    name: str
    stored: int | None = None
    path: Path | None = None
    image: Image.Image | np.ndarray | None = None
    pixels: Tensor | None = None
    size: tuple[int, int] | None = None


class Taking:
    """Takes pictures in.

    Args:
        store: where image ids are looked up first; None for none.
        config: how the detector resizes pictures; None where there is no detector.
        reading: how files, and Pillow's images, become pixels.
    """

    def __init__(self, store: RegionStore | None, config: DetectorConfig | None, reading: ReadingOptions) -> None:
        self._store, self._config, self._reading = store, config, reading

    def key(self, image: object) -> Hashable:
        """Tells pictures apart while the caller holds them: text by its content, objects by which they are."""
        return str(image) if isinstance(image, str | os.PathLike) else id(image)

    def take(self, image: Any) -> Taken:
        """A picture, which if it is in memory stays as it is as long as the call goes on.

        Args:
            image: see `Picture`.

        Raises:
            UserError: it is no picture, there is none of that name, or there is no detector to look at it with.
        """
        if isinstance(image, str) and self._store is not None and image in self._store:
            return Taken(("id", image), image, stored=self._store.index_of(image))
        if isinstance(image, str | os.PathLike):
            return self._of_path(image)
        refuse_no_picture(image)
        name = str(getattr(image, "filename", "") or "the picture")
        if self._config is None:
            raise self._no_detector(name)
        return Taken(("object", id(image)), name, image=image)

    def measured(self, taken: Taken) -> Taken:
        """A picture that is not from the store with its size; what is in memory is also resized.

        Raises:
            UserError: it is broken, as far as this shows.
        """
        if taken.size is not None:
            return taken
        if taken.path is None:
            assert taken.image is not None and self._config is not None
            rgb = rgb_of(taken.image, self._reading, taken.name)
            return Taken(taken.key, taken.name, pixels=resized_pixels(rgb, self._config), size=rgb.size)
        return replace(taken, size=picture_size(taken.path, self._reading))

    def pixels(self, taken: Taken) -> Tensor:
        """Uint8 (height, width, 3), resized. Raises UserError, naming the file, for a broken one."""
        if taken.pixels is not None:
            return taken.pixels
        assert taken.path is not None and self._config is not None
        return resized_pixels(read_picture(taken.path, self._reading), self._config)

    def _of_path(self, image: str | os.PathLike[str]) -> Taken:
        path = Path(image).expanduser()
        if path.is_dir():
            raise UserError(f"{path} is a folder: give the pictures in it.")
        if not path.is_file():
            if self._store is None or not isinstance(image, str):
                raise UserError(f"There is no picture {path}.")
            holds = f", whose ids are like {self._store.at(0).image_id!r}" if len(self._store) else ""
            raise UserError(f"{image!r} is neither an image of {self._store!r}{holds}, nor a picture file.")
        if self._config is None:
            raise self._no_detector(str(path))
        return Taken(("path", str(path)), str(path), path=path)

    def _no_detector(self, name: str) -> UserError:
        instead = "" if self._store is None else ", or give the id of an image in features"
        return UserError(
            f"{name} cannot be looked at without a detector: give its weights, such as vinvl_vg_x152c4.pth, as "
            f"detector (on the command line weights=FILE){instead}."
        )


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
        taking: reads pictures.
        store: of the image ids; None for none.
        detector: on its device; None for none.
        feature_dtype: that features are rounded to, as in the store that the model was trained on.
        batch_size: pictures that go through the detector together, at most.
    """

    taking: Taking
    store: RegionStore | None
    detector: OpenedDetector | None
    computing: Computing
    feature_dtype: torch.dtype
    batch_size: int

    def regions(self, pictures: Sequence[Taken]) -> list[Regions]:
        """The detector's regions of pictures that are not from the store, each as if it was alone."""
        assert self.detector is not None
        detector = self.detector.detector
        pictures = [self.taking.measured(one) for one in pictures]
        originals = [one.size for one in pictures if one.size is not None]
        sizes = [padded_size(*size, detector.config) for size in originals]
        found: dict[int, Regions] = {}
        for batch in alike(range(len(pictures)), sizes, self.batch_size, mixed_sizes=False):
            pixels = [self.taking.pixels(pictures[index]) for index in batch]
            with self.computing.precision():
                regions = detector.detect_pixels(pixels, [originals[index] for index in batch])
            for index, one in zip(batch, regions, strict=True):
                found[index] = store_regions(pictures[index].name, one, self.feature_dtype)
        return [found[index] for index in range(len(pictures))]


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
        detector = self._looking.detector
        assert detector is not None
        dim = detector.detector.config.architecture.c5_channels
        return FoundRegions(tuple(regions), detector.label_map, dim)
