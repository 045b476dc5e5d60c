"""What the doors share: where configs, runs and checkpoints lie, and how an error reaches a person."""

import importlib.util
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from vinvl.run.errors import UserError, escaped_warnings, printable, say, sentence_of
from vinvl.run.faults import AUTO, CHECKPOINTS, next_step, sentence_of_fault
from vinvl.run.files import atomic_write
from vinvl.run.signals import Interrupted, signal_behind, stopping_at_once

NAMED_CHECKPOINTS = ("last", "best")  # what ckpt_path may say instead of a file
LOCK = ".lock"  # in the folder of a run: see vinvl.run.run_folder
FAILURE = "error.txt"  # in the folder of a --multirun's job that failed
SUBMITIT_LAUNCHERS = tuple(f"hydra/launcher={name}" for name in ("slurm", "submitit_slurm", "submitit_local"))
OF_HYDRA = re.compile(  # files in a run's folder that are Hydra's, a launched rank's, or the lock
    r"(train|train_detector|evaluate|predict|pretrain_finetune)(_ddp_process_\d+)?\.log|\.lock"
)
NO_NEWS = (  # warnings of Lightning's about what is so on purpose
    ".*does not have many workers.*",
    ".*sync_dist=True.*",
    ".*custom batch sampler.*for prediction.*",
    ".*smaller than the logging interval.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*Previous log files in this directory.*",  # they are renamed
)
Result = TypeVar("Result")
PACKAGE = Path(__file__).resolve().parents[1]


def repository_root() -> Path | None:
    """The clone this package runs from, or None for an installed wheel."""
    root = PACKAGE.parents[1]
    return root if (root / "conf" / "train.yaml").is_file() else None


def config_directory() -> str:
    """Where the Hydra configs lie: `conf/` of a clone, or the copy that travels in the wheel."""
    root = repository_root()
    return str(root / "conf") if root else str(PACKAGE / "conf")


def data_root() -> str:
    """Where datasets go: $VINVL_DATA, else `data/` of the clone, else `data/` of the current folder."""
    return os.environ.get("VINVL_DATA") or str((repository_root() or Path.cwd()) / "data")


