"""From a checkpoint to a task and the data it was trained on: the first half of `evaluate` and `predict`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.module import RegionDataModule
from vinvl.data.text import find_tokenizer_folder
from vinvl.models.weight_files import find_checkpoint, pinned
from vinvl.opening import DETECTOR_TASK, OpenedModel, class_of_task, find_tokenizer, rows_of_given, words_of
from vinvl.regions.store import FeatureRecord, OtherFeatures
from vinvl.run.checkpoint import OUR_KEY, read_checkpoint
from vinvl.run.errors import UserError, say
from vinvl.run.folders import config_directory, resolve_checkpoint
from vinvl.run.hub import may_be_name
from vinvl.run.options import leaves
from vinvl.run.overrides import command_overrides, given_splits, given_values, refuse_unread_splits, with_given
from vinvl.run.signatures import parameters_of
from vinvl.task import VinVLTask

PREPARATIONS = (  # what a checkpoint's data may ask to be called
    "vinvl.demo.ensure_demo_world",
    "vinvl.demo.world.ensure_demo_corpus",
    "vinvl.demo.world.ensure_demo_instances",
)
SETTINGS = ("vinvl.detector.DetectorConfig", "vinvl.detector.Architecture", "vinvl.pictures.ReadingOptions")


@dataclass(frozen=True)
class Restored:
    """A trained task, its datamodule (tokenizer, store and answers read, splits not yet) and where it came from."""

    task: VinVLTask
    datamodule: Any
    data: DictConfig
    path: Path


def restore(config: DictConfig, stage: str) -> Restored:
    """The task of `config.ckpt_path` with its data, of which `stage`, `test` or `predict`, is to be read.

    A folder, or NAMESPACE/NAME on the Hugging Face hub, is a model, of ours or a published one, which names no data:
    this command does.

    Warns with OtherFeatures if the features are not those that it was trained on, as far as is known. Raises UserError
    if there is no such checkpoint, its data do not fit it, or a split is given that would not be read.
    """
    folder = Path(str(config.ckpt_path)).expanduser()
    if not folder.exists() and folder.parts[1:] and may_be_name(str(config.ckpt_path)):
        folder = find_checkpoint(str(config.ckpt_path)).weights.parent
    if folder.is_dir():
        return restore_model_folder(config, stage, folder)
    path = resolve_checkpoint(config.ckpt_path, config.paths.runs_dir, config.name)
    checkpoint = read_checkpoint(path)
    kind = task_class(checkpoint, path, stage)
    given = given_values(command_overrides())
    data = data_config(config, kind.as_now(checkpoint["vinvl"]["run_config"]), given, path)
    check_splits(given, data, stage)
    own = decoding_options(config, checkpoint["hyper_parameters"], given, path)
    task = kind.from_checkpoint(checkpoint, path, **own)
    datamodule = instantiate(data)
    datamodule.first_stage = stage
    datamodule.prepare_data()
    datamodule.setup("none")
    task.check_datamodule(datamodule)
    if isinstance(datamodule, RegionDataModule):
        trained_on = FeatureRecord.of_plain(checkpoint["vinvl"].get("features"))
        if (sentence := trained_on.unlike(datamodule.store)) is not None:
            rank_zero_warn(sentence, category=OtherFeatures)
    return Restored(task=task, datamodule=datamodule, data=data, path=path)


TASK_OF_DATA = re.compile(r"vinvl\.(\w+)\.data")


def restore_model_folder(config: DictConfig, stage: str, folder: Path) -> Restored:
    """The same of a model folder, with the data that the command names and, unless it says so, its own tokenizer.

    Raises UserError also if the command names no data, or those of another task or with other answers.
    """
    from vinvl.models.published import convert_model  # which loads the heads of all tasks

    given, files = given_values(command_overrides()), OpenedModel.of(str(folder)).files
    if "data" not in given:
        raise UserError(f"{folder} is a model folder, which does not name its data: pass data=NAME with it.")
    data = config.data
    if "data.tokenizer" not in given:
        data.tokenizer = find_tokenizer(None, files)[0]
    check_splits(given, data, stage)
    datamodule = instantiate(data)
    datamodule.first_stage = stage
    datamodule.prepare_data()
    datamodule.setup("none")
    room = TASK_OF_DATA.fullmatch(type(datamodule).__module__)
    if room is None or not isinstance(datamodule, RegionDataModule):
        raise UserError(f"{folder} cannot be scored on data of {type(datamodule).__name__}, which no task here has.")
    recipe: Any = OmegaConf.load(Path(config_directory()) / "task" / f"{room[1]}.yaml")
    kind: Any = own_class(str(recipe._target_).removesuffix(".build"), "task", VinVLTask)
    decoding = OmegaConf.to_container(config.decoding, resolve=True)  # where it stands, which its files may refer to
    options = OmegaConf.create({"options": recipe.get("options", {}), "decoding": decoding}).options
    answers = getattr(datamodule, "answers_path", None)
    model, report = convert_model(files, room[1], {}, lambda size: rows_of_given(answers, files, size, new_ones=False))
    decided = kind.arguments_from(datamodule)
    if "answers" in decided and len(decided["answers"]) != model.config.num_labels:
        raise UserError(
            f"{folder} chooses between {model.config.num_labels:,} answers and {answers} lists "
            f"{len(decided['answers']):,}: pass data.answers=FILE, the vocabulary that it was trained with."
        )
    given_options: Any = OmegaConf.to_container(options, resolve=True)
    task = kind(**decided, **given_options, model_config=model.config, init=None, words=words_of(datamodule.tokenizer))
    if type(task.model) is not type(model):
        raise UserError(
            f"{folder} is read as a {type(model).__name__}, and for these data there is to be a "
            f"{type(task.model).__name__}: give the options of data that it was trained with."
        )
    task.model.load_state_dict(model.state_dict())
    task.check_datamodule(datamodule)
    say(*str(report).split("\n"))
    return Restored(task=task, datamodule=datamodule, data=data, path=folder)


def pin_start(config: DictConfig) -> None:
    """Gives the names on the hub that a run, whose data are read, starts from their commit, for its records.

    Its checkpoints then open their tokenizer without asking the hub. Raises UserError as `vinvl.run.hub.fetch`.
    """
    from vinvl.detector.weights import find_weights  # which text models do not need

    if isinstance(init := (config.get("model") or {}).get("init"), str):
        config.model.init = pinned(init)
    if isinstance(init := (config.get("start") or {}).get("init"), str):
        config.start.init = find_weights(init)[1] or init
    if isinstance(name := (config.get("data") or {}).get("tokenizer"), str):
        config.data.tokenizer = find_tokenizer_folder(name)[1] or name


def task_class(checkpoint: dict[str, Any], path: Path, stage: str = "predict") -> type[VinVLTask]:
    """The task class that a checkpoint names; UserError if it names something else, or a detector to predict with."""
    is_detector = checkpoint[OUR_KEY].get("task_class") == DETECTOR_TASK
    name = DETECTOR_TASK if is_detector and stage == "test" else class_of_task(checkpoint, path)
    found: type[VinVLTask] | None = own_class(name, "task", VinVLTask)
    if found is None:
        raise UserError(f"{path} is a checkpoint of '{name}', unknown to this version of vinvl.")
    return found


def own_class(name: object, file: str, kind: type) -> Any:
    """The class of a kind that a file's name for it, `vinvl.ROOM.FILE.NAME`, stands for; None for all other names.

    Nothing else is imported for a file's sake.
    """
    if not isinstance(name, str) or not re.fullmatch(rf"vinvl\.\w+\.{file}\.\w+", name):
        return None
    module, _, own = name.rpartition(".")
    try:
        found = getattr(import_module(module), own, None)
    except ImportError:
        return None
    return found if isinstance(found, type) and issubclass(found, kind) else None


def data_config(config: DictConfig, run_config: dict[str, Any], given: Mapping[str, Any], path: Path) -> DictConfig:
    """The data section: as the training run had it, with what this command gives on top.

    Raises UserError if the section in the checkpoint `path` is not one that vinvl.train writes, or has no such key.
    """
    if not run_config or "data" in given:
        return config.data
    check_calls(run_config.get("data"), path)
    own = with_new_options(with_own_places(run_config["data"], config), given)
    data = OmegaConf.create(with_given(own, "data", config, given, f"The data of {path}"))
    refuse_missing_answers(data, config, path)
    refuse_making_stores(data, config, path)
    return data


def with_new_options(data: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's data section with null for options that this command gives, and that later versions brought."""
    taken = parameters_of(str(data.get("_target_"))) or {}
    names = (key.split(".")[1] for key in given if key.startswith("data."))
    return {**dict.fromkeys(name for name in names if name in taken), **data}


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
    """Raises UserError if a checkpoint would have a vocabulary built, and written, outside the data folder."""
    answers = data.get("answers")
    if not isinstance(answers, str) or Path(answers).exists():
        return
    if not Path(answers).resolve().is_relative_to(Path(config.paths.data_dir).resolve()):
        raise UserError(f"{path} names {answers} as its answers, which does not exist: pass data.answers=FILE.")


