"""Callbacks: what a person sees while a run works."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, ProgressBar, RichProgressBar

from vinvl.run.checkpoint import best_score, logged_step
from vinvl.run.errors import say
from vinvl.run.loggers import CSVByStep, TensorBoard
from vinvl.run.survival import recipe_of

SHOWN = ("train/loss", "train/reward", "samples/s")
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
            pl_module.log("samples/s", rate, batch_size=len(batch))
            self._since, self._samples = now, 0


class RunLogs(Callback):
    """Logs go on where the run does, and say the best score so far; TensorBoard also by which hyper-parameters."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, CSVByStep | TensorBoard):
                logger.begin_at(trainer.global_step)
            if isinstance(logger, TensorBoard):
                logger.tell_recipe(recipe_of(getattr(pl_module, "run_config", {})), (BEST_SCORE, "test/score"))

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


def training_figures(trainer: pl.Trainer) -> dict[str, float]:
    """What a person looks at in training. Waits for the device, which `prog_bar=True` would do after every batch."""
    found = trainer.callback_metrics
    return {name: float(found[name]) for name in SHOWN if name in found}


class MovingProgress(RichProgressBar):
    """A moving bar for a terminal, whose figures are those of a second ago at the most."""

    def __init__(self) -> None:
        super().__init__()
        self._figures: dict[str, float] = {}
        self._read = 0.0

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        now = time.perf_counter()
        if trainer.training and now - self._read >= SECONDS_BETWEEN_FIGURES:
            self._figures, self._read = training_figures(trainer), now
        figures: dict[str, Any] = {**super().get_metrics(trainer, pl_module), **self._figures}
        return figures


class LineProgress(ProgressBar):
    """One line per evaluation, for logs and pipes where a moving bar is noise."""

    def __init__(self) -> None:
        super().__init__()
        self._started = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._started = time.perf_counter()
        if not trainer.is_global_zero:
            return
        parameters = sum(parameter.numel() for parameter in pl_module.parameters())
        say(f"Training {parameters:,} parameters for {trainer.estimated_stepping_batches:,} updates.")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        shown: dict[str, Any] = {**self.get_metrics(trainer, pl_module), **training_figures(trainer)}
        shown.pop("v_num", None)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in sorted(shown.items()))
        begin = f"epoch {trainer.current_epoch + 1}  update {trainer.global_step}"
        say(f"{begin}  {figures}  {time.perf_counter() - self._started:.0f} s")

    def disable(self) -> None:
        """Called on ranks other than 0, which print nothing anyway."""


def progress() -> Callback:
    """A moving bar on a terminal, one line per evaluation elsewhere."""
    return MovingProgress() if sys.stdout.isatty() else LineProgress()
