"""Train a detector: `python -m vinvl.train_detector [overrides]`. Without overrides: on the demo world."""

import sys
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback

from vinvl.detector.data import DetectionDataModule
from vinvl.detector.task import DetectorTask, config_for
from vinvl.pictures import EXIF_IGNORE
from vinvl.run.checkpoint import load_into, read_checkpoint
from vinvl.run.door import enter
from vinvl.run.errors import UserError, say
from vinvl.run.folders import config_directory, register_resolvers, run_door
from vinvl.run.made import made, made_of_each, refuse_unfit
from vinvl.run.overrides import command_overrides, given_values, refuse_unread_splits
from vinvl.run.progress import report
from vinvl.run.survival import ORDER, Stopped, refuse_another_run, resume_path, tidy_run_folder, training_order
from vinvl.task import DETECTOR_TASK
from vinvl.train import best_checkpoint, make_loggers, say_what_is_cut_short, validation

WEIGHTS = "detector.pth"  # what a run makes, in its folder
RECIPE = (  # what a run is made of: with another value it would be another run
    "seed",
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

register_resolvers()


def train_detector(config: DictConfig) -> float | None:
    """Composed configuration → a trained detector and results.json in `config.paths.output_dir`.

    Returns:
        the best checkpoint's score in validation, which is what a sweep should choose by; None where there is none.
    """
    output_dir = Path(config.paths.output_dir)
    # First of all: what is missing is told before any work.
    run_config: Any = OmegaConf.to_container(config, resolve=True)
    resume_from = resume_path(config)
    if config.torch_threads is not None:
        torch.set_num_threads(config.torch_threads)
    pl.seed_everything(config.seed, verbose=False)
    refuse_unread_splits(given_values(command_overrides()), config.data)
    datamodule: DetectionDataModule = made(DetectionDataModule, config.data, "data")
    datamodule.prepare_data()
    datamodule.setup("fit")
    if config.test_after_fit:
        datamodule.split_files(config.data.test_split)  # it must be there: better said now
    labels = datamodule.label_map
    make_task = instantiate(config.task)
    task: DetectorTask = make_task(config=config_for(datamodule.detector, labels), label_map=labels.to_json())
    callbacks = made_of_each(Callback, config.callbacks, "callbacks")
    trainer: pl.Trainer = made(
        pl.Trainer, config.trainer, "trainer", callbacks=callbacks, logger=make_loggers(config.logger)
    )
    refuse_unfit(task, trainer)
    task.run_config = {**run_config, ORDER: training_order(datamodule, trainer.world_size)}
    if resume_from is not None:
        check_resumable(task, resume_from)
    if trainer.is_global_zero:
        tidy_run_folder(output_dir)
        say_what_is_cut_short(trainer)
        if task.started_from:
            say(task.started_from)
        say(*datamodule.example_text("train").split("\n"))
    try:
        return fit_and_test(trainer, task, datamodule, resume_from, config)
    except Stopped as stopped:
        if trainer.is_global_zero:
            say("", stopped)
            sys.exit(stopped.exit_code)
        return None


def check_resumable(task: DetectorTask, path: Path) -> None:
    """Refuses to go on from a checkpoint of another task, another detector or another run.

    Raises:
        UserError: names what differs, and how to begin a new run from the weights instead.
    """
    checkpoint = read_checkpoint(path)
    found = checkpoint["vinvl"].get("task_class")
    if found != DETECTOR_TASK:
        raise UserError(f"{path} is a checkpoint of {found}, and this run trains a detector.")
    instead = f"start.init=FILE, where FILE is the {WEIGHTS} that it wrote"
    before = checkpoint["vinvl"]["run_config"]
    if "reading" not in before["data"]:  # of an earlier version, which read pictures as they lie
        before = {**before, "data": {**before["data"], "reading": {"exif_orientation": EXIF_IGNORE}}}
    refuse_another_run(before, task.run_config, path, RECIPE, instead)
    load_into(task, checkpoint, path)


def fit_and_test(
    trainer: pl.Trainer,
    task: DetectorTask,
    datamodule: DetectionDataModule,
    resume_from: Path | None,
    config: DictConfig,
) -> float | None:
    """Trains, writes the best checkpoint's weight file and scores it; raises Stopped where a signal asks for it."""
    trainer.fit(task, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
    best = best_checkpoint(trainer)
    if best is not None:
        load_into(task, read_checkpoint(best), best)
    chosen_by = validation(trainer, task.headline, config.data.val_split)
    output_dir = Path(config.paths.output_dir)
    if trainer.is_global_zero:
        task.write_detector(output_dir / WEIGHTS)
    if config.test_after_fit:
        trainer.test(task, datamodule=datamodule, verbose=False)
    if trainer.is_global_zero:
        split = config.data.test_split if config.test_after_fit else None
        files = {"weight file": output_dir / WEIGHTS}
        report(task, output_dir, split=split, checkpoint=best, chosen_by=chosen_by, files=files)
    return chosen_by["score"] if chosen_by else None


@hydra.main(version_base="1.3", config_path=config_directory(), config_name="train_detector")
def main(config: DictConfig) -> float | None:
    return run_door(train_detector, config)


if __name__ == "__main__":
    enter(main, "train_detector", sys.argv[1:])
