"""Train a model: `python -m vinvl.train [experiment=NAME] [overrides]`. Without overrides: the demo world."""

from pathlib import Path

import hydra
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import Logger

from vinvl.errors import UserError
from vinvl.report.table import print_results
from vinvl.runs import config_directory, register_resolvers, resolve_checkpoint, run_door, task_class, write_json
from vinvl.tasks.base import VinVLTask
from vinvl.tasks.checkpoints import load_into, read_checkpoint

register_resolvers()


def train(config: DictConfig) -> dict[str, float]:
    """Composed configuration → a trained model in `config.paths.output_dir`, and its scores on the test split."""
    output_dir = Path(config.paths.output_dir)
    run_config = OmegaConf.to_container(config, resolve=True)  # first of all: what is missing is told before any work
    resume_from = None
    if config.ckpt_path is not None:
        resume_from = resolve_checkpoint(config.ckpt_path, config.paths.runs_dir, config.name)
    if config.torch_threads is not None:
        torch.set_num_threads(config.torch_threads)
    pl.seed_everything(config.seed, verbose=False)
    datamodule = instantiate(config.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    task = instantiate(config.task, datamodule=datamodule)
    task.run_config = run_config
    if resume_from is not None:
        check_resumable(task, resume_from)
    callbacks = list(instantiate(config.callbacks).values())
    loggers = make_loggers(config.logger)
    trainer: pl.Trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers)
    if trainer.is_global_zero:
        print(datamodule.example_text("train"), flush=True)
    trainer.fit(task, datamodule=datamodule, ckpt_path=resume_from, weights_only=True)
    best = best_checkpoint(trainer)
    if best is not None:
        load_into(task, read_checkpoint(best), best)
    if not config.test_after_fit:
        return {}
    trainer.test(task, datamodule=datamodule, verbose=False)
    if trainer.is_global_zero:
        report(task, output_dir, split=config.data.test_split, checkpoint=best)
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


def check_resumable(task: VinVLTask, path: Path) -> None:
    """Refuses to go on from a checkpoint of another task or model before anything has been touched."""
    checkpoint = read_checkpoint(path)
    found = task_class(checkpoint, path)
    if type(task) is not found:
        raise UserError(f"{path} is a checkpoint of {found.__name__}, and this run trains {type(task).__name__}.")
    load_into(task, checkpoint, path)


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
    write_json(results, {"split": split, "checkpoint": checkpoint, "scores": task.scores})
    files = {"run folder": output_dir, "results": results}
    if checkpoint is not None:
        files["best checkpoint"] = Path(checkpoint)
    print_results(f"Results on '{split}'", task.result_rows(), files)


@hydra.main(version_base="1.3", config_path=config_directory(), config_name="train")
def main(config: DictConfig) -> None:
    run_door(train, config)


if __name__ == "__main__":
    main()
