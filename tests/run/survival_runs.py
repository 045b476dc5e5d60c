"""Whole training processes at a second each: forked from one that has imported everything, and killed for real."""

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import torch

from tests.conftest import TINY_MODEL, TINY_WORLD
from tests.door_runs import ON_CPU, DoorProcess, door_environment
from tests.run.struck import Kill
from vinvl.demo.world import ensure_demo_corpus
from vinvl.run.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]
# Dropout is on (TINY_MODEL), updates take two batches, corpora are mixed with passes that do not divide them; an
# evaluation, a saved update and the end of a Lightning epoch fall on different batches.
PRETRAINING = [
    "task=pretraining",
    *(f"data.prepare.{name}={value}" for name, value in TINY_WORLD.items()),
    *TINY_MODEL,
    "data.splits.train=[{file:../train.jsonl,passes:0.7},{file:../val.jsonl,passes:1.3,loss_weight:0.5}]",
    "data.splits.val=../val.jsonl",
    "data.splits.test=../val.jsonl",
    "data.batch_size=16",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=-1",
    "trainer.max_steps=18",
    "trainer.accumulate_grad_batches=2",
    "trainer.check_val_every_n_epoch=null",
    "trainer.val_check_interval=6",
    "trainer.limit_test_batches=4",
    "trainer.limit_val_batches=8",
    "callbacks.last.every_n_train_steps=2",
    "callbacks.best.monitor=val/loss",  # accuracies of so small a model stay at nought
    "callbacks.best.mode=min",
    "ckpt_path=auto",
    "hydra.run.dir=run",
]


def struck(folder: Path, data: Path, function: str, *arguments: object, **environment: str) -> DoorProcess:
    """A process that calls a function of `tests.run.struck` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.run import struck; struck.{function}"
    settings = door_environment(data) | ON_CPU | {"COLUMNS": "200"} | environment
    return DoorProcess(folder, "-c", f"{program}{arguments!r}", environment=settings)


def start(
    folder: Path,
    data: Path,
    *overrides: str,
    kill: Kill | None = None,
    door: str = "train",
    task: str = "vinvl.task.VinVLTask",
    **environment: str,
) -> DoorProcess:
    """Starts a training process in a folder."""
    return struck(folder, data, "train", door, task, list(overrides), kill and kill.plain(), **environment)


def ended(process: DoorProcess, seconds: float = 120) -> int:
    """Waits for a process; its exit code, negative for the signal that ended it."""
    return process.wait(seconds)


def killed(process: DoorProcess) -> None:
    """Kills it, and not what it started."""
    os.kill(process.pid, signal.SIGKILL)
    assert ended(process) == KILLED


def run(folder: Path, data: Path, *overrides: str, kill: Kill | None = None, **more: str) -> int:
    """A whole training process; its exit code."""
    return ended(start(folder, data, *overrides, kill=kill, **more))


def start_ranks(
    folder: Path, data: Path, *overrides: str, kills: dict[int, Kill] | None = None, **more: str
) -> list[DoorProcess]:
    """Two processes that train together, as a launcher on the outside starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0", **more}
    given = [*overrides, "trainer=ddp", "trainer.accelerator=cpu"]
    return [start(folder, data, *given, kill=(kills or {}).get(n), LOCAL_RANK=str(n), **shared) for n in (0, 1)]


def output(folder: Path, rank: str = "") -> str:
    """What the processes in a folder printed so far."""
    return (folder / f"output{rank}.txt").read_text()


def saved_updates(folder: Path) -> int:
    """Updates in the last checkpoint of the run in a folder."""
    updates: int = read_checkpoint(folder / "run/checkpoints/last.ckpt")["global_step"]
    return updates


def noted(folder: Path, name: str) -> dict[int, Any]:
    """What the processes in a folder noted, by number; what was done again after a kill had the same result."""
    found: dict[int, Any] = {}
    for number, what in map(json.loads, (folder / name).read_text().splitlines()):
        assert found.setdefault(number, what) == what
    return found


def seen_rows(folder: Path, rank: str = "") -> dict[int, list[int]]:
    """The corpus rows of every training batch that the processes in a folder worked on, by its number from 1."""
    return noted(folder, f"seen{rank}.txt")


def times_trained(folder: Path, rank: str = "") -> int:
    """Training batches that the processes in a folder worked on, those counted twice that were worked on twice."""
    return len((folder / f"seen{rank}.txt").read_text().splitlines())


def assert_same_run(one: Path, other: Path, rank: str = "") -> None:
    """The runs in two folders are alike to the last bit: batches, evaluations, and the state and figures at the end."""
    assert seen_rows(one, rank) == seen_rows(other, rank)
    assert noted(one, f"scored{rank}.txt") == noted(other, f"scored{rank}.txt")
    first, second = (read_checkpoint(folder / "run/checkpoints/last.ckpt") for folder in (one, other))
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_same(first[key], second[key], key)
    assert first["vinvl"]["batches_seen"] == second["vinvl"]["batches_seen"]
    assert_same(best_score(first), best_score(second), "best score")
    weights = [read_checkpoint(folder / "run/checkpoints/best.ckpt")["state_dict"] for folder in (one, other)]
    assert_same(weights[0], weights[1], "best weights")
    figures = [json.loads((folder / "run/results.json").read_text())["scores"] for folder in (one, other)]
    assert figures[0] == figures[1]


def best_score(checkpoint: dict[str, Any]) -> torch.Tensor:
    """The best figure so far, as a checkpoint of a run has it."""
    (found,) = [state["best_model_score"] for name, state in checkpoint["callbacks"].items() if "val/" in name]
    return torch.as_tensor(found)


def assert_same(one: object, other: object, where: str) -> None:
    """Nested dicts and lists of tensors and plain values are equal, bit by bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list) and isinstance(other, list):
        assert len(one) == len(other), where
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_same(left, right, f"{where}.{index}")
    elif isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def wait_for(path: Path, seconds: float = 60) -> None:
    """Waits until a file is there."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.005)


KILLED = -signal.SIGKILL
ROWS = {"train": 300, "val": 90}  # 210 and 117 items an epoch: 20 batches of 16, and one of 7


def write_corpora(folder: Path, data: Path) -> None:
    """The corpora of PRETRAINING, in the folder that the runs' folders lie in: so many rows of the demo's."""
    ensure_demo_corpus(data / "demo", seed=0, **TINY_WORLD)
    for name, rows in ROWS.items():
        lines = (data / "demo" / "pretraining" / f"{name}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[:rows]))
