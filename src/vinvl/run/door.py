"""The way into a door, `python -m vinvl.NAME`; what its configuration makes; how errors and signals reach a person."""

import difflib
import errno
import logging
import math
import os
import re
import select
import shutil
import sys
import traceback
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeVar

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from vinvl.run.errors import (
    OF_WORKERS,
    UserError,
    cause_of_kind,
    causes,
    escaped_warnings,
    note,
    out_of_memory,
    printable,
    say,
    sentence_of,
)
from vinvl.run.files import NO_ROOM, system_error
from vinvl.run.folders import FAILURE, config_directory, next_step, process_rank, register_resolvers
from vinvl.run.machine import refuse_unsuited
from vinvl.run.missing import refuse_missing
from vinvl.run.options import checked_arguments, leaves, parser_told
from vinvl.run.overrides import command_overrides, given_values, replacing
from vinvl.run.signals import Interrupted, stopping_at_once

CPU_BUILD = "on a machine without CUDA: pip install torch --index-url https://download.pytorch.org/whl/cpu"
NO_TORCH = re.compile(r"No module named 'torch'|lib(torch|c10|cud|cublas|nccl|nv)[\w.-]*: cannot open")
COMPILERS = ("torch._dynamo", "torch._inductor", "triton.compiler", "triton.runtime")
END_OF_PIPE = 141  # what shells expect of a process that a closed pipe has ended
FULL_ERROR = "HYDRA_FULL_ERROR"
OF_HYDRA = re.compile(  # files in a run's folder that are Hydra's, a launched rank's, or the lock
    r"(train|train_detector|evaluate|evaluate_detector|predict|pretrain_finetune)(_ddp_process_\d+)?\.log|\.lock"
)
NO_NEWS = (  # warnings of Lightning's about what is so on purpose, or said in our words
    ".*does not have many workers.*",
    ".*sync_dist=True.*",
    ".*custom batch sampler.*for prediction.*",
    ".*smaller than the logging interval.*",
    ".*could not find the monitored key.*",  # `vinvl.run.checkpoint.best_checkpoint`
    ".*Checkpoint directory .* exists and is not empty.*",
)
Result = TypeVar("Result")


def door(run: Callable[[DictConfig], object], name: str) -> Callable[[], object]:
    """A door's `main`: Hydra composes conf/NAME.yaml with the command line, and `run` is called with it."""
    register_resolvers()

    def main(config: DictConfig) -> float | None:
        result = run_door(run, config)
        return result if isinstance(result, float) else None  # for a sweep

    main.__module__ = f"vinvl.{name}"  # by which Hydra names the job and its log
    wrapped: Callable[[], object] = hydra.main(version_base="1.3", config_path=config_directory(), config_name=name)(
        main
    )
    return wrapped


def enter(main: Callable[[], object], name: str, arguments: Sequence[str], restored: Sequence[str] = ()) -> None:
    """Runs a door's `main`; ends the process with a code and, after an error, a sentence.

    Args:
        name: of the door's configuration.
        arguments: of the command line.
        restored: sections that a checkpoint brings, unless the command chooses one; `vinvl.restore` checks them.
    """
    logging.raiseExceptions = False  # a log that finds no room is no reason for tracebacks between the lines
    logging.getLogger("alembic").setLevel(logging.WARNING)  # tells of its plugins when Optuna is imported
    sys.excepthook = _print_escaped
    in_full = os.environ.get(FULL_ERROR) == "1"
    os.environ[FULL_ERROR] = "1"  # so that errors come here, and not as Hydra prints them
    # Hydra writes the configuration and opens its log before the run begins.
    unwritable = "cannot be written ({}): pass another place, hydra.run.dir=FOLDER or paths.runs_dir=FOLDER."
    with telling(otherwise=unwritable, in_full=in_full):
        sys.argv[1:] = replacing(checked_arguments(name, arguments, restored))
        main()


def run_door(run: Callable[[DictConfig], Result], config: DictConfig) -> Result | None:
    """Runs a door's function and gives its result; see `telling` for what goes wrong.

    In a --multirun the other jobs go on: the sentence is kept in the job's folder, for the table at the end.
    """
    for message in NO_NEWS:
        warnings.filterwarnings("ignore", message=message)
    for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):  # for programmers
        warnings.filterwarnings("ignore", category=kind, module=r"(?!vinvl\.)")
    for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    folder = Path(config.paths.output_dir)
    try:
        with telling(config):
            refuse_unsuited(config)
            refuse_missing(config, given_values(command_overrides()))
            return run(config)
    except SystemExit as left:
        failed = isinstance(left.code, str)
        if failed and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
            say(left.code, error=True)
            (folder / FAILURE).write_text(str(left.code).removeprefix("error: ") + "\n", encoding="utf-8")
            return None
        if failed:
            note(str(left.code))
        remove_empty_run(folder, Path(config.paths.runs_dir))
        raise


