"""Where configs, data, runs and their checkpoints lie, and the lock on the folder of a run."""

import os
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from vinvl.run.errors import UserError, printable, say
from vinvl.run.files import lock
from vinvl.run.published import published_file

PACKAGE = Path(__file__).resolve().parents[1]
AUTO = "auto"  # ckpt_path of a command that is given again and again: go on if there is something to go on from
NAMED_CHECKPOINTS = ("last", "best")  # what ckpt_path may say instead of a file
CHECKPOINTS = "checkpoints"  # folder of a run
LOCK = ".lock"  # in the folder of a run: see `RunFolder`
FAILURE = "error.txt"  # in the folder of a --multirun's job that failed


def repository_root() -> Path | None:
    """The clone this package runs from, or None for an installed wheel."""
    root = PACKAGE.parents[1]
    return root if (root / "conf" / "train.yaml").is_file() else None


def config_directory() -> str:
    """Where the Hydra configs lie: `conf/` of a clone, or the copy that travels in the wheel."""
    return str((repository_root() or PACKAGE) / "conf")


def data_root() -> str:
    """Where datasets go: $VINVL_DATA, else `data/` of the clone, else `data/` of the current folder."""
    return os.environ.get("VINVL_DATA") or str((repository_root() or Path.cwd()) / "data")


