"""Who sees whom: checked, and as the attention implementations of transformers want it.

Shapes: B batch, S the joint sequence, P cached earlier positions, Q queries, K keys.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_bidirectional_mask

from vinvl.errors import UserError
from vinvl.models.configuration import VinVLConfig
from vinvl.models.packing import PACKED


def check_mask(attention_mask: Tensor, sequences: int, positions: int, earlier: int = 0) -> None:
    """Raises UserError unless the mask has the shape (B, P+S) or (B, S, P+S)."""
    rows = {2: (sequences,), 3: (sequences, positions)}.get(attention_mask.dim())
    if rows is None or attention_mask.shape != (*rows, earlier + positions):
        raise UserError(
            f"The attention mask has shape {tuple(attention_mask.shape)}, but {sequences} sequences of "
            f"{positions} tokens and regions after {earlier} earlier positions need (B, {earlier + positions}) "
            f"or (B, {positions}, {earlier + positions})."
        )


def layer_mask(config: VinVLConfig, attention_mask: Tensor | None, hidden: Tensor, past_length: int = 0) -> Any:
    """The mask as the chosen attention implementation wants it: None, (B, S), (B, 1, S, P+S) or a block mask."""
    if attention_mask is None:
        return None
    length = hidden.shape[1]
    check_mask(attention_mask, hidden.shape[0], length, past_length)
    if attention_mask.dim() == 3:
        return dense_attention_mask(attention_mask, config._attn_implementation, hidden.dtype)
    if past_length:
        every_row = attention_mask[:, None, :].expand(-1, length, -1)
        return dense_attention_mask(every_row, config._attn_implementation, hidden.dtype)
    # By position, because the second parameter's name differs between transformers releases.
    return create_bidirectional_mask(config, hidden, attention_mask)


def dense_attention_mask(mask: Tensor, implementation: str | None, dtype: torch.dtype) -> Tensor:
    """A mask of who sees whom, (B, Q, K) with 1 = attend, as the attention implementation takes it: (B, 1, Q, K).

    "sdpa" and "packed" get booleans; "eager", which adds the mask to the scores, gets 0 and the lowest `dtype`.
    A row that may attend to nothing attends to everything instead: its output is not meant to be used, and a softmax
    over nothing is NaN on some backends.

    Raises:
        UserError: the implementation (flash or flex attention) takes no such mask.
    """
    allowed = mask.bool()
    allowed = (allowed | ~allowed.any(dim=-1, keepdim=True))[:, None]
    if implementation in ("sdpa", PACKED):
        return allowed
    if implementation == "eager":
        additive = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return additive.masked_fill(~allowed, torch.finfo(dtype).min)
    raise UserError(
        f"{implementation!r} attention takes no mask of who sees whom; give a mask of shape (B, length) or load the "
        "model with attn_implementation='sdpa'."
    )
