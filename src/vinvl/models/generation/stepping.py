"""One word at a time: the logits of the next word after given captions, with memory of the earlier words.

The caption so far is followed by a [MASK] whose logits are those of the next word. The mask itself is forgotten.
"""

import torch
from torch import Tensor

from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.generation.context import CaptionContext, encode_context
from vinvl.models.generation.layers import KeysValues, embed_words, run_layers


class WordStepper:
    """Captions of B images under construction, N of each image; N may change from step to step.

    Tags and regions are encoded once, and each step feeds the last word and a mask.
    """

    def __init__(self, model: VinVLForCaptioning, context: CaptionContext, mask_token_id: int) -> None:
        self._model = model
        self._mask_token_id = mask_token_id
        self._memory = encode_context(model, context)
        self._words: tuple[KeysValues, ...] | None = None
        self._length = 0

    def next_logits(self, words: Tensor) -> Tensor:
        """Append `words` (B, N) int64, the begin token first, and return the next word's logits (B, N, V) float32."""
        new = torch.stack([words, torch.full_like(words, self._mask_token_id)], dim=-1)  # (B, N, 2)
        positions = torch.arange(self._length, self._length + 2, device=words.device)
        caption_mask = torch.ones(2, self._length + 2, dtype=torch.bool, device=words.device)
        caption_mask[0, -1] = False  # the word does not see the mask after it
        hidden, kept = run_layers(
            self._model, embed_words(self._model, new, positions), self._memory, self._words, caption_mask
        )
        self._words = tuple((keys[..., :-1, :], values[..., :-1, :]) for keys, values in kept)
        self._length += 1
        return self._model.cls(hidden[:, :, 1]).float()

    def choose(self, parents: Tensor) -> None:
        """Continue with captions `parents` (B, n) int64, numbers within each image; they may repeat or be left out."""
        assert self._words is not None
        images = torch.arange(len(parents), device=parents.device)[:, None]
        self._words = tuple((keys[images, parents], values[images, parents]) for keys, values in self._words)

    def keep_images(self, images: Tensor) -> None:
        """Go on with the images of these numbers, (b,) int64, only."""
        self._memory = self._memory.select(images)
        if self._words is not None:
            self._words = tuple((keys[images], values[images]) for keys, values in self._words)
