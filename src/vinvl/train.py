"""Train a model: `python -m vinvl.train [experiment=NAME] [overrides]`. Without overrides: the demo world."""

import sys
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger

from vinvl.data.datamodule import RegionDataModule
from vinvl.errors import UserError, say
from vinvl.overrides import command_overrides, given_values, refuse_unread_splits, replacing
from vinvl.plan import plan
from vinvl.preemption import Stopped
from vinvl.report.table import print_results
from vinvl.resume import ORDER, check_resumable, resume_path, tidy_run_folder, training_order
from vinvl.runs import config_directory, register_resolvers, require_launcher, run_door, write_json
from vinvl.tasks.base import VinVLTask
from vinvl.tasks.checkpoints import load_into, read_checkpoint

register_resolvers()


def train(config: DictConfig) -> dict[str, float]:
    """Composed configuration → a trained model in `config.paths.output_dir`, and its scores on the test split."""
    if config.get("plan"):  # +plan=true: what the run would cost, and no run
        return plan(config)
    output_dir = Path(config.paths.output_dir)
    # First of all: what is missing is told before any work.
    run_config: Any = OmegaConf.to_container(config, resolve=True)
    resume_from = resume_path(config)
    if config.torch_threads is not None:
        torch.set_num_threads(config.torch_threads)
    pl.seed_everything(config.seed, verbose=False)
    refuse_unread_splits(given_values(command_overrides()), config.data)
    datamodule = instantiate(config.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    tested = config.test_after_fit and has_test_split(datamodule)
    task = instantiate(config.task, datamodule=datamodule)
    callbacks = list(instantiate(config.callbacks).values())
    loggers = make_loggers(config.logger)
    trainer: pl.Trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers)
    task.run_config = {**run_config, ORDER: training_order(datamodule, trainer.world_size)}
    if resume_from is not None:
        check_resumable(task, resume_from)
    if config.compile.enabled:
        task.model.base_model.compile_layers(
            backend=config.compile.backend, dynamic=config.compile.dynamic, mode=config.compile.mode
        )
    if trainer.is_global_zero:
        tidy_run_folder(output_dir)
        say(*datamodule.example_text("train").split("\n"))
    try:
        return fit_and_test(trainer, task, datamodule, resume_from, config, tested)
    except Stopped as stopped:
        if trainer.is_global_zero:
            say("", stopped)
            sys.exit(stopped.exit_code)
        return {}


def has_test_split(datamodule: RegionDataModule) -> bool:
    """Whether there is a test split, or null in its place; it is read before the training, not after it.

    Raises:
        UserError: it is missing, damaged, or cannot be scored.
    """
    name = datamodule.split_of["test"]
    if datamodule.splits.get(name, name) is None:
        return False
    try:
        datamodule.setup("test")
    except UserError as error:
        raise UserError(f"{error} (Of the test split: pass test_after_fit=false to train without it.)") from None
    return True


def fit_and_test(
    trainer: pl.Trainer,
    task: VinVLTask,
    datamodule: RegionDataModule,
    resume_from: Path | None,
    config: DictConfig,
    tested: bool,
) -> dict[str, float]:
    """Trains; scores the best checkpoint on the test split if `tested`; raises Stopped where a signal asks for it."""
    trainer.fit(task, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
    best = best_checkpoint(trainer)
    if best is not None:
        load_into(task, read_checkpoint(best), best)
    if not tested:
        return {}
    trainer.test(task, datamodule=datamodule, verbose=False)
    if trainer.is_global_zero:
        report(task, Path(config.paths.output_dir), split=config.data.test_split, checkpoint=best)
    return task.scores


def make_loggers(config: DictConfig) -> list[Logger]:
    """The loggers of the configuration.

    Raises:
        UserError: the package of one is not installed.
    """
    try:
        return list(instantiate(config).values())
    except Exception as error:  # Hydra wraps what a constructor raises
        if isinstance(error.__cause__ or error, ImportError):
            missing = str(error.__cause__ or error).splitlines()[0]
            raise UserError(
                f"The package of a logger is missing ({missing}): pip install 'vinvl[logging]', or pass logger=default."
            ) from error
        raise


def best_checkpoint(trainer: pl.Trainer) -> str | None:
    """The best checkpoint of the run as rank 0 knows it, or None if the run wrote none."""
    monitoring = [
        callback
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, ModelCheckpoint) and callback.monitor
    ]
    path = monitoring[0].best_model_path if monitoring else ""
    return str(trainer.strategy.broadcast(path)) or None


def report(task: VinVLTask, output_dir: Path, *, split: str, checkpoint: str | None) -> None:
    """Writes results.json and prints the table of what came out and where it lies."""
    results = output_dir / "results.json"
    content = {"split": split, "checkpoint": checkpoint, "headline": task.headline, "scores": task.scores}
    write_json(results, content)
    files = {"run folder": output_dir, "results": results}
    if checkpoint is not None:
        files["best checkpoint"] = Path(checkpoint)
    print_results(f"Results on '{split}'", task.result_rows(), files)


@hydra.main(version_base="1.3", config_path=config_directory(), config_name="train")
def main(config: DictConfig) -> None:
    run_door(train, config)


if __name__ == "__main__":
    require_launcher(sys.argv[1:])
    sys.argv[1:] = replacing(sys.argv[1:])
    main()
