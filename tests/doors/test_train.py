"""`python -m vinvl.train` as a user calls it: a whole run, a killed and resumed one, two ranks."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch

from tests.conftest import TINY_DEMO, Door
from tests.door_in_process import assert_same_weights, checkpoint, examples, run_in_process, scores
from tests.door_runs import DoorProcess, door_environment, succeed
from tests.run.test_loggers import events, recipe_in
from tests.run.test_loggers import rows as rows_of
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
    printed = succeed(
        folder, demo_data, "train", *TINY_DEMO, "callbacks.last.every_n_train_steps=1", "trainer.log_every_n_steps=3"
    )
    (results,) = folder.rglob("results.json")
    assert "part" not in results.read_text()
    return only_run(folder), printed


def test_a_run_shows_an_example_and_ends_with_scores_checkpoints_and_logs(whole_run: tuple[Path, str]) -> None:
    run, printed = whole_run
    for word in ("image id", "question", "tokens    [CLS]", "tags", "rows of 2054 numbers", "target"):
        assert word in printed
    assert "VQA accuracy" in printed and str(run / "results.json") in printed
    assert {"accuracy/overall", "accuracy/yes/no", "accuracy/number", "accuracy/other"} <= scores(run).keys()
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    written = {name for name in files if name.startswith("tensorboard/events")}
    hydras = {".lock", "train.log", ".hydra/config.yaml", ".hydra/overrides.yaml"}  # the configuration once
    saved = {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "csv/metrics.csv", "results.json", "examples.parquet"}
    assert len(written) == 1 and files == written | hydras | saved


def test_the_log_file_holds_what_the_terminal_showed(whole_run: tuple[Path, str]) -> None:
    run, printed = whole_run
    lines = (run / "train.log").read_text().splitlines()
    assert [line[21:] for line in lines] == printed.splitlines()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", line[:21]) for line in lines)
    told = [line for line in printed.splitlines() if line.startswith("epoch ")]
    assert [re.sub(r"\d[\d.e+-]*", "N", line[14:]) for line in told] == ["update N  mean loss N  val/score N  N s"] * 2
    assert [line[:12] for line in told] == ["epoch 1 of 2", "epoch 2 of 2"]
    assert max(map(len, told)) <= 80


def test_curves_and_the_recipe_with_its_score(whole_run: tuple[Path, str]) -> None:
    """In the one file of events of the run, which has the test too, and in the rows of the table."""
    run, _ = whole_run
    found, rows = events(run / "tensorboard"), rows_of(run / "csv")
    assert len({row["step"] for row in rows}) == len(rows) and {row.get("epoch") for row in rows} == {"1", "2", None}
    wanted = {"lr/decayed", "lr/undecayed", "train/gradient_norm", "train/loss", "val/best_score", "val/score"}
    assert wanted <= set().union(*rows) and wanted <= set(found.Tags()["scalars"])
    assert not any("hp_metric" in name or "pg1" in name for name in found.Tags()["scalars"])
    both = [row for row in rows if "train/loss" in row]
    assert both and all("lr/decayed" in row and float(row["train/gradient_norm"]) > 0 for row in both)
    recipe, metrics = recipe_in(found)
    assert metrics == {"val/best_score", "test/score"}
    told = {name: recipe[name] for name in ("optim.optimizer.lr", "data.batch_size", "trainer.max_epochs", "seed")}
    assert told["data.batch_size"] == 16 and told["trainer.max_epochs"] == 2 and "data.num_workers" not in recipe
    scored = [one.value for one in found.Scalars("val/score")]
    assert [one.value for one in found.Scalars("val/best_score")] == [scored[0], max(scored)]
    assert found.Scalars("test/score")[-1].value == pytest.approx(scores(run)["accuracy/overall"])


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
