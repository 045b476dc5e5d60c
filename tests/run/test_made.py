"""What a configuration's `_target_`s make: something else than is needed is told in a sentence before a run begins."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import Callback

from vinvl.run.door import made, made_of_each, sentence_of_fault
from vinvl.run.errors import UserError
from vinvl.schedules import refuse_unfit

TRAINER: Any = SimpleNamespace(precision="32-true", val_check_interval=1.0)


def optimizing(optimizer: Any, scheduler: Any) -> Any:
    return SimpleNamespace(make_optimizer=optimizer, make_scheduler=scheduler)


def constant(optimizer: Any, total_steps: int) -> Any:
    return torch.optim.lr_scheduler.ConstantLR(optimizer, total_iters=total_steps)


@pytest.mark.parametrize(
    ("task", "trainer", "sentence"),
    [
        (optimizing(None, constant), {}, "optim.optimizer is null"),
        (optimizing(lambda _: 3, constant), {}, "optim.optimizer._target_ makes a int, and a Optimizer is needed"),
        (
            optimizing(torch.optim.AdamW, torch.optim.lr_scheduler.StepLR),
            {},
            "StepLR cannot be made with these settings",
        ),
        (optimizing(lambda groups: torch.optim.AdamW(groups, lr=-1), constant), {}, "Invalid learning rate: -1."),
        (optimizing(torch.optim.AdamW, constant), {"precision": "64-true"}, "trainer.precision=64-true"),
        (optimizing(torch.optim.AdamW, constant), {"val_check_interval": 0}, "trainer.val_check_interval=0"),
    ],
)
def test_what_cannot_train(task: Any, trainer: dict[str, Any], sentence: str) -> None:
    given: Any = SimpleNamespace(**vars(TRAINER) | trainer)
    with pytest.raises(UserError) as refused:
        refuse_unfit(task, given)
    assert sentence in str(refused.value)
    refuse_unfit(optimizing(torch.optim.AdamW, constant), TRAINER)


def test_targets_of_another_kind() -> None:
    config = OmegaConf.create({"data": {"_target_": "builtins.dict"}, "callbacks": {"one": {"a": 1}, "two": None}})
    with pytest.raises(UserError, match=r"data\._target_ makes a dict, and a Trainer is needed"):
        made(Trainer, config.data, "data")
    best = {"_target_": "pytorch_lightning.callbacks.Callback"}
    for part, told in (
        (config.callbacks, r"There is no callbacks\.one in the configuration; it needs a callbacks\.one\._target_"),
        ({"best": best, "bset": {"mode": "max"}}, r"There is no callbacks\.bset .* did you mean callbacks\.best\?"),
        ({"one": 3}, r"callbacks\.one is 3, and it must be a section"),
        ({"one": {"_target_": "builtins.dict"}}, r"callbacks\.one\._target_ makes a dict, and a Callback is needed"),
    ):
        with pytest.raises(UserError, match=told):
            made_of_each(Callback, OmegaConf.create(part), "callbacks")
    config.callbacks.one = best
    assert len(made_of_each(Callback, config.callbacks, "callbacks")) == 1


def test_a_target_that_cannot_be_found_is_told_by_the_key_that_a_person_gives() -> None:
    task = {"_target_": "builtins.dict", "optimizer": "${optim.optimizer}"}
    optim = {"optimizer": {"_target_": "torch.optim.Adamm"}}
    config = OmegaConf.create({"optim": optim, "task": task, "paths": {"output_dir": "runs"}})
    with pytest.raises(InstantiationException) as failed:
        instantiate(config.task)
    told = str(sentence_of_fault(failed.value, config))
    assert told.startswith("The configuration in optim.optimizer does not fit torch.optim.Adamm: ")
    assert "No module named 'torch.optim.Adamm'" in told
