"""What is told of long work: by lines where there is no terminal."""

import pytest

from vinvl.run.progress import duration, progress, progress_lines


@pytest.mark.parametrize(("seconds", "text"), [(9.6, "10 s"), (300, "5 min"), (8000, "2 h 13 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lines_come_now_and_then_and_tell_the_speed_of_this_run(capsys: pytest.CaptureFixture[str]) -> None:
    now = 1000.0
    show = progress_lines("images", 5000, done=1000, clock=lambda: now)
    show(1001)
    for now, done, note in ((1030.0, 1000, ""), (1060.0, 1600, ", 2 broken"), (1070.0, 1650, ""), (1100.0, 5000, "")):  # noqa: B007
        show(done, note)  # the third too soon for another line
    assert capsys.readouterr().out.splitlines() == [
        "1,000 of 5,000 images, 0.00 images/s, some time left",
        "1,600 of 5,000 images, 10.00 images/s, 5 min left, 2 broken",
        "5,000 of 5,000 images, 40.00 images/s, 0 s left",
    ]


def test_a_bar_moves_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("texts", 20) as show:
        show(20, ", done")
    assert "20 of 20 texts" in (told := capsys.readouterr()).err and ", done" in told.err and not told.out
