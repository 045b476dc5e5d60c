"""Which texts stand together in a pre-training triplet (text, second text, regions), as in published Oscar+.

Half of the triplets are matched. In the others the second text or the first is another row's; the regions are always
the row's own. The choice is a pure function of the random draws, vectorised over the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vinvl.data.text import RaggedTokens, flat_ranges
from vinvl.models.config import SpecialTokens
from vinvl.models.pretraining import NO_PAIR_LABEL
from vinvl.run.errors import UserError

# Which tokens are hidden, and by what, as in BERT and published Oscar.

MASK_PROBABILITY = 0.15
MASK_BELOW, RANDOM_BELOW = 0.8, 0.9  # of the hidden tokens 80 % become [MASK], 10 % a random one, 10 % stay


def mask_tokens(
    input_ids: np.ndarray,
    maskable: np.ndarray,
    shares: np.ndarray,
    random_ids: np.ndarray,
    mask_token_id: int,
    mask_probability: float = MASK_PROBABILITY,
) -> tuple[np.ndarray, np.ndarray]:
    """Hides tokens, each on its own.

    One number decides both whether a token is hidden and by what, as in the published code.

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


# `[CLS] text [SEP] second text [SEP]` for a whole batch at once.


@dataclass(frozen=True)
class TokenRows:
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
    """`text.assemble_pair` of B pairs; a pair with an empty second text is `[CLS] text [SEP]`.

    Args:
        first, second: the B texts, and the B second texts.
        max_tokens: limit over both and the special tokens.
        special: their ids.
    """
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


TRIES = 10  # rows drawn at most until one will do; the last is taken as it comes
MATCHED_ABOVE = 0.5
ANY_TEXT, SECOND_TEXT, ANSWER = 0, 1, 2  # values of textb_sample_mode


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
        if self.textb_sample_mode not in (ANY_TEXT, SECOND_TEXT, ANSWER):
            raise UserError(f"data.textb_sample_mode is {self.textb_sample_mode}: choose 0, 1 or 2.")
        if not 0 <= self.texta_false_prob <= MATCHED_ABOVE:
            raise UserError(f"data.texta_false_prob is {self.texta_false_prob}: give a share from 0 to 0.5.")

    def num_classes(self, use_tags: bool = True) -> int:
        """Classes of the contrastive label; `use_tags` is False if captions have no second text (published `use_b`).

        0 is matched, 1 a wrong second text, the last a wrong first text; these two are one where only one can occur.
        """
        p = self.texta_false_prob
        return 3 if p < MATCHED_ABOVE and (p > 0 or not use_tags) else 2


@dataclass(frozen=True)
class PairDraws:
    """The random numbers behind B triplets."""

    shares: np.ndarray  # (B,) float64 from [0, 1): matched, or which text is wrong
    rows: np.ndarray  # (B, TRIES) int64: candidates for the other row, one after the other
    sides: np.ndarray  # (B,) int64 of 0 and 1: which text of it, in mode 0
    answer_rows: np.ndarray  # (B, TRIES) int64: candidates in mode 2, all of them questions; unused in other modes

    @classmethod
    def draw(
        cls, size: int, num_rows: int, answer_rows: np.ndarray | None, generator: np.random.Generator
    ) -> "PairDraws":
        """For `size` triplets over `num_rows` rows, of which `answer_rows` (A,) are questions, if mode 2 needs them."""
        shares = generator.random(size)
        rows = generator.integers(0, num_rows, (size, TRIES))
        sides = generator.integers(0, 2, size)
        if answer_rows is None:
            return cls(shares, rows, sides, rows)
        return cls(shares, rows, sides, answer_rows[generator.integers(0, len(answer_rows), (size, TRIES))])


@dataclass(frozen=True)
class Triplets:
    """B triplets; arrays of shape (B,)."""

    first_rows: np.ndarray  # int64: the row whose text comes first
    second_rows: np.ndarray  # int64: the row whose text comes second
    second_sides: np.ndarray  # int64: which text of it; 1 unless a wrong second text is some row's first one
    image_rows: np.ndarray  # int64: the row whose regions it has
    labels: np.ndarray  # int64 classes of `PairOptions.num_classes`, or NO_PAIR_LABEL
    mask_first: np.ndarray  # bool: whether tokens of the first text are masked
    mask_second: np.ndarray  # bool

    def __add__(self, other: "Triplets") -> "Triplets":
        """Both, one after the other."""
        return Triplets(*(np.concatenate(pair) for pair in zip(vars(self).values(), vars(other).values(), strict=True)))


def matched_triplets(rows: np.ndarray) -> Triplets:
    """The rows (B,) as they are, without a label."""
    everywhere = np.ones(len(rows), dtype=bool)
    labels = np.full(len(rows), NO_PAIR_LABEL, dtype=np.int64)
    return Triplets(rows, rows, np.ones_like(rows), rows, labels, everywhere, everywhere)


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
        rows: the row of each triplet.
        draws, options: see `PairDraws` and `PairOptions`.
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
    usable = usable.copy()
    usable[:, -1] = True
    return np.asarray(candidates[np.arange(len(candidates)), usable.argmax(axis=1)])
