"""Base64 text → arrays, with the one check that catches whatever is cut or damaged: the number of bytes."""

from __future__ import annotations

import binascii
from typing import Any

import numpy as np

from vinvl.errors import UserError

MOST_REGIONS = 2**20
MOST_BYTES = 2**27  # of all that files say about one image; a thousand regions take some ten million


def number_of_regions(text: Any) -> int:
    """The number of boxes that a row announces. Raises UserError for what is none."""
    try:
        count = int(text)
    except (TypeError, ValueError):
        count = -1
    if isinstance(text, bool | float) or not 0 <= count <= MOST_REGIONS:
        shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
        raise UserError(f"the number of boxes is {shown[:40]!r}, a whole number was expected.")
    return count


def base64_rows(text: bytes | str, count: int, widths: tuple[int, ...] | None, what: str, dtype: str) -> np.ndarray:
    """(count, width) little-endian numbers, read-only.

    Args:
        text: base64.
        count: rows.
        widths: columns that there may be; None for any number.
        what: names the numbers in messages ("features").
        dtype: such as "<f4".

    Raises:
        UserError: it is no base64, or not of the length that so many rows have.
    """
    item = np.dtype(dtype).itemsize
    text = text.encode("ascii", "replace") if isinstance(text, str) else text
    if text[:2] in (b"b'", b'b"') and text[-1:] == text[1:2]:  # bytes that Python 3 has written as it shows them
        text = text[2:-1]
    try:
        content = binascii.a2b_base64(text)
    except (ValueError, binascii.Error) as error:
        raise UserError(f"{what} are no base64 ({error}); the row may be cut off or damaged.") from None
    # Characters that are not base64 are skipped without a word, so the length of the text is held against the content.
    if len(text) != 4 * -(-len(content) // 3):
        raise UserError(f"{what} hold characters that are not base64; the row may be damaged.")
    width = len(content) // (count * item) if count else (widths[0] if widths else 0)
    if width * count * item != len(content) or (widths is not None and width not in widths):
        expected = " or ".join(f"{count} x {one} x {item}" for one in widths) if widths else f"{count} x D x {item}"
        raise UserError(f"{what} are {len(content):,} bytes of base64, expected {expected} for {count} boxes.")
    return np.frombuffer(content, dtype=dtype).reshape(count, width)
