"""Doors that are asked to stop, whose processes are killed, that meet another in their folder, or find no place."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import vinvl
from tests.conftest import TINY_DEMO
from tests.door_in_process import run_in_process
from tests.regions.samples import make_regions, write
from tests.run.struck import Kill
from tests.run.survival_runs import (
    KILLED,
    PRETRAINING,
    ended,
    killed,
    output,
    start,
    start_ranks,
    struck,
    wait_for,
    write_corpora,
)
from vinvl.run.door import sentence_of_fault
from vinvl.run.signals import INTERRUPTED, START_AGAIN

pytestmark = pytest.mark.slow


def befalls(folder: Path, data: Path, door: str, arguments: list[str], place: str, number: int) -> tuple[int, str]:
    """(exit code, what was printed) of a door that gives itself a signal as soon as it comes to `place`."""
    code = ended(struck(folder, data, "run_door", door, arguments, place, int(number)))
    printed = (folder / "output.txt").read_text()
    # PyTorch logs what it was importing when a worker's end was told: its own lines, with a traceback in them.
    assert "Traceback" not in re.sub(r"(?m)^[WE]\d{4} .*", "", printed), printed
    return code, printed


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {"output.txt"}


@pytest.fixture(scope="module")
def trained(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a short run."""
    run = tmp_path_factory.mktemp("trained") / "run"
    run_in_process("train", demo_data, run, *TINY_DEMO, "data.num_workers=0", "trainer.max_epochs=1")
    return run / "checkpoints" / "best.ckpt"


@pytest.mark.parametrize(
    ("door", "arguments", "place", "number"),
    [
        ("evaluate", ["data.num_workers=1"], "vinvl.task.VinVLTask.test_step", signal.SIGTERM),
        ("evaluate", [], "vinvl.restore.read_checkpoint", signal.SIGINT),
        ("predict", ["data.num_workers=1"], "vinvl.vqa.task.VQATask.predict_step", signal.SIGUSR1),
        ("predict", [], "vinvl.vqa.task.VQATask.write_predictions", signal.SIGTERM),
    ],
)
def test_a_door_with_a_checkpoint(
    trained: Path, demo_data: Path, tmp_path: Path, door: str, arguments: list[str], place: str, number: int
) -> None:
    given = [f"ckpt_path={trained}", "trainer=cpu", *arguments]
    code, printed = befalls(tmp_path, demo_data, door, given, place, number)
    assert code == (INTERRUPTED if number == signal.SIGINT else START_AGAIN), printed
    assert "Stopped as asked to; give the same command again." in printed
    assert files_of(tmp_path) == set()


