"""Lightning's settings for trying things out, in every task; what a run hands to a sweep and keeps in results.json."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.detector.runs import TINY as TINY_DETECTOR
from tests.door_in_process import CAPTIONING, TINY, composed, run_in_process
from vinvl.detector.task import DetectorTask
from vinvl.run.checkpoint import read_checkpoint
from vinvl.run.progress import job_rows
from vinvl.task import VinVLTask
from vinvl.train import train

TWO_EPOCHS = ["data.num_workers=0", "data.batch_size=4", "trainer.max_epochs=2", "test_after_fit=false"]
TASKS = {
    "vqa": TINY,
    "retrieval": ["task=retrieval", *TINY, "data.val_images=6", "data.val_fold_images=3"],
    "pretraining": ["task=pretraining", *TINY],
    "captioning": CAPTIONING,
    "detection": TINY_DETECTOR,
}


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[torch.Tensor]]]:
    """(place, tensors) of every batch of training and evaluation from now on."""
    seen: list[tuple[str, list[torch.Tensor]]] = []

    def note(kind: type, place: str) -> None:
        step: Callable[..., Any] = getattr(kind, f"{place}_step")

        def noting(task: Any, batch: Any, batch_idx: int) -> Any:
            tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
            seen.append((place, [*tensors, *(batch.pictures() if isinstance(task, DetectorTask) else ())]))
            return step(task, batch, batch_idx)

        monkeypatch.setattr(kind, f"{place}_step", noting)

    note(VinVLTask, "training")
    note(VinVLTask, "validation")
    return seen


@pytest.mark.parametrize("task", TASKS)
def test_the_same_batches_every_epoch_in_every_task(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """With the same hidden words, drawn pairs and turned pictures, so that the loss can fall."""
    seen = watched(monkeypatch)
    door = "train_detector" if task == "detection" else "train"
    printed = run_in_process(door, demo_data, tmp_path / "run", *TASKS[task], *TWO_EPOCHS, "+trainer.overfit_batches=2")
    assert "trainer.overfit_batches=2: each epoch has the same batches" in printed
    one, two, three, four = (tensors for place, tensors in seen if place == "training")
    assert len(seen) == (4 if task == "retrieval" else 8)  # as many of the validation split; retrieval counts its own
    assert one and all(torch.equal(a, b) for a, b in zip(one + two, three + four, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_fast_run_of_everything_saves_nothing(demo_data: Path, tmp_path: Path) -> None:
    settings = [*TINY, "data.num_workers=0", "+trainer.fast_dev_run=true", "+trainer.detect_anomaly=true"]
    printed = run_in_process("train", demo_data, tmp_path / "run", *settings)
    assert "trainer.fast_dev_run: a few batches of everything; nothing is saved" in printed
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert json.loads((tmp_path / "run/results.json").read_text())["checkpoint"] is None


def test_a_sweep_is_handed_the_best_score_in_validation(
    demo_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*TINY, "data.num_workers=0", "trainer.limit_train_batches=2", "trainer.limit_test_batches=2"]
    given += ["trainer.limit_val_batches=1"]
    with composed("train", demo_data, tmp_path / "0", *given) as config:
        score = train(config)
    printed = capsys.readouterr().out
    (state,) = [
        state
        for key, state in read_checkpoint(tmp_path / "0/checkpoints/best.ckpt")["callbacks"].items()
        if "val/score" in key
    ]
    assert score == float(state["best_model_score"])
    results = json.loads((tmp_path / "0/results.json").read_text())
    part = results["validation"].pop("part")
    assert re.fullmatch(r"1 of \d+ batches", part) and f"accuracy/overall, {part} only" in printed
    assert results["validation"] == {"split": "val", "figure": "accuracy/overall", "score": score}
    assert (
        re.fullmatch(r"2 of \d+ batches", results["part"]) and f"Results on 'test', {results['part']} only" in printed
    )
    (tmp_path / "0/.hydra/overrides.yaml").write_text("[]")
    test = results["scores"]["accuracy/overall"]
    (found,) = job_rows(tmp_path)
    assert list(found[2].items()) == [("test accuracy/overall", test), ("val accuracy/overall", score)]
