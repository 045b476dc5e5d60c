"""What the doors share: where configs, runs and checkpoints lie, and how an error reaches a person."""

import errno
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
from hydra.core.utils import JobReturn
from hydra.errors import HydraException, InstantiationException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vinvl.run.errors import UserError, causes, escaped_warnings, printable, say, sentence_of
from vinvl.run.files import atomic_write, lock
from vinvl.run.options import leaves
from vinvl.run.signals import Interrupted, signal_behind, stopping_at_once

NAMED_CHECKPOINTS = ("last", "best")  # what ckpt_path may say instead of a file
LOCK = ".lock"  # in the folder of a run: see `RunFolder`
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


# What goes wrong outside of a person's data, in a sentence: disks, processes that were killed, configurations.


AUTO = "auto"  # ckpt_path of a command that is given again and again: go on if there is something to go on from
CHECKPOINTS = "checkpoints"  # folder of a run
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_NAME = re.compile("embedded null (byte|character)|has an empty name|surrogates not allowed")
LOST_WORKER = re.compile(r"DataLoader worker \(pid[^)]*\)? .*(?:killed by signal|exited unexpectedly)")
BY_SIGNAL = re.compile(r"killed by signal: ([\w ]+)")
LOST_RANK = re.compile(
    r"Connection (?:closed by peer|reset by peer|was likely closed)|Broken pipe|remote process exited", re.I
)
TOLD_BY_TARGETS = (TypeError, ValueError, ImportError, MisconfigurationException)  # of values that they do not take


def next_step(output_dir: str | Path) -> str:
    """What a person is told to do after a run of any door has ended before its time."""
    saved = (Path(output_dir) / CHECKPOINTS / "last.ckpt").is_file()
    return how_to_go_on(output_dir) if saved else "give the same command again"


def how_to_go_on(output_dir: str | Path) -> str:
    """The same of a run that has a checkpoint."""
    return f"go on with the same command and hydra.run.dir={output_dir} ckpt_path={AUTO}"


def sentence_of_fault(error: BaseException, config: DictConfig | None = None) -> str | None:
    """The sentence of an exception that is no `UserError`, None where it is a mistake of the program's.

    Args:
        config: the composed configuration, where there is one already.
    """
    found = list(causes(error))
    if config is not None:
        if any(isinstance(one, MissingMandatoryValue | InterpolationToMissingValueError) for one in found):
            return _of_missing_values(config)
        told = "\n".join(str(one) for one in found if isinstance(one, RuntimeError))
        if (sentence := _of_lost_process(told, config)) is not None:
            return sentence
    for one in found:
        if isinstance(one, OSError) and one.errno in NO_ROOM:
            return _of_full_disk(one, config)
        if isinstance(one, OSError) and one.errno == errno.ENAMETOOLONG:
            return f"No file can have the name {str(one.filename)[:60]!r}…, which is too long: give another."
        if isinstance(one, ValueError) and NO_NAME.search(str(one)):
            return f"A file is given a name that no file can have ({one}): give another."
    return _of_configuration(error, config)


def _of_missing_values(config: DictConfig) -> str:
    """What the command had to say and did not: `???` in the configuration."""
    unresolved = OmegaConf.to_container(config, resolve=False)
    keys = sorted(key for key, value in leaves(unresolved) if value == "???")  # and not what refers to such a key
    return f"{', '.join(keys)} must be given: pass {' '.join(f'{key}=VALUE' for key in keys)}."


def _of_full_disk(error: OSError, config: DictConfig | None) -> str:
    """A log or results file found no room."""
    place = error.filename or ("the run folder" if config is None else config.paths.output_dir)
    then = "give the same command again" if config is None else next_step(config.paths.output_dir)
    return f"{place} cannot be written ({error.strerror}): make room, then {then}."


def _of_lost_process(told: str, config: DictConfig) -> str | None:
    """A data worker, or another process of a distributed run, is no more, as PyTorch tells it."""
    then = next_step(config.paths.output_dir)
    if LOST_WORKER.search(told) is not None:
        key = "data.num_workers" if "data" in config else "workers"
        by = BY_SIGNAL.search(told)
        signal = by[1].strip() if by else ""
        cut = " or because a file that it reads was cut short" if signal == "Bus error" else ""
        return (
            f"A data worker was ended from outside{signal and f' ({signal})'}, perhaps for want of memory, also of "
            f"shared memory (/dev/shm){cut}: pass a smaller {key}, or 0, and {then}."
        )
    if LOST_RANK.search(told) is not None:
        return (
            "Another process of this run has ended; what it said stands above, unless it was killed, perhaps for want "
            f"of memory: {then}."
        )
    return None


