"""What an answer was read from: attention rollout."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vinvl.models.encoder import VinVLModel


def attention_rollout(model: VinVLModel, **inputs: Any) -> Tensor:
    """How much of the first position's last state comes from each position, (B, S) float32; each row adds up to 1.

    Attention rollout (Abnar and Zuidema 2020): of each layer the mean of its heads' attention, half of which gives way
    to the identity, for the residual connection; these matrices are multiplied from the first layer to the last.
    Padding has 0. What a position does with what it has read, and whether it speaks for or against an answer, is not
    in these numbers.

    Args:
        inputs: of `VinVLModel.forward`.
    """
    with _eager(model):
        attentions = model(**inputs, output_attentions=True).attentions
    shares = attentions[-1].new_zeros(attentions[-1].shape[0], attentions[-1].shape[-1], dtype=torch.float32)
    shares[:, 0] = 1
    for weights in reversed(attentions):  # (B, heads, S, S)
        shares = (shares + torch.einsum("bs,bst->bt", shares, weights.float().mean(dim=1))) / 2
    return shares


@contextmanager
def _eager(model: VinVLModel) -> Iterator[None]:
    """Within it the model computes its attention in the plain way, which alone has its weights."""
    before = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = before
