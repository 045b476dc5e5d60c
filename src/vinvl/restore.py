"""From a checkpoint to a task and the data it was trained on: the first half of `evaluate` and `predict`."""

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.module import RegionDataModule
from vinvl.regions.feature_record import FeatureRecord, OtherFeatures, unlike_store
from vinvl.run.checkpoint import read_checkpoint
from vinvl.run.errors import UserError
from vinvl.run.folders import resolve_checkpoint
from vinvl.run.overrides import command_overrides, given_splits, given_values, refuse_unread_splits
from vinvl.task import VinVLTask, task_class

PREPARATIONS = (  # what a checkpoint's data may ask to be called
    "vinvl.demo.ensure_demo_world",
    "vinvl.demo.world.ensure_demo_corpus",
)
FILES = "data.splits"  # what is given there is one value, also where it is a dict
GROWING = ("splits", "constraints")  # dicts whose keys need not be in the checkpoint; whoever reads them knows them


@dataclass(frozen=True)
class Restored:
    """A trained task, its datamodule (tokenizer, store and answers read, splits not yet) and where it came from."""

    task: VinVLTask
    datamodule: RegionDataModule
    data: DictConfig
    path: Path


def restore(config: DictConfig, stage: str) -> Restored:
    """The task of `config.ckpt_path` with its data.

    Args:
        stage: `test` or `predict`, which of the data's splits is to be read.

    Warns:
        OtherFeatures: the data's features are not those that the task was trained on, as far as that is known.

    Raises:
        UserError: no such checkpoint, data that do not fit it, or a split that is given and would not be read.
    """
    path = resolve_checkpoint(config.ckpt_path, config.paths.runs_dir, config.name)
    checkpoint = read_checkpoint(path)
    kind = task_class(checkpoint, path)
    overrides = command_overrides()
    data = data_config(config, checkpoint["vinvl"]["run_config"], overrides, path)
    check_splits(given_values(overrides), data, stage)
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
        UserError: the section in the checkpoint `path` is not one that vinvl.train writes, or has no such key.
    """
    given = given_values(overrides)
    if not run_config or "data" in given:
        return config.data
    check_calls(run_config.get("data"), path)
    own = with_own_places(run_config["data"], config)
    data = OmegaConf.create(overridden(own, "data", given, config, path))
    refuse_missing_answers(data, config, path)
    return data


def with_own_places(data: dict[str, Any], config: DictConfig) -> dict[str, Any]:
    """A checkpoint's data section with this command's places in it, wherever it names one to write to.

    The demo world is generated in this command's data folder, and read from there.
    """
    data = dict(data)
    if data.get("token_cache") is not None:
        data["token_cache"] = config.data.get("token_cache")
    if "scores_dir" in data:
        data["scores_dir"] = None
    prepare = data.get("prepare")
    if isinstance(prepare, dict) and isinstance(folder := prepare.get("folder"), str):
        data = moved(data, folder, str(Path(config.paths.data_dir) / "demo"))
    return data


def moved(value: Any, before: str, now: str) -> Any:
    """Nested dicts and lists with the paths in them that lead to a folder or into it, led to another."""
    if isinstance(value, dict):
        return {key: moved(item, before, now) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [moved(item, before, now) for item in value]
    if isinstance(value, str) and (value == before or value.startswith(f"{before}/")):
        return now + value[len(before) :]
    return value


def refuse_missing_answers(data: DictConfig, config: DictConfig, path: Path) -> None:
    """Refuses to have a vocabulary built, and written, where a checkpoint says, unless that is in the data folder.

    Raises:
        UserError: names the file that is missing.
    """
    answers = data.get("answers")
    if not isinstance(answers, str) or Path(answers).exists():
        return
    if not Path(answers).resolve().is_relative_to(Path(config.paths.data_dir).resolve()):
        raise UserError(f"{path} names {answers} as its answers, which is not there: pass data.answers=FILE.")


def check_splits(given: Mapping[str, Any], data: DictConfig, stage: str) -> None:
    """Refuses splits that a command gives and that would not be read.

    Raises:
        UserError: no stage reads one of them, or they are all those of other stages.
    """
    refuse_unread_splits(given, data)
    names = given_splits(given)
    if names and data[f"{stage}_split"] not in names:
        raise UserError(
            f"data.splits.{names[-1]} is given, and data.{stage}_split is {data[f'{stage}_split']}, which is what is "
            f"read: pass data.{stage}_split={names[-1]} with it, or give data.splits.{data[f'{stage}_split']}."
        )


def decoding_options(
    config: DictConfig, hyper_parameters: dict[str, Any], overrides: Sequence[str], path: Path
) -> dict[str, Any]:
    """How captions are decoded: as the checkpoint says, with this command's `decoding.KEY=VALUE` overrides on top.

    Where the command chooses decoding itself (decoding=NAME), its own section stands. Nothing if it says nothing.

    Raises:
        UserError: the checkpoint is of a task that decodes nothing, or has no such key.
    """
    given = given_values(overrides)
    if not any(key.lstrip("~").split(".")[0] == "decoding" for key in given):
        return {}
    if "decoding" not in hyper_parameters:
        raise UserError(f"{path} is of a task that writes no captions, so decoding=… means nothing for it.")
    if "decoding" in given:
        return {"decoding": OmegaConf.to_container(config.decoding, resolve=True)}
    return {"decoding": overridden(hyper_parameters["decoding"], "decoding", given, config, path)}


def overridden(
    section: dict[str, Any], name: str, given: Mapping[str, Any], config: DictConfig, path: Path
) -> dict[str, Any]:
    """A section of a checkpoint with what the command gives for it.

    What is given replaces what is there; of a dict of settings, such as `data.prepare`, the settings that are given.

    Args:
        section: in plain types.
        name: of the section.
        given: `given_values` of the command.
        config: what Hydra composed for the command, in which what is given is resolved.
        path: the checkpoint, for messages.

    Raises:
        UserError: the section has no such key, or something is to be taken away from it.
    """
    changed = copy.deepcopy(section)
    for key, value in given.items():
        if key.startswith(f"~{name}."):
            raise UserError(
                f"{key}: nothing can be taken away from the {name} of {path}; pass {key[1:]}=null, or {name}=NAME."
            )
        if key.startswith(f"{name}.") and (key, value) != (FILES, None):  # which makes room for splits that follow
            for inner, _ in settings(key, value):
                node = OmegaConf.select(config, inner)
                found = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
                put(changed, inner.split(".")[1:], found, f"The {name} of {path}")
    return changed


def settings(key: str, value: object) -> Iterator[tuple[str, object]]:
    """(key, value) of each setting of a dict of settings; a dict that says where files lie is one value."""
    if isinstance(value, dict) and value and not key.startswith(FILES):
        for name, item in value.items():
            yield from settings(f"{key}.{name}", item)
    else:
        yield key, value


def put(section: Any, names: Sequence[str], value: object, owner: str) -> None:
    """Sets a value within nested dicts and lists; below a key of `GROWING` it may be new.

    Raises:
        UserError: there is no such place; `owner` names the section in the sentence.
    """
    *parents, last = names
    grows = names[0] in GROWING
    node = section
    for name in parents:
        if grows and isinstance(node, dict) and (node is not section or name in node) and node.get(name) is None:
            node[name] = {}
        node = _child(node, name, names, owner)
    if isinstance(node, dict) and grows and parents:
        node[last] = value
    else:
        _child(node, last, names, owner)
        node[int(last) if isinstance(node, list) else last] = value


def _child(node: Any, name: str, names: Sequence[str], owner: str) -> Any:
    if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
        return node[int(name)]
    if isinstance(node, dict) and name in node:
        return node[name]
    known = sorted(map(str, node)) if isinstance(node, dict) else []
    close = difflib.get_close_matches(name, known, n=1)
    hint = f": did you mean {close[0]}?" if close else f"; it has {', '.join(known)}." if known else "."
    raise UserError(f"{owner} has no '{'.'.join(names)}'{hint}")


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
    """Whether this is the full name of a datamodule class of a task."""
    if not isinstance(name, str) or not re.fullmatch(r"vinvl\.\w+\.data\.\w+", name):
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
