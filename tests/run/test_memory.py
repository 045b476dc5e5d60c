"""A batch that does not fit into memory: which would is tried and said, and what was trained is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import TINY_DEMO
from tests.door_in_process import DOORS, checkpoint, composed, run_in_process
from tests.door_runs import ON_CPU, call, door_environment
from vinvl.data import sampling
from vinvl.run.door import run_door, sentence_of_fault
from vinvl.run.memory import _halves
from vinvl.task import VinVLTask

SHORT = [*TINY_DEMO, "data.num_workers=0", "trainer.max_epochs=1", "test_after_fit=false"]

# The room of a process beside what it holds already, in which a small batch fits.
LIMITED = """
import resource, runpy, sys
room, module = int(sys.argv[1]), sys.argv[2]
del sys.argv[1:3]
import torch
torch.nn.functional.linear(torch.zeros(8, 8), torch.zeros(8, 8)).sum()
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + room,) * 2)
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def told(door: str, data: Path, output: Path, *overrides: str) -> str:
    """The one sentence of a door that fails in the midst of its work."""
    with composed(door, data, output, *overrides) as config, pytest.raises(SystemExit) as ended:
        run_door(DOORS[door], config)
    assert isinstance(ended.value.code, str) and "\n" not in ended.value.code
    return ended.value.code


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives a step of a task room for so many examples, or for what `fits`."""

    def give(examples: int, step: str = "training_step", fits: Callable[[Any], bool] = lambda _: False) -> None:
        work = getattr(VinVLTask, step)

        def limited(self: Any, batch: Any, number: int) -> Any:
            if len(batch) > examples and not fits(self):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")
            return work(self, batch, number)

        monkeypatch.setattr(VinVLTask, step, limited)

    return give


@pytest.mark.parametrize(
    ("asked", "fitting", "words"),
    [
        (16, 8, "8 of its examples do: pass data.batch_size=8 trainer.accumulate_grad_batches=6"),
        (24, 5, "3 of its examples do: pass data.batch_size=3 trainer.accumulate_grad_batches=24"),
        (16, 0, "not even one example of it does: lower data.max_regions"),
    ],
)
def test_in_training(room: Any, demo_data: Path, tmp_path: Path, asked: int, fitting: int, words: str) -> None:
    room(fitting)
    given = [*SHORT, f"data.batch_size={asked}", "trainer.accumulate_grad_batches=3"]
    sentence = told("train", demo_data, tmp_path / "run", *given)
    assert (
        sentence.startswith(f"error: A batch of {asked} does not fit into the memory of this machine")
        and words in sentence
    )
    assert ("or model.gradient_checkpointing=true" in sentence) == (fitting > 0)


@pytest.mark.slow
def test_in_the_midst_of_a_run_that_goes_on_as_it_is_told(room: Any, demo_data: Path, tmp_path: Path) -> None:
    run, given = tmp_path / "run", [*SHORT, "callbacks.last.every_n_train_steps=1"]
    room(8, fits=lambda task: task.batches_seen < 5 or task.gradient_checkpointing)
    sentence = told("train", demo_data, run, *given)
    last = run / "checkpoints" / "last.ckpt"
    assert f"model.init={last}; or go on with" in sentence and "data.batch_size=8" in sentence
    assert f"hydra.run.dir={run} ckpt_path=auto model.gradient_checkpointing=true" in sentence
    run_in_process("train", demo_data, run, *given, "ckpt_path=auto", "model.gradient_checkpointing=true")
    again = tmp_path / "again"
    run_in_process("train", demo_data, again, *SHORT, f"model.init={last}", "data.batch_size=8")


@pytest.mark.parametrize(("step", "door"), [("validation_step", "train"), ("test_step", "evaluate")])
def test_in_evaluation(
    room: Any, demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, door: str
) -> None:
    run_in_process("train", demo_data, tmp_path / "whole", *SHORT)
    monkeypatch.setattr(sampling, "LEAST_EVALUATION_BATCHES", 1)  # a tiny split has batches of one otherwise
    room(10, step)
    given = SHORT if door == "train" else [checkpoint(tmp_path / "whole"), "trainer=cpu", "data.num_workers=0"]
    sentence = told(door, demo_data, tmp_path / "run", *given)
    assert (
        "A batch of 36 does not fit" in sentence
        and "9 of its examples do: pass data.eval_batch_size=9, and" in sentence
    )
    run_in_process(door, demo_data, tmp_path / "again", *given, "++data.eval_batch_size=9")


def test_what_has_no_parts_or_fails_of_something_else(
    room: Any, demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room(8)

    def broken(*_: object) -> None:
        raise ValueError("broken")

    monkeypatch.setattr(sampling.BatchLoader, "made_of", broken)
    sentence = told("train", demo_data, tmp_path / "run", *SHORT)
    assert "8 may, which was not tried: pass data.batch_size=8 trainer.accumulate_grad_batches=2" in sentence


@pytest.mark.slow
def test_with_as_little_memory_as_a_process_may_have(demo_data: Path, tmp_path: Path) -> None:
    given = [*SHORT, "model.config.hidden_size=256", "model.config.intermediate_size=4096", "data.batch_size=128"]
    room = 300 * 2**20
    ended = call(
        tmp_path, "-c", LIMITED, str(room), "vinvl.train", *given, environment=door_environment(demo_data) | ON_CPU
    )
    assert ended.returncode == 1 and "Traceback" not in ended.stdout + ended.stderr, ended.stdout + ended.stderr
    (sentence,) = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert (
        "A batch of 128 does not fit into the memory of this machine" in sentence and "of its examples do" in sentence
    )


def test_parts_are_at_most_half_and_whole_ones_divide() -> None:
    assert [*_halves(48, whole_parts=True)] == [24, 12, 6, 3, 1] and [*_halves(50, whole_parts=True)] == [
        25,
        10,
        5,
        2,
        1,
    ]
    assert [*_halves(50, whole_parts=False)] == [25, 12, 6, 3, 1] and [*_halves(1, whole_parts=True)] == []


def test_elsewhere_memory_is_named() -> None:
    sentence = sentence_of_fault(MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000, 1000)"))
    assert sentence is not None and sentence.startswith("Memory does not suffice for 7.45 GiB more: ")
