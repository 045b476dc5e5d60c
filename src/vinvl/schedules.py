"""Optimiser and learning-rate schedule of a run; schedules are a factor on the configured rate, a step is an update."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from vinvl.run.door import of_kind
from vinvl.run.errors import UserError

SOME_STEPS = 1000


def linear_schedule(optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, first_step: int = 1) -> LambdaLR:
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
    optimizer: Optimizer, *, total_steps: int, warmup_steps: int = 0, first_step: int = 1
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


# Oscar's fine-tuning, conf/optim/adamw_linear.yaml.
ADAMW = partial(torch.optim.AdamW, lr=5.0e-5, betas=(0.9, 0.999), eps=1.0e-8, fused=True)
LINEAR = partial(linear_schedule, warmup_steps=0, first_step=1)

# Which parameters decay.


UNDECAYED = ("bias", "LayerNorm.weight")  # Oscar's rule; it goes by name, so run_nlvr.py decays the norm in its head


def parameter_groups(
    model: nn.Module, weight_decay: float, undecayed: Sequence[str] = UNDECAYED
) -> list[dict[str, Any]]:
    """Two groups, with weight decay and without: of the parameters whose names contain one of `undecayed`."""
    decayed: list[nn.Parameter] = []
    spared: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (spared if any(part in name for part in undecayed) else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay, "name": "decayed"},
        {"params": spared, "weight_decay": 0.0, "name": "undecayed"},
    ]


# What the configuration gives for them, before a run and in it.


def make_optimizer(make: Callable[..., Any] | None, groups: Any) -> Optimizer:
    """The optimiser of a run; UserError if the configuration's settings are not those of one."""
    found: Optimizer = _called(Optimizer, "optim.optimizer", make, groups)
    return found


def make_scheduler(make: Callable[..., Any] | None, optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The schedule of a run's learning rate; UserError if the configuration's settings are not those of one."""
    found: LRScheduler = _called(LRScheduler, "optim.scheduler", make, optimizer, total_steps=total_steps)
    return found


def refuse_unfit(task: Any, trainer: pl.Trainer) -> None:
    """Raises UserError, before a run begins, for an optimiser, a schedule or a trainer that could not train."""
    precision = str(trainer.precision)
    if precision.endswith("-true") and precision != "32-true":
        raise UserError(
            f"trainer.precision={precision} keeps weights in that precision, which no task here can train with: "
            "choose 32-true, bf16-mixed or 16-mixed."
        )
    if not trainer.val_check_interval:
        raise UserError("trainer.val_check_interval=0: give updates, a share of an epoch, or limit_val_batches=0.")
    parameter = torch.nn.Parameter(torch.zeros(1))
    make_scheduler(task.make_scheduler, make_optimizer(task.make_optimizer, [parameter]), SOME_STEPS)


def _called(kind: type, key: str, make: Callable[..., Any] | None, *given: Any, **named: Any) -> Any:
    if make is None:
        raise UserError(f"{key} is null, and a training needs one.")
    target = getattr(make, "func", make)
    try:
        found = make(*given, **named)
    except Exception as error:  # of whoever wrote what the configuration names
        reason = str(error).partition("\n")[0] or type(error).__name__
        name = f"{target.__module__}.{target.__qualname__}"
        raise UserError(f"{key}: {name} cannot be made with these settings: {reason}.") from error
    return of_kind(kind, found, key)
