"""One word at a time: the logits of the next word after given captions, with and without memory of earlier words.

The caption so far is followed by a [MASK] whose logits are those of the next word. The mask itself is forgotten.
"""

from typing import Protocol

import torch
from torch import Tensor

from vinvl.models.captioning import VinVLForCaptioning, seq2seq_attention_mask
from vinvl.models.generation.context import CaptionContext, encode_context
from vinvl.models.generation.layers import KeysValues, embed_words, run_layers


class WordStepper(Protocol):
    """Captions of B images under construction, N of each image; N may change from step to step."""

    def next_logits(self, words: Tensor) -> Tensor:
        """Append `words` (B, N) int64, the begin token first, and return the next word's logits (B, N, V) float32."""
        ...

    def choose(self, parents: Tensor) -> None:
        """Continue with captions `parents` (B, n) int64, numbers within each image; they may repeat or be left out."""
        ...

    def keep_images(self, images: Tensor) -> None:
        """Go on with the images of these numbers, (b,) int64, only."""
        ...


class CachedStepper:
    """The tags and regions are encoded once, and each step feeds the last word and a mask."""

    def __init__(self, model: VinVLForCaptioning, context: CaptionContext, mask_token_id: int) -> None:
        self._model = model
        self._mask_token_id = mask_token_id
        self._memory = encode_context(model, context)
        self._words: tuple[KeysValues, ...] | None = None
        self._length = 0

    def next_logits(self, words: Tensor) -> Tensor:
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
        assert self._words is not None
        images = torch.arange(len(parents), device=parents.device)[:, None]
        self._words = tuple((keys[images, parents], values[images, parents]) for keys, values in self._words)

    def keep_images(self, images: Tensor) -> None:
        self._memory = self._memory.select(images)
        if self._words is not None:
            self._words = tuple((keys[images], values[images]) for keys, values in self._words)


class ReencodingStepper:
    """Every step encodes caption, tags and regions from scratch, for each caption: slow, but plainly right."""

    def __init__(self, model: VinVLForCaptioning, context: CaptionContext, mask_token_id: int) -> None:
        self._model = model
        self._mask_token_id = mask_token_id
        self._context = context
        self._words: Tensor | None = None  # (B, N, P)

    def next_logits(self, words: Tensor) -> Tensor:
        earlier = [] if self._words is None else [self._words]
        self._words = torch.cat([*earlier, words[..., None]], dim=-1)
        captions = torch.cat([self._words, torch.full_like(words, self._mask_token_id)[..., None]], dim=-1).flatten(
            0, 1
        )
        count, length = captions.shape
        context = self._context.select(torch.arange(count, device=words.device) // words.shape[1])
        positions = torch.arange(length, device=words.device).expand(count, -1)
        output = self._model(
            torch.cat([captions, context.tag_ids], dim=1),
            token_type_ids=torch.cat([torch.zeros_like(captions), context.tag_token_type_ids], dim=1),
            attention_mask=self._mask(context, count, length),
            region_features=context.region_features,
            position_ids=torch.cat([positions, context.tag_position_ids], dim=1),
            masked_positions=self._mask_places(context, count, length),
        )
        return output.logits.view(*words.shape, -1).float()

    def _mask_places(self, context: CaptionContext, count: int, length: int) -> Tensor:
        places = torch.arange(length + context.tag_ids.shape[1], device=context.device) == length - 1
        return places.expand(count, -1)

    def _mask(self, context: CaptionContext, count: int, length: int) -> Tensor:
        tags, regions = context.tag_ids.shape[1], context.region_features.shape[1]
        captions = torch.full((count,), length, device=context.device)
        full = seq2seq_attention_mask(
            captions,
            torch.full_like(captions, tags),
            torch.full_like(captions, regions),
            length + tags,
            regions,
        )
        exists = torch.cat(
            [torch.ones_like(captions, dtype=torch.bool)[:, None].expand(-1, length), context.mask], dim=1
        )
        return full & exists[:, None, :]

    def choose(self, parents: Tensor) -> None:
        assert self._words is not None
        self._words = self._words.gather(1, parents[..., None].expand(-1, -1, self._words.shape[2]))

    def keep_images(self, images: Tensor) -> None:
        self._context = self._context.select(images)
        self._words = None if self._words is None else self._words[images]


def word_stepper(
    model: VinVLForCaptioning, context: CaptionContext, mask_token_id: int, use_cache: bool
) -> WordStepper:
    """A fresh stepper over the context's images."""
    if use_cache:
        return CachedStepper(model, context, mask_token_id)
    return ReencodingStepper(model, context, mask_token_id)
