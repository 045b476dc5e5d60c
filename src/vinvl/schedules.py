"""Learning-rate schedules, as a factor on the configured rate. One step is one optimiser update."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def linear_schedule(optimizer: Optimizer, *, total_steps: int, warmup_steps: int, first_step: int) -> LambdaLR:
    """Linear warm-up, then (T − step) / (T − warmup_steps) down to 0 (Oscar's WarmupLinearSchedule).

    Args:
        optimizer: whose rates are scaled.
        total_steps: T, updates in the whole run.
        warmup_steps: updates until the full rate.
        first_step: the step number of the first update. The published fine-tuning steps its scheduler before the
            optimiser, so its first update has number 1 (and its last a rate of 0); the published pre-training has 0.
    """
    decay = max(1, total_steps - warmup_steps)
    return _warmed_up(optimizer, warmup_steps, first_step, lambda step: max(0.0, (total_steps - step) / decay))


def cosine_schedule(optimizer: Optimizer, *, total_steps: int, warmup_steps: int, first_step: int) -> LambdaLR:
    """Linear warm-up, then half a cosine down to 0 (MMF's warmup_cosine); arguments as for `linear_schedule`."""
    decay = max(1, total_steps - warmup_steps)

    def factor(step: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup_steps) / decay)))

    return _warmed_up(optimizer, warmup_steps, first_step, factor)


def constant_schedule(
    optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, first_step: int = 0
) -> LambdaLR:
    """Linear warm-up, then the configured rate (Oscar's WarmupConstantSchedule); arguments as for `linear_schedule`."""
    return _warmed_up(optimizer, warmup_steps, first_step, lambda step: 1.0)


def multistep_schedule(
    optimizer: Optimizer,
    *,
    total_steps: int,
    warmup_steps: int,
    warmup_factor: float,
    milestones: Sequence[float],
    gamma: float,
) -> LambdaLR:
    """Linear warm-up from `warmup_factor`, then `gamma` times less from each milestone on (maskrcnn-benchmark's).

    Args:
        milestones: when the rate falls, as shares of T.
        the others: as for `linear_schedule`.
    """
    falls = sorted(round(share * total_steps) for share in milestones)

    def factor(step: int) -> float:
        progress = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        return (warmup_factor * (1 - progress) + progress) * gamma ** bisect_right(falls, step)

    return LambdaLR(optimizer, factor)


def _warmed_up(
    optimizer: Optimizer, warmup_steps: int, first_step: int, afterwards: Callable[[int], float]
) -> LambdaLR:
    def factor(update: int) -> float:
        step = update + first_step
        return step / warmup_steps if step < warmup_steps else afterwards(step)

    return LambdaLR(optimizer, factor)
