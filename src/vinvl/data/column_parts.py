"""Some of the entries of a column, and columns of several parts joined although some parts lack them."""

from collections.abc import Sequence

import numpy as np

from vinvl.data.columns import CategoricalColumn, TextColumn


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
