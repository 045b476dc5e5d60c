"""A picture file of any kind → RGB pixels, or one sentence that says what is wrong with it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vinvl.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no others are opened, whatever a file claims to be
EXIF_IGNORE, EXIF_APPLY = "ignore", "apply"
DROP_ALPHA = "drop"
ORIENTATION_TAG = 0x0112
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
PILLOWS_LIMIT = 178_956_970  # pixels, above which Pillow itself refuses a picture


@dataclass(frozen=True)
class ReadingOptions:
    """How a file becomes pixels.

    Args:
        exif_orientation: "ignore" takes the pixels as they lie in the file, as the published extractor does; "apply"
            turns the picture as viewers show it.
        transparency: a colour name to lay a picture with transparent places over, or "drop", which shows whatever
            colours the file has there, as the published extractor does.
        max_pixels: a picture of more is refused before it is decoded. Above 178,956,970 see `lift_pillows_limit`.

    Raises:
        UserError: a value that is not one of these.
    """

    exif_orientation: str = EXIF_IGNORE
    transparency: str = "white"
    max_pixels: int = PILLOWS_LIMIT

    def __post_init__(self) -> None:
        if self.exif_orientation not in (EXIF_IGNORE, EXIF_APPLY):
            raise UserError(
                f"exif_orientation={self.exif_orientation!r} is unknown: give {EXIF_IGNORE} or {EXIF_APPLY}."
            )
        if self.transparency != DROP_ALPHA:
            try:
                Image.new("RGB", (1, 1), self.transparency)
            except (ValueError, TypeError, AttributeError):
                raise UserError(
                    f"transparency={self.transparency!r} is no colour: give a name such as white, or {DROP_ALPHA}."
                ) from None
        if self.max_pixels < 1:
            raise UserError(f"max_pixels={self.max_pixels} must be at least 1.")


def lift_pillows_limit(options: ReadingOptions) -> None:
    """Lets Pillow open pictures as large as `max_pixels` allows, in this whole process."""
    if options.max_pixels > PILLOWS_LIMIT:
        Image.MAX_IMAGE_PIXELS = options.max_pixels  # Pillow refuses twice this number


def read_picture(path: str | Path, options: ReadingOptions) -> Image.Image:
    """The picture as RGB; of an animation the first frame.

    Raises:
        UserError: the file is missing, empty, no picture, damaged, too large, or of a kind that has no colours to show.
    """
    with _opened(path, options) as image:
        return rgb_picture(_upright(image, options), options, str(path))


def picture_size(path: str | Path, options: ReadingOptions) -> tuple[int, int]:
    """(width, height) of the picture that `read_picture` would give; reads no more than the file's head.

    Raises:
        UserError: as `read_picture`, as far as the head tells.
    """
    with _opened(path, options) as image:
        width, height = image.size
        turned = options.exif_orientation == EXIF_APPLY and image.getexif().get(ORIENTATION_TAG) in SIDEWAYS
        return (height, width) if turned else (width, height)


def rgb_picture(image: Image.Image, options: ReadingOptions, name: str = "the picture") -> Image.Image:
    """A Pillow image of any mode as RGB: 16 bits a channel are scaled to 8, transparent places laid over a colour.

    Raises:
        UserError: floating-point pixels or whole numbers beyond 16 bits; nobody knows what is white there.
    """
    if image.mode.startswith("I;16") or image.mode == "I":
        image = _eight_bits(image, name)
    elif image.mode == "F":
        raise UserError(f"{name} has floating-point pixels, which have no known range: save it with 8 bits a channel.")
    if options.transparency != DROP_ALPHA and image.has_transparency_data:
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, options.transparency)
        image = Image.alpha_composite(below, image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    levels = np.asarray(image)
    if levels.size and (levels.min() < 0 or levels.max() > 0xFFFF):
        raise UserError(f"{name} has pixels of {levels.min()} to {levels.max()}: save it with 8 or 16 bits a channel.")
    return Image.fromarray((levels >> 8).astype(np.uint8))


def _upright(image: Image.Image, options: ReadingOptions) -> Image.Image:
    if options.exif_orientation == EXIF_IGNORE:
        return image
    return ImageOps.exif_transpose(image)


@contextmanager
def _opened(path: str | Path, options: ReadingOptions) -> Iterator[Image.Image]:
    """The file's head read and held against the limits; whatever its decoding raises becomes a sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes, which are held against our own limit
            if os.path.getsize(path) == 0:
                raise UserError(f"{path} is empty (0 bytes): get the file again.")
            with Image.open(path, formats=FORMATS) as image:
                pixels = image.width * image.height
                if pixels > options.max_pixels:
                    raise _too_large(path, f"{image.width:,} × {image.height:,} pixels", options)
                if pixels == 0:
                    raise UserError(f"{path} has {image.width} × {image.height} pixels: there is nothing to see in it.")
                yield image
    except (UserError, GeneratorExit):
        raise
    except UnidentifiedImageError:
        kinds = ", ".join(name.lower() for name in FORMATS)
        raise UserError(f"{path} is no picture of a known kind ({kinds}), or its beginning is damaged.") from None
    except Image.DecompressionBombError:
        raise _too_large(path, f"more than {PILLOWS_LIMIT:,} pixels", options) from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory.") from None
    except Exception as error:  # a damaged file may make a decoder raise anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path} is cut off or damaged ({' '.join(reason.split())[:100]}).") from None


def _too_large(path: str | Path, size: str, options: ReadingOptions) -> UserError:
    return UserError(
        f"{path} has {size}, and max_pixels is {options.max_pixels:,}: raise it if you trust the file, which may "
        "be made to fill the memory."
    )