@pytest.mark.parametrize(
    ("door", "arguments", "place", "number"),
    [
        ("convert", ["weights={model}", "to=new"], "vinvl.models.published.write_transformers", signal.SIGTERM),
        ("convert", ["from={store}", "to=new", "format=mmf_npy"], "vinvl.regions.RegionStore.at", signal.SIGINT),
        ("report", ["store={store}", "output=page.html"], "vinvl.pages.pages.write_page", signal.SIGTERM),
        ("regions", ["merge", "{store}", "--output", "new.h5"], "vinvl.regions.merging.write_store_file", 15),
        ("train", ["trainer=cpu", *TINY_DEMO], "vinvl.vqa.data.VQADataModule.prepare_data", signal.SIGTERM),
    ],
)
def test_any_door(
    trained: Path, demo_data: Path, tmp_path: Path, door: str, arguments: list[str], place: str, number: int
) -> None:
    store = write(tmp_path / "store.h5", [make_regions(str(one), 2) for one in range(3)])
    given = [argument.format(model=trained, store=store) for argument in arguments]
    code, printed = befalls(tmp_path, demo_data, door, given, place, number)
    assert code == (INTERRUPTED if number == signal.SIGINT else START_AGAIN), printed
    assert "Stopped as asked to; give the same command again." in printed
    assert files_of(tmp_path) == {"store.h5"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("door", ["train", "extract", "pretrain_finetune", "pretraining.corpus", "regions", "report"])
def test_a_door_that_is_still_being_imported(tmp_path: Path, door: str, number: int) -> None:
    signalled = f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(9)\n"
    for package in ("hydra", "numpy", "torch"):  # whichever comes first
        (tmp_path / f"{package}.py").write_text(signalled)
    path = os.pathsep.join([str(tmp_path), str(Path(vinvl.__file__).parents[1])])
    command = [sys.executable, "-m", f"vinvl.{door}"]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert ended.returncode == (INTERRUPTED if number == signal.SIGINT else START_AGAIN)
    assert ended.stderr == "Stopped as asked to; give the same command again.\n"


@pytest.mark.parametrize(
    ("number", "why"), [(signal.SIGKILL, r"\(Killed\)"), (signal.SIGBUS, r"\(Bus error\), .* cut short")]
)
def test_a_data_worker_that_is_killed(trained: Path, demo_data: Path, tmp_path: Path, number: int, why: str) -> None:
    given = [f"ckpt_path={trained}", "trainer=cpu", "data.num_workers=1"]
    place = "worker:vinvl.vqa.data.AnsweringDataset.__getitem__"
    code, printed = befalls(tmp_path, demo_data, "evaluate", given, place, number)
    assert code == 1
    (sentence,) = [line for line in printed.splitlines() if "error: " in line]  # PyTorch's own ends with a NUL
    # Whether PyTorch names the signal depends on what it comes to first: the signal's handler, or the empty queue.
    assert re.search(rf"A data worker was ended from outside( {why}|, perhaps).* data\.num_workers", sentence), sentence
    assert files_of(tmp_path) == set()


@pytest.mark.parametrize(("told", "why"), [("Killed", " (Killed),"), ("Bus error", " (Bus error),"), (None, ",")])
def test_what_ended_a_data_worker_is_named_where_pytorch_knows_it(told: str | None, why: str) -> None:
    ended_by = f"is killed by signal: {told}. " if told else "exited unexpectedly"
    config = OmegaConf.create({"data": {}, "paths": {"output_dir": "runs/none"}})
    sentence = sentence_of_fault(RuntimeError(f"DataLoader worker (pid(s) 7) {ended_by}"), config)
    assert sentence is not None and sentence.startswith(f"A data worker was ended from outside{why} perhaps")
    assert ("cut short" in sentence) == (told == "Bus error")


# --- two at once, and one that is left alone ---


def test_a_second_training_in_the_same_folder_is_refused(demo_data: Path, tmp_path: Path) -> None:
    write_corpora(tmp_path, demo_data)
    folder = tmp_path / "here"
    first = start(folder, demo_data, *PRETRAINING, kill=Kill(signal.SIGSTOP, "train", 4))
    wait_for(folder / "run/checkpoints/last.ckpt")
    kept = [folder / "run" / name for name in ("checkpoints/last.ckpt", ".hydra/overrides.yaml", ".hydra/config.yaml")]
    before = [path.read_bytes() for path in kept]
    second = start(folder, demo_data, *PRETRAINING, "seed=3", "logger=default")
    assert ended(second) == 1
    assert "error: Another process is at work in " in output(folder) and "hydra.run.dir=FOLDER" in output(folder)
    assert [path.read_bytes() for path in kept] == before
    killed(first)
    third = Kill(signal.SIGKILL, "train", 0)
    assert ended(start(folder, demo_data, *PRETRAINING, kill=third)) == KILLED  # it trains: the lock has died too


def test_a_rank_that_is_left_alone_says_so(demo_data: Path, tmp_path: Path) -> None:
    write_corpora(tmp_path, demo_data)
    kills = {1: Kill(signal.SIGKILL, "train", 6)}
    ranks = start_ranks(tmp_path / "here", demo_data, *PRETRAINING, kills=kills)
    assert [ended(rank) for rank in ranks] == [1, KILLED]
    (sentence,) = [line for line in output(tmp_path / "here", "0").splitlines() if line.startswith("error: ")]
    assert "Another process of this run has ended" in sentence and "ckpt_path=auto" in sentence
