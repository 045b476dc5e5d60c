"""A picture of any kind → RGB pixels, or one sentence that says what is wrong with it."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal

import numpy as np
from msgspec import Meta
from PIL import Image, UnidentifiedImageError

from vinvl.pictures.containers import name_of, opened
from vinvl.run.errors import UserError
from vinvl.run.values import check_fields

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # no others are opened, whatever a file claims to be
EXIF_IGNORE: Final = "ignore"
EXIF_APPLY: Final = "apply"
DROP_ALPHA = "drop"
ORIENTATION_TAG = 0x0112
TURNS = {  # by EXIF orientation: what makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
UPRIGHT = 1  # the orientation of a picture that is not turned
SIDEWAYS = (5, 6, 7, 8)  # those that swap width and height
PILLOWS_LIMIT = 178_956_970  # pixels, above which Pillow itself refuses a picture


@dataclass(frozen=True)
class ReadingOptions:
    """How a file becomes pixels. Raises UserError for a value that is not one of these.

    Args:
        exif_orientation: "apply" turns the picture as its EXIF block says, as viewers do, and OpenCV, with which the
            published extractor reads; "ignore" takes the pixels as they lie in the file (not in a TIFF, which Pillow
            always turns).
        transparency: a colour name to lay a picture with transparent places over, or "drop", which shows whatever
            colours the file has there, as the published extractor does.
        max_pixels: a picture of more is refused before it is decoded. More than 178,956,970 lifts Pillow's own limit in
            the whole process.
    """

    exif_orientation: Literal["ignore", "apply"] = EXIF_APPLY
    transparency: str = "white"
    max_pixels: Annotated[int, Meta(ge=1)] = PILLOWS_LIMIT

    def __post_init__(self) -> None:
        check_fields(self, "")
        if self.transparency != DROP_ALPHA:
            try:
                Image.new("RGB", (1, 1), self.transparency)
            except (ValueError, TypeError, AttributeError):
                raise UserError(
                    f"transparency={self.transparency!r} is not a colour: give a name such as white, or {DROP_ALPHA}."
                ) from None


def read_picture(path: str | Path, options: ReadingOptions) -> Image.Image:
    """The picture of a file, or at a place in a container, as RGB; of an animation the first frame.

    Raises UserError if it is missing, empty, no picture, damaged, too large, or has no colours to show.
    """
    with _opened(path, options) as image:
        return rgb_picture(image, options, name_of(path))


def picture_size(path: str | Path, options: ReadingOptions) -> tuple[int, int]:
    """(width, height) of what `read_picture` would give; raises as it does, as far as the file's head tells."""
    return size_and_turn(path, options)[0]


def size_and_turn(path: str | Path, options: ReadingOptions) -> tuple[tuple[int, int], int]:
    """`picture_size`, and the EXIF orientation by which `read_picture` turns the picture; `UPRIGHT` if it does not."""
    with _opened(path, options) as image:
        width, height = image.size
        turn = orientation(image) if options.exif_orientation == EXIF_APPLY else UPRIGHT
        return ((height, width) if turn in SIDEWAYS else (width, height)), turn if turn in TURNS else UPRIGHT


def turned_shares(boxes: np.ndarray, turn: int) -> np.ndarray:
    """(m, 4) x1 y1 x2 y2 in shares of a stored picture → of what is shown of one with this EXIF orientation."""
    if turn in SIDEWAYS:
        boxes = boxes[:, [1, 0, 3, 2]]
    if turn in (2, 3, 6, 7):
        boxes = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], axis=1)
    if turn in (3, 4, 7, 8):
        boxes = np.stack([boxes[:, 0], 1 - boxes[:, 3], boxes[:, 2], 1 - boxes[:, 1]], axis=1)
    return boxes