def _of_configuration(error: BaseException, config: DictConfig | None) -> str | None:
    """What Hydra, OmegaConf, or something that a `_target_` names, does not take."""
    if isinstance(error, InstantiationException):
        first, _, full_key = str(error).partition("full_key: ")
        cause = next((one for one in causes(error) if not isinstance(one, HydraException)), None)
        where = f" in {_given_as(full_key.strip(), config)}" if full_key else ""
        if cause is not None and not isinstance(cause, TOLD_BY_TARGETS):
            return None
        reason = first.partition(", set env var")[0].strip() if cause is None else _first_line(cause)
        named = re.search(r"target '([^']+)'", first)
        return f"The configuration{where} does not fit {named[1] if named else 'its _target_'}: {reason}."
    if isinstance(error, HydraException | OmegaConfBaseException):
        told = [_first_line(one) for one in causes(error) if isinstance(one, HydraException | OmegaConfBaseException)]
        return f"The configuration cannot be used: {'; '.join(dict.fromkeys(told))}."
    if isinstance(error, MisconfigurationException):
        return f"This machine or configuration will not do: {_first_line(error)}."
    return None


def _given_as(key: str, config: DictConfig | None) -> str:
    """The key that a person gives for one whose value is another's: optim.optimizer for task.optimizer."""
    unresolved = {} if config is None else OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        unresolved = unresolved.get(part) if isinstance(unresolved, dict) else None
    another = re.fullmatch(r"\$\{([\w.]+)\}", unresolved) if isinstance(unresolved, str) else None
    return key if another is None else another[1]


def _first_line(error: BaseException) -> str:
    """What an exception says, in one line and without the full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return (f"{first} {lines[1]}" if first.endswith(":") and len(lines) > 1 else first).rstrip(".")


# A run folder before Hydra writes into it: there is room in it, and no other process at work.


ROOM = 1 << 16  # bytes for configuration and logs


class RunFolder(Callback):
    """Locks the folder of a run or a sweep as long as the process lives, however it ends; ranks other than 0 do not.

    What stands in the way ends the process with a sentence: Hydra would turn an exception into a warning.
    """

    def __init__(self) -> None:
        self._lock: int | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._take(config, "hydra.run.dir")

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Of what Hydra has written, its own settings go: configuration and overrides tell the run."""
        if config.hydra.output_subdir is not None:
            (Path(config.hydra.runtime.output_dir) / config.hydra.output_subdir / "hydra.yaml").unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """TensorBoard's logger writes a file of hyperparameters where there are none."""
        for path in Path(config.hydra.runtime.output_dir).glob("*/hparams.yaml"):
            if process_rank() == 0 and path.read_text(encoding="utf-8") == "{}\n":
                path.unlink()

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._take(config, "hydra.sweep.dir")

    def _take(self, config: DictConfig, key: str) -> None:
        if config.hydra.output_subdir is None or process_rank() > 0:  # Hydra writes nothing, or it is another's folder
            return
        before, HydraConfig.instance().cfg = HydraConfig.instance().cfg, config  # type: ignore[assignment]
        folder = Path(str(OmegaConf.select(config, key)))
        HydraConfig.instance().cfg = before
        is_new = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            if lock(self._lock, inherited=False) is False:
                told = "wait for it, or stop it first, or pass another place with"
                sys.exit(printable(f"error: Another process is at work in {folder}: {told} {key}=FOLDER."))
            os.write(self._lock, bytes(ROOM))
            os.ftruncate(self._lock, 0)
        except OSError as error:
            if is_new:
                with suppress(OSError):
                    (folder / LOCK).unlink(missing_ok=True)
                    folder.rmdir()
            sys.exit(
                printable(
                    f"error: {folder} cannot be written ({error.strerror or error}): make room, check the permissions, "
                    f"or pass another place with {key}=FOLDER."
                )
            )
