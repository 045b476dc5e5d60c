"""A few of many, drawn at random with a bounded share of positives."""

import torch
from torch import Tensor


def sample(
    positive: Tensor, negative: Tensor, number: int, positive_fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Indices, int64, of the drawn positives and of the drawn negatives, each in random order.

    Args:
        positive, negative: bool (N,), never both True.
        number: how many are drawn of both together; of positives at most `positive_fraction` of it. Negatives take the
            places that positives leave; where they are too few, fewer are drawn.
        generator: on the device of the tensors.
    """
    positives = _shuffled(positive, generator)[: int(number * positive_fraction)]
    return positives, _shuffled(negative, generator)[: number - len(positives)]


def _shuffled(chosen: Tensor, generator: torch.Generator) -> Tensor:
    indices = chosen.nonzero().squeeze(1)
    return indices[torch.randperm(len(indices), generator=generator, device=chosen.device)]
