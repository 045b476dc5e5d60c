"""What a person sees while pictures are worked on: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vinvl.errors import say

LINE_SECONDS = 30.0  # between two lines in a log
Show = Callable[[int, int], None]


@contextmanager
def picture_progress(total: int, done: int = 0) -> Iterator[Show]:
    """A function that is told how many of `total` pictures are done by now, and how many of these are broken.

    Args:
        done: pictures that were done before; they do not count in the speed.
    """
    console = Console(stderr=True)
    begin = time.perf_counter()
    if not console.is_terminal:
        yield _lines(total, done, begin)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[broken]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=total, completed=done, speed="", broken="")

        def show(now: int, broken: int) -> None:
            speed = pace(now - done, time.perf_counter() - begin)
            bar.update(task, completed=now, speed=f"{speed:,.2f} images/s", broken=_broken(broken))

        yield show


def pace(pictures: int, seconds: float) -> float:
    """Pictures a second."""
    return pictures / seconds if seconds > 0 else 0.0


def time_left(left: int, speed: float) -> str:
    """For a person: "3 h 20 min", "12 min", "40 s"; "some time" while the speed is not known."""
    if speed <= 0:
        return "some time"
    seconds = round(left / speed)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


def _lines(total: int, done: int, begin: float) -> Show:
    last = begin

    def show(now: int, broken: int) -> None:
        nonlocal last
        moment = time.perf_counter()
        if moment - last >= LINE_SECONDS:
            last = moment
            speed = pace(now - done, moment - begin)
            left = time_left(total - now, speed)
            say(f"{now:,} of {total:,} images, {speed:,.2f} images/s, {left} left{_broken(broken)}")

    return show


def _broken(count: int) -> str:
    return f", {count:,} broken" if count else ""
