"""Which parameters decay."""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups, with and without weight decay, as published: names with "bias" or "LayerNorm.weight" do not decay.

    The published rule goes by name: a LayerNorm inside a `Sequential` head is decayed (Oscar's run_nlvr.py).
    """
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (spared if "bias" in name or "LayerNorm.weight" in name else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": spared, "weight_decay": 0.0}]
