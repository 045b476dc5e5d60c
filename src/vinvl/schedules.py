"""Learning-rate schedules, as a factor on the configured rate. One step is one optimiser update."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def linear_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """step / warmup_steps up to 1, then (T − step) / (T − warmup_steps) down to 0 (Oscar's WarmupLinearSchedule)."""
    if step < warmup_steps:
        return step / warmup_steps
    return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))


def cosine_factor(step: int, *, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up, then half a cosine down to 0 (MMF's warmup_cosine for VinVL)."""
    if step < warmup_steps:
        return step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def multistep_factor(
    step: int, *, warmup_steps: int, warmup_factor: float, milestones: Sequence[int], gamma: float
) -> float:
    """From `warmup_factor` up to 1, and `gamma` times less from each milestone on (maskrcnn-benchmark's schedule)."""
    progress = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return (warmup_factor * (1 - progress) + progress) * gamma ** bisect_right(milestones, step)


def linear_schedule(optimizer: Optimizer, *, total_steps: int, warmup_steps: int, first_step: int) -> LambdaLR:
    """Linear warm-up and decay.

    Args:
        optimizer: whose rates are scaled.
        total_steps: T, updates in the whole run.
        warmup_steps: updates until the full rate.
        first_step: the step number of the first update. The published fine-tuning steps its scheduler before the
            optimiser, so its first update has number 1 (and its last a rate of 0); the published pre-training has 0.
    """
    factor = partial(linear_factor, warmup_steps=warmup_steps, total_steps=total_steps)
    return LambdaLR(optimizer, lambda step: factor(step + first_step))


def cosine_schedule(optimizer: Optimizer, *, total_steps: int, warmup_steps: int, first_step: int) -> LambdaLR:
    """Linear warm-up and cosine decay; arguments as for `linear_schedule`."""
    factor = partial(cosine_factor, warmup_steps=warmup_steps, total_steps=total_steps)
    return LambdaLR(optimizer, lambda step: factor(step + first_step))


def constant_schedule(
    optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, first_step: int = 0
) -> LambdaLR:
    """Linear warm-up, then the configured rate (Oscar's WarmupConstantSchedule); arguments as for `linear_schedule`."""
    return LambdaLR(optimizer, lambda step: min(1.0, (step + first_step) / warmup_steps) if warmup_steps else 1.0)


def multistep_schedule(
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup_steps: int,
    warmup_factor: float,
    milestones: Sequence[float],
    gamma: float,
) -> LambdaLR:
    """Linear warm-up, then a step down at each milestone.

    Args:
        optimizer: whose rates are scaled.
        total_steps: T, updates in the whole run.
        warmup_steps: updates until the full rate.
        warmup_factor: of the rate at the first update.
        milestones: when the rate falls, as shares of T.
        gamma: what it is multiplied with then.
    """
    factor = partial(
        multistep_factor,
        warmup_steps=warmup_steps,
        warmup_factor=warmup_factor,
        milestones=sorted(round(share * total_steps) for share in milestones),
        gamma=gamma,
    )
    return LambdaLR(optimizer, factor)
