"""Triplets (text, second text, regions) of pre-training: the rows that they are made of, as in published Oscar+.

Half of the triplets are matched. In the others the second text or the first is another row's; the regions are always
the row's own. The choice is a pure function of the random draws, vectorised over the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from vinvl.data.inputs import RegionText
from vinvl.data.text import RaggedTokens, flat_ranges
from vinvl.models.config import SpecialTokens
from vinvl.models.pretraining import NO_PAIR_LABEL
from vinvl.pretraining.corpus import Corpus, RowKind
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError

# The rows of a split: several corpora numbered through, and what training asks about many of them at once.

BLOCK_IMAGES = 100_000  # ids of the store that are looked up at once
BLOCK_ROWS = 1_000_000  # whose lengths are added up at once: bounds the memory of what lies between
SPECIAL_TOKENS = 3  # [CLS], and a [SEP] after each text


class CorpusShare(NamedTuple):
    """A corpus and its part in a mixture."""

    corpus: Corpus
    loss_weight: float = 1.0  # factor of the losses of its rows
    passes: float = 1.0  # how often an epoch passes over it; 0.5 takes another half in the next epoch
    textb_sample_mode: int | None = None  # of its own, see `PairOptions`; None: that of all
    pool: int = 0  # wrong texts are drawn from corpora of the same number, which stand beside each other


class TextPool(NamedTuple):
    """Corpora that draw wrong texts from each other."""

    first_share: int
    start: int  # its first row
    end: int  # the row after its last
    textb_sample_mode: int | None


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

    @cached_property
    def pools(self) -> list[TextPool]:
        """By their place among the rows."""
        numbers = [share.pool for share in self.shares]
        firsts = [place for place, number in enumerate(numbers) if not place or number != numbers[place - 1]]
        return [
            TextPool(first, int(self.starts[first]), int(self.starts[last]), self.shares[first].textb_sample_mode)
            for first, last in pairwise([*firsts, len(numbers)])
        ]

    def pool_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64: the place in `pools` of each row."""
        ends = np.array([pool.end for pool in self.pools])
        return np.searchsorted(ends, rows, side="right")

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
        numbers, pieces = self.corpus_of(rows), []
        for number in np.unique(numbers).tolist():
            of_corpus = numbers == number
            inner = self._inner(rows[of_corpus], number)
            pieces.append((of_corpus, self.shares[number].corpus.texts(inner, sides[of_corpus])))
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
    """n texts of pieces, each with a mask (n,) bool of those that it has; every text is in one piece."""
    if len(pieces) == 1:
        return pieces[0][1]
    lengths = np.zeros(len(pieces[0][0]) if pieces else 0, dtype=np.int64)
    for mask, piece in pieces:
        lengths[mask] = piece.lengths()
    whole = RaggedTokens.of_lengths(np.empty(int(lengths.sum()), dtype=np.int32), lengths)
    for mask, piece in pieces:
        whole.values[flat_ranges(whole.offsets[:-1][mask], lengths[mask])] = piece.values
    return whole


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

    @cached_property
    def answer_rows(self) -> np.ndarray:
        """(A,) int64: the questions."""
        return np.flatnonzero(self._kinds == RowKind.ANSWER)

    def image_of(self, rows: np.ndarray) -> np.ndarray:
        """Where the images of rows of any shape are in the store."""
        return np.asarray(self.images[rows])

    def has_second(self, rows: np.ndarray) -> np.ndarray:
        """Whether rows of any shape have a second text; tags may be withheld."""
        kinds, given = self._kinds[rows], self._lengths[rows, 1] > 0
        if not self.region_text.limits.use_tags:
            return np.asarray(given & (kinds == RowKind.ANSWER))
        return np.asarray(np.where(kinds == RowKind.STORE_TAGS, self._num_regions[self.images[rows]] > 0, given))

    def texts(self, rows: np.ndarray, sides: np.ndarray) -> RaggedTokens:
        """Token ids of the text (side 0) or the second text (side 1) of each of n rows; tags may be withheld."""
        kinds, use_tags = self._kinds[rows], self.region_text.limits.use_tags
        given = (sides == 0) | (kinds != RowKind.STORE_TAGS if use_tags else kinds == RowKind.ANSWER)
        pieces = [(given, self.mixture.texts(rows[given], sides[given]))]
        if not given.all():
            tags = [self.region_text.tag_ids(int(image)) for image in self.images[rows[~given]]]
            lengths = np.array([len(one) for one in tags])
            pieces.append((~given, RaggedTokens.of_lengths(np.concatenate(tags), lengths)))
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


# Which texts stand together.

TRIES = 10  # rows drawn at most until one will do; the last is taken as it comes
MATCHED_ABOVE = 0.5
ANY_TEXT, SECOND_TEXT, ANSWER = 0, 1, 2  # values of textb_sample_mode


def checked_mode(mode: object, what: str) -> None:
    """Raises UserError, which begins with `what`, if it is no textb_sample_mode."""
    if isinstance(mode, bool) or mode not in (ANY_TEXT, SECOND_TEXT, ANSWER):
        raise UserError(f"{what} {mode!r}: choose 0, 1 or 2.")


