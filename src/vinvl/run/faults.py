"""What goes wrong outside of a person's data, in a sentence: disks, processes that were killed, configurations."""

import errno
import re
from pathlib import Path

from hydra.errors import HydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vinvl.run.errors import causes
from vinvl.run.options import leaves

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
