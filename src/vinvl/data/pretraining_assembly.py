"""`[CLS] text [SEP] second text [SEP]` for a whole batch at once."""

from dataclasses import dataclass

import numpy as np

from vinvl.data.corpus.index import flat_ranges
from vinvl.data.text import RaggedTokens, SpecialTokens


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
        first: the B texts.
        second: the B second texts.
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
