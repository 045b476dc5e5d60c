"""Fields of other people's files: base64 arrays, image ids, and numbers by image id for millions of images."""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.run.errors import UserError

# Image ids out of longer names, by a regular expression that a person gives.


def check_pattern(pattern: str, setting: str) -> None:
    """Raises UserError, naming the setting, for what is no regular expression with a group."""
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise UserError(f"{setting}={pattern!r} is no regular expression ({error}).") from None
    if groups < 1:
        raise UserError(f"{setting}={pattern!r} has no group in brackets to take the id from, such as '0*(\\d+)$'.")


def id_by_pattern(name: str, pattern: str | None, setting: str) -> str:
    """What the first group of a checked pattern finds in a name; the name itself where there is no pattern.

    Raises:
        UserError: the pattern does not fit; the sentence names the setting that it is from.
    """
    if pattern is None:
        return name
    match = re.search(pattern, name)
    if match is None or not match[1]:
        raise UserError(f"{setting}={pattern!r} does not fit {name!r}.")
    return match[1]


# Base64 text → arrays, with the one check that catches whatever is cut or damaged: the number of bytes.


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


IdBlock = tuple[np.ndarray, np.ndarray]


class IdTable:
    """Whole numbers (K,) by id: a sorted (N,) array of UTF-8 ids and an (N, K) int64 array, both memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.ids = np.load(folder / "ids.npy", mmap_mode="r")
        self.values = np.load(folder / "values.npy", mmap_mode="r")

    @classmethod
    def write(
        cls,
        folder: Path,
        blocks: Iterable[IdBlock],
        source: str | Path,
        on_repeat: Callable[[UserError], None] | None = None,
    ) -> IdTable:
        """Makes a table in a new folder of blocks of (n,) ids and (n, K) int64.

        Args:
            folder: to make.
            blocks: of the table, in any order.
            source: what the sentences name.
            on_repeat: told of each id that came before, whose first numbers stay; None refuses it.

        Raises:
            UserError: there is no id, or one comes twice.
        """
        parts = list(blocks)
        if not parts:
            raise UserError(f"{source} names no images.")
        ids = np.concatenate([part for part, _ in parts])
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        first = np.concatenate([[True], ids[1:] != ids[:-1]])
        for image_id in ids[~first]:
            error = UserError(f"{source} has image {image_id.decode('utf-8', 'replace')!r} more than once.")
            if on_repeat is None:
                raise error
            on_repeat(error)
        folder.mkdir(parents=True)
        np.save(folder / "ids.npy", ids[first])
        np.save(folder / "values.npy", np.concatenate([values for _, values in parts])[order[first]])
        return cls(folder)

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, image_id: str) -> int | None:
        """Where an id is in the table."""
        key = image_id.encode("utf-8", "surrogatepass")
        if len(key) > self.ids.dtype.itemsize:
            return None  # NumPy would convert all ids to its length
        position = int(self.ids.searchsorted(np.array(key, dtype=self.ids.dtype)))
        return position if position < len(self.ids) and self.ids[position] == key else None

    def find(self, image_id: str) -> np.ndarray | None:
        """(K,) numbers of an id."""
        position = self.position(image_id)
        return None if position is None else self.values[position]
