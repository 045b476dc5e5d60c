"""Pictures in whatever form they are given → something that can be looked up in a store or looked at."""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vinvl.data.pictures import ReadingOptions, picture_size, read_picture, rgb_picture
from vinvl.data.store import RegionStore
from vinvl.detection import DetectorConfig
from vinvl.detection.preprocessing import resized_pixels
from vinvl.errors import UserError

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
