"""Train a model: `python -m vinvl.train [experiment=NAME] [overrides]`. Without overrides: the demo world."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vinvl.run.door import door, enter, made, made_of_each
from vinvl.run.errors import UserError, say
from vinvl.run.overrides import command_overrides, given_values, refuse_unread_splits
from vinvl.run.progress import profiler, report

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from vinvl.task import VinVLTask


def train(config: DictConfig) -> float | None:
    """Composed configuration → a trained model and results.json in `config.paths.output_dir`.

    Returns the best checkpoint's score in validation, which is what a sweep should choose by; None if there is none.
    """
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import Callback
    from pytorch_lightning.loggers import Logger

    from vinvl.plan import plan, wants_plan
    from vinvl.restore import pin_start
    from vinvl.run.survival import ORDER, Stopped, resume_path, tidy_run_folder, training_order
    from vinvl.schedules import refuse_unfit
    from vinvl.task import VinVLTask

    planned = wants_plan(config)
    if not str(config.optimized_metric).startswith("val/"):
        raise UserError(f"optimized_metric={config.optimized_metric} is no figure of the validation: give val/score.")
    pin_start(config)
    # First of all: what is missing is told before any work.
    run_config: Any = OmegaConf.to_container(config, resolve=True)
    resume_from = resume_path(config)
    if config.torch_threads is not None:
        torch.set_num_threads(config.torch_threads)
    pl.seed_everything(config.seed, verbose=False)
    refuse_unread_splits(given_values(command_overrides()), config.data)
    callbacks = made_of_each(Callback, config.callbacks, "callbacks")
    loggers = made_of_each(Logger, config.logger, "logger")
    datamodule: Any = made(pl.LightningDataModule, config.data, "data")
    datamodule.prepare_data()
    datamodule.setup("fit")
    tested = config.test_after_fit and has_test_split(datamodule)
    task: Any = made(VinVLTask, config.task, "task", datamodule=datamodule)
    if planned:
        plan(config, task, datamodule)
        return None
    own = {"callbacks": callbacks, "logger": loggers, "profiler": profiler(config)}
    trainer: pl.Trainer = made(pl.Trainer, config.trainer, "trainer", **own)
    refuse_unfit(task, trainer)
    task.run_config = {**run_config, ORDER: training_order(datamodule, trainer.world_size)}
    if resume_from is not None:
        task.check_resumable(resume_from)
    if config.get("compile") and config.compile.enabled:
        task.model.base_model.compile_layers(
            backend=config.compile.backend, dynamic=config.compile.dynamic, mode=config.compile.mode
        )
    if trainer.is_global_zero:
        tidy_run_folder(Path(config.paths.output_dir))
        say_what_is_cut_short(trainer)
        say(*filter(None, [task.started_from]), *datamodule.example_text("train").split("\n"))
    try:
        return fit_and_test(trainer, task, datamodule, resume_from, config, tested)
    except Stopped as stopped:
        if trainer.is_global_zero:
            say("", stopped)
            sys.exit(stopped.exit_code)
        return None


def has_test_split(datamodule: Any) -> bool:
    """Whether there is a test split, or null in its place. It is read before the training, and refused before it."""
    name = datamodule.split_of["test"]
    if datamodule.splits.get(name, name) is None:
        return False
    try:
        datamodule.setup("test")
    except UserError as error:
        raise UserError(f"{error} (Of the test split: pass test_after_fit=false to train without it.)") from None
    return True


def fit_and_test(
    trainer: pl.Trainer, task: VinVLTask, datamodule: Any, resume_from: Path | None, config: DictConfig, tested: bool
) -> float | None:
    """Trains; scores the best checkpoint on the test split if `tested`; raises Stopped where a signal asks for it."""
    from vinvl.run.checkpoint import best_checkpoint, load_into, read_checkpoint, validation

    trainer.fit(task, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
    best = best_checkpoint(trainer)
    if best is not None:
        load_into(task, read_checkpoint(best), best)
    chosen_by = validation(trainer, task.headline, config.data.val_split)
    output_dir = Path(config.paths.output_dir)
    files = task.write_files(output_dir) if trainer.is_global_zero else {}
    if tested:
        trainer.test(task, datamodule=datamodule, verbose=False)
    if trainer.is_global_zero:
        split = config.data.test_split if tested else None
        left_out = datamodule.skipped.get(split, 0)
        report(task, output_dir, split=split, checkpoint=best, chosen_by=chosen_by, files=files, left_out=left_out)
    return chosen_by["score"] if chosen_by else None


def say_what_is_cut_short(trainer: Any) -> None:
    """Says what Lightning's settings for trying things out do to a run."""
    if trainer.fast_dev_run:
        say("trainer.fast_dev_run: a few batches of everything; nothing is saved, and the figures mean nothing.")
    elif trainer.overfit_batches > 0:
        say(
            f"trainer.overfit_batches={trainer.overfit_batches}: each epoch has the same batches, down to the words "
            "that are hidden and the pairs that are drawn; evaluations in training take the first ones of their split."
        )
    elif any(limit not in (None, 1.0) for limit in (trainer.limit_val_batches, trainer.limit_test_batches)):
        say("trainer.limit_val_batches, limit_test_batches: figures are those of a part of the split.")


main = door(train, "train")


if __name__ == "__main__":
    enter(main, "train", sys.argv[1:])
