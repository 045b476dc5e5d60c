"""What the `_target_`s of a configuration make, compared with what the doors need of them."""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vinvl.run.errors import UserError

SOME_STEPS = 1000


def made(kind: type, section: Any, key: str, **given: Any) -> Any:
    """What a section of the configuration, whose key is `key`, makes; UserError if it is no section or of another kind.

    Args:
        given: arguments besides those of the section.
    """
    if not OmegaConf.is_dict(section):
        raise UserError(f"{key} is {section}, and it must be a section of settings with a _target_.")
    return _of_kind(kind, instantiate(section, **given), key)


def made_of_each(kind: type, section: DictConfig | None, key: str) -> list[Any]:
    """What each part of a section makes, as `made` has it; parts that are null make nothing."""
    if section is None:
        return []
    if not OmegaConf.is_dict(section):
        raise UserError(f"{key} is no dictionary: give each of its parts a name, {key}.NAME.")
    return [made(kind, part, f"{key}.{name!s}") for name, part in section.items() if part is not None]


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
    return _of_kind(kind, found, key)


def _of_kind(kind: type, found: Any, key: str) -> Any:
    if not isinstance(found, kind):
        raise UserError(f"{key}._target_ makes a {type(found).__name__}, and a {kind.__name__} is needed.")
    return found
