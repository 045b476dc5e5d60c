"""How far a long piece of work is: a moving bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vinvl.run.errors import printable, say
from vinvl.run.folders import write_json

# The short table that ends a run.


def print_results(
    title: str, rows: Sequence[tuple[str, ...]], files: Mapping[str, Path], columns: Sequence[str] = ("", "")
) -> None:
    """Prints rows of what was measured and its values as a table, and below it where the run's files lie.

    `columns` names the columns of the rows; no header is shown where all names are empty.
    """
    console = Console()
    table = Table(title=Text(printable(title)), title_justify="left", show_header=any(columns))
    for number, name in enumerate(columns):
        table.add_column(Text(printable(name)), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)
    for what, path in files.items():
        # Not through rich: it would wrap long paths, and a wrapped path cannot be copied.
        say(f"{what + ':':<18}{path}")


class Scored(Protocol):
    """A task that has been evaluated."""

    scores: dict[str, float]

    @property
    def headline(self) -> str: ...

    def result_rows(self) -> list[tuple[str, str]]: ...


def report(
    task: Scored,
    output_dir: Path,
    *,
    split: str | None,
    checkpoint: str | None,
    chosen_by: dict[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
    left_out: int = 0,
) -> None:
    """Writes results.json and prints the table of what came out and where it lies.

    Args:
        split: what was scored; None if nothing was.
        checkpoint: the best one.
        chosen_by: see `validation`.
        files: what else there is.
        left_out: records of the split that are not among those scored, for want of regions.
    """
    results = output_dir / "results.json"
    scores = task.scores if split is not None else {}
    content = {"split": split, "checkpoint": checkpoint, "headline": task.headline, "scores": scores}
    told = {"validation": chosen_by, "left_out": left_out}
    write_json(results, content | {name: value for name, value in told.items() if value})
    shown = {"run folder": output_dir, **(files or {}), "results": results}
    if checkpoint is not None:
        shown["best checkpoint"] = Path(checkpoint)
    rows = task.result_rows() if split is not None else []
    if left_out:
        rows.append(("records without regions, not scored", f"{left_out:,}"))
    if chosen_by:
        rows.append((f"chosen on '{chosen_by['split']}' by {chosen_by['figure']}", f"{chosen_by['score']:.2f}"))
    print_results(f"Results on '{split}'" if split is not None else "Trained", rows, shown)


LINE_SECONDS = 30.0  # between two lines in a log


class Show(Protocol):
    """Takes how much is done by now, and words for the end of the line."""

    def __call__(self, now: float, note: str = "") -> None: ...


@contextmanager
def progress(unit: str, total: float, done: float = 0) -> Iterator[Show]:
    """Shows how much of `total` is done, how fast, and how much time the rest will take.

    Args:
        unit: what is counted, such as "images".
        done: what was done before; it does not count in the speed.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield progress_lines(unit, total, done)
        return
    with Progress(BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=total, completed=int(done))
        begin = time.perf_counter()

        def show(now: float, note: str = "") -> None:
            speed = (now - done) / max(time.perf_counter() - begin, 1e-9)
            bar.update(task, completed=now, description=_told(unit, total, now, speed) + note)

        yield show


def progress_lines(unit: str, total: float, done: float = 0, *, clock: Callable[[], float] = time.perf_counter) -> Show:
    """`progress` in lines, also on a terminal: for work inside that of another moving bar."""
    begin = last = clock()

    def show(now: float, note: str = "") -> None:
        nonlocal last
        moment = clock()
        if moment - last >= LINE_SECONDS:
            last = moment
            speed = (now - done) / max(last - begin, 1e-9)
            say(f"{_told(unit, total, now, speed)}, {time_left(total - now, speed)} left{note}")

    return show


def time_left(left: float, speed: float) -> str:
    """`duration` of what is left; "some time" while the speed is not known."""
    return duration(left / speed) if speed > 0 else "some time"


def duration(seconds: float) -> str:
    """For a person: "3 h 20 min", "12 min", "40 s"."""
    seconds = round(seconds)
    hours, minutes = seconds // 3600, seconds % 3600 // 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{seconds} s"


def _told(unit: str, total: float, now: float, speed: float) -> str:
    return f"{now:,.0f} of {total:,.0f} {unit}, {speed:,.{2 if speed < 100 else 0}f} {unit}/s"
