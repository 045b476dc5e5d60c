"""The rows of a split: several corpora numbered through, and what training asks about many of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from vinvl.data.inputs import RegionText
from vinvl.data.text import RaggedTokens, flat_ranges
from vinvl.pretraining.corpus import Corpus, RowKind
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError

BLOCK_IMAGES = 100_000  # ids of the store that are looked up at once
BLOCK_ROWS = 1_000_000  # whose lengths are added up at once: bounds the memory of what lies between
SPECIAL_TOKENS = 3  # [CLS], and a [SEP] after each text


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
        corpora = [share.corpus for share in self.shares]
        return np.char.decode(self._joined([one.image_ids[one.images] for one in corpora]), "utf-8")

    def describe(self, index: int) -> str:
        """Names a row for a message."""
        number = int(self.corpus_of(np.array([index]))[0])
        return self.shares[number].corpus.describe(int(self._inner(np.array([index]), number)[0]))

    def select(self, keep: np.ndarray) -> Mixture:
        """The rows where `keep` (N,) bool is True; corpora of which nothing is left stay, without rows."""
        kept = []
        for number, rows in enumerate(self.kept):
            mask = keep[self.starts[number] : self.starts[number + 1]]
            # Four bytes a row, because every rank keeps them; no corpus file has 2**31 lines.
            chosen = rows if mask.all() else np.flatnonzero(mask) if rows is None else rows[mask]
            kept.append(None if chosen is None else chosen.astype(np.int32, copy=False))
        return Mixture(self.shares, tuple(kept))

    def corpus_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64: the number of the corpus of each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def column(self, name: str) -> np.ndarray:
        """(N, …): `lengths` or `kinds` of all rows."""
        return self._joined([getattr(share.corpus, name) for share in self.shares])

    def positions_in(self, store: RegionStore) -> np.ndarray:
        """(N,) int32: where the image of each row is in the store, -1 where it has none."""
        corpora = [share.corpus for share in self.shares]
        return self._joined([_positions(one.image_ids, store.encoded_ids)[one.images] for one in corpora])

    def _joined(self, columns: Sequence[np.ndarray]) -> np.ndarray:
        """Of a column of each corpus, the rows that count."""
        parts = [one if kept is None else one[kept] for one, kept in zip(columns, self.kept, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def texts(self, rows: np.ndarray, sides: np.ndarray) -> RaggedTokens:
        """Token ids of the text (side 0) or the second text that the row gives (side 1) of each of n rows."""
        numbers = self.corpus_of(rows)
        first = int(numbers[0]) if len(numbers) else 0
        if (numbers == first).all():
            return self.shares[first].corpus.texts(self._inner(rows, first), sides)
        pieces = []
        for number in np.unique(numbers).tolist():
            of_corpus = numbers == number
            corpus, inner = self.shares[number].corpus, self._inner(rows[of_corpus], number)
            pieces.append((of_corpus, corpus.texts(inner, sides[of_corpus])))
        return _put_together(pieces)

    def _inner(self, rows: np.ndarray, number: int) -> np.ndarray:
        """The places in corpus `number` of rows that are all in it."""
        local, kept = rows - self.starts[number], self.kept[number]
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


def _put_together(pieces: Sequence[tuple[np.ndarray, RaggedTokens]]) -> RaggedTokens:
    """n texts of pieces, each with a mask (n,) bool of those that it has; no text is in two pieces."""
    lengths = np.zeros(len(pieces[0][0]), dtype=np.int64)
    for mask, piece in pieces:
        lengths[mask] = piece.lengths()
    offsets = np.insert(np.cumsum(lengths), 0, 0)
    values = np.empty(int(offsets[-1]), dtype=np.int32)
    for mask, piece in pieces:
        values[flat_ranges(offsets[:-1][mask], lengths[mask])] = piece.values
    return RaggedTokens(values, offsets)


class CorpusRows:
    """Rows of a mixture, all of whose images are in the store; answers questions about many rows at once."""

    def __init__(self, mixture: Mixture, images: np.ndarray, region_text: RegionText) -> None:
        """`images` (N,) int32: where the image of each row is in the store."""
        self.mixture = mixture
        self.images = images
        self.region_text = region_text
        self._lengths = mixture.column("lengths")
        self._kinds = mixture.column("kinds")

    def __len__(self) -> int:
        return len(self.mixture)

    @cached_property
    def _num_regions(self) -> np.ndarray:
        """(images,) int16, of the store's images; more than it can count are more than any limit anyway."""
        return np.minimum(self.region_text.store.num_regions, np.iinfo(np.int16).max).astype(np.int16)

    def image_of(self, rows: np.ndarray) -> np.ndarray:
        """Where the images of rows of any shape are in the store."""
        images: np.ndarray = self.images[rows]
        return images

    def has_second(self, rows: np.ndarray) -> np.ndarray:
        """Whether rows of any shape have a second text; tags may be withheld."""
        kinds, given = self._kinds[rows], self._lengths[rows, 1] > 0
        if not self.region_text.limits.use_tags:
            return np.asarray(given & (kinds == RowKind.ANSWER))
        return np.asarray(np.where(kinds == RowKind.STORE_TAGS, self._num_regions[self.images[rows]] > 0, given))

    @cached_property
    def answer_rows(self) -> np.ndarray:
        """(A,) int64: the questions."""
        return np.flatnonzero(self._kinds == RowKind.ANSWER)

    def texts(self, rows: np.ndarray, sides: np.ndarray) -> RaggedTokens:
        """Token ids of the text (side 0) or the second text (side 1) of each of n rows; tags may be withheld."""
        kinds, use_tags = self._kinds[rows], self.region_text.limits.use_tags
        given = (sides == 0) | (kinds != RowKind.STORE_TAGS if use_tags else kinds == RowKind.ANSWER)
        if given.all():
            return self.mixture.texts(rows, sides)
        pieces = [(given, self.mixture.texts(rows[given], sides[given]))]
        if use_tags:
            tags = [self.region_text.tag_ids(int(image)) for image in self.images[rows[~given]]]
            offsets = np.insert(np.cumsum([len(one) for one in tags]), 0, 0)
            pieces.append((~given, RaggedTokens(np.concatenate(tags), offsets)))
        return _put_together(pieces)

    def lengths(self) -> np.ndarray:
        """(N,) int16: tokens, cut to the limit, and regions of each row.

        Tags of the store are counted as a token a region, which is enough to put like rows together and spares reading
        the regions of millions of images.
        """
        limits, lengths = self.region_text.limits, np.empty(len(self), dtype=np.int16)
        for start in range(0, len(self), BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, len(self)))
            regions = np.minimum(self._num_regions[self.images[rows]], limits.max_regions)
            second = np.where(self._kinds[rows] == RowKind.STORE_TAGS, regions, self._lengths[rows, 1])
            second = np.where(self.has_second(rows), second, 0)
            tokens = np.minimum(self._lengths[rows, 0] + second + SPECIAL_TOKENS, limits.max_tokens)
            lengths[rows] = tokens + (regions if limits.use_regions else 0)
        return lengths
