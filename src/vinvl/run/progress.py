"""How far a long piece of work is, and what came out: a bar or lines, and the tables that end a run or a --multirun."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vinvl.run.errors import UserError, printable, say
from vinvl.run.files import write_json, write_text_atomically
from vinvl.run.folders import FAILURE

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


# The table that ends a --multirun: what each job was given, and what came out.


NOTHING = "no result"


class MultirunTable(Callback):
    """Prints a row per job and writes it to `multirun.csv` in the folder of the sweep.

    Reads the jobs' folders, so that jobs on other machines (hydra/launcher=submitit_slurm) are in the table too.
    """

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra when all jobs of a sweep have ended; ends the process with code 1 if one has failed."""
        folder = Path(config.hydra.sweep.dir)
        rows = job_rows(folder)
        if not rows:
            return
        columns, table = comparison(rows)
        path = folder / "multirun.csv"
        write_text_atomically(path, as_csv(columns, table))
        print_results(f"{len(rows)} jobs", table, {"jobs": folder, "table": path}, columns)
        failed = [name for name, _, _ in rows if (folder / name / FAILURE).is_file()]
        if failed:
            sys.exit(f"error: failed: {', '.join(failed)}; {FAILURE} in the folder of each says why.")


def job_rows(folder: Path) -> list[tuple[str, dict[str, str], dict[str, float]]]:
    """Of each job of a sweep, in their order: its name, its overrides, and its figures ({} where it has none)."""
    jobs = [path.parents[1] for path in folder.glob("*/.hydra/overrides.yaml")]
    jobs.sort(key=lambda job: (len(job.name), job.name))  # 2 before 10
    return [(job.name, overrides_of(job), figures_of(job)) for job in jobs]


def overrides_of(job: Path) -> dict[str, str]:
    """What a job's command line said, value by key."""
    listed = OmegaConf.to_container(OmegaConf.load(job / ".hydra" / "overrides.yaml"))
    pairs = (str(one).lstrip("+~").split("=", 1) for one in listed or [])
    return {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}


def figures_of(job: Path) -> dict[str, float]:
    """The figures of a job's results.json that a table of jobs shows: see `results_summary`.

    Raises:
        UserError: the file is not one that our doors write.
    """
    path = job / "results.json"
    if not path.is_file():
        return {}
    try:
        return results_summary(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no result file of vinvl ({error}); remove it or run the job again.") from error


def results_summary(results: dict[str, Any]) -> dict[str, float]:
    """Of a results.json the `summary`, else the headline at test and, last, the figure that jobs should be chosen by.

    That is the score of the best checkpoint in validation; an evaluation has none, and its headline needs no more name.
    """
    summary = results.get("summary")
    if summary is None:
        chosen_by, scores, headline = results.get("validation"), results["scores"], results["headline"]
        summary = {f"test {headline}" if chosen_by else headline: scores[headline]} if scores or not chosen_by else {}
        summary |= {f"val {chosen_by['figure']}": chosen_by["score"]} if chosen_by else {}
    return {str(name): float(value) for name, value in summary.items()}


def comparison(
    rows: Sequence[tuple[str, Mapping[str, str], Mapping[str, float]]],
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows of the table: the overrides in which the jobs differ, the figures, and what the last one gains.

    Args:
        rows: of each job its name, its overrides and its figures.

    Returns:
        the names of the columns, and rows of as many texts. The gain is that of the last figure over the first job's.
    """
    keys = list(dict.fromkeys(key for _, overrides, _ in rows for key in overrides))
    differing = [key for key in keys if len({overrides.get(key) for _, overrides, _ in rows}) > 1]
    longest = max((figures for _, _, figures in rows), key=len)  # names every figure in order: a job may lack some
    names = list(longest)
    first_job, first = rows[0][0], rows[0][2]
    table = []
    for job, overrides, figures in rows:
        shown = [f"{figures[name]:.2f}" if name in figures else "" for name in names]
        if not figures:
            shown = [NOTHING, *shown[1:]]
        if names:
            last = names[-1]
            both = last in figures and last in first and job != first_job
            shown.append(f"{figures[last] - first[last]:+.2f}" if both else "")
        table.append((job, *(overrides.get(key, "") for key in differing), *shown))
    gain = [f"gain over job {first_job}"] if names else ["result"]
    return ["job", *differing, *names, *gain], table


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as text."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()