def refuse_making_stores(data: DictConfig, config: DictConfig, path: Path) -> None:
    """Raises UserError if a checkpoint, maybe a stranger's, would have stores or a corpus made outside its place."""
    plain: Any = OmegaConf.to_container(data, resolve=True)
    made = [plain.get("regions"), plain.get("corpus"), *(plain.get("stores") or {}).values()]
    for one in chain.from_iterable(given if isinstance(given, list) else [given] for given in made):
        target = Path(str(one["to"])) if isinstance(one, dict) and "to" in one else None
        if target is None or target.exists():
            continue
        if not target.resolve().is_relative_to(Path(config.paths.data_dir).resolve()):
            raise UserError(
                f"{path} would have {target} made of {one.get('from')}: make it with vinvl.convert, or pass "
                "data=NAME with the data of this run."
            )


def check_splits(given: Mapping[str, Any], data: DictConfig, stage: str) -> None:
    """Raises UserError for splits that a command gives and no stage reads, or only other stages."""
    refuse_unread_splits(given, data)
    names = given_splits(given)
    if names and data[f"{stage}_split"] not in names:
        raise UserError(
            f"data.splits.{names[-1]} is given, and data.{stage}_split is {data[f'{stage}_split']}, which is what is "
            f"read: pass data.{stage}_split={names[-1]} with it, or give data.splits.{data[f'{stage}_split']}."
        )


