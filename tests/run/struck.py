"""Inside of a process of a door that something befalls; imported there, so with nothing that takes its time."""

import json
import os
import resource
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from itertools import count
from typing import Any

DISK_FULL = -1
LARGEST_FILE = 100_000  # bytes, once the disk is full: logs go on, a checkpoint does not fit


@dataclass(frozen=True)
class Kill:
    """What befalls a process, in the work on a batch of training or evaluation, counted from 0."""

    number: int  # a signal; DISK_FULL
    place: str  # "train" or "val"
    batch: int  # among those that this process works on

    def plain(self) -> tuple[int, str, int]:
        number, *others = astuple(self)
        return int(number), *others


def befall(number: int) -> None:
    """A signal to this process, or no more room for large files."""
    if number == DISK_FULL:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, resource.RLIM_INFINITY))
    else:
        os.kill(os.getpid(), number)


def note(name: str, number: int, what: object) -> None:
    """Adds a line to a file of the current folder, at once: the process may be killed the next moment."""
    with open(name, "a") as file:
        file.write(json.dumps([number, what]) + "\n")


def print_to(name: str) -> None:
    """What this process prints goes to the end of a file."""
    output = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)


def train(door: str, task: str, overrides: list[str], kill: tuple[int, str, int] | None) -> None:
    """`python -m vinvl.DOOR overrides` for a class of task; notes what it trains on and what it scores."""
    from hydra.utils import get_method, get_object

    kind, rank = get_object(task), os.environ.get("LOCAL_RANK", "")
    print_to(f"output{rank}.txt")
    scored, worked_on = kind.on_validation_epoch_end, {"train": count(), "val": count()}

    def watched(place: str, whole: Callable[..., object]) -> Callable[..., object]:
        def step(task: Any, batch: Any, batch_idx: int) -> object:
            if kill is not None and kill[1] == place and next(worked_on[place]) == kill[2]:
                befall(kill[0])
            if place == "train":
                items = getattr(batch, "indices", None) or [record["index"] for record in batch.records]
                note(f"seen{rank}.txt", task.batches_seen, list(items))
            return whole(task, batch, batch_idx)

        return step

    def on_validation_epoch_end(task: Any) -> None:
        scored(task)
        note(f"scored{rank}.txt", task.trainer.global_step, task.scores)

    kind.on_validation_epoch_end = on_validation_epoch_end
    kind.training_step = watched("train", kind.training_step)
    kind.validation_step = watched("val", kind.validation_step)
    sys.argv = [door, *overrides]
    get_method(f"vinvl.{door}.main")()


def run_door(door: str, arguments: list[str], place: str, number: int) -> None:
    """`python -m vinvl.DOOR arguments`, which gives itself a signal as soon as it comes to `place`.

    `place`: the full name of a function; with "worker:" before it, where a data worker comes to it.
    """
    import torch.utils.data
    from hydra.utils import get_object

    print_to("output.txt")
    in_worker, name = place.startswith("worker:"), place.removeprefix("worker:")
    owner, _, attribute = name.rpartition(".")
    whole: Callable[..., Any] = get_object(name)

    def befallen(*given: Any, **named: Any) -> Any:
        if in_worker == (torch.utils.data.get_worker_info() is not None):
            os.kill(os.getpid(), number)
            time.sleep(0.05)
        return whole(*given, **named)

    setattr(get_object(owner), attribute, befallen)
    sys.argv = [door, *arguments]
    runpy.run_module(f"vinvl.{door}", run_name="__main__", alter_sys=True)
