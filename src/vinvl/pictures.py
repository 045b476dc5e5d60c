"""Picture files: which there are, the image id of each, and how they are read."""

from __future__ import annotations

import base64
import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO, Final, Literal

import numpy as np
from msgspec import Meta
from PIL import Image, UnidentifiedImageError

from vinvl.data.table import Column
from vinvl.regions.formats.rows import check_pattern, id_by_pattern
from vinvl.regions.regions import encoded_id
from vinvl.run.errors import UserError
from vinvl.run.values import check_fields, shown

# A picture file of any kind → RGB pixels, or one sentence that says what is wrong with it.


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
    """The picture as RGB; of an animation the first frame.

    Raises UserError if the file is missing, empty, no picture, damaged, too large, or has no colours to show.
    """
    with _opened(path, options) as image:
        return rgb_picture(image, options, str(path))


def picture_size(path: str | Path, options: ReadingOptions) -> tuple[int, int]:
    """(width, height) of what `read_picture` would give; raises as it does, as far as the file's head tells."""
    with _opened(path, options) as image:
        width, height = image.size
        turned = options.exif_orientation == EXIF_APPLY and orientation(image) in SIDEWAYS
        return (height, width) if turned else (width, height)


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
def _opened(path: str | Path, options: ReadingOptions) -> Iterator[Image.Image]:
    """The file's head read and held against the limits; whatever its decoding raises becomes a sentence."""

    def too_large(size: str) -> UserError:
        limit = f"max_pixels is {options.max_pixels:,}: raise it if you trust the file, which may be made to fill the"
        return UserError(f"{path} has {size}, and {limit} memory.")

    if Image.MAX_IMAGE_PIXELS is not None and options.max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = options.max_pixels  # ours is the smaller limit
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes, which are held against our own limit
            if os.path.getsize(path) == 0:
                raise UserError(f"{path} is empty (0 bytes): get the file again.")
            with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
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


SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")  # of pictures


@dataclass(frozen=True)
class PictureNames:
    """How the image id follows from a picture's place. Raises UserError for another rule, or a pattern that is none.

    Args:
        rule: "stem": the file's name without its suffix; "path": its path below the folder (or the list file's folder)
            without its suffix, with "/" between folders; "file": that path with its suffix.
        pattern: a regular expression whose first group, found in what `rule` gives, is the id: `0*(\\d+)$` makes
            COCO_val2014_000000262148 262148. None takes it as it is.
        prefix: in front of all ids.
    """

    rule: Literal["stem", "path", "file"] = "stem"
    pattern: str | None = None
    prefix: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "id.")
        if self.pattern is not None:
            check_pattern(self.pattern, "id.pattern")

    def image_id(self, path: Path, folder: Path) -> str:
        """The id of a file. Raises UserError if the pattern does not fit."""
        place = path.relative_to(folder) if path.is_relative_to(folder) else path
        names = {"stem": path.stem, "file": place.as_posix(), "path": os.path.splitext(place)[0]}
        return self.prefix + id_by_pattern(names[self.rule], self.pattern, "id.pattern")


