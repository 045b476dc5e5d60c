"""Going on with a run: from which checkpoint, whether it is of this very run, and how signals end it."""

import signal
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from vinvl.run.checkpoint import (
    can_go_on_with_evaluation,
    evaluation_follows,
    save_now,
    update_finished,
)
from vinvl.run.errors import UserError
from vinvl.run.files import remove_leftovers
from vinvl.run.folders import AUTO, CHECKPOINTS, how_to_go_on, resolve_checkpoint
from vinvl.run.options import leaves
from vinvl.run.signals import Interrupted, StopRequest, stop_at_once


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


ORDER = "training_order"  # in the run_config that a checkpoint carries: what the order of the batches follows from
RECIPE = (  # what a run is made of: with another value it would be another run
    "seed",
    "task.options",
    "model.config",
    "detector",
    "training",
    "start.batch_norm",
    "start.frozen_stages",
    "optim",
    "data",
    "trainer.accumulate_grad_batches",
    "trainer.gradient_clip_val",
    ORDER,
)
HARMLESS = (  # how it is worked on, and what is scored afterwards
    "model.config.attn_implementation",  # what model.attention says
    "task.options.java_metrics",
    "task.options.cuda_graphs",
    "data.num_workers",
    "data.index_workers",
    "data.pin_memory",
    "data.cache",
    "data.token_cache",
    "data.verify_regions",
    "data.eval_batch_size",
    "data.test_split",
    "data.predict_split",
    "data.prepare",
)
LENGTH = ("trainer.max_epochs", "trainer.max_steps", "trainer.precision", "trainer.devices", "trainer.num_nodes")
NO_PARAMETERS = ("data._target_", "data.splits", "data.stores", "data.regions", ORDER)
NAMES_SHOWN = 4  # of the values in which two runs differ


def resume_path(config: DictConfig) -> Path | None:
    """The checkpoint that `config.ckpt_path` means, None where the run begins anew; UserError if it does not exist.

    `auto` is the `last` of the run's own folder once there is one.
    """
    if config.ckpt_path is None:
        return None
    if config.ckpt_path != AUTO:
        return resolve_checkpoint(config.ckpt_path, config.paths.runs_dir, config.name)
    path = Path(config.paths.output_dir) / CHECKPOINTS / "last.ckpt"
    return path if path.is_file() else None


def training_order(datamodule: Any, world_size: int) -> dict[str, int]:
    """What, besides seed and batch size, the order of the training batches follows from.

    ranks: processes that share the batches. items: examples of an epoch. lengths: a checksum of their lengths, by which
    batches are made up; files that were moved have the same, files that were changed hardly ever.
    """
    lengths = np.ascontiguousarray(datamodule.datasets["train"].lengths(), dtype=np.int64)
    return {"ranks": world_size, "items": len(lengths), "lengths": zlib.crc32(lengths.data)}


def recipe_of(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters of a run by their keys: what it is made of and how long it lasts, without names of files."""
    beside = (*HARMLESS, *NO_PARAMETERS)
    found = {key: value for key, value in leaves(run_config) if _within(key, (*RECIPE, *LENGTH))}
    return {key: value for key, value in found.items() if value is not None and not _within(key, beside)}


def refuse_another_run(before: Mapping[str, Any], now: Mapping[str, Any], path: Path, instead: str) -> None:
    """Raises UserError, naming what differs, for a run that was given other values than this one.

    Args:
        before, now: run configurations.
        path: the checkpoint.
        instead: what begins a new run from the weights, for a person.
    """
    differing = list(differences(before, now))
    if differing:
        shown = "; ".join(f"{key} was {before!r} and is {now!r}" for key, before, now in differing[:NAMES_SHOWN])
        more = f"; and {len(differing) - NAMES_SHOWN} more" if len(differing) > NAMES_SHOWN else ""
        raise UserError(
            f"{path} is of another run, whose batches or updates would not go on here: {shown}{more}. Give what that "
            f"run was given, or begin a new run from its weights with ckpt_path=null {instead}."
        )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(key, value then, value now) of all that makes these run configurations those of two different runs.

    A file of the same name in another place counts as the same: `training_order` tells whether its examples are, and a
    tokenizer's words are compared; so does another @REVISION on the hub. A key that only one of them has is passed
    over, because another version of vinvl may have added it.
    """
    then, current = dict(leaves(before)), dict(leaves(now))
    for key, value in current.items():
        if _within(key, RECIPE) and not _within(key, HARMLESS) and key in then and not _same(then[key], value):
            yield key, then[key], value


def _within(key: str, sections: tuple[str, ...]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _same(before: object, now: object) -> bool:
    if isinstance(before, str) and isinstance(now, str):
        return Path(before).name.partition("@")[0] == Path(now).name.partition("@")[0]
    return before == now


def tidy_run_folder(folder: Path) -> None:
    """Before a run goes on in its folder: half-written checkpoints go."""
    remove_leftovers(folder / CHECKPOINTS, r".+\.ckpt")
