"""One layer of BERT, run in the ways that the encoder needs; each can be compiled.

Shapes: B batch, S the joint sequence, T real positions, H hidden size.
"""

from typing import Any

from torch import Tensor, nn

from vinvl.models.packing import PackedSequences


def run_layer(layer: nn.Module, hidden: Tensor, mask: Any, packed: PackedSequences | None = None) -> Tensor:
    """One layer on (B, S, H) padded states and a mask, or on (1, T, H) packed ones."""
    after: Tensor = layer(hidden, mask) if packed is None else layer(hidden, packed=packed)
    return after


def run_layer_at_first(layer: Any, hidden: Tensor, seen: Tensor | None) -> Tensor:
    """One layer on (B, S, H) padded states at the first position alone, (B, 1, H); `seen` is (B, 1, S) bool."""
    attended = layer.attention.output(layer.attention.self.attend_from_first(hidden, seen), hidden[:, :1])
    after: Tensor = layer.output(layer.intermediate(attended), attended)
    return after
