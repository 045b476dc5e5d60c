"""Stopping in good order: a signal, a checkpoint at the end of the update, and a code that asks to be started again."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from vinvl.checkpointing import can_go_on_with_evaluation, evaluation_follows, save_now, update_finished
from vinvl.runs import how_to_go_on

START_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: what the launch scripts requeue for
INTERRUPTED = 130  # what shells expect after Ctrl-C
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STANDARD_ERROR = 2  # written to directly: a handler may interrupt a print, which does not bear a second one


class Stopped(Exception):  # noqa: N818, it is no error
    """The run was asked to stop and did; it goes on from `checkpoint`, and the process should end with `exit_code`."""

    def __init__(self, checkpoint: Path, exit_code: int) -> None:
        super().__init__(f"Stopped as asked to, and saved in {checkpoint}; {how_to_go_on(checkpoint.parents[1])}.")
        self.checkpoint = checkpoint
        self.exit_code = exit_code


class StopRequest:
    """Notes a SIGTERM, SIGUSR1 or Ctrl-C instead of ending the process.

    Ctrl-C a second time ends the process on the spot; other signals may come repeatedly.

    Args:
        after: what is finished first, for a person who presses Ctrl-C: "this update".
    """

    def __init__(self, after: str) -> None:
        self.received: int | None = None
        self._message = f"\nStopping after {after}; Ctrl-C again stops at once.\n".encode()

    def listen(self) -> None:
        """Takes the place of the handlers that there are."""
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            for number in STOP_SIGNALS:
                signal.signal(number, self._note)

    @property
    def exit_code(self) -> int:
        """What the process should end with."""
        return INTERRUPTED if self.received == signal.SIGINT else START_AGAIN

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(STANDARD_ERROR, self._message)
        self.received = number


class StopOnSignal(Callback):
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
