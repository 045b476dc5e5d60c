"""Picture files of every kind, good and broken, made when they are needed."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """Red grows to the right, green downwards, so that turned and swapped pictures show."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 60)], axis=2).astype(np.uint8))


def save(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (gradient() if image is None else image).save(path, **options)  # type: ignore[arg-type]
    return path


def with_orientation(path: Path, orientation: int) -> Path:
    """A JPEG whose EXIF says how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(path, exif=exif, quality=95)


def sixteen_bit(path: Path) -> Path:
    """A greyscale PNG of 16 bits: 0 at the left, 65535 at the right."""
    levels = np.linspace(0, 65535, 40).astype(np.uint16)
    Image.fromarray(np.tile(levels, (30, 1))).save(path)
    return path


def truncated(path: Path) -> Path:
    file = io.BytesIO()
    gradient(200, 150).save(file, "JPEG", quality=95)
    path.write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    return path


def bomb(path: Path, side: int = 40_000) -> Path:
    """A PNG of some hundred bytes that says it has side × side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return path


def broken_pictures(folder: Path) -> dict[str, str]:
    """Files that cannot be read, and a word of the reason for each."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.jpg").write_text("this is no picture\n")
    (folder / "empty.png").touch()
    truncated(folder / "cut.jpg")
    bomb(folder / "bomb.png")
    (folder / "head.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    save(folder / "float.tif", Image.fromarray(np.zeros((4, 4), dtype=np.float32)))
    return {
        "text.jpg": "not a picture",
        "empty.png": "empty",
        "cut.jpg": "cut off",
        "bomb.png": "max_pixels",
        "head.png": "",
        "float.tif": "floating-point",
    }
