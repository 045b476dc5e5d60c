"""Lightning's settings for trying things out, in every task; what a run hands to a sweep and keeps in results.json."""

import csv
import json
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.detector.runs import TINY as TINY_DETECTOR
from tests.door_in_process import CAPTIONING, TINY, composed, refused_in_process, run_in_process
from tests.run.test_loggers import events
from vinvl.detector.task import DetectorTask
from vinvl.panels import PANEL
from vinvl.run.checkpoint import read_checkpoint
from vinvl.run.progress import job_rows
from vinvl.task import VinVLTask
from vinvl.train import train
from vinvl.vqa.task import VQATask

TWO_EPOCHS = ["data.num_workers=0", "data.batch_size=4", "trainer.max_epochs=2", "test_after_fit=false"]
TASKS = {
    "vqa": TINY,
    "retrieval": ["task=retrieval", *TINY, "data.val_images=6", "data.val_fold_images=3"],
    "pretraining": ["task=pretraining", *TINY],
    "gqa": ["task=gqa", *TINY],
    "nlvr2": ["task=nlvr2", *TINY, "model.config.classifier=mlp"],
    "captioning": CAPTIONING,
    "self-critical": [*CAPTIONING, "data.training_items=images", "task.options.scst_samples=2"],
    "detection": TINY_DETECTOR,
}


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[torch.Tensor]]]:
    """(place, tensors) of every batch of training, validation and test from now on."""
    seen: list[tuple[str, list[torch.Tensor]]] = []

    def note(kind: type, place: str) -> None:
        step: Callable[..., Any] = getattr(kind, f"{place}_step")

        def noting(task: Any, batch: Any, batch_idx: int) -> Any:
            tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
            seen.append((place, [*tensors, *(batch.pictures() if isinstance(task, DetectorTask) else ())]))
            return step(task, batch, batch_idx)

        monkeypatch.setattr(kind, f"{place}_step", noting)

    for place in ("training", "validation", "test"):
        note(VinVLTask, place)
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
    shown = events(tmp_path / "run/tensorboard")
    assert (
        {one.step for one in shown.Images(PANEL)}
        == {one.step for one in shown.Tensors(f"{PANEL}/text_summary")}
        == {1, 3}
    )
    one, two, three, four = (tensors for place, tensors in seen if place == "training")
    assert len(seen) == (4 if task == "retrieval" else 8)  # as many of the validation split; retrieval counts its own
    assert one and all(torch.equal(a, b) for a, b in zip(one + two, three + four, strict=True))
    assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_two_batches_are_learnt_by_heart(demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the loss is what the answers leave of it, of which people gave several."""
    given = [*TINY, "debug=overfit", "data.batch_size=4", "optim.optimizer.lr=4e-3", "trainer.max_epochs=50"]
    given += [f"model.config.{part}_dropout_prob=0" for part in ("hidden", "attention_probs")]
    step, left = VQATask.training_step, list[float]()

    def noting(task: Any, batch: Any, batch_idx: int) -> Any:
        entropy = torch.nn.functional.binary_cross_entropy(batch.labels, batch.labels, reduction="sum")
        left.append(float(entropy) / len(batch))
        return step(task, batch, batch_idx)

    monkeypatch.setattr(VQATask, "training_step", noting)
    run_in_process("train", demo_data, tmp_path / "run", *given, "model.config.hidden_size=128")
    with (tmp_path / "run/csv/metrics.csv").open() as file:
        losses = [float(line["train/loss"]) for line in csv.DictReader(file) if line["train/loss"]]
    assert len(left) == 100 and left[:2] == left[-2:] and len(losses) == 50
    assert losses[0] - left[1] > 3 and 0 <= losses[-1] - left[1] < 0.06


@pytest.mark.parametrize("flag", ["+trainer.fast_dev_run=true", "debug=fast_dev_run"])
def test_a_fast_run_of_everything_saves_nothing(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    seen = watched(monkeypatch)
    settings = [*TINY, "data.num_workers=0", flag, "++trainer.detect_anomaly=true"]
    printed = run_in_process("train", demo_data, tmp_path / "run", *settings)
    assert "trainer.fast_dev_run: a few batches of everything; nothing is saved" in printed
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    assert json.loads((tmp_path / "run/results.json").read_text())["checkpoint"] is None
    assert [place for place, _ in seen] == ["training", "validation", "test"]


def test_lightnings_flags_do_what_they_say(demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them would be missed: in the order of what happens, in the updates, or in the files."""
    seen = watched(monkeypatch)
    settings = {
        "num_sanity_val_steps": 3, "limit_train_batches": 6, "limit_val_batches": 4, "limit_test_batches": 5,
        "accumulate_grad_batches": 2, "val_check_interval": 3, "profiler": "simple", "max_epochs": 1,
    }  # fmt: skip
    given = [f"trainer.{name}={value}" for name, value in settings.items()]
    words = ["tags=[tried, out]", "notes='a first try'"]
    run = tmp_path / "run"
    printed = run_in_process("train", demo_data, run, *TINY, "data.num_workers=0", *given, *words)
    places = [(place, len(list(group))) for place, group in groupby(place for place, _ in seen)]
    training = [("training", 3), ("validation", 4)]
    assert places == [("validation", 3), *training, *training, ("test", 5)]
    saved = read_checkpoint(run / "checkpoints/last.ckpt")
    assert saved["global_step"] == 3
    assert all(tensor["step"] == 3 for tensor in saved["optimizer_states"][0]["state"].values())
    for stage in ("fit", "test"):
        assert "run_training_batch" in (run / "fit-profile.txt").read_text() and f"{run}/{stage}-profile.txt" in printed
    told = json.loads((run / "results.json").read_text())
    assert told["tags"] == ["tried", "out"] and told["notes"] == "a first try"
    assert b"a first try" in next((run / "tensorboard").glob("events.*")).read_bytes()


def test_a_figure_of_the_test_is_never_chosen_by(demo_data: Path, tmp_path: Path) -> None:
    sentence = refused_in_process("train", demo_data, tmp_path / "one", "optimized_metric=test/score")
    assert "optimized_metric=test/score is no figure of the validation" in sentence
    given = [*TINY, "data.num_workers=0", "trainer.limit_train_batches=1", "trainer.limit_val_batches=2"]
    with pytest.raises(SystemExit, match=r"optimized_metric=val/lss is no figure .* did you mean val/loss\?"):
        run_in_process("train", demo_data, tmp_path / "two", *given, "optimized_metric=val/lss")


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