def decoding_options(
    config: DictConfig, hyper_parameters: dict[str, Any], given: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """How captions are decoded, as arguments of the task; {} if the command says nothing of it.

    Raises UserError if the checkpoint is of a task that decodes nothing, or has no such key.
    """
    if not any(key.lstrip("~").split(".")[0] == "decoding" for key in given):
        return {}
    if "decoding" not in hyper_parameters:
        raise UserError(f"{path} is of a task that writes no captions, so decoding=… means nothing for it.")
    carried = hyper_parameters["decoding"]
    return {"decoding": with_given(carried, "decoding", config, given, f"The decoding of {path}")}


def check_calls(data: object, path: Path) -> None:
    """Raises UserError for a checkpoint's data section that would call anything but our own reading of data.

    The file may be a stranger's, and what a `_target_` names is called.
    """
    target = data.get("_target_") if isinstance(data, dict) else None
    if own_class(target, "data", LightningDataModule) is None:
        raise UserError(f"{path} names '{target}' as its data, which is no datamodule of vinvl: pass data=NAME.")
    for key, value in leaves(data):
        # Everything was resolved when it was written: an interpolation can only have been put there to be evaluated.
        smuggled = "${" in key or (isinstance(value, str) and "${" in value)
        called = "_target_" in key.split(".") and value not in (*PREPARATIONS, *SETTINGS)
        if smuggled or (called and own_class(value, "data", LightningDataModule) is None):
            raise UserError(
                f"{path} asks for '{key}={value}' in its data, which no file may have called: pass data=NAME."
            )
