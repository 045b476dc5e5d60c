"""Several corpora as one split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from vinvl.data.text import RaggedTokens, flat_ranges
from vinvl.pretraining.corpus import Corpus
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError

BLOCK_IMAGES = 100_000  # ids of the store that are looked up at once


@dataclass(frozen=True)
class CorpusShare:
    """A corpus and its part in a mixture.

    Attributes:
        corpus: the rows.
        loss_weight: factor of the losses of its rows.
        passes: how often an epoch passes over it; 0.5 takes another half in the next epoch.
    """

    corpus: Corpus
    loss_weight: float = 1.0
    passes: float = 1.0

    def __post_init__(self) -> None:
        if not self.loss_weight >= 0 or not self.passes > 0:
            raise UserError(
                f"{self.corpus.source} has loss_weight {self.loss_weight} and passes {self.passes}: "
                "give a weight from 0 and more than 0 passes."
            )


@dataclass(frozen=True, eq=False)
class Mixture:
    """N rows of several corpora, numbered through.

    Attributes:
        shares: the corpora.
        kept: for each the rows that count, (n,) integers, or None for all.
    """

    shares: Sequence[CorpusShare]
    kept: Sequence[np.ndarray | None]

    @classmethod
    def of(cls, shares: Sequence[CorpusShare]) -> Mixture:
        """All rows of the corpora."""
        return cls(tuple(shares), (None,) * len(shares))

    @cached_property
    def starts(self) -> np.ndarray:
        """(C + 1,) int64: the first row of each corpus, and N."""
        pairs = zip(self.shares, self.kept, strict=True)
        return np.array([0, *accumulate(len(s.corpus) if kept is None else len(kept) for s, kept in pairs)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) text; made again at each call, and large."""
        parts = [s.corpus.image_ids[self._local(s.corpus.images, n)] for n, s in enumerate(self.shares)]
        return np.char.decode(np.concatenate(parts), "utf-8")

    def describe(self, index: int) -> str:
        """Names a row for a message."""
        number = int(self.corpus_of(np.array([index]))[0])
        local, kept = index - int(self.starts[number]), self.kept[number]
        return self.shares[number].corpus.describe(local if kept is None else int(kept[local]))

    def select(self, keep: np.ndarray) -> Mixture:
        """The rows where `keep` (N,) bool is True; corpora of which nothing is left stay, without rows."""
        kept = []
        for number, rows in enumerate(self.kept):
            mask = keep[self.starts[number] : self.starts[number + 1]]
            # Four bytes a row, because every rank keeps them; no corpus file has 2**31 lines.
            kept.append(rows if mask.all() else _int32(np.flatnonzero(mask) if rows is None else rows[mask]))
        return Mixture(self.shares, tuple(kept))

    def corpus_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64: the number of the corpus of each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def column(self, name: str) -> np.ndarray:
        """(N, …): `lengths` or `kinds` of all rows."""
        parts = [self._local(getattr(share.corpus, name), number) for number, share in enumerate(self.shares)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _local(self, array: np.ndarray, number: int) -> np.ndarray:
        kept = self.kept[number]
        return array if kept is None else array[kept]

    def positions_in(self, store: RegionStore) -> np.ndarray:
        """(N,) int32: where the image of each row is in the store, -1 where it has none."""
        parts = []
        for number, share in enumerate(self.shares):
            positions = _positions(share.corpus.image_ids, store.encoded_ids)
            parts.append(positions[self._local(share.corpus.images, number)])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def texts(self, rows: np.ndarray, sides: np.ndarray) -> RaggedTokens:
        """Token ids of the text (side 0) or the second text that the row gives (side 1) of each of n rows."""
        numbers = self.corpus_of(rows)
        first = int(numbers[0]) if len(numbers) else 0
        if (numbers == first).all():
            return self.shares[first].corpus.texts(self._inner(rows, first), sides)
        pieces, lengths = [], np.zeros(len(rows), dtype=np.int64)
        for number in np.unique(numbers).tolist():
            wanted = numbers == number
            piece = self.shares[number].corpus.texts(self._inner(rows[wanted], number), sides[wanted])
            lengths[wanted] = piece.lengths()
            pieces.append((wanted, piece))
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        values = np.empty(int(offsets[-1]), dtype=np.int32)
        for wanted, piece in pieces:
            values[flat_ranges(offsets[:-1][wanted], lengths[wanted])] = piece.values
        return RaggedTokens(values, offsets)

    def _inner(self, rows: np.ndarray, number: int) -> np.ndarray:
        local = rows - self.starts[number]
        kept = self.kept[number]
        return local if kept is None else kept[local]


def _positions(wanted: np.ndarray, store_ids: np.ndarray) -> np.ndarray:
    """(I,) int32: the place of each of the sorted ids (I,) bytes among the ids of a store (S,) bytes, or -1."""
    positions = np.full(len(wanted), -1, dtype=np.int32)
    for start in range(0, len(store_ids), BLOCK_IMAGES):
        block = store_ids[start : start + BLOCK_IMAGES]
        # Of one width, or NumPy would copy all of `wanted` for each block; a longer id is none of them.
        places = np.flatnonzero(np.char.str_len(block) <= wanted.dtype.itemsize)
        block = block[places].astype(wanted.dtype)
        slots = np.minimum(np.searchsorted(wanted, block), len(wanted) - 1)
        found = np.flatnonzero(wanted[slots] == block)
        positions[slots[found]] = start + places[found]
    return positions


def _int32(rows: np.ndarray) -> np.ndarray:
    return rows.astype(np.int32)
