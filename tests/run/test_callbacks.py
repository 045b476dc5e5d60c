"""What a person sees while a run works, and that looking does not slow it."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import RichProgressBar

from vinvl.run import callbacks
from vinvl.run.callbacks import LineProgress, MovingProgress, progress, training_figures


def trainer(**figures: float) -> Any:
    metrics = {name: torch.tensor(value) for name, value in figures.items()}
    return SimpleNamespace(callback_metrics=metrics, training=True)


def test_loss_reward_and_pace_are_shown_where_there_are_any() -> None:
    seen = trainer(**{"train/loss": 2.5, "samples/s": 70.0, "train/gradient_norm": 3.0})
    assert training_figures(seen) == {"train/loss": 2.5, "samples/s": 70.0}
    assert training_figures(trainer()) == {}


def test_figures_are_read_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *arguments: {"val/score": 3.0})
    bar, seen = MovingProgress(), trainer(**{"train/loss": 2.0})
    module: Any = None
    assert bar.get_metrics(seen, module) == {"val/score": 3.0, "train/loss": 2.0}
    seen.callback_metrics["train/loss"] = torch.tensor(1.0)
    now[0] += 0.9
    assert bar.get_metrics(seen, module)["train/loss"] == 2.0
    now[0] += 0.2
    assert bar.get_metrics(seen, module)["train/loss"] == 1.0
    seen.training = False  # an evaluation's own figures stand beside the last ones of training
    seen.callback_metrics["train/loss"] = torch.tensor(9.0)
    now[0] += 5
    assert bar.get_metrics(seen, module)["train/loss"] == 1.0


def test_a_bar_for_terminals_and_lines_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert isinstance(progress(), MovingProgress)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert isinstance(progress(), LineProgress)
