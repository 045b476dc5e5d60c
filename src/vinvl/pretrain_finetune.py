"""Pre-train, then fine-tune: `python -m vinvl.pretrain_finetune [objective=NAME] [features=NAME] [--multirun]`.

Answers what a way of pre-training, or a detector, is worth to a task: with --multirun, objectives and the features of
several stores are compared in one table.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from vinvl.run.door import door, enter
from vinvl.run.errors import UserError, say
from vinvl.run.files import json_object, write_json
from vinvl.run.folders import AUTO, how_to_go_on
from vinvl.run.options import checked_arguments
from vinvl.run.overrides import as_overrides, as_value, command_overrides, given_values, replaces, replacing
from vinvl.run.progress import parts_told, results_summary
from vinvl.run.signals import INTERRUPTED, START_AGAIN, run_passing_signals_on
from vinvl.run.values import shown

STAGES = ("pretrain", "finetune")
RESUME = f"ckpt_path={AUTO}"


def pretrain_finetune(config: DictConfig) -> float:
    """Both stages, each a run of `vinvl.train` in a folder of its own below `config.paths.output_dir`.

    A stage that has ended is not repeated, and one that was stopped goes on from its last checkpoint.

    Returns:
        the score of the fine-tuning's best checkpoint in validation, which is what a sweep should choose by. The table
        has the figures of both stages, which results.json holds as `summary`.

    Raises:
        UserError: a stage failed, or the folder holds a stage of other settings.
    """
    folder = Path(config.paths.output_dir)
    shared = [f"data.use_tags={str(bool(config.tags)).lower()}", f"seed={config.seed}", *of_features(config)]
    whole = replaced_keys(given_values(command_overrides()))
    for stage in STAGES:
        check_stage(stage, as_overrides(config[stage], whole[stage]))
    summary, parts = dict[str, float](), list[str]()
    start: list[str] = []
    if config.objective.pretrain:
        own = config.objective.with_tags if config.tags else config.objective.without_tags
        pretraining = folder / "pretraining"
        results = train_stage(
            pretraining, [*as_overrides(config.pretrain, whole["pretrain"]), *as_overrides(own), *shared]
        )
        summary |= figures("pretraining", results)
        parts += part_told("pretraining", results)
        start = [f"model.init={as_value(str(pretraining / 'checkpoints' / 'last.ckpt'))}"]
    results = train_stage(folder / "finetuning", [*as_overrides(config.finetune, whole["finetune"]), *start, *shared])
    summary |= figures("finetuning", results)
    parts += part_told("finetuning", results)
    part = {"part": "; ".join(parts)} if parts else {}
    write_json(folder / "results.json", {"summary": summary, "finetuning": results, **part})
    return list(summary.values())[-1]


def check_stage(stage: str, overrides: list[str]) -> None:
    """Raises UserError for what `vinvl.train` would refuse of a stage: before the first, also of the second."""
    at_work, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        checked_arguments("train", overrides)
    except UserError as error:
        raise UserError(f"{stage}, whose keys are those of vinvl.train: {error}") from None
    finally:
        GlobalHydra.instance().hydra = at_work


def of_features(config: DictConfig) -> list[str]:
    """Overrides of both stages: the store that `features` names, and a model for features as wide as its own.

    Raises UserError if there is no such store among `stores`, or one of these cannot be read: before the first stage,
    also where it is that of a later job. A store that lacks images of another is told.
    """
    import numpy as np

    from vinvl.regions import RegionStore
    from vinvl.regions.regions import BOX_NUMBERS

    named = named_stores(config)
    if config.features is None:
        if named:
            say("stores are named, and features=NAME chooses none of them: those of the data are read.", error=True)
        return []
    name = str(config.features)
    if name not in named:
        raise UserError(
            f"features={name}: stores names {', '.join(named) or 'none'}; give stores.{name}=STORE with it, "
            "a file, a folder of shards or a list of these."
        )
    stores = {one: RegionStore(paths) for one, paths in named.items()}
    for other, store in stores.items():
        lacking = np.setdiff1d(store.image_ids, stores[name].image_ids)
        if len(lacking):
            say(
                f"warning: the store '{name}' lacks {len(lacking):,} images of '{other}', such as {lacking[0]}: with "
                "data.on_missing=skip their figures are of other records.",
                error=True,
            )
    width = stores[name].feature_dim + BOX_NUMBERS
    return [f"data.regions={as_value(named[name])}", f"model.config.img_feature_dim={width}"]


def named_stores(config: DictConfig) -> dict[str, str | list[str]]:
    """Name → files. Raises UserError if `stores` is something else."""
    given: Any = config.stores
    named: Any = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given
    if not isinstance(named, dict):
        raise UserError(f"stores={shown(named)} names no stores: give stores.NAME=STORE for each.")
    for name, paths in named.items():
        if not all(isinstance(one, str) for one in (paths if isinstance(paths, list) else [paths])):
            raise UserError(f"stores.{name}={shown(paths)}: give a file, a folder of shards or a list of these.")
    return {str(name): paths for name, paths in named.items()}


def train_stage(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Runs `vinvl.train` in a process of its own; its results.json. UserError if it failed, or ran otherwise before."""
    results = folder / "results.json"
    known = folder / ".hydra" / "overrides.yaml"
    before = [str(one) for one in OmegaConf.load(known)] if known.is_file() else None
    if before is not None and not same_stage(before, replacing([*overrides, RESUME])):
        raise UserError(f"{folder} holds a run of other settings ({' '.join(before)}): choose another hydra.run.dir.")
    if not results.is_file():
        # The same command starts a run and goes on with it.
        command = [sys.executable, "-m", "vinvl.train", f"hydra.run.dir={folder}", *overrides, RESUME]
        say("", "$ python " + " ".join(command[1:]))
        code = run_passing_signals_on([*command, *also_logged()])
        if code in (START_AGAIN, INTERRUPTED):
            say(f"Of both stages: {how_to_go_on(folder.parent)}.")  # the stage has told it of itself
            sys.exit(code)
        if code != 0 or not results.is_file():
            raise UserError(f"the run in {folder} failed; its own message stands above.")
    return json_object(results)


