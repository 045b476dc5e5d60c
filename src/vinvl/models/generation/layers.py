"""The encoder's layers over caption tokens that share the memory of their image's context.

Shapes: B images, N captions per image, Q new tokens per caption, P earlier ones, C context length, H hidden size.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.generation.context import ContextMemory

# Keys and values of caption tokens in one layer, each (B, N, heads, P, H / heads).
KeysValues = tuple[Tensor, Tensor]


def embed_words(model: VinVLForCaptioning, words: Tensor, positions: Tensor) -> Tensor:
    """Embedded caption tokens (B, N, Q, H) of ids (B, N, Q) at positions (Q,); captions have token type 0."""
    flat = words.flatten(0, 1)  # (B·N, Q)
    embedded = model.bert.embeddings(input_ids=flat, position_ids=positions[None].expand(len(flat), -1))
    return embedded.unflatten(0, words.shape[:2])


def run_layers(
    model: VinVLForCaptioning,
    hidden: Tensor,
    memory: ContextMemory,
    earlier: tuple[KeysValues, ...] | None,
    caption_mask: Tensor,
) -> tuple[Tensor, tuple[KeysValues, ...]]:
    """Pass new caption tokens through all layers.

    Nothing is written in place, so that gradients flow through any number of calls, and the context is never copied:
    all captions of an image read one set of keys and values.

    Args:
        hidden: (B, N, Q, H) embedded tokens.
        memory: of the B images.
        earlier: for each layer what this function returned for the P tokens before, or None where P = 0.
        caption_mask: (Q, P + Q) bool, which caption tokens each new token attends to; all attend to the whole context.

    Returns:
        hidden states (B, N, Q, H), and for each layer keys and values of the P + Q tokens.
    """
    context_bias = _bias(memory.mask, hidden.dtype)[:, None, None, None, :]  # (B, 1, 1, 1, C)
    caption_bias = _bias(caption_mask, hidden.dtype)  # (Q, P + Q)
    bias = torch.cat(
        [
            context_bias.expand(-1, -1, -1, hidden.shape[2], -1),
            caption_bias.expand(len(hidden), 1, 1, *caption_bias.shape),
        ],
        dim=-1,
    )  # (B, 1, 1, Q, C + P + Q)
    kept: list[KeysValues] = []
    layer: Any  # a BertLayer
    for index, layer in enumerate(model.bert.encoder.layer):
        attended, keys_values = _attend(
            layer.attention.self,
            hidden,
            memory.keys[index],
            memory.values[index],
            None if earlier is None else earlier[index],
            bias,
        )
        hidden = layer.feed_forward_chunk(layer.attention.output(attended, hidden))
        kept.append(keys_values)
    return hidden, tuple(kept)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to attention scores: 0 where `mask` is true, else the lowest number."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask.bool(), torch.finfo(dtype).min)


def _attend(
    attention: Any,
    hidden: Tensor,
    context_keys: Tensor,
    context_values: Tensor,
    earlier: KeysValues | None,
    bias: Tensor,
) -> tuple[Tensor, KeysValues]:
    """One layer's self-attention, before its output projection: one softmax over the context and the own caption.

    Scores over the context come from one product per image, with the N·Q queries of its captions as rows; those over
    the captions from one product per caption. Only the scores are joined.
    """
    images, captions, new = hidden.shape[:3]
    heads, size = attention.num_attention_heads, attention.attention_head_size

    def split(states: Tensor) -> Tensor:  # (B, N, Q, H) → (B, N, heads, Q, H / heads)
        return states.view(images, captions, new, heads, size).transpose(2, 3)

    query, keys, values = (split(part(hidden)) for part in (attention.query, attention.key, attention.value))
    query = query / math.sqrt(size)
    if earlier is not None:
        keys, values = torch.cat([earlier[0], keys], dim=3), torch.cat([earlier[1], values], dim=3)

    by_image = query.transpose(1, 2).reshape(images, heads, captions * new, size)
    on_context = (by_image @ context_keys.transpose(-1, -2)).view(images, heads, captions, new, -1).transpose(1, 2)
    on_caption = query @ keys.transpose(-1, -2)  # (B, N, heads, Q, P + Q)
    scores = torch.cat([on_context, on_caption], dim=-1) + bias
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    weights = F.dropout(weights, attention.dropout.p, attention.training)

    length = context_keys.shape[2]
    for_context = weights[..., :length].transpose(1, 2).reshape(images, heads, captions * new, length)
    from_context = (for_context @ context_values).view(images, heads, captions, new, size).transpose(1, 2)
    attended = from_context + weights[..., length:] @ values  # (B, N, heads, Q, H / heads)
    return attended.transpose(2, 3).reshape(images, captions, new, heads * size), (keys, values)