@dataclass(frozen=True)
class Unusable:
    """A picture that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Pictures:
    """N picture files, in the order in which they were found, in arrays that worker processes share.

    ids, paths: N texts. unusable: files whose place gives no id.
    """

    ids: Column
    paths: Column
    unusable: tuple[Unusable, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, index: int, count: int) -> Pictures:
        """Part `index`, from 0, of `count` parts of like size: pictures that follow each other."""
        start, stop = len(self) * index // count, len(self) * (index + 1) // count
        ids, paths = (Column.of(column[start:stop]) for column in (self.ids, self.paths))  # whose part alone is sent
        return Pictures(ids, paths, self.unusable if index == 0 else ())


def find_pictures(source: str | Path, names: PictureNames) -> Pictures:
    """The pictures of a folder and all folders in it, of a list file, or one picture.

    Raises UserError if nothing is there, or two files have one id.

    Args:
        source: a folder; a picture; or a text file with a path a line, from the list's folder unless it is absolute,
            and behind a tab, where `names` shall not say it, the id. Hidden files and folders are passed over.
        names: how ids follow from places.
    """
    source = Path(source).expanduser()
    if not source.is_dir() and not source.is_file():
        raise UserError(f"images={source} does not exist: give a folder, a list file or a picture.")
    if source.is_file() and source.suffix.lower() not in SUFFIXES and _holds_pictures(source):
        reason = (
            f"{source} holds pictures in base64: a TSV of pictures is not read; write each into a file of its own, and "
            "give their folder"
        )
        return Pictures(Column.of([]), Column.of([]), (Unusable(str(source), reason),))
    found = picture_files(source)
    if not found:
        kinds = ", ".join(sorted(SUFFIXES))
        raise UserError(f"images={source} holds no pictures: looked for are files ending in {kinds}.")
    return _named(found, source if source.is_dir() else source.parent, names)


def picture_files(source: Path) -> list[tuple[Path, str | None]]:
    """(file, id where a list says it) of each picture of a folder, of a list file, or of one picture."""
    if source.is_dir():
        return [(path, None) for path in _walk(source)]
    return [(source, None)] if source.suffix.lower() in SUFFIXES else list(_listed(source))


def _walk(folder: Path) -> Iterator[Path]:
    """Picture files in the order of their paths. Links to folders are followed, once each."""
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        status = os.stat(place)
        known = (status.st_dev, status.st_ino) in seen
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [] if known else sorted(name for name in folders if not name.startswith("."))
        if known:
            continue
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith("."):
                yield Path(place) / name


def _refuse(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}): check its permissions.")


def _holds_pictures(path: Path) -> bool:
    """Whether the first line of a file ends in a picture in base64, behind a tab."""
    try:
        with path.open("rb") as file:
            _, tab, last = file.readline(2**20).rpartition(b"\t")
        head = base64.b64decode(last[:16], validate=True)
    except (OSError, ValueError):  # of a file that cannot be read the reader that follows says why
        return False
    of_bmp = head.startswith(b"BM") and head[6:10] == bytes(4)
    return bool(tab) and len(last) > 32 and (of_bmp or head.startswith(BEGINNINGS))


def _listed(path: Path) -> Iterator[tuple[Path, str | None]]:
    """(file, id or None) of each line of a list file."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                name, tab, image_id = line.rstrip("\r\n").partition("\t")
                if "\0" in name:
                    raise UserError(f"{path} line {number} is not a path: give a text file with one path a line.")
                if name.strip():
                    yield path.parent / name.strip(), image_id.strip() if tab else None
    except UnicodeDecodeError:
        raise UserError(f"{path} is neither a picture nor a list of paths in UTF-8 text.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def _named(found: Sequence[tuple[Path, str | None]], folder: Path, names: PictureNames) -> Pictures:
    ids, paths, unusable = [], [], []
    for path, given in found:
        shown_path = str(path) if str(path).isprintable() else ascii(str(path))
        try:
            image_id = names.image_id(path, folder) if given is None else given
            encoded_id(image_id)
            str(path).encode("utf-8")
        except UnicodeEncodeError:
            unusable.append(Unusable(shown_path, "its path is not valid Unicode text: rename it"))
        except UserError as error:
            unusable.append(Unusable(shown_path, str(error)))
        else:
            ids.append(image_id)
            paths.append(str(path))
    _refuse_twins(ids, paths, names)
    return Pictures(Column.of(ids), Column.of(paths), tuple(unusable))


def _refuse_twins(ids: Sequence[str], paths: Sequence[str], names: PictureNames) -> None:
    first = {ids[index]: index for index in reversed(range(len(ids)))}
    twin = next((index for index, image_id in enumerate(ids) if first[image_id] != index), None)
    if twin is None:
        return
    one, other = Path(paths[first[ids[twin]]]), Path(paths[twin])
    rules = ("stem", "path", "file")
    rule = "file" if os.path.splitext(one)[0] == os.path.splitext(other)[0] else "path"
    finer = names.pattern is None and rules.index(rule) > rules.index(names.rule)
    way = f"id.rule={rule}" if finer else "another id.pattern" if names.pattern else "one line a file"
    raise UserError(
        f"{one} and {other} both have the image id {shown(ids[twin])} ({len(ids) - len(first):,} files in all share "
        f"theirs with another): tell them apart with {way}, or with ids of your own in a list file (PATH<tab>ID)."
    )
