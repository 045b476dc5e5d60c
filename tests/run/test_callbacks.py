"""What a person sees while a run works, and that looking does not slow it."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import RichProgressBar

from vinvl.run import callbacks
from vinvl.run.callbacks import LineProgress, MovingProgress, progress


def test_figures_are_read_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *arguments: {"val/score": 3.0})
    metrics = {"train/gradient_norm": torch.tensor(3.0)}  # which nobody looks at
    bar, seen, module = MovingProgress(), SimpleNamespace(callback_metrics=metrics, training=True), None
    shown: Any = bar.get_metrics
    assert shown(seen, module) == {"val/score": 3.0}
    for seconds, training, loss, expected in [(1.1, True, 2.0, 2.0), (0.9, True, 1.0, 2.0), (0.2, True, 1.0, 1.0),
                                              (5.0, False, 9.0, 1.0)]:  # fmt: skip
        metrics["train/loss"], seen.training = torch.tensor(loss), training
        now[0] += seconds
        assert shown(seen, module) == {"val/score": 3.0, "train/loss": expected}


def test_a_bar_for_terminals_and_lines_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal, kind in ((True, MovingProgress), (False, LineProgress)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda found=terminal: found, raising=False)
        assert isinstance(progress(), kind)
