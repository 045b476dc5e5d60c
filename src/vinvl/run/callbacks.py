"""Callbacks: what a person sees while a run works."""

import sys
import time
from collections import deque
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ProgressBar
from torch import Tensor

from vinvl.run.checkpoint import best_score, logged_step
from vinvl.run.errors import say
from vinvl.run.loggers import CSVByStep, TensorBoard
from vinvl.run.progress import LiveLine, duration
from vinvl.run.survival import recipe_of

MEANS = ("loss", "reward")  # of what is logged as train/…
SMOOTHED = 50  # batches
PACE = "samples/s"
BEST_SCORE = "val/best_score"
SECONDS_BETWEEN_FIGURES = 1.0


class SamplesPerSecond(Callback):
    """Logs training samples per second over all ranks, averaged over `every_n_steps` batches.

    A sample is an item of the dataset, also where several rows are made of it.
    Waiting for data counts, evaluation and checkpoints between two averages do too: it is what the run gets done.
    """

    def __init__(self, every_n_steps: int = 20) -> None:
        self.every_n_steps = every_n_steps
        self._since = 0.0
        self._samples = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that continues within an epoch does not start that epoch again."""
        self._since, self._samples = time.perf_counter(), 0

    on_train_epoch_start = on_train_start

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._samples += batch.num_items * trainer.world_size
        if (batch_idx + 1) % self.every_n_steps == 0:
            now = time.perf_counter()
            rate = self._samples / (now - self._since)
            pl_module.log(PACE, rate, batch_size=len(batch))
            self._since, self._samples = now, 0


class RunLogs(Callback):
    """Logs go on where the run does, and say the best score so far; TensorBoard also by which hyper-parameters."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CSVByStep | TensorBoard):
                logger.begin_at(trainer.global_step)
            if isinstance(logger, TensorBoard):
                told = getattr(pl_module, "run_config", {})
                words = {name: told[name] for name in ("tags", "notes") if told.get(name)}
                logger.tell_recipe({**recipe_of(told), **words}, (BEST_SCORE, "test/score"))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or (best := best_score(trainer)) is None:
            return
        for logger in trainer.loggers:
            logger.log_metrics({BEST_SCORE: best}, step=logged_step(trainer))


class StopEarly(EarlyStopping):
    """Lightning's early stopping, which counts on when a run continues, with the patience that is asked for now.

    Lightning's own would take the patience of the run before, and train on after an end that it had brought about.
    """

    @property
    def state_key(self) -> str:
        """That of Lightning's callback, which earlier versions of vinvl used."""
        return super().state_key.replace(type(self).__qualname__, EarlyStopping.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True
            if trainer.is_global_zero:
                say(
                    f"{self.monitor} has not improved for {self.wait_count} evaluations, so nothing more is trained: "
                    "pass a greater callbacks.early_stopping.patience to continue."
                )


class RunProgress(ProgressBar):
    """A line for each evaluation and, if `live`, one that moves while the run works.

    The loss shown is a mean: that of one batch tells little. Nothing waits for the device but once a second.
    """

    def __init__(self, *, live: bool = False) -> None:
        super().__init__()
        self.live = live
        self._recent: dict[str, deque[Tensor]] = {name: deque(maxlen=SMOOTHED) for name in MEANS}
        self._told: list[str] = []  # as the figures were a second ago at the most
        self._read = self._started = 0.0
        self._line: LiveLine | None = None

    def disable(self) -> None:
        """Called on ranks other than 0."""
        self.live = False

    def figures(self, trainer: pl.Trainer) -> list[str]:
        """What a person looks at in training, each with its name."""
        logged = trainer.callback_metrics
        found = {f"mean {name}": torch.stack(list(values)).mean() for name, values in self._recent.items() if values}
        found |= {name: value for name, value in trainer.progress_bar_metrics.items() if name != "v_num"}  # type: ignore[misc]
        told = [f"{name} {float(value):.4g}" for name, value in found.items()]
        return [*told, *([f"{float(logged[PACE]):.3g} {PACE}"] if PACE in logged else [])]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()
        if trainer.is_global_zero:
            parameters = sum(parameter.numel() for parameter in pl_module.parameters())
            say(f"Training {parameters:,} parameters for {trainer.estimated_stepping_batches:,} updates.")
            say(f"The loss shown is the mean of the last {SMOOTHED} batches.")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show(epoch_of(trainer), 0, trainer.num_training_batches)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        logged = trainer.callback_metrics
        for name, values in self._recent.items():
            if (found := logged.get(f"train/{name}")) is not None:
                values.append(found.detach())
        if self._line is not None:
            now = time.perf_counter()
            if now - self._read >= SECONDS_BETWEEN_FIGURES:
                self._told, self._read = self.figures(trainer), now
            self._line.move(batch_idx + 1, self._told)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        where = f"{epoch_of(trainer)}, evaluating" if trainer.state.fn == "fit" else "evaluating"
        self._show(where, 0, sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._move()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        self._told, self._read = self.figures(trainer), time.perf_counter()
        seconds = duration(time.perf_counter() - self._started)
        say("  ".join([epoch_of(trainer), f"update {trainer.global_step:,}", *self._told, seconds]))
        self._show(epoch_of(trainer), int(trainer.fit_loop.batch_idx + 1), trainer.num_training_batches)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._told = []
        self._show("testing", 0, sum(trainer.num_test_batches))

    def on_test_batch_end(self, *_: Any) -> None:
        self._move()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._show("predicting", 0, sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, *_: Any) -> None:
        self._move()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._line is not None:
            self._line.stop()
            self._line = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")

    def _show(self, what: str, done: int, total: float) -> None:
        if self.live:
            self._line = self._line or LiveLine()
            self._line.show(what, done, total, self._told)

    def _move(self) -> None:
        if self._line is not None:
            self._line.move(None, self._told)


def epoch_of(trainer: pl.Trainer) -> str:
    """The epoch that is trained, from 1."""
    last = trainer.max_epochs
    return f"epoch {trainer.current_epoch + 1}" + (f" of {last}" if last is not None and last > 0 else "")


def progress() -> Callback:
    """One line that moves on a terminal; elsewhere, where that is noise, a line per evaluation only."""
    return RunProgress(live=sys.stdout.isatty())