def also_logged() -> list[str]:
    """The override by which a stage writes what its terminal shows into our log too, which is that of both."""
    hydra: Any = HydraConfig.instance().cfg
    file = None if hydra is None else OmegaConf.select(hydra, "hydra.job_logging.handlers.file.filename")
    if file is None:
        return []
    return [f"hydra.job_logging.handlers.of_both.filename={as_value(str(Path(file).absolute()))}"]


def same_stage(before: list[str], now: list[str]) -> bool:
    """Whether these overrides are of one stage; the folder that it starts from may have moved together with its own."""

    def unmoved(word: str) -> str:
        key, _, value = word.partition("=")
        if key == "model.init":
            return f"{key}={'/'.join(Path(value).parts[-3:])}"
        return word.lstrip("+")  # vinvl.train gives a key as many as Hydra wants

    return list(map(unmoved, before)) == list(map(unmoved, now))


def replaced_keys(given: Mapping[str, Any]) -> dict[str, set[str]]:
    """Of each stage the keys that the command gives as a dict which takes the place of what is configured."""
    dicts = [key for key, value in given.items() if isinstance(value, dict) and replaces(key, value)]
    return {stage: {key.removeprefix(f"{stage}.") for key in dicts if key.startswith(f"{stage}.")} for stage in STAGES}


def figures(stage: str, results: dict[str, Any]) -> dict[str, float]:
    """The figures of a stage by which ways of pre-training are compared: at test and, last, in validation."""
    return {f"{stage} {name.split(' ')[0]}": value for name, value in results_summary(results).items()}


def part_told(stage: str, results: dict[str, Any]) -> list[str]:
    """The same of what part of a split they are of, if it is not all of it."""
    return [f"{stage} {part}"] if (part := parts_told(results)) else []


main = door(pretrain_finetune, "pretrain_finetune")


if __name__ == "__main__":
    # The stages take any key that vinvl.train takes, and Hydra knows none of them here.
    opened = [f"++{word}" if word.startswith(tuple(f"{stage}." for stage in STAGES)) else word for word in sys.argv[1:]]
    enter(main, "pretrain_finetune", opened)
