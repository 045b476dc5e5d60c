"""Which words of captions are hidden for training, and the layout of captions and tags, as in published Oscar.

Words are hidden in a whole batch at once. Shapes: B captions of at most C tokens, [CLS] and [SEP] counted.
"""

from dataclasses import dataclass

import numpy as np

MASK_SHARE, RANDOM_SHARE = 0.8, 0.5  # of the chosen words 80 % become [MASK]; of the others half a random word


@dataclass(frozen=True)
class CaptionLimits:
    """Sizes of the published captioning input.

    Attributes:
        max_caption_tokens: caption with [CLS] and [SEP]; tags begin at this position (published `max_seq_a_length`).
        max_tokens: caption places and tags with their [SEP] together.
        mask_probability: share of the caption's tokens that is hidden.
        max_masked_tokens: at most so many.
    """

    max_caption_tokens: int
    max_tokens: int
    mask_probability: float
    max_masked_tokens: int

    def caption(self, words: np.ndarray, cls_token_id: int, sep_token_id: int) -> np.ndarray:
        """(n,) int64 `[CLS] words [SEP]`, the words cut to fit."""
        kept = words[: self.max_caption_tokens - 2]
        return np.concatenate([[cls_token_id], kept, [sep_token_id]]).astype(np.int64)

    def tags(self, tags: np.ndarray, sep_token_id: int) -> np.ndarray:
        """(m,) int64 `tags [SEP]`, the tags cut to what the caption's places leave; nothing where there are no tags."""
        if len(tags) == 0:
            return np.zeros(0, dtype=np.int64)
        room = max(self.max_tokens - self.max_caption_tokens - 1, 0)
        return np.concatenate([tags[:room], [sep_token_id]]).astype(np.int64)

    def num_masked(self, caption_lengths: np.ndarray) -> np.ndarray:
        """(B,) int64: how many of the captions' tokens are hidden. Halves round to even."""
        wanted = np.rint(self.mask_probability * caption_lengths).astype(np.int64)
        return np.minimum(np.clip(wanted, 1, self.max_masked_tokens), caption_lengths - 1)


def choose_positions(limits: CaptionLimits, caption_lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(B, C) bool: the places of each caption that come first in its `order`, (B, C) numbers, as many as are hidden.

    Any place but [CLS]'s; the final [SEP] may be hidden too, so that the model learns to end.
    """
    place = np.arange(order.shape[1])
    allowed = (place > 0) & (place < caption_lengths[:, None])
    ranked = np.argsort(np.where(allowed, order, np.inf), axis=1, kind="stable")
    masked = np.zeros(order.shape, dtype=bool)
    np.put_along_axis(masked, ranked, place < limits.num_masked(caption_lengths)[:, None], axis=1)
    return masked


@dataclass(frozen=True)
class Replacements:
    """What may stand in a hidden word's place: [MASK], or a random word with an id in 0 … vocab_size inclusive.

    The published code draws that far, and its tokenizer reads the id beyond the last one as [UNK].
    """

    mask_token_id: int
    unk_token_id: int
    vocab_size: int

    def of(self, tokens: np.ndarray, first: np.ndarray, second: np.ndarray, random_ids: np.ndarray) -> np.ndarray:
        """What replaces tokens, int64, by two draws from [0, 1) and a random id for each."""
        known = np.where(random_ids == self.vocab_size, self.unk_token_id, random_ids)
        others = np.where(second <= RANDOM_SHARE, known, tokens)
        return np.where(first <= MASK_SHARE, self.mask_token_id, others)

    def by_chance(self, tokens: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """What replaces tokens (k,), by numbers (k, 3) from [0, 1)."""
        random_ids = (numbers[:, 2] * (self.vocab_size + 1)).astype(np.int64)
        return self.of(tokens, numbers[:, 0], numbers[:, 1], random_ids)


def hide_words(
    captions: np.ndarray, lengths: np.ndarray, numbers: np.ndarray, limits: CaptionLimits, replacements: Replacements
) -> tuple[np.ndarray, np.ndarray]:
    """Hides words of captions.

    Args:
        captions: (B, C) int64; what lies beyond a caption's length is left alone.
        lengths: (B,) int64.
        numbers: (B, C, 4) float64 from [0, 1): which places, and what replaces each.

    Returns:
        the captions with what replaces the hidden words, (B, C) int64, and where words are hidden, (B, C) bool.
    """
    masked = choose_positions(limits, lengths, numbers[:, :, 0])
    shown = captions.copy()
    shown[masked] = replacements.by_chance(captions[masked], numbers[masked][:, 1:])
    return shown, masked
