"""Which words of a caption are hidden for training, and the layout of captions and tags, as in published Oscar."""

from collections.abc import Sequence
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

    def num_masked(self, caption_length: int) -> int:
        """How many of a caption's tokens are hidden; `caption_length` counts [CLS] and [SEP]. Halves round to even."""
        return min(max(round(self.mask_probability * caption_length), 1), self.max_masked_tokens)


def draw_masked_positions(limits: CaptionLimits, caption_length: int, generator: np.random.Generator) -> np.ndarray:
    """(k,) int64, rising: any place but [CLS]'s; the final [SEP] may be hidden too, so that the model learns to end."""
    count = limits.num_masked(caption_length)
    return np.sort(generator.permutation(np.arange(1, caption_length))[:count])


@dataclass(frozen=True)
class Replacements:
    """What may stand in a hidden word's place: [MASK], or a random word with an id in 0 … vocab_size inclusive.

    The published code draws that far, and its tokenizer reads the id beyond the last one as [UNK].
    """

    mask_token_id: int
    unk_token_id: int
    vocab_size: int

    def of(self, token: int, first: float, second: float, random_id: int) -> int:
        """What replaces a token, by two draws from [0, 1) and a random id."""
        if first <= MASK_SHARE:
            return self.mask_token_id
        if second <= RANDOM_SHARE:
            return self.unk_token_id if random_id == self.vocab_size else random_id
        return token

    def draw(self, tokens: Sequence[int], generator: np.random.Generator) -> np.ndarray:
        """(k,) int64: replacements of the hidden tokens."""
        draws = generator.random((len(tokens), 2))
        random_ids = generator.integers(0, self.vocab_size, size=len(tokens), endpoint=True)
        chosen = [self.of(t, f, s, int(r)) for t, (f, s), r in zip(tokens, draws, random_ids, strict=True)]
        return np.array(chosen, dtype=np.int64)
