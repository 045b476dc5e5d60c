"""What is told of long work: by lines where there is no terminal."""

import pytest

from vinvl.run.progress import progress, progress_lines, time_left


@pytest.mark.parametrize(
    ("left", "speed", "text"), [(10, 0.0, "some time"), (10, 1, "10 s"), (600, 2, "5 min"), (80_000, 10, "2 h 13 min")]
)
def test_time_left(left: int, speed: float, text: str) -> None:
    assert time_left(left, speed) == text


def test_lines_come_now_and_then_and_tell_the_speed_of_this_run(capsys: pytest.CaptureFixture[str]) -> None:
    now = 1000.0
    show = progress_lines("images", 5000, done=1000, clock=lambda: now)
    show(1001)
    now = 1040.0
    show(1400, ", 2 broken")
    now = 1050.0
    show(1500)  # too soon for another line
    now = 1080.0
    show(5000)
    assert capsys.readouterr().out.splitlines() == [
        "1,400 of 5,000 images, 10.00 images/s, 6 min left, 2 broken",
        "5,000 of 5,000 images, 50.00 images/s, 0 s left",
    ]


def test_a_bar_moves_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress("texts", 20) as show:
        show(20, ", done")
    assert "20 of 20 texts" in (told := capsys.readouterr()).err and ", done" in told.err and not told.out
