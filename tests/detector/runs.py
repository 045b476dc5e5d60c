"""Training runs of a detector of a few thousand weights on the tiny demo world, in processes that can be killed."""

import os
import signal
import sys
from dataclasses import dataclass
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.conftest import TINY_WORLD
from tests.run.survival_runs import START_SERVER, ended, note

WORLD = [f"data.prepare.{name}={value}" for name, value in TINY_WORLD.items()]
TINY_DETECTOR = [
    "detector.architecture.blocks=[1,1,1,1]",
    "detector.architecture.stem_channels=8",
    "detector.architecture.first_stage_channels=16",
    "detector.min_size=96",
    "detector.architecture.anchor_sizes=[24]",
    "training.region_samples=8",
    "training.rpn_samples=16",
    "training.rpn_proposals=20",
]
TINY = [*WORLD, *TINY_DETECTOR, "data.batch_size=4", "data.num_workers=0", "trainer.accelerator=cpu", "torch_threads=1"]
# 24 pictures: 6 batches an epoch; an evaluation, a saved update and the end of an epoch fall on different batches.
RUN = [
    *TINY,
    "trainer.max_epochs=2",
    "trainer.log_every_n_steps=2",
    "callbacks.last.every_n_train_steps=2",
    "+callbacks.samples_per_second.every_n_steps=2",
    "ckpt_path=auto",
    "hydra.run.dir=run",
]


@dataclass(frozen=True)
class Kill:
    """A signal to a process, in its work on a training batch, counted from 0."""

    number: int
    batch: int


def detector_process(
    folder: Path, data: Path, overrides: list[str], kill: Kill | None, environment: dict[str, str]
) -> None:
    """The process itself: `python -m vinvl.train_detector overrides` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    os.environ.update({"VINVL_DATA": str(data), "COLUMNS": "200", "CUDA_VISIBLE_DEVICES": "", **environment})
    rank = environment.get("LOCAL_RANK", "")
    output = os.open(f"output{rank}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from vinvl import train_detector
    from vinvl.detector.task import DetectorTask

    whole, worked_on = DetectorTask.training_step, count()

    def training_step(task: DetectorTask, batch: object, batch_idx: int) -> object:
        if kill is not None and next(worked_on) == kill.batch:
            os.kill(os.getpid(), kill.number)
        note(f"seen{rank}.txt", task.batches_seen, list(batch.indices))  # type: ignore[attr-defined]
        return whole(task, batch, batch_idx)  # type: ignore[arg-type]

    DetectorTask.training_step = training_step  # type: ignore[method-assign, assignment]
    sys.argv = ["train_detector", *overrides]
    train_detector.main()


def start(
    folder: Path, data: Path, *overrides: str, kill: Kill | None = None, environment: dict[str, str] | None = None
) -> BaseProcess:
    """Starts a training process in a folder."""
    process = START_SERVER.Process(
        target=detector_process, args=(folder, data, list(overrides), kill, environment or {}), daemon=False
    )
    process.start()
    return process


def run(folder: Path, data: Path, *overrides: str, kill: Kill | None = None) -> int:
    """A whole training process; its exit code."""
    return ended(start(folder, data, *overrides, kill=kill))


KILLED = -signal.SIGKILL
