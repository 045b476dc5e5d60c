"""For runs from Python: configurations composed as by `python -m vinvl.train`, and folders; nothing of Hydra stays."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from vinvl.run.door import NO_NEWS, remove_empty_run, sentence_of_fault
from vinvl.run.errors import UserError, sentence_of
from vinvl.run.folders import config_directory, process_rank, register_resolvers, take_folder
from vinvl.run.machine import refuse_unsuited
from vinvl.run.options import checked_arguments, leaves
from vinvl.run.overrides import given_values, leave_sizes_open, refuse_unread_splits, replacing

OVERRIDES = "overrides"  # key of a composed configuration: what it was composed with
BY_TIME = "${vinvl.run_dir:"  # so begins the name of a folder that nobody has named
LIGHTNINGS = "pytorch_lightning.utilities.rank_zero"


def compose(*overrides: str) -> DictConfig:
    """The configuration of `python -m vinvl.train`, with the words of its command line: `"trainer.max_epochs=3"`.

    It may be changed, as `config.trainer.max_epochs = 5`, before `vinvl.train` gets it.

    Raises:
        UserError: as the command: an unknown key, another kind of value, a choice that there is not.
    """
    register_resolvers()
    if flags := [word for word in overrides if word.startswith("-")]:
        raise UserError(f"{flags[0]} is an option of the command line: vinvl.compose takes KEY=VALUE.")
    with _telling(None):
        words = replacing(checked_arguments("train", overrides))
        with hydra.initialize_config_dir(config_dir=config_directory(), version_base="1.3", job_name="train"):
            config = hydra.compose("train", words, return_hydra_config=True)
        _settle(config)
        given = given_values(words)
        refuse_unread_splits(given, config.data)
        leave_sizes_open(config, given)
    with open_dict(config):
        config[OVERRIDES] = words
    return config


def _settle(config: DictConfig) -> None:
    """Takes Hydra's own section out of a configuration, and what that says into it."""
    folder: Any = OmegaConf.to_container(config.hydra.run, resolve=False)
    before, HydraConfig.instance().cfg = HydraConfig.instance().cfg, config  # type: ignore[assignment]
    try:
        config.paths.output_dir = folder["dir"]
        own: Any = OmegaConf.to_container(config, resolve=False)
        del own["hydra"]
        for key, value in leaves(own):
            if isinstance(value, str) and "${hydra:" in value:
                OmegaConf.update(config, key, OmegaConf.select(config, key))
    finally:
        HydraConfig.instance().cfg = before
    with open_dict(config):
        del config["hydra"]


@contextmanager
def own_run(config: DictConfig | Mapping[str, Any]) -> Iterator[DictConfig]:
    """Within it a composed configuration has a run folder for itself, of which the configuration that it gives tells.

    Raises UserError for what a command would tell in a sentence.
    """
    register_resolvers()
    own: Any = OmegaConf.create(OmegaConf.to_container(config) if isinstance(config, DictConfig) else dict(config))
    overrides = list(own.pop(OVERRIDES, []))
    folder = _folder_of(config, own)
    own.paths.output_dir = str(folder)  # absolute, as Hydra has it
    OmegaConf.set_struct(own, True)
    logger = logging.getLogger(LIGHTNINGS)
    level = logger.level
    with warnings.catch_warnings(), _in_folder(folder, own, overrides), _telling(own):
        for message in NO_NEWS:
            warnings.filterwarnings("ignore", message=message)
        logger.setLevel(logging.WARNING)
        refuse_unsuited(own)
        try:
            yield own
        finally:
            logger.setLevel(level)


def _folder_of(config: Any, own: DictConfig) -> Path:
    """The folder of a run: the one that is named or, for one named by time, another where there is one already."""
    try:
        first = folder = Path(str(config["paths"]["output_dir"])).absolute()
    except Exception as error:
        raise UserError(f"The configuration has no paths.output_dir ({error}): get it from vinvl.compose.") from None
    named: Any = OmegaConf.to_container(own.paths, resolve=False)
    number = 1
    while str(named["output_dir"]).startswith(BY_TIME) and own.ckpt_path is None and folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder


@contextmanager
def _in_folder(folder: Path, config: DictConfig, overrides: Sequence[str]) -> Iterator[None]:
    """Within it the run has its folder for itself, with the configuration where Hydra would write it."""
    if process_rank() > 0:
        yield
        return
    held = take_folder(folder, "paths.output_dir")
    try:
        (folder / ".hydra").mkdir(exist_ok=True)
        OmegaConf.save(config, folder / ".hydra" / "config.yaml")
        OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
        yield
    except BaseException:
        remove_empty_run(folder, Path(config.paths.runs_dir))
        raise
    finally:
        os.close(held)


@contextmanager
def _telling(config: DictConfig | None) -> Iterator[None]:
    """Within it what a command would tell in a sentence is a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        sentence = sentence_of(error) or sentence_of_fault(error, config)
        if sentence is None:
            raise
        raise UserError(sentence) from error
