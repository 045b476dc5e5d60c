"""From a checkpoint to a task and the data it was trained on: the first half of `evaluate` and `predict`."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.datamodule import RegionDataModule
from vinvl.data.feature_record import FeatureRecord
from vinvl.errors import UserError
from vinvl.predictor.same_features import OtherFeatures, unlike_store
from vinvl.runs import resolve_checkpoint, task_class
from vinvl.tasks.base import VinVLTask
from vinvl.tasks.checkpoints import read_checkpoint

PREPARATIONS = (  # what a checkpoint's data may ask to be called
    "vinvl.data.demo.ensure_demo_world",
    "vinvl.data.demo.pretraining.ensure_demo_corpus",
)


@dataclass(frozen=True)
class Restored:
    """A trained task, its datamodule (tokenizer, store and answers read, splits not yet) and where it came from."""

    task: VinVLTask
    datamodule: RegionDataModule
    data: DictConfig
    path: Path


def restore(config: DictConfig) -> Restored:
    """The task of `config.ckpt_path` with its data.

    Warns:
        OtherFeatures: the data's features are not those that the task was trained on, as far as that is known.

    Raises:
        UserError: no such checkpoint, or data that do not fit it.
    """
    path = resolve_checkpoint(config.ckpt_path, config.paths.runs_dir, config.name)
    checkpoint = read_checkpoint(path)
    kind = task_class(checkpoint, path)
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    data = data_config(config, checkpoint["vinvl"]["run_config"], overrides, path)
    own = decoding_options(config, checkpoint["hyper_parameters"], overrides, path)
    task = kind.from_checkpoint(checkpoint, path, **own)
    datamodule = instantiate(data)
    datamodule.prepare_data()
    datamodule.setup("none")
    task.check_datamodule(datamodule)
    trained_on = FeatureRecord.of_plain(checkpoint["vinvl"].get("features"))
    if (sentence := unlike_store(trained_on, datamodule.store)) is not None:
        rank_zero_warn(sentence, category=OtherFeatures)
    return Restored(task=task, datamodule=datamodule, data=data, path=path)


def data_config(config: DictConfig, run_config: dict[str, Any], overrides: Sequence[str], path: Path) -> DictConfig:
    """The data section: as the training run had it, with this command's `data.KEY=VALUE` overrides on top.

    Where the command chooses data itself (data=NAME), its own section stands.

    Raises:
        UserError: the section in the checkpoint `path` is not one that vinvl.train writes.
    """
    chosen = {override.split("=", 1)[0].lstrip("+~") for override in overrides if "=" in override}
    if not run_config or "data" in chosen:
        return config.data
    check_calls(run_config.get("data"), path)
    own = {key.removeprefix("data.") for key in chosen if key.startswith("data.")}
    data = OmegaConf.create({"data": run_config["data"]})
    apply(own, config.data, data.data, f"The data of {path}")
    return data.data


def apply(keys: set[str], source: DictConfig, wanted: DictConfig, owner: str) -> None:
    """Takes the values of the keys over from `source` to `wanted`.

    Raises:
        UserError: `wanted` has no such key; `owner` names it in the sentence.
    """
    for key in sorted(keys):
        name = key.split(".")[0]
        if name not in wanted:
            close = difflib.get_close_matches(name, [str(known) for known in wanted], n=1)
            hint = f": did you mean {close[0]}?" if close else f"; it has {', '.join(sorted(map(str, wanted)))}."
            raise UserError(f"{owner} has no '{name}'{hint}")
        OmegaConf.update(wanted, key, OmegaConf.select(source, key), force_add=True)


def decoding_options(
    config: DictConfig, hyper_parameters: dict[str, Any], overrides: Sequence[str], path: Path
) -> dict[str, Any]:
    """How captions are decoded: as the checkpoint says, with this command's `decoding.KEY=VALUE` overrides on top.

    Where the command chooses decoding itself (decoding=NAME), its own section stands. Nothing if it says nothing.

    Raises:
        UserError: the checkpoint is of a task that decodes nothing.
    """
    chosen = {override.split("=", 1)[0].lstrip("+~") for override in overrides if "=" in override}
    own = {key.removeprefix("decoding.") for key in chosen if key.startswith("decoding.")}
    if not own and "decoding" not in chosen:
        return {}
    if "decoding" not in hyper_parameters:
        raise UserError(f"{path} is of a task that writes no captions, so decoding=… means nothing for it.")
    section = OmegaConf.to_container(config.decoding, resolve=True)
    assert isinstance(section, dict)
    if "decoding" in chosen:
        return {"decoding": section}
    wanted = OmegaConf.create(hyper_parameters["decoding"])
    apply(own, config.decoding, wanted, f"The decoding of {path}")
    return {"decoding": OmegaConf.to_container(wanted)}


def check_calls(data: object, path: Path) -> None:
    """Refuses a checkpoint's data section that would call anything but our own reading of data.

    The file may be a stranger's, and what a `_target_` names is called.

    Raises:
        UserError: names what it would have called.
    """
    target = data.get("_target_") if isinstance(data, dict) else None
    if not is_datamodule(target):
        raise UserError(f"{path} names '{target}' as its data, which is no datamodule of vinvl: pass data=NAME.")
    for key, value in entries(data):
        # Everything was resolved when it was written: an interpolation can only have been put there to be evaluated.
        smuggled = isinstance(value, str) and "${" in value
        if smuggled or (key == "_target_" and value not in PREPARATIONS and not is_datamodule(value)):
            raise UserError(f"{path} asks for '{value}' in its data, which no file may have called: pass data=NAME.")


def is_datamodule(name: object) -> bool:
    """Whether this is the full name of a datamodule class of `vinvl.data`."""
    if not isinstance(name, str) or not name.startswith("vinvl.data."):
        return False
    try:
        found = get_object(name)
    except Exception:  # Hydra raises ImportError, ValueError or its own, by which part of the name is wrong
        return False
    return isinstance(found, type) and issubclass(found, RegionDataModule)


def entries(value: object) -> Iterator[tuple[object, object]]:
    """(key, value) of everything in nested dicts and lists; keys come as values too, list items have the key None."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield None, key
            yield key, item
            yield from entries(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield None, item
            yield from entries(item)
