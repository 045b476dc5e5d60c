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


def detector_parameter_groups(detector: nn.Module, weight_decay: float, bias_lr_factor: float) -> list[dict[str, Any]]:
    """Weights; the scales of norms, which do not decay; biases, which do not either, and may learn faster.

    `lr_factor` of a group is to be multiplied with the optimiser's rate (the published BIAS_LR_FACTOR).
    """
    weights: list[nn.Parameter] = []
    scales: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            (biases if name.endswith("bias") else scales if parameter.dim() == 1 else weights).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": weight_decay, "lr_factor": 1.0},
        {"params": scales, "weight_decay": 0.0, "lr_factor": 1.0},
        {"params": biases, "weight_decay": 0.0, "lr_factor": bias_lr_factor},
    ]
    return [group for group in groups if group["params"]]
