"""`python -m vinvl.train` as a user calls it: a whole run, a killed and resumed one, two ranks."""

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_DEMO, Door
from tests.door_in_process import assert_same_weights, checkpoint, examples, run_in_process, scores
from tests.door_runs import DoorProcess, door_environment, succeed
from vinvl.run.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow


def only_run(folder: Path, name: str = "demo_vqa") -> Path:
    runs = [path for path in (folder / "runs" / name).iterdir() if path.name != "ranks"]
    assert len(runs) == 1, runs
    return runs[0]


@pytest.fixture(scope="module")
def whole_run(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An uninterrupted run that saves after every update, and what it printed."""
    folder = tmp_path_factory.mktemp("whole")
    printed = succeed(folder, demo_data, "train", *TINY_DEMO, "callbacks.last.every_n_train_steps=1")
    return only_run(folder), printed


def test_a_run_shows_an_example_and_ends_with_scores_checkpoints_and_logs(whole_run: tuple[Path, str]) -> None:
    run, printed = whole_run
    for word in ("image id", "question", "tokens    [CLS]", "tags", "rows of 2054 numbers", "target"):
        assert word in printed
    assert "VQA accuracy" in printed and str(run / "results.json") in printed
    assert {"accuracy/overall", "accuracy/yes/no", "accuracy/number", "accuracy/other"} <= scores(run).keys()
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    events = {name for name in files if name.startswith("tensorboard/events")}
    hydras = {".lock", "train.log", ".hydra/config.yaml", ".hydra/overrides.yaml"}  # the configuration once
    saved = {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "csv/metrics.csv", "results.json", "examples.parquet"}
    assert events and files == events | hydras | saved


@pytest.mark.parametrize(("every", "updates"), [("1", 3), ("null", 1)])  # null: at the end of an epoch
def test_killed_and_resumed_ends_with_the_weights_of_an_uninterrupted_run(
    whole_run: tuple[Path, str], demo_data: Path, door: Door, tmp_path: Path, every: str, updates: int
) -> None:
    overrides = [*TINY_DEMO, "data.num_workers=2", f"callbacks.last.every_n_train_steps={every}"]
    process = DoorProcess(tmp_path, "vinvl.train", *overrides, environment=door_environment(demo_data))
    process.wait_until(lambda: saved_updates(tmp_path) >= updates)
    process.signalled(signal.SIGKILL)
    killed_at = saved_updates(tmp_path)
    assert not (only_run(tmp_path) / "results.json").exists()
    result = door("train", *overrides, "ckpt_path=last")
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path)  # it went on in its own folder
    total = read_checkpoint(whole_run[0] / "checkpoints/last.ckpt")["global_step"]
    assert updates <= killed_at <= total
    assert_same_weights(whole_run[0], run)
    assert scores(run) == scores(whole_run[0])


def saved_updates(folder: Path) -> int:
    """Updates in the last checkpoint of the only run; 0 before there is one."""
    paths = list(folder.glob("runs/*/*/checkpoints/last.ckpt"))
    try:
        return int(torch.load(paths[0], weights_only=True, mmap=True)["global_step"]) if paths else 0
    except (RuntimeError, EOFError, FileNotFoundError):
        return 0


def test_accumulation_precision_and_early_stopping_are_overrides(demo_data: Path, tmp_path: Path) -> None:
    run_in_process(
        "train", demo_data, tmp_path, *TINY_DEMO, "trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed",
        "callbacks=early_stopping", "trainer.max_steps=2", "trainer.limit_val_batches=2", "test_after_fit=false",
        "model.gradient_checkpointing=true", "data.num_workers=0",
    )  # fmt: skip
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == 2


def test_two_ranks_train_and_score_as_one_would(door: Door, demo_data: Path, tmp_path: Path) -> None:
    """Started by Lightning; `tests/run/test_launchers.py` has torchrun."""
    ranks = ["trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.max_epochs=1"]
    result = door("train", *TINY_DEMO, *ranks)
    assert result.returncode == 0, result.stderr
    run = only_run(tmp_path)
    run_in_process("evaluate", demo_data, tmp_path / "alone", checkpoint(run), "trainer.accelerator=cpu")
    assert scores(tmp_path / "alone") == scores(run)
    rows = examples(run)
    assert rows == examples(tmp_path / "alone")
    questions = json.loads((demo_data / "demo" / "v2_OpenEnded_mscoco_test2014_questions.json").read_text())
    asked = [(str(one["question_id"]), str(one["image_id"]), one["question"]) for one in questions["questions"]]
    assert [(row["id"], row["image_id"], row["text"]) for row in rows] == asked
    assert {len(row["truth"]) for row in rows} == {10} and all(row["answer"] and row["group"] for row in rows)
    assert {row["kind"] for row in rows} <= {"yes/no", "number", "other"}