def orientation(image: Image.Image) -> int:
    """The EXIF orientation of a Pillow image, as OpenCV reads it; what is none of 1 to 8 means nothing.

    XMP says it too, in files that lack it in EXIF: OpenCV does not look there (Pillow's own `exif_transpose` does).
    """
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):  # a TIFF has it elsewhere, and Pillow has turned it
        return 1
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            if struct.unpack_from(f"{order}H", exif, entry) == (ORIENTATION_TAG,):
                (found,) = struct.unpack_from(f"{order}H", exif, entry + 8)
                return int(found)
    except struct.error:  # it is cut off
        pass
    return 1


def rgb_picture(image: Image.Image, options: ReadingOptions, name: str = "the picture") -> Image.Image:
    """A Pillow image of any mode, turned as the options say, as RGB: 16 bits a channel are scaled to 8, transparent
    places laid over a colour.

    Raises UserError for floating-point pixels or whole numbers beyond 16 bits; nobody knows what is white there.
    """
    if options.exif_orientation == EXIF_APPLY:
        image.load()  # a PNG may say how it lies behind its pixels
        turn = TURNS.get(orientation(image))
        image = image if turn is None else image.transpose(turn)
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.asarray(image)
        low, high = (levels.min(), levels.max()) if levels.size else (0, 0)
        if low < 0 or high > 0xFFFF:
            raise UserError(f"{name} has pixels of {low} to {high}: save it with 8 or 16 bits a channel.")
        image = Image.fromarray((levels >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise UserError(f"{name} has floating-point pixels, which have no known range: save it with 8 bits a channel.")
    if options.transparency != DROP_ALPHA and image.has_transparency_data:
        below = Image.new("RGBA", image.size, options.transparency)
        image = Image.alpha_composite(below, image.convert("RGBA"))
    return image.convert("RGB")


@contextmanager
def _opened(place: str | Path, options: ReadingOptions) -> Iterator[Image.Image]:
    """The file's head read and held against the limits; whatever its decoding raises becomes a sentence."""
    path = name_of(place)

    def too_large(size: str) -> UserError:
        limit = f"max_pixels is {options.max_pixels:,}: raise it if you trust the file, which may be made to fill the"
        return UserError(f"{path} has {size}, and {limit} memory.")

    if Image.MAX_IMAGE_PIXELS is not None and options.max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = options.max_pixels  # ours is the smaller limit
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes, which are held against our own limit
            if path == os.fspath(place) and os.path.getsize(path) == 0:
                raise UserError(f"{path} is empty (0 bytes): get the file again.")
            with opened(place) as file, Image.open(file, formats=FORMATS) as image:
                pixels = image.width * image.height
                if pixels > options.max_pixels:
                    raise too_large(f"{image.width:,} × {image.height:,} pixels")
                if pixels == 0:
                    raise UserError(f"{path} has {image.width} × {image.height} pixels: there is nothing to see in it.")
                if image.format == "PNG" and "exif" not in image.info:
                    image.info["exif"] = _late_exif(file)
                yield image
    except (UserError, GeneratorExit):
        raise
    except UnidentifiedImageError:
        kinds = ", ".join(name.lower() for name in FORMATS)
        raise UserError(f"{path} is not a picture of a known kind ({kinds}), or its beginning is damaged.") from None
    except Image.DecompressionBombError:
        raise too_large(f"more than {PILLOWS_LIMIT:,} pixels") from None
    except FileNotFoundError:
        raise UserError(f"{path} does not exist.") from None
    except MemoryError:
        raise UserError(f"{path} does not fit into memory.") from None
    except Exception as error:  # a damaged file may make a decoder raise anything
        raise damage(path, error) from None


def damage(name: str | Path, error: Exception) -> UserError:
    """The sentence about a picture whose decoding has raised an error."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return UserError(f"{name} is cut off or damaged ({' '.join(reason.split())[:100]}).")


def _late_exif(file: BinaryIO) -> bytes:
    """What the EXIF chunk behind the pixels of a PNG holds, b"" if there is none; the file's position stays."""
    here = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            size, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                return file.read(min(size, 0xFFFF))
            file.seek(size + 4, os.SEEK_CUR)
        return b""
    finally:
        file.seek(here)
