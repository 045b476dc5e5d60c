"""Where memory does not suffice: what a person is told, and which batch would fit, tried once the run has failed."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from vinvl.run.errors import OF_WORKERS, causes, out_of_memory
from vinvl.run.folders import CHECKPOINTS, next_step


class FittingBatch(Callback):
    """Tries parts of a batch that did not fit into memory, and gives the error a note with the size that fits.

    Half of its examples, a quarter, … go through a step of their own, in training forward and backward beside room for
    what the optimiser keeps, until one fits.
    """

    def __init__(self) -> None:
        self._number = 0  # of the batch of an evaluation

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._number = batch_idx

    on_test_batch_start = on_predict_batch_start = on_validation_batch_start

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        asked = getattr(data, "batch_size" if trainer.training else "eval_batch_size", None)
        if not out_of_memory(exception) or OF_WORKERS in str(exception) or not isinstance(asked, int):
            return
        free(exception, trainer)
        fitting = None
        try:
            items = _loader(trainer).items_of(self._number)
            asked = asked if trainer.training or len(items) == 1 else len(items)  # of small splits batches are smaller
            fitting = self._fitting(trainer, pl_module, asked, items)
        except Exception as error:  # the run has failed, and whatever a trial comes upon is not what it failed of
            exception.add_note(f"(no part of it could be tried: {error})")
        device = trainer.strategy.root_device
        told = (
            f"A batch of {asked:,} does not fit into the memory of {device if device.type != 'cpu' else 'this machine'}"
        )
        now = fitting or max(asked // 2, 1)
        if fitting == 0:
            told += ", and not even one example of it does: lower data.max_regions, or take a smaller model."
        elif trainer.training:
            told += f"; {_said(fitting, now)}: pass data.batch_size={now} trainer.accumulate_grad_batches="
            told += f"{trainer.accumulate_grad_batches * (asked // now)}, for updates of as many examples"
            told += _going_on(trainer, pl_module)
        else:
            step = next_step(trainer.default_root_dir)
            told += f"; {_said(fitting, now)}: pass data.eval_batch_size={now}, and {step}."
        exception.add_note(told)

    def _fitting(self, trainer: pl.Trainer, module: Any, asked: int, items: list[Any]) -> int | None:
        """How many examples of the batch that did not fit do, 0 for none; None for what has no parts to be tried.

        A training batch is cut into whole parts, so that accumulated they make the same number.
        """
        if len(items) == 1 < asked and not trainer.training:  # a block of retrieval, whose pairs are other batches
            return None
        for size in _halves(asked, whole_parts=trainer.training):
            try:
                self._try(trainer, module, _loader(trainer).made_of(items[:: asked // size]))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                free(error, trainer)
            else:
                return size
        return 0

    @staticmethod
    def _try(trainer: pl.Trainer, module: Any, batch: Any) -> None:
        module.log = module.log_dict = lambda *_, **__: None  # Lightning takes no figures any more
        batch = trainer.strategy.batch_to_device(batch)
        with nullcontext() if trainer.training else torch.inference_mode(), trainer.precision_plugin.forward_context():
            if not trainer.training:
                doing = "test" if trainer.testing else "predict" if trainer.predicting else "validation"
                getattr(module, f"{doing}_step")(batch, 0)
                return
            trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
            held = []
            if not any(optimizer.state for optimizer in trainer.optimizers):
                held = [torch.zeros_like(one) for one in trained for _ in range(2)]  # as AdamW will keep
            loss = module.training_step(batch, 0)
        torch.autograd.grad(loss, trained, allow_unused=True)  # in loss.backward() ranks would wait for each other
        del held


def _loader(trainer: pl.Trainer) -> Any:
    if trainer.training:
        return trainer.train_dataloader
    if trainer.testing:
        return trainer.test_dataloaders
    return trainer.predict_dataloaders if trainer.predicting else trainer.val_dataloaders


def _said(fitting: int | None, now: int) -> str:
    return f"{now:,} of its examples do" if fitting else f"{now:,} may, which was not tried"


def _halves(size: int, *, whole_parts: bool) -> Iterator[int]:
    """Ever smaller sizes down to 1, each at most half of the last; if `whole_parts`, all divide the first."""
    part = size
    while part > 1:
        half = part // 2
        part = next(one for one in range(half, 0, -1) if size % one == 0) if whole_parts else half
        yield part


def free(error: BaseException, trainer: pl.Trainer) -> None:
    """Lets go of what a failed step holds: in the frames of its error, gradients, and the allocator's cache."""
    for one in causes(error):
        traceback.clear_frames(one.__traceback__)
    for optimizer in trainer.optimizers:
        optimizer.zero_grad(set_to_none=True)
    gc.collect()
    torch.cuda.empty_cache()


def _going_on(trainer: pl.Trainer, module: Any) -> str:
    """What a training that did not fit may do besides, and how it goes on: checkpoints are for the same batches."""
    last = Path(trainer.default_root_dir) / CHECKPOINTS / "last.ckpt"
    less = "model.gradient_checkpointing=true" if getattr(module, "gradient_checkpointing", None) is False else ""
    if not last.is_file():
        return f", or {less}, which takes less memory and more time." if less else "."
    anew = f", in a new run from the weights so far, {module.start_again.format(path=last)}"
    return f"{anew}; or {next_step(trainer.default_root_dir)} {less}, which takes less memory." if less else f"{anew}."
