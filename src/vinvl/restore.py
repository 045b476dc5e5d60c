"""From a checkpoint to a task and the data it was trained on: the first half of `evaluate` and `predict`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vinvl.data.datamodule import RegionDataModule
from vinvl.runs import resolve_checkpoint, task_class
from vinvl.tasks.base import VinVLTask, read_checkpoint

CHOOSES_DATA = ("data", "experiment")  # config groups that replace the data of the training run


@dataclass(frozen=True)
class Restored:
    """A trained task, its datamodule (tokenizer, store and answers read, splits not yet) and where it came from."""

    task: VinVLTask
    datamodule: RegionDataModule
    data: DictConfig
    path: Path


def restore(config: DictConfig) -> Restored:
    """The task of `config.ckpt_path` with its data.

    Raises:
        UserError: no such checkpoint, or data that do not fit it.
    """
    path = resolve_checkpoint(config.ckpt_path, config.paths.runs_dir, config.name)
    checkpoint = read_checkpoint(path)
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    data = data_config(config, checkpoint["vinvl"]["run_config"], overrides)
    task = task_class(checkpoint, path).from_checkpoint(checkpoint, path)
    datamodule = instantiate(data)
    datamodule.prepare_data()
    datamodule.setup("none")
    task.check_datamodule(datamodule)
    return Restored(task=task, datamodule=datamodule, data=data, path=path)


def data_config(config: DictConfig, run_config: dict[str, object], overrides: Sequence[str]) -> DictConfig:
    """The data section: as the training run had it, with this command's `data.KEY=VALUE` overrides on top.

    Where the command chooses data itself (data=NAME or experiment=NAME), its own section stands.
    """
    chosen = {override.split("=", 1)[0].lstrip("+~") for override in overrides if "=" in override}
    if not run_config or any(group in chosen for group in CHOOSES_DATA):
        return config.data
    own = {key.removeprefix("data.") for key in chosen if key.startswith("data.")}
    data = OmegaConf.create({"data": run_config["data"]})
    for key in own:
        OmegaConf.update(data, f"data.{key}", OmegaConf.select(config, f"data.{key}"))
    return data.data
