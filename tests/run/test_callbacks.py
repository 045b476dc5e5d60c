"""What a person sees while a run works, and that looking does not slow it."""

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from vinvl.run import callbacks, progress
from vinvl.run.callbacks import RunProgress
from vinvl.run.progress import LiveLine


class Line:
    """In place of the line on a terminal."""

    told: tuple[str, ...] = ()

    def move(self, done: int | None, figures: list[str]) -> None:
        self.told = tuple(figures)


def test_figures_are_means_and_read_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])
    metrics = {"train/gradient_norm": torch.tensor(3.0), "samples/s": torch.tensor(123.4)}  # the first is not shown
    trainer: Any = SimpleNamespace(callback_metrics=metrics, progress_bar_metrics={"val/score": 3.0, "v_num": 1})
    shown, line, nothing = RunProgress(), Line(), Any
    shown._line = line  # type: ignore[assignment]
    for seconds, loss, mean in [(1.1, 2.0, 2.0), (0.9, 1.0, 2.0), (0.2, 6.0, 3.0), (0.3, 9.0, 3.0)]:
        metrics["train/loss"] = torch.tensor(loss)
        now[0] += seconds
        shown.on_train_batch_end(trainer, nothing, nothing, nothing, 0)  # type: ignore[arg-type]
        assert line.told == (f"mean loss {mean:.4g}", "val/score 3", "123 samples/s")
    for _ in range(callbacks.SMOOTHED):
        metrics["train/reward"] = torch.tensor(0.25)
        shown.on_train_batch_end(trainer, nothing, nothing, nothing, 0)  # type: ignore[arg-type]
    assert shown.figures(trainer)[:2] == ["mean loss 9", "mean reward 0.25"]


def test_a_line_that_moves_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for terminal in (True, False):
        monkeypatch.setattr(sys.stdout, "isatty", lambda found=terminal: found, raising=False)
        shown = callbacks.progress()
        assert isinstance(shown, RunProgress) and shown.live == terminal


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_live_line_is_one_line(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as much as fits: what is done and the time left always."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    terminal = io.StringIO()
    line = LiveLine(Console(file=terminal, force_terminal=True, width=width, legacy_windows=False, color_system=None))
    line.show("epoch 12 of 88", 3000, 45678, [])
    figures = ["mean loss 1.234", "val/score 65.43", "1.23e+03 samples/s"]
    line.move(3001, figures)
    now[0] += 100
    line.move(4001, figures)
    line._bar.refresh()
    rendered = terminal.getvalue().replace("\r", "\n").split("\n")[-1].replace("\x1b[2K", "")
    line.stop()
    begin, end = "epoch 12 of 88 ", "4,001/45,678  1 h 9 min left"
    wanted = {60: [], 80: figures[:1], 120: figures}[width]
    assert rendered.startswith(begin) and rendered.rstrip().endswith("  ".join([end, *wanted]))
    assert len(rendered) <= width and rendered.index(end) - len(begin) >= LiveLine.BAR
