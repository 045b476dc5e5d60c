"""Train a model: `python -m vinvl.train [experiment=NAME] [overrides]`. Without overrides: the demo world."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from vinvl.composing import own_run
from vinvl.run.door import door, enter, made, made_of_each
from vinvl.run.errors import UserError, say
from vinvl.run.folders import CHECKPOINTS, process_rank
from vinvl.run.overrides import command_overrides, given_values, leave_sizes_open, refuse_unread_splits
from vinvl.run.progress import profiler, report
from vinvl.run.values import OF_THE_ENCODER

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from vinvl.task import VinVLTask


@dataclass(frozen=True)
class TrainedRun:
    """What came of a training run.

    Attributes:
        folder: the run's, which `vinvl.load` opens.
        checkpoint: the best one, None where none was saved.
        score: of that one in validation, the figure that it was chosen by.
        scores: the figures of its test by name, {} without one.
    """

    folder: Path
    checkpoint: Path | None = None
    score: float | None = None
    scores: dict[str, float] = field(default_factory=dict)


def train(config: DictConfig) -> float | None:
    """The door: trains, and returns the score in validation, which is what a sweep should choose by."""
    from vinvl.run.survival import Stopped

    given = given_values(command_overrides())
    refuse_unread_splits(given, config.data)
    leave_sizes_open(config, given)
    try:
        return training(config).score
    except Stopped as stopped:
        if process_rank() == 0:
            say("", stopped)
            sys.exit(stopped.exit_code)
        return None


def training(config: DictConfig) -> TrainedRun:
    """Composed configuration → a trained model and results.json in `config.paths.output_dir`.

    Raises Stopped where a signal has asked for it.
    """
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import Callback
    from pytorch_lightning.loggers import Logger

    from vinvl.plan import plan, wants_plan
    from vinvl.restore import pin_start
    from vinvl.run.memory import FittingBatch
    from vinvl.run.survival import ORDER, resume_path, tidy_run_folder, training_order
    from vinvl.schedules import refuse_unfit
    from vinvl.task import VinVLTask

    planned = wants_plan(config)
    if not str(config.optimized_metric).startswith("val/"):
        raise UserError(f"optimized_metric={config.optimized_metric} is no figure of the validation: give val/score.")
    OmegaConf.to_container(config, resolve=True)  # first of all: what is missing is told before any work
    resume_from = resume_path(config)
    if config.torch_threads is not None:
        torch.set_num_threads(config.torch_threads)
    pl.seed_everything(config.seed, verbose=False)
    callbacks = made_of_each(Callback, config.callbacks, "callbacks")
    loggers = made_of_each(Logger, config.logger, "logger")
    datamodule: Any = made(pl.LightningDataModule, config.data, "data")
    with no_answers_left(datamodule, Path(config.paths.output_dir)):
        datamodule.prepare_data()
        datamodule.setup("fit")
        tested = config.test_after_fit and has_test_split(datamodule)
        pin_start(config)
        task: Any = made(VinVLTask, config.task, "task", datamodule=datamodule)
        if planned:
            plan(config, task, datamodule)
            return TrainedRun(Path(config.paths.output_dir))
        own = {"callbacks": [*callbacks, FittingBatch()], "logger": loggers, "profiler": profiler(config)}
        trainer: pl.Trainer = made(pl.Trainer, config.trainer, "trainer", **own)
        refuse_unfit(task, trainer)
        run_config: Any = OmegaConf.to_container(config, resolve=True)
        sized = fill_sizes(run_config, task)
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
            if sized:
                told = f"{task.config.num_hidden_layers} layers of {task.config.hidden_size}"
                say(f"The sizes of the model are those of {config.model.init}: {told}.")
            say(*filter(None, [task.started_from]), *datamodule.example_text("train").split("\n"))
        return fit_and_test(trainer, task, datamodule, resume_from, config, tested)


@contextmanager
def no_answers_left(datamodule: Any, folder: Path) -> Iterator[None]:
    """Within it a run that fails before its first checkpoint leaves no answer vocabulary behind that it has built."""
    path: Path | None = getattr(datamodule, "answers_path", None)
    existed = path is None or path.exists()
    try:
        yield
    except BaseException:
        if not existed and path is not None and process_rank() == 0 and not any((folder / CHECKPOINTS).glob("*.ckpt")):
            path.unlink(missing_ok=True)
        raise


def fill_sizes(run_config: dict[str, Any], task: VinVLTask) -> bool:
    """Puts the sizes that were left open into a run's configuration; whether those of the layers were."""
    sized = False
    for fields in (run_config.get("model", {}).get("config"), run_config["task"].get("model")):
        for name in OF_THE_ENCODER if isinstance(fields, dict) else ():
            if name in fields and fields[name] is None and name != "vocab_size":
                fields[name] = getattr(task.config, name)
                sized |= name == "hidden_size"
    return sized


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
) -> TrainedRun:
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
    score = chosen_by["score"] if chosen_by else None
    return TrainedRun(output_dir, None if best is None else Path(best), score, dict(task.scores) if tested else {})


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


def run(config: DictConfig | Mapping[str, Any]) -> TrainedRun:
    """Trains as `python -m vinvl.train` does, in a run folder of its own; `config` comes from `vinvl.compose`.

    Returns where the run lies, its best checkpoint and scores. Raises UserError where the command would refuse; Ctrl-C
    ends it with KeyboardInterrupt, after a checkpoint.
    """
    import torch

    from vinvl.run.survival import Stopped

    threads = torch.get_num_threads()
    with own_run(config) as own:
        try:
            return training(own)
        except Stopped as stopped:
            raise KeyboardInterrupt(str(stopped)) from None
        finally:
            torch.set_num_threads(threads)


class CallableModule(ModuleType):
    """This module, which is `run` where it is called: a submodule takes the place of a function of its name."""

    def __call__(self, config: DictConfig | Mapping[str, Any]) -> TrainedRun:
        """See `run`."""
        return run(config)


sys.modules[__name__].__class__ = CallableModule


if __name__ == "__main__":
    enter(main, "train", sys.argv[1:])
