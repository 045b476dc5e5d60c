"""Columns of text held in a few NumPy arrays.

Worker processes share the pages of an array after a fork, because reading one does not touch its reference counts as
reading Python strings would; and an array pickles as one block of bytes when workers are spawned.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True, eq=False)
class TextColumn:
    """N texts: `data` (bytes,) uint8 holds their UTF-8, text i is `data[offsets[i]:offsets[i + 1]]`; offsets (N+1,)
    int64."""

    data: np.ndarray
    offsets: np.ndarray

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Self:
        """Raises UnicodeEncodeError for a text with a lone surrogate."""
        encoded = [text.encode("utf-8") for text in texts]
        data = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        return cls(data, _offsets(np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))))

    @classmethod
    def concatenate(cls, parts: Sequence["TextColumn"]) -> Self:
        """The texts of all parts, in order."""
        lengths = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(np.concatenate([part.data for part in parts]), _offsets(lengths))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        position = range(len(self))[index]
        return self.data[self.offsets[position] : self.offsets[position + 1]].tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, eq=False)
class CategoricalColumn:
    """N texts of which few are different: `names` holds each once, `codes` (N,) int32 says which one is text i."""

    names: TextColumn
    codes: np.ndarray

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Self:
        """Names are numbered in the order in which they first occur."""
        texts = list(texts)
        numbers = {name: number for number, name in enumerate(dict.fromkeys(texts))}
        codes = np.fromiter(map(numbers.__getitem__, texts), dtype=np.int32, count=len(texts))
        return cls(TextColumn.from_texts(numbers), codes)

    @classmethod
    def concatenate(cls, parts: Sequence["CategoricalColumn"]) -> Self:
        """The texts of all parts, in order; names that occur in several parts are held once."""
        numbers: dict[str, int] = {}
        codes = []
        for part in parts:
            renumbered = [numbers.setdefault(name, len(numbers)) for name in part.names]
            codes.append(np.asarray(renumbered, dtype=np.int32)[part.codes])
        return cls(TextColumn.from_texts(numbers), np.concatenate(codes))

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: int) -> str:
        return self.names[int(self.codes[index])]

    def __iter__(self) -> Iterator[str]:
        return map(list(self.names).__getitem__, self.codes)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    """(N,) lengths -> (N+1,) int64 starts, the last being the total."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


# Some of the entries of a column, and columns of several parts joined although some parts lack them.


def checked_mask(keep: np.ndarray, count: int) -> np.ndarray:
    """`keep`, a (count,) bool array; ValueError for other shapes and kinds, such as a list of indices."""
    mask = np.asarray(keep)
    if mask.dtype != np.bool_ or mask.shape != (count,):
        raise ValueError(f"keep must be {count} booleans, one per record, and is {mask.dtype} of shape {mask.shape}.")
    return mask


def select_texts(column: TextColumn, keep: np.ndarray) -> TextColumn:
    """The texts where `keep` (N,) bool is True, in their order."""
    lengths = np.diff(column.offsets)
    offsets = np.insert(np.cumsum(lengths[keep]), 0, 0)
    return TextColumn(column.data[np.repeat(keep, lengths)], offsets)


def select_categories(column: CategoricalColumn, keep: np.ndarray) -> CategoricalColumn:
    """The texts where `keep` (N,) bool is True, in their order; names that no longer occur stay."""
    return CategoricalColumn(column.names, column.codes[keep])


def texts_or_none(texts: Sequence[str | None]) -> TextColumn | None:
    """A column with "" where there is no text; None if there is none at all."""
    return TextColumn.from_texts(text or "" for text in texts) if any(texts) else None


def categories_or_none(texts: Sequence[str | None], fill: str) -> CategoricalColumn | None:
    """A column with `fill` where there is no text; None if there is none at all."""
    return CategoricalColumn.from_texts(text or fill for text in texts) if any(texts) else None


def joined_texts(columns: Sequence[TextColumn | None], lengths: Sequence[int]) -> TextColumn | None:
    """The texts of all parts, "" for those of a part without the column; None if no part has it."""
    if all(column is None for column in columns):
        return None
    return TextColumn.concatenate(
        [
            TextColumn.from_texts([""] * length) if column is None else column
            for column, length in zip(columns, lengths, strict=True)
        ]
    )


def joined_categories(
    columns: Sequence[CategoricalColumn | None], lengths: Sequence[int], fill: str
) -> CategoricalColumn | None:
    """The texts of all parts, `fill` for those of a part without the column; None if no part has it."""
    if all(column is None for column in columns):
        return None
    return CategoricalColumn.concatenate(
        [
            CategoricalColumn.from_texts([fill] * length) if column is None else column
            for column, length in zip(columns, lengths, strict=True)
        ]
    )