def process_rank() -> int:
    """This process's rank as its launcher (torchrun, SLURM, Lightning) tells it; 0 for a lone process."""
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def run_directory(runs_dir: str, name: str, ckpt_path: str | None) -> str:
    """The folder of a run: a new one, or, to continue, the newest that has the checkpoint.

    A new one is named by time and process, because the jobs of an array start within one second. With `auto` the same
    command always gets the same folder: that of its SLURM job, which keeps its number when it is requeued, else one
    called `auto`; several at once are told apart by their name, or by hydra.run.dir. Ranks other than 0 of a fresh run
    write nothing of value; what Hydra writes for them goes to a folder of their own, because they cannot know rank 0's
    clock.
    """
    if ckpt_path in NAMED_CHECKPOINTS:
        found = newest_checkpoint(Path(runs_dir), name, str(ckpt_path))
        if found is not None:
            return str(found.parents[1])
    if ckpt_path == AUTO:
        job = os.environ.get("SLURM_JOB_ID", "")
        return str(Path(runs_dir) / name / (f"slurm-{job}" if job else AUTO))
    if process_rank() > 0:
        return str(Path(runs_dir) / name / "ranks" / f"rank-{process_rank()}")
    return str(Path(runs_dir) / name / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{os.getpid()}")


def newest_checkpoint(runs_dir: Path, name: str, which: str) -> Path | None:
    """The newest `last` or `best` checkpoint among the runs of a name, None if there is none."""
    found = sorted((runs_dir / name).glob(f"*/{CHECKPOINTS}/{which}.ckpt"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def resolve_checkpoint(ckpt_path: str, runs_dir: str, name: str) -> Path:
    """`last`, `best` or a file → the file.

    Raises:
        UserError: there is no such checkpoint.
    """
    if ckpt_path in NAMED_CHECKPOINTS:
        found = newest_checkpoint(Path(runs_dir), name, ckpt_path)
        if found is None:
            raise UserError(
                f"ckpt_path={ckpt_path}: no run under {Path(runs_dir) / name} has a {CHECKPOINTS}/{ckpt_path}.ckpt; "
                "give a file, or name=NAME of a run that has one."
            )
        return found
    if not Path(ckpt_path).is_file():
        raise UserError(f"The checkpoint {ckpt_path} does not exist: give ckpt_path=FILE, or ckpt_path=last.")
    return Path(ckpt_path)


def register_resolvers() -> None:
    """Makes `${vinvl.data_root:}`, `${vinvl.run_dir:…}` and `${vinvl.required:KEY}` known to the configs."""
    OmegaConf.register_new_resolver("vinvl.data_root", data_root, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("vinvl.run_dir", run_directory, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("vinvl.required", refuse_missing, replace=True)


def refuse_missing(key: str) -> None:
    """The value of a key that a recipe cannot do without; `???` there would not hide what the recipe builds upon.

    Raises:
        UserError: always, as soon as the value is asked for.
    """
    raise UserError(f"{key} must be given: pass {key}=VALUE.")


def open_sections(arguments: list[str]) -> list[str]:
    """Command-line arguments of a door that takes data and decoding from a checkpoint, `data.KEY=…` as `++data.KEY=…`.

    Hydra would hold such keys against the default dataset, and every dataset has other keys; `vinvl.restore` holds them
    against the checkpoint's. Where the command names a section itself (data=NAME), Hydra knows better.
    """
    named = {argument.split("=", 1)[0] for argument in arguments}
    prefixes = tuple(f"{section}." for section in ("data", "decoding") if section not in named)
    opened = [f"++{argument}" if argument.startswith(prefixes) else argument for argument in arguments]
    # Parts of a split may be given, and the default dataset's splits may be of another form.
    splits = "data" not in named and any(name.lstrip("+").startswith("data.splits.") for name in named)
    return ["++data.splits=null", *opened] if splits else opened


def task_as_a_value(arguments: list[str]) -> list[str]:
    """Command-line arguments, `task=NAME` as `task_name=NAME`: Hydra takes `task` for the group of files conf/task."""
    return [
        argument.replace("task=", "task_name=", 1) if argument.startswith("task=") else argument
        for argument in arguments
    ]


def require_launcher(arguments: Sequence[str]) -> None:
    """Refuses a command that asks for SLURM's launcher where its package is not installed.

    Raises:
        UserError: it is not.
    """
    asked = [argument for argument in arguments if argument in SUBMITIT_LAUNCHERS]
    plugins = importlib.util.find_spec("hydra_plugins")
    if asked and (plugins is None or importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") is None):
        raise UserError(
            f"{asked[0]} needs hydra-submitit-launcher, which is not installed: pip install 'vinvl[slurm]'."
        )


def run_door(run: Callable[[DictConfig], Result], config: DictConfig) -> Result | None:
    """Runs a door's function and gives its result; what goes wrong, however deep, becomes one sentence and exit code 1.

    In a --multirun the other jobs go on: the sentence is also kept in the job's folder, for the table at the end.
    """
    for message in NO_NEWS:
        warnings.filterwarnings("ignore", message=message)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    with escaped_warnings(), stopping_at_once():
        try:
            return run(config)
        except (Exception, Interrupted) as error:
            folder = Path(config.paths.output_dir)
            if (stopped := signal_behind(error)) is not None:
                if process_rank() == 0:
                    say(f"{stopped}; {next_step(folder)}.", error=True)
                remove_empty_run(folder)
                sys.exit(stopped.exit_code)
            sentence = sentence_of(error) or sentence_of_fault(error, config)
            if sentence is None:
                raise
            if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
                say(f"error: {sentence}", error=True)
                (folder / FAILURE).write_text(printable(sentence) + "\n", encoding="utf-8")
                return None
            remove_empty_run(folder)
            sys.exit(f"error: {printable(sentence)}")


def remove_empty_run(folder: Path) -> None:
    """Removes a failed run's folder if nothing is in it but Hydra's configuration and logs, and empty folders.

    hydra.run.dir may be a folder of one's own, so anything else in it keeps it as it is.
    """
    if process_rank() > 0 or not (folder / ".hydra").is_dir():
        return
    entries = sorted(folder.rglob("*"), reverse=True)  # what is in a folder comes before it
    files = [path for path in entries if path.is_symlink() or not path.is_dir()]
    hydras = {path for path in files if path.parent == folder / ".hydra"}
    hydras |= {path for path in files if path.parent == folder and OF_HYDRA.fullmatch(path.name)}
    if hydras == set(files):
        for path in files:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # the folder one is in, or one that another process has just written to
            for path in entries:
                if path not in files:
                    path.rmdir()
            folder.rmdir()


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    with atomic_write(path) as file:
        json.dump(value, file, indent=2)
        file.write("\n")
