"""Stopping in good order: a signal, a checkpoint at the end of the update, and a code that asks to be started again."""

import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from vinvl.checkpointing import can_go_on_with_evaluation, evaluation_follows, save_now, update_finished
from vinvl.faults import how_to_go_on
from vinvl.signals import Interrupted, StopRequest, stop_at_once


class Stopped(Exception):  # noqa: N818, it is no error
    """The run was asked to stop and did; it goes on from `checkpoint`, and the process should end with `exit_code`."""

    def __init__(self, checkpoint: Path, exit_code: int) -> None:
        super().__init__(f"Stopped as asked to, and saved in {checkpoint}; {how_to_go_on(checkpoint.parents[1])}.")
        self.checkpoint = checkpoint
        self.exit_code = exit_code


class _WithRanks(Callback):
    """Ends the ranks that this process has launched where a signal ends it in the midst of its work."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        kill = getattr(trainer.strategy.launcher, "kill", None)
        if isinstance(exception, Interrupted) and kill is not None:
            kill(signal.SIGTERM)


class StopOnSignal(_WithRanks):
    """Stops a run on SIGTERM, SIGUSR1 or Ctrl-C: the update is finished, `checkpoint` saved, `Stopped` raised.

    A signal to one rank stops all of them after the same update: the ranks ask each other at the end of every update
    and before every batch of an evaluation, one byte each time (Lightning itself exchanges as much before every batch).
    An evaluation is left at once and made from its beginning when the run goes on; only those between two batches of an
    update, and after the last update of `max_steps`, are finished.

    The handlers take the place of Lightning's, which start an exchange between the ranks inside the handler, where the
    others do not expect it, and which under SLURM requeue the job themselves; Lightning puts the former ones back.
    """

    def __init__(self, checkpoint: str | Path) -> None:
        self.checkpoint = Path(checkpoint)
        self.request = StopRequest("this update")
        self._shared_batches = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.request.listen()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if update_finished(trainer) and self._agreed(trainer) and not evaluation_follows(trainer):
            self._stop(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._share_batches(trainer, trainer.num_val_batches)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx < self._shared_batches and self._agreed(trainer) and can_go_on_with_evaluation(trainer):
            self._stop(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.request.listen()
        self._share_batches(trainer, trainer.num_test_batches)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """What was trained is saved already, so there is nothing to be saved."""
        if batch_idx < self._shared_batches and self._agreed(trainer):
            raise self._stopped()

    def _share_batches(self, trainer: pl.Trainer, num_batches: list[int | float] | list[int]) -> None:
        """How many batches every rank has: some have one more, and nobody would answer them then."""
        own = torch.tensor(sum(num_batches), device=trainer.strategy.root_device)
        self._shared_batches = int(trainer.strategy.reduce(own, reduce_op="min"))

    def _agreed(self, trainer: pl.Trainer) -> bool:
        """Whether any rank has been asked to stop; all ranks call this together and get the same answer."""
        return trainer.strategy.reduce_boolean_decision(self.request.received is not None, all=False)

    def _stop(self, trainer: pl.Trainer) -> None:
        save_now(trainer, self.checkpoint)
        raise self._stopped()

    def _stopped(self) -> Stopped:
        return Stopped(self.checkpoint, self.request.exit_code)


class StopAtOnce(_WithRanks):
    """Lets a signal end a test or a prediction on the spot, on all ranks that this process has launched.

    The handlers take the place of Lightning's, which start an exchange between the ranks inside the handler.
    """

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop_at_once()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        stop_at_once()