@dataclass(frozen=True)
class PairOptions:
    """How triplets are mismatched; the names are those of the published command line.

    Attributes:
        textb_sample_mode: what a wrong second text is. 0: either text of any row of another image (Oscar). 1: the
            second text of any row of another image (Oscar+). 2: the answer of any other question, also on
            the same image.
        texta_false_prob: the share of triplets with a wrong first text; 0.5 leaves no wrong second texts.
        mask_loss_for_unmatched: whether tokens of a wrong second text are masked and guessed as well.
    """

    textb_sample_mode: int
    texta_false_prob: float
    mask_loss_for_unmatched: bool

    def __post_init__(self) -> None:
        checked_mode(self.textb_sample_mode, "data.textb_sample_mode is")
        if not 0 <= self.texta_false_prob <= MATCHED_ABOVE:
            raise UserError(f"data.texta_false_prob is {self.texta_false_prob}: give a share from 0 to 0.5.")

    def num_classes(self, use_tags: bool = True) -> int:
        """Classes of the contrastive label; `use_tags` is False if captions have no second text (published `use_b`).

        0 is matched, 1 a wrong second text, the last a wrong first text; these two are one where only one can occur.
        """
        p = self.texta_false_prob
        return 3 if p < MATCHED_ABOVE and (p > 0 or not use_tags) else 2


class PairDraws(NamedTuple):
    """The random numbers behind B triplets."""

    shares: np.ndarray  # (B,) float64 from [0, 1): matched, or which text is wrong
    rows: np.ndarray  # (B, TRIES) int64: candidates for the other row, one after the other
    sides: np.ndarray  # (B,) int64 of 0 and 1: which text of it, in mode 0
    answer_rows: np.ndarray  # (B, TRIES) int64: candidates in mode 2, all of them questions; unused in other modes

    @classmethod
    def draw(
        cls, size: int, num_rows: int, answer_rows: np.ndarray | None, generator: np.random.Generator
    ) -> PairDraws:
        """For `size` triplets over `num_rows` rows, of which `answer_rows` (A,) are questions, if mode 2 needs them."""
        shares = generator.random(size)
        rows = generator.integers(0, num_rows, (size, TRIES))
        sides = generator.integers(0, 2, size)
        if answer_rows is None:
            return cls(shares, rows, sides, rows)
        return cls(shares, rows, sides, answer_rows[generator.integers(0, len(answer_rows), (size, TRIES))])


class Triplets(NamedTuple):
    """B triplets; arrays of shape (B,)."""

    first_rows: np.ndarray  # int64: the row whose text comes first
    second_rows: np.ndarray  # int64: the row whose text comes second
    second_sides: np.ndarray  # int64: which text of it; 1 unless a wrong second text is some row's first one
    image_rows: np.ndarray  # int64: the row whose regions it has
    labels: np.ndarray  # int64 classes of `PairOptions.num_classes`, or NO_PAIR_LABEL
    mask_first: np.ndarray  # bool: whether tokens of the first text are masked
    mask_second: np.ndarray  # bool

    @classmethod
    def matched(cls, rows: np.ndarray) -> Triplets:
        """The rows (B,) as they are, without a label."""
        everywhere = np.ones(len(rows), dtype=bool)
        labels = np.full(len(rows), NO_PAIR_LABEL, dtype=np.int64)
        return cls(rows, rows, np.ones_like(rows), rows, labels, everywhere, everywhere)

    def followed_by(self, other: Triplets) -> Triplets:
        """Both, one after the other."""
        return Triplets(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))

    def at(self, places: np.ndarray) -> Triplets:
        """Those at places (n,) int64."""
        return Triplets(*(one[places] for one in self))


def mismatch(
    rows: np.ndarray,
    draws: PairDraws,
    options: PairOptions,
    num_classes: int,
    image_of: Callable[[np.ndarray], np.ndarray],
    has_second: Callable[[np.ndarray], np.ndarray],
) -> Triplets:
    """The triplets that the published code makes of rows (B,) with these draws.

    A row without a second text can only get a wrong first text. Unlike the published code, a wrong second text is never
    an empty one if a draw offers another: tags that are withheld cannot be told from others.

    Args:
        num_classes: of the label.
        image_of: rows of any shape → the image of each.
        has_second: rows of any shape → whether each has a second text.
    """
    own = image_of(rows)
    matched = draws.shares > MATCHED_ABOVE
    wrong_second = ~matched & (draws.shares > options.texta_false_prob) & has_second(rows)
    wrong_first = ~matched & ~wrong_second
    sides = draws.sides if options.textb_sample_mode == ANY_TEXT else np.ones_like(draws.sides)
    fit_for_first = image_of(draws.rows) != own[:, None]
    first_rows = _first_usable(draws.rows, fit_for_first)
    if options.textb_sample_mode == ANSWER:
        second_rows = _first_usable(draws.answer_rows, draws.answer_rows != rows[:, None])
    else:
        fit_for_second = fit_for_first & ((sides == 0)[:, None] | has_second(draws.rows))
        second_rows = _first_usable(draws.rows, fit_for_second)
    second_rows = np.where(wrong_second, second_rows, rows)
    # An answer to another question on the same image is wrong, but not of another image.
    foreign_second = wrong_second & (image_of(second_rows) != own)
    return Triplets(
        first_rows=np.where(wrong_first, first_rows, rows),
        second_rows=second_rows,
        second_sides=np.where(wrong_second, sides, 1),
        image_rows=rows,
        labels=np.where(matched, 0, np.where(wrong_second, 1, num_classes - 1)),
        mask_first=np.ones(len(rows), dtype=bool),
        mask_second=~foreign_second | options.mask_loss_for_unmatched,
    )