class Parser(ArgumentParser):
    """Tells what is wrong with the command line of a door without Hydra as all else is told that is wrong."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{parser_told(message, self)} {self.prog} --help lists the options.")


def run_command(run: Callable[[], int]) -> int:
    """Runs a door without Hydra, reading its arguments included; the exit code: its own, or as `telling` has it."""
    try:
        with telling(otherwise="cannot be read or written ({})."):
            return run()
    except SystemExit as left:
        if isinstance(left.code, str):
            say(left.code, error=True)
            return 1
        return left.code or 0


@contextmanager
def telling(config: DictConfig | None = None, otherwise: str | None = None, *, in_full: bool = False) -> Iterator[None]:
    """Within it what goes wrong, however deep, ends the process: with one sentence and 1, or with a signal's code.

    Args:
        config: the composed configuration, where there is one already.
        otherwise: what is said of a file for which the operating system gives a reason, and nothing better is known.
        in_full: whatever is no `UserError` has a traceback, as mistakes of the program's own always have.
    """
    with escaped_warnings(), stopping_at_once():
        try:
            yield
            sys.stdout.flush()
        except (Exception, Interrupted) as error:
            if cause_of_kind(error, BrokenPipeError) is not None and _nobody_reads():
                sys.exit(END_OF_PIPE)
            if (stopped := cause_of_kind(error, Interrupted)) is not None:
                if process_rank() == 0:
                    say(f"{stopped}; {_next_step(config)}.", error=True)
                sys.exit(stopped.exit_code)
            sentence = sentence_of(error) or (None if in_full else sentence_of_fault(error, config, otherwise))
            if sentence is None:
                raise
            sys.exit(f"error: {printable(sentence)}")


def _nobody_reads() -> bool:
    """Whether whoever read what this process prints has gone, as `| head` does; then all else is printed to nobody."""
    try:
        pipe = sys.stdout.fileno()
    except (OSError, ValueError):  # no file
        return False
    poll = select.poll()
    poll.register(pipe, 0)
    if not any(event & select.POLLERR for _, event in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), pipe)
    return True


def remove_empty_run(folder: Path, runs: Path | None = None) -> None:
    """Removes a failed run's folder if nothing is in it but Hydra's configuration and logs, and empty folders.

    hydra.run.dir may be a folder of one's own, so anything else in it keeps it as it is. Of a run below
    `runs` the folders above it go too, up to `runs`, as far as they are empty.
    """
    if process_rank() > 0 or not (folder / ".hydra").is_dir():
        return
    entries = sorted(folder.rglob("*"), reverse=True)  # what is in a folder comes before it
    files = [path for path in entries if path.is_symlink() or not path.is_dir()]
    hydras = {path for path in files if path.parent == folder / ".hydra"}
    hydras |= {path for path in files if path.parent == folder and OF_HYDRA.fullmatch(path.name)}
    if hydras != set(files):
        return
    for path in files:
        path.unlink(missing_ok=True)
    above = list(folder.absolute().parents)
    above = [] if runs is None or runs.absolute() not in above else above[: above.index(runs.absolute()) + 1]
    with suppress(OSError):  # the folder one is in, one that another process has just written to, or is not empty
        for path in [*(path for path in entries if path not in files), folder, *above]:
            path.rmdir()


# What the `_target_`s of a configuration make, compared with what the doors need of them.


def made(kind: type, section: Any, key: str, **given: Any) -> Any:
    """What a section of the configuration, whose key is `key`, makes; UserError if it is no section or of another kind.

    Args:
        given: arguments besides those of the section.
    """
    if not OmegaConf.is_dict(section):
        raise UserError(f"{key} is {section}, and it must be a section of settings with a _target_.")
    # Hydra would take an object that is a dataclass, as our data modules are, for a configuration.
    found = instantiate(section, _partial_=True) if given else instantiate(section)
    if given and callable(found):
        try:
            found = found(**given)
        except Exception as error:
            told = f"Error in call to target '{section.get('_target_')}':\n{error!r}\nfull_key: {key}"
            raise InstantiationException(told) from error
    return of_kind(kind, found, key)


def made_of_each(kind: type, section: DictConfig | None, key: str) -> list[Any]:
    """What each part of a section makes, as `made` has it; parts that are null make nothing."""
    if section is None:
        return []
    if not OmegaConf.is_dict(section):
        raise UserError(f"{key} is no dictionary: give each of its parts a name, {key}.NAME.")
    for name, part in section.items():
        if OmegaConf.is_dict(part) and "_target_" not in part:
            whole = [str(other) for other, one in section.items() if OmegaConf.is_dict(one) and "_target_" in one]
            near = difflib.get_close_matches(str(name), whole, n=1)
            meant = f"did you mean {key}.{near[0]}? A new one needs" if near else "it needs"
            raise UserError(f"There is no {key}.{name!s} in the configuration; {meant} a {key}.{name!s}._target_.")
    return [made(kind, part, f"{key}.{name!s}") for name, part in section.items() if part is not None]


def of_kind(kind: type, found: Any, key: str) -> Any:
    """What the section of a key has made; UserError if it is of another kind."""
    if not isinstance(found, kind):
        raise UserError(f"{key}._target_ makes a {type(found).__name__}, and a {kind.__name__} is needed.")
    return found


# What goes wrong outside of a person's data, in a sentence: disks, processes that were killed, configurations.

NO_NAME = re.compile("embedded null (byte|character)|has an empty name|surrogates not allowed")
LOST_WORKER = re.compile(r"DataLoader worker \(pid[^)]*\)? .*(?:killed by signal|exited unexpectedly)")
BY_SIGNAL = re.compile(r"killed by signal: ([\w ]+)")
NO_SHARED_MEMORY = re.compile(r"(?:unable to|could not|failed to) .*(?:shared memory|</?torch_)", re.I)
LEAST_SHARED_MEMORY = 1e6  # bytes; with less there is no room for semaphores
LOST_RANK = re.compile(
    r"Connection (?:closed by peer|reset by peer|was likely closed)|Broken pipe|remote process exited", re.I
)
TOLD_BY_TARGETS = (TypeError, ValueError, ImportError)  # of values that they do not take


def sentence_of_fault(
    error: BaseException, config: DictConfig | None = None, otherwise: str | None = None
) -> str | None:
    """The sentence of an exception that is no `UserError`, None where it is a mistake of the program's.

    Arguments as `telling` has them.
    """
    found = list(causes(error))
    if config is not None:
        if any(isinstance(one, MissingMandatoryValue | InterpolationToMissingValueError) for one in found):
            unresolved = leaves(OmegaConf.to_container(config, resolve=False))
            keys = sorted(key for key, value in unresolved if value == "???")  # and not what refers to such a key
            return f"{', '.join(keys)} must be given: pass {' '.join(f'{key}=VALUE' for key in keys)}."
        told = "\n".join(str(one) for one in found if isinstance(one, RuntimeError))
        if (sentence := _of_lost_process(told, config)) is not None:
            return sentence
    for one in found:
        if out_of_memory(one):
            return _of_memory(one, config)
        if type(one).__module__.startswith(COMPILERS):
            return f"torch's compiler failed ({_first_line(one)[:200]}): {_uncompiled(config)}."
        if isinstance(one, ImportError | OSError) and NO_TORCH.search(str(one)):
            return f"torch cannot be imported ({_first_line(one)}); {CPU_BUILD}."
        if isinstance(one, OSError) and one.errno in NO_ROOM:
            if config is not None and one.filename is None and _shared_memory("free") < LEAST_SHARED_MEMORY:
                return _of_shared_memory(config)
            place = one.filename or ("the run folder" if config is None else config.paths.output_dir)
            return f"{place} cannot be written ({one.strerror}): make room, then {_next_step(config)}."
        if isinstance(one, OSError) and one.errno == errno.ENAMETOOLONG:
            return f"No file can have the name {str(one.filename)[:60]!r}…, which is too long: give another."
        if isinstance(one, ValueError) and str(one).startswith("No trials are completed"):  # Optuna, at the end
            return f"No job of the search has a score: {FAILURE} in the folder of each says what went wrong."
        if isinstance(one, ValueError) and NO_NAME.search(str(one)):
            return f"A file is given a name that no file can have ({one}): give another."
    if (sentence := _of_configuration(error, config)) is not None:
        return sentence
    failed = system_error(error)
    if failed is None or otherwise is None:
        return None
    return f"{failed.filename or 'A file'} {otherwise.format(failed.strerror or failed)}"


def _next_step(config: DictConfig | None) -> str:
    return "give the same command again" if config is None else next_step(config.paths.output_dir)


def _shared_memory(which: str) -> float:
    """Bytes of the memory that processes share: "total", or "free"."""
    return float(getattr(shutil.disk_usage("/dev/shm"), which)) if os.path.isdir("/dev/shm") else math.inf


def _of_shared_memory(config: DictConfig) -> str:
    key, room = "data.num_workers" if "data" in config else "workers", _shared_memory("total") / 1e6
    return (
        f"The shared memory that data workers pass batches through, /dev/shm, has room for {room:,.1f} MB in all, "
        f"which is too little: give the container more (docker run --shm-size=8g), or pass {key}=0, and "
        f"{_next_step(config)}."
    )


def _of_memory(error: BaseException, config: DictConfig | None) -> str:
    """What a batch that did not fit has as a note (`vinvl.run.memory`); else what there is to make smaller."""
    if notes := getattr(error, "__notes__", None):
        return str(notes[-1])
    room = re.search(r"allocate ([\d.,]+ ?\w+)", str(error))
    smaller = "give this process more of it, or fewer workers"
    if config is not None and "trainer" in config:
        own = "data.batch_size" if "test_after_fit" in config else "data.eval_batch_size"
        smaller = f"pass a smaller {'batch_size' if 'batch_size' in config else own}"
        smaller += ", or fewer data.num_workers" if OF_WORKERS in str(error) else ""
    return f"Memory does not suffice{f' for {room[1]} more' if room else ''}: {smaller}, and {_next_step(config)}."


def _uncompiled(config: DictConfig | None) -> str:
    """What to pass for nothing to be compiled."""
    attention = None if config is None else OmegaConf.select(config, "model.attention", throw_on_missing=False)
    own = {"flex_attention": "model.attention=auto"}.get(
        str(attention), "compile.enabled=false, of vinvl.extract compile=false"
    )
    return f"pass {own}"


def _of_lost_process(told: str, config: DictConfig) -> str | None:
    """A data worker, or another process of a distributed run, is no more, as PyTorch tells it."""
    if NO_SHARED_MEMORY.search(told) is not None:
        return _of_shared_memory(config)
    if LOST_WORKER.search(told) is not None:
        key = "data.num_workers" if "data" in config else "workers"
        by = BY_SIGNAL.search(told)
        signal = by[1].strip() if by else ""
        cut = " or because a file that it reads was cut short" if signal == "Bus error" else ""
        return (
            f"A data worker was ended from outside{signal and f' ({signal})'}, perhaps for lack of memory, also of "
            f"shared memory (/dev/shm; docker run --shm-size=8g){cut}: pass a smaller {key}, or 0, and "
            f"{_next_step(config)}."
        )
    if LOST_RANK.search(told) is None:
        return None
    return (
        "Another process of this run has ended; what it said stands above, unless it was killed, perhaps for lack "
        f"of memory: {_next_step(config)}."
    )


def _of_configuration(error: BaseException, config: DictConfig | None) -> str | None:
    """What Hydra, OmegaConf, or something that a `_target_` names, does not take."""
    if isinstance(error, InstantiationException):
        first, _, full_key = str(error).partition("full_key: ")
        cause = next((one for one in causes(error) if not isinstance(one, HydraException)), None)
        where = f" in {_given_as(full_key.strip(), config)}" if full_key else ""
        if cause is not None and not isinstance(cause, TOLD_BY_TARGETS) and not _is_misconfiguration(cause):
            return None
        reason = first.partition(", set env var")[0].strip() if cause is None else _first_line(cause)
        if isinstance(cause, ImportError) and full_key.startswith("logger."):
            return (
                f"The package of a logger is missing ({reason}): pip install 'vinvl[logging]', or pass logger=default."
            )
        named = re.search(r"target '([^']+)'", first)
        return f"The configuration{where} does not fit {named[1] if named else 'its _target_'}: {reason}."
    if isinstance(error, HydraException | OmegaConfBaseException):
        told = [_first_line(one) for one in causes(error) if isinstance(one, HydraException | OmegaConfBaseException)]
        return f"The configuration cannot be used: {'; '.join(dict.fromkeys(told))}."
    if _is_misconfiguration(error):
        return f"This machine does not suit the configuration: {_first_line(error)}."
    return None


def _is_misconfiguration(error: BaseException) -> bool:
    """Whether Lightning raised it for its settings; doors that do without Lightning do not import it for this."""
    lightnings = sys.modules.get("pytorch_lightning.utilities.exceptions")
    return lightnings is not None and isinstance(error, lightnings.MisconfigurationException)


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


def _print_escaped(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback, for mistakes of the program's own; what it quotes may come from a file."""
    say(*"".join(traceback.format_exception(kind, error, trace)).rstrip("\n").split("\n"), error=True)