def process_rank() -> int:
    """This process's rank as its launcher (torchrun, SLURM, Lightning) tells it; 0 for a lone process."""
    told = (os.environ.get(name, "") for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return next((int(rank) for rank in told if rank.isdigit()), 0)


def run_directory(runs_dir: str, name: str, ckpt_path: str | None) -> str:
    """The folder of a run: a new one, or, to continue, the newest that has the checkpoint.

    A new one is named by time and process, because the jobs of an array start within one second. With `auto` the same
    command always gets the same folder: that of its SLURM job, which keeps its number when it is requeued, else one
    called `auto`; several at once are told apart by their name, or by hydra.run.dir. Ranks other than 0 of a fresh run
    write nothing of value; what Hydra writes for them goes to a folder of their own, because they cannot know rank 0's
    clock.
    """
    runs = Path(runs_dir) / name
    if ckpt_path in NAMED_CHECKPOINTS and (found := newest_checkpoint(Path(runs_dir), name, str(ckpt_path))):
        return str(found.parents[1])
    if ckpt_path == AUTO:
        job = os.environ.get("SLURM_JOB_ID", "")
        return str(runs / (f"slurm-{job}" if job else AUTO))
    if process_rank() > 0:
        return str(runs / "ranks" / f"rank-{process_rank()}")
    return str(runs / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{os.getpid()}")


def newest_checkpoint(runs_dir: Path, name: str | None, which: str) -> Path | None:
    """The newest `last` or `best` checkpoint among the runs of a name, None if there is none.

    Without a name, among all runs, the jobs of sweeps and the stages of `vinvl.pretrain_finetune` too.
    """
    places = ["*/*", "*/*/*"] if name is None else [f"{name}/*"]
    found = [path for place in places for path in runs_dir.glob(f"{place}/{CHECKPOINTS}/{which}.ckpt")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def resolve_checkpoint(ckpt_path: str, runs_dir: str, name: str | None) -> Path:
    """`last`, `best` or a file → the file; says which where no run was named. UserError if there is no such checkpoint.

    `name`: of the runs that are looked through; None for all.
    """
    if ckpt_path in NAMED_CHECKPOINTS:
        found = named_checkpoint(ckpt_path, runs_dir, name)
        if name is None and process_rank() == 0:
            say(f"The newest run that has a {ckpt_path} checkpoint: {found}", error=True)
        return found
    if not Path(ckpt_path).is_file():
        raise UserError(f"The checkpoint {ckpt_path} does not exist: give ckpt_path=FILE, or ckpt_path=last.")
    return Path(ckpt_path)


def named_checkpoint(which: str, runs_dir: str, name: str | None) -> Path:
    """`newest_checkpoint`. Raises UserError if there is none."""
    found = newest_checkpoint(Path(runs_dir), name, which)
    if found is None:
        remedy = "" if name is None else ", or name=NAME of a run that has one"
        where, file = Path(runs_dir) / (name or ""), f"{CHECKPOINTS}/{which}.ckpt"
        raise UserError(f"ckpt_path={which}: no run under {where} has a {file}; give a file{remedy}.")
    return found


def next_step(output_dir: str | Path) -> str:
    """What a person is told to do after a run of any door has ended before its time."""
    saved = (Path(output_dir) / CHECKPOINTS / "last.ckpt").is_file()
    return how_to_go_on(output_dir) if saved else "give the same command again"


def how_to_go_on(output_dir: str | Path) -> str:
    """The same of a run that has a checkpoint."""
    return f"go on with the same command and hydra.run.dir={output_dir} ckpt_path={AUTO}"


def register_resolvers() -> None:
    """Makes `${vinvl.data_root:}`, `${vinvl.run_dir:…}`, `${vinvl.required:KEY}` and `${vinvl.published:…}` known."""
    resolvers: dict[str, Any] = {"data_root": data_root, "run_dir": run_directory, "required": refuse_missing}
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(f"vinvl.{name}", resolver, use_cache=True, replace=True)
    from vinvl.run.console import door_choices, door_header

    OmegaConf.register_new_resolver("vinvl.door_header", door_header, replace=True)
    OmegaConf.register_new_resolver("vinvl.door_choices", door_choices, replace=True)
    OmegaConf.register_new_resolver("vinvl.published", published_file, replace=True)


def refuse_missing(key: str) -> None:
    """The value of a key that a recipe cannot do without; `???` there would not hide what the recipe builds upon."""
    raise UserError(f"{key} must be given: pass {key}=VALUE.")


ROOM = 1 << 16  # bytes for configuration and logs


class RunFolder(Callback):
    """Locks the folder of a run or a sweep as long as the process lives, however it ends; ranks other than 0 do not.

    It comes before Hydra writes there. What stands in the way ends the process with a sentence: Hydra would turn an
    exception into a warning.
    """

    def __init__(self) -> None:
        self._lock: int | None = None

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._take(config, "hydra.run.dir")

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._take(config, "hydra.sweep.dir")

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Of what Hydra has written, its own settings go: configuration and overrides tell the run."""
        if config.hydra.output_subdir is not None:
            (Path(config.hydra.runtime.output_dir) / config.hydra.output_subdir / "hydra.yaml").unlink(missing_ok=True)

    def _take(self, config: DictConfig, key: str) -> None:
        if config.hydra.output_subdir is None or process_rank() > 0:  # Hydra writes nothing, or it is another's folder
            return
        before, HydraConfig.instance().cfg = HydraConfig.instance().cfg, config  # type: ignore[assignment]
        folder = Path(str(OmegaConf.select(config, key)))
        HydraConfig.instance().cfg = before
        try:
            self._lock = take_folder(folder, key)
        except UserError as error:
            sys.exit(printable(f"error: {error}"))


def take_folder(folder: Path, key: str) -> int:
    """Makes the folder of a run and locks it, as long as what is returned, a file descriptor, is open.

    Raises UserError, naming the `key` that chooses folders, if another process has it, or it cannot be written.
    """
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        if lock(held, inherited=False) is False:
            told = "wait for it, or stop it first, or pass another place with"
            raise UserError(f"Another process is at work in {folder}: {told} {key}=FOLDER.")
        os.write(held, bytes(ROOM))
        os.ftruncate(held, 0)
    except OSError as error:
        if is_new:
            with suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()
        reason = f"{folder} cannot be written ({error.strerror or error})"
        told = "make room, check the permissions, or pass another place with"
        raise UserError(f"{reason}: {told} {key}=FOLDER.") from None
    return held