def _first_usable(candidates: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """(B,): of the candidates (B, TRIES) the first that is usable (B, TRIES), or the last if none is."""
    usable[:, -1] = True
    return np.asarray(candidates[np.arange(len(candidates)), usable.argmax(axis=1)])


# `[CLS] text [SEP] second text [SEP]` for a whole batch at once.


class TokenRows(NamedTuple):
    """B pairs of texts, padded to the longest."""

    input_ids: np.ndarray  # (B, L) int64
    token_type_ids: np.ndarray  # (B, L) int64: 1 from the second text on
    num_tokens: np.ndarray  # (B,) int64
    text: np.ndarray  # (B, L) bool: tokens of the first text
    second_text: np.ndarray  # (B, L) bool: tokens of the second text


def truncated_pairs(first: np.ndarray, second: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """`text.truncated_lengths` of B pairs with (B,) int64 lengths, to `limit` tokens in all."""
    excess = np.maximum(first + second - limit, 0)
    level = np.minimum(excess, np.abs(first - second))
    rest = excess - level
    shorter_first = first - np.where(first > second, level, 0) - rest // 2
    shorter_second = second - np.where(first > second, 0, level) - (rest + 1) // 2
    return np.maximum(shorter_first, 0), np.maximum(shorter_second, 0)


def assemble_pairs(first: RaggedTokens, second: RaggedTokens, *, max_tokens: int, special: SpecialTokens) -> TokenRows:
    """`text.assemble_pair` of B texts and B second texts; a pair with an empty second text is `[CLS] text [SEP]`."""
    paired = second.lengths() > 0
    kept_first, kept_second = truncated_pairs(first.lengths(), second.lengths(), max_tokens - 3)
    alone = np.minimum(first.lengths(), max_tokens - 2)
    kept_first, kept_second = np.where(paired, kept_first, alone), np.where(paired, kept_second, 0)
    num_tokens = kept_first + 2 + np.where(paired, kept_second + 1, 0)
    shape = len(first), int(num_tokens.max())
    rows, columns = np.arange(shape[0]), np.arange(shape[1])
    input_ids = np.full(shape, special.pad_token_id, dtype=np.int64)
    input_ids[:, 0] = special.cls_token_id
    input_ids[rows, kept_first + 1] = special.sep_token_id
    input_ids[rows, num_tokens - 1] = special.sep_token_id
    text = (columns >= 1) & (columns <= kept_first[:, None])
    second_begin = kept_first[:, None] + 2
    second_text = (columns >= second_begin) & (columns < second_begin + kept_second[:, None])
    # A boolean mask is filled row by row, which is the order of the ragged values.
    input_ids[text] = first.values[flat_ranges(first.offsets[:-1], kept_first)]
    input_ids[second_text] = second.values[flat_ranges(second.offsets[:-1], kept_second)]
    in_second = (columns >= second_begin) & (columns < num_tokens[:, None])
    return TokenRows(input_ids, in_second.astype(np.int64), num_tokens, text, second_text)


# Which tokens are hidden, and by what, as in BERT and published Oscar.

MASK_BELOW, RANDOM_BELOW = 0.8, 0.9  # of the hidden tokens 80 % become [MASK], 10 % a random one, 10 % stay


def mask_tokens(
    input_ids: np.ndarray,
    maskable: np.ndarray,
    shares: np.ndarray,
    random_ids: np.ndarray,
    mask_token_id: int,
    mask_probability: float = 0.15,
) -> tuple[np.ndarray, np.ndarray]:
    """Hides tokens, each on its own; one number decides both whether and by what, as in the published code.

    Args:
        input_ids: (B, L) int64.
        maskable: (B, L) bool: tokens that may be hidden, which special tokens may not.
        shares: (B, L) float64 from [0, 1).
        random_ids: (B, L) int64: what a token becomes that is replaced by a random one.
        mask_token_id: what most hidden tokens become.
        mask_probability: share of the tokens that are hidden.

    Returns:
        the ids that the model sees, (B, L) int64, and which of them it is to guess, (B, L) bool.
    """
    masked = maskable & (shares < mask_probability)
    within = shares / mask_probability
    replaced = np.where(within < MASK_BELOW, mask_token_id, np.where(within < RANDOM_BELOW, random_ids, input_ids))
    return np.where(masked, replaced, input_ids), masked
