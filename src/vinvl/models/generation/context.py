"""What captions are written about: tags and regions of a batch of images, and the encoder's memory of them."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vinvl.errors import UserError
from vinvl.models.captioning import VinVLForCaptioning


@dataclass(frozen=True)
class CaptionContext:
    """Tags and regions of B images, padded: T tag tokens and R regions each, either of which may be 0.

    Published captioning gives tags token type 1 and, at decoding, the positions from max(40, max_length) on.
    """

    tag_ids: Tensor  # (B, T) int64, the final [SEP] included
    tag_position_ids: Tensor  # (B, T) int64
    tag_token_type_ids: Tensor  # (B, T) int64
    tag_mask: Tensor  # (B, T), 1 = exists
    region_features: Tensor  # (B, R, D) float
    region_mask: Tensor  # (B, R), 1 = exists

    def __post_init__(self) -> None:
        tags, regions = self.tag_ids.shape, self.region_features.shape[:2]
        for name, shape in (
            ("tag_position_ids", tags),
            ("tag_token_type_ids", tags),
            ("tag_mask", tags),
            ("region_mask", regions),
        ):
            if getattr(self, name).shape != shape:
                raise UserError(
                    f"A caption context has {name} of shape {tuple(getattr(self, name).shape)}, but its tags or "
                    f"regions are {tuple(shape)}; give one value for each."
                )
        if tags[0] != regions[0]:
            raise UserError(f"A caption context has tags of {tags[0]} images and regions of {regions[0]}; match them.")

    def __len__(self) -> int:
        return self.tag_ids.shape[0]

    @property
    def device(self) -> torch.device:
        return self.tag_ids.device

    @property
    def mask(self) -> Tensor:
        """(B, T + R) bool: which tags and regions exist."""
        return torch.cat([self.tag_mask.bool(), self.region_mask.bool()], dim=1)

    def select(self, images: Tensor) -> "CaptionContext":
        """The images of these numbers, (n,) int64, in their order; numbers may repeat."""
        return CaptionContext(**{field.name: getattr(self, field.name)[images] for field in fields(self)})


@dataclass(frozen=True)
class ContextMemory:
    """Keys and values of the context in every layer, each (B, heads, C, H / heads), and which are real, (B, C)."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor

    def select(self, images: Tensor) -> "ContextMemory":
        """The images of these numbers, (n,) int64."""
        return ContextMemory(
            tuple(key[images] for key in self.keys), tuple(value[images] for value in self.values), self.mask[images]
        )


def encode_context(model: VinVLForCaptioning, context: CaptionContext) -> ContextMemory:
    """Encode tags and regions, once per image: they attend to no caption, so no word will ever change them.

    Raises:
        UserError: region rows of another width, or training with gradient checkpointing, which keeps no memory.
    """
    mask = context.mask
    if mask.shape[1] == 0:
        return _empty_memory(model, mask)
    cache = DynamicCache()
    model.bert(
        context.tag_ids,
        token_type_ids=context.tag_token_type_ids,
        # The three-dimensional form is the one that is safe for an image with neither tags nor regions.
        attention_mask=mask[:, None, :].expand(-1, mask.shape[1], -1),
        region_features=context.region_features,
        position_ids=context.tag_position_ids,
        past_key_values=cache,
    )
    layers: list[Any] = list(cache.layers)
    return ContextMemory(tuple(layer.keys for layer in layers), tuple(layer.values for layer in layers), mask)


def _empty_memory(model: VinVLForCaptioning, mask: Tensor) -> ContextMemory:
    config, weight = model.config, model.bert.embeddings.word_embeddings.weight
    heads = config.num_attention_heads
    nothing = weight.new_zeros(mask.shape[0], heads, 0, config.hidden_size // heads)
    return ContextMemory((nothing,) * config.num_hidden_layers, (nothing,) * config.num_hidden_layers, mask)
