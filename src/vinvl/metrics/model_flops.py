"""What a pre-training step computes, and what a device could: the two sides of model FLOPs utilisation."""

import re
from dataclasses import dataclass
from typing import Any

import torch

from vinvl.models import VinVLConfig

Number = Any  # int, float or a scalar Tensor

# Peak of dense matrix products in FLOP/s, without structured sparsity, by the whole name that CUDA gives the device,
# its maker left out; a slice of a device (MIG) has another name and no entry. Sources: NVIDIA's data sheets of V100,
# A100, H100, H200, L4 and L40S, where the dense number is half of the sparse one, and its Ada whitepaper for the
# RTX 4090 (products of halves are summed in float32, as torch does).
HOPPER_SXM = {"bfloat16": 989e12, "float16": 989e12, "tf32": 494e12, "float32": 67e12}
PEAK_FLOPS: dict[str, dict[str, float]] = {
    r"V100-SXM2-\d+GB": {"float16": 125e12, "float32": 15.7e12},
    r"V100-PCIE-\d+GB": {"float16": 112e12, "float32": 14e12},
    r"A100-SXM4-\d+GB|A100-PCIE-40GB|A100 80GB PCIe": {
        "bfloat16": 312e12,
        "float16": 312e12,
        "tf32": 156e12,
        "float32": 19.5e12,
    },
    r"H100 PCIe": {"bfloat16": 756e12, "float16": 756e12, "tf32": 378e12, "float32": 51e12},
    r"H100 80GB HBM3": HOPPER_SXM,
    r"H200": HOPPER_SXM,
    r"L4": {"bfloat16": 121e12, "float16": 121e12, "tf32": 60e12, "float32": 30.3e12},
    r"L40S": {"bfloat16": 362e12, "float16": 362e12, "tf32": 183e12, "float32": 91.6e12},
    r"GeForce RTX 4090": {"bfloat16": 165e12, "float16": 165e12, "tf32": 82.6e12, "float32": 82.6e12},
}
MAKERS = r"(?:NVIDIA |Tesla )?"
COMPUTES_IN = {
    "32-true": "float32",
    "bf16-mixed": "bfloat16",
    "bf16-true": "bfloat16",
    "16-mixed": "float16",
    "16-true": "float16",
}
BACKWARD_AND_FORWARD = 3  # a product in the forward pass is two of the same size in the backward pass


def peak_flops(device_name: str, precision: str) -> float | None:
    """Products and sums per second that a device can do at its best; None where that is not known.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it.
        precision: Lightning's, such as "bf16-mixed".
    """
    number = COMPUTES_IN.get(precision)
    # Not torch.get_float32_matmul_precision: it raises where TF32 was switched on for CUDA alone.
    if number == "float32" and torch.backends.cuda.matmul.fp32_precision == "tf32":
        number = "tf32"
    for pattern, peaks in PEAK_FLOPS.items():
        if number is not None and re.fullmatch(MAKERS + f"(?:{pattern})", device_name):
            return peaks.get(number)
    return None


@dataclass(frozen=True)
class StepCosts:
    """Floating-point operations of a forward and backward pass, per thing that a batch is made of.

    Only matrix products count, a product and its sum as two, and the backward pass as twice the forward one
    (Kaplan et al. 2020, section 2.1, with the attention over the sequence added). Activations that gradient
    checkpointing computes again are no progress and do not count.

    Attributes:
        per_token: of a token or region in the layers.
        per_attended_pair: of one position that attends to one position, in all layers.
        per_region: of projecting a region.
        per_masked_token: of guessing a hidden token.
        per_row: of the pooled vector and its classes.
    """

    per_token: int
    per_attended_pair: int
    per_region: int
    per_masked_token: int
    per_row: int

    @classmethod
    def of(cls, config: VinVLConfig) -> "StepCosts":
        """The costs of `VinVLForPreTraining` by its configuration."""
        assert config.num_labels is not None
        hidden, layers = config.hidden_size, config.num_hidden_layers
        twice = 2 * BACKWARD_AND_FORWARD
        return cls(
            per_token=twice * layers * (4 * hidden * hidden + 2 * hidden * config.intermediate_size),
            per_attended_pair=twice * layers * 2 * hidden,
            per_region=twice * config.img_feature_dim * hidden,
            per_masked_token=twice * (hidden * hidden + hidden * config.vocab_size),
            per_row=twice * (hidden * hidden + hidden * config.num_labels),
        )

    def total(
        self,
        *,
        tokens: Number,
        attended_pairs: Number,
        regions: Number,
        masked_tokens: Number,
        rows: Number,
    ) -> Number:
        """FLOPs of so many of each; `tokens` are tokens and regions together."""
        in_layers = tokens * self.per_token + attended_pairs * self.per_attended_pair
        return in_layers + regions * self.per_region + masked_tokens * self.per_masked_token + rows * self.per_row
