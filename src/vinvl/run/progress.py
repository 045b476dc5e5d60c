"""How far a long piece of work is, and what came out: a bar or lines, and the tables that end a run or a --multirun."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vinvl.run.errors import UserError, printable, say
from vinvl.run.files import atomic_write, write_json
from vinvl.run.folders import FAILURE

# The short table that ends a run.


def print_results(
    title: str, rows: Sequence[tuple[str, ...]], files: Mapping[str, Path], columns: Sequence[str] = ("", "")
) -> None:
    """Prints rows of what was measured and its values as a table, and below it where the run's files lie.

    `columns` names the columns of the rows; no header is shown where all names are empty.
    """
    table = Table(title=Text(printable(title)), title_justify="left", show_header=any(columns))
    for number, name in enumerate(columns):
        table.add_column(Text(printable(name)), justify="right" if number else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    text = io.StringIO()
    Console(file=text, width=Console().width).print(table)
    say(*(line.rstrip() for line in text.getvalue().splitlines()) if rows else [title])
    width = max([17, *map(len, files)])
    for what, path in files.items():
        # Not through rich: it would wrap long paths, and a wrapped path cannot be copied.
        say(f"{what + ':':<{width}} {path}")


def part_of(batches: int | float | Sequence[int | float], loaders: Any) -> str | None:
    """What of a split a trainer reads, as "2 of 57 batches" of its rank; None if that is all of it.

    Args:
        batches: the trainer's `num_val_batches` or `num_test_batches`.
        loaders: its `val_dataloaders` or `test_dataloaders`, one or several.
    """
    if loaders is None:
        return None
    done = sum(batches) if isinstance(batches, Sequence) else batches
    whole = sum(map(len, loaders)) if isinstance(loaders, list | tuple) else len(loaders)
    return None if done >= whole else f"{done:,} of {whole:,} batches"


def report(
    task: Any,
    output_dir: Path,
    *,
    split: str | None,
    checkpoint: str | None,
    chosen_by: dict[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
    left_out: int = 0,
) -> None:
    """Writes results.json and the examples, and prints the table of what came out and where it lies.

    Args:
        task: a `VinVLTask`, after its evaluation.
        split: what was scored; None if nothing was.
        checkpoint: the best one.
        chosen_by: see `checkpoint.validation`.
        files: what else there is.
        left_out: records of the split that are not among those scored, because they have no regions.
    """
    results, trainer = output_dir / "results.json", task.trainer
    if split is not None and not sum(trainer.num_test_batches):  # trainer.limit_test_batches=0
        split = None
    part = None if split is None else part_of(trainer.num_test_batches, trainer.test_dataloaders)
    scores, rows = ({}, []) if split is None else (task.scores, task.result_rows())
    content = {"split": split, "checkpoint": checkpoint, "headline": task.headline, "scores": scores}
    told = {"part": part, "validation": chosen_by, "left_out": left_out}
    told |= {name: task.run_config.get(name) for name in ("tags", "notes")}
    write_json(results, content | {name: value for name, value in told.items() if value})
    examples = {} if split is None else task.write_examples(output_dir, split, str(checkpoint), left_out)
    shown = {"run folder": output_dir, **(files or {}), "results": results, **examples}
    shown |= {f"{PROFILE} of {path.stem.split('-')[0]}": path for path in sorted(output_dir.glob(f"*-{PROFILE}.txt"))}
    if checkpoint is not None:
        shown["best checkpoint"] = Path(checkpoint)
    if left_out:
        rows.append(("records without regions, not scored", f"{left_out:,}"))
    if chosen_by:
        what = with_part(f"chosen on '{chosen_by['split']}' by {chosen_by['figure']}", chosen_by.get("part"))
        rows.append((what, f"{chosen_by['score']:.2f}"))
    print_results("Trained" if split is None else with_part(f"Results on '{split}'", part), rows, shown)


def with_part(what: str, part: str | None) -> str:
    """What was measured, and on which part of a split (`part_of`) if not on all of it."""
    return what if part is None else f"{what}, {part} only"


PROFILE = "profile"  # in the names of the files that say where time went


def profiler(config: DictConfig) -> Any:
    """What `trainer.profiler` means, with its tables in files of the run's folder.

    A profiler that is only named tells them to a log of Lightning's, which the doors keep quiet.
    """
    from pytorch_lightning.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler

    asked: Any = config.trainer.get("profiler")
    named = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}
    if not isinstance(asked, str) or asked not in named:
        return instantiate(asked) if OmegaConf.is_config(asked) else asked
    return named[asked](dirpath=config.paths.output_dir, filename=PROFILE)


LINE_SECONDS = 30.0  # between two lines in a log
Show = Callable[..., None]
"""(how much is done by now, words for the end of the line or none)."""


@contextmanager
def progress(unit: str, total: float, done: float = 0, *, error: bool = False) -> Iterator[Show]:
    """Shows how much of `total` is done, how fast, and how much time the rest will take.

    Args:
        unit: what is counted, such as "images".
        done: what was done before; it does not count in the speed.
        error: where there is no terminal, lines to the standard error, not to the standard output.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield progress_lines(unit, total, done, error=error)
        return
    with Progress(BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=total, completed=int(done))
        begin = time.perf_counter()

        def show(now: float, note: str = "") -> None:
            speed = (now - done) / max(time.perf_counter() - begin, 1e-9)
            bar.update(task, completed=now, description=_told(unit, total, now, speed) + note)

        yield show


def progress_lines(
    unit: str,
    total: float,
    done: float = 0,
    *,
    error: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Show:
    """`progress` in lines, also on a terminal: for work inside that of another moving bar."""
    begin = last = clock()

    def show(now: float, note: str = "") -> None:
        nonlocal last
        moment = clock()
        if moment - last >= LINE_SECONDS:
            last = moment
            speed = (now - done) / max(last - begin, 1e-9)
            left = duration((total - now) / speed) if speed > 0 else "some time"
            say(f"{_told(unit, total, now, speed)}, {left} left{note}", error=error)

    return show


class LiveLine:
    """The one line of a terminal that moves: what is worked on, how far it is, and figures as far as there is room."""

    BAR = 10  # columns that it has at the least
    SECONDS = 0.1  # between two movements

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=None), TextColumn("{task.fields[told]}"))
        self._bar = Progress(*columns, console=console, transient=True, expand=True)
        self._task: TaskID | None = None
        self._moved = 0.0
        self._begin: tuple[float, int] | None = None  # when the first movement was, and what was done by then

    def show(self, what: str, done: int, total: float, figures: Sequence[str]) -> None:
        """Begins with another work, of which `done` of `total` is done."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        known = total if math.isfinite(total) else None
        self._what, self._done, self._total, self._begin = what, done, known, None
        self._task = self._bar.add_task(what, total=known, told="")
        self._tell(figures)
        self._bar.start()

    def move(self, done: int | None, figures: Sequence[str]) -> None:
        """Now `done` is done, or one more than before."""
        self._done = self._done + 1 if done is None else done
        self._begin = self._begin or (time.perf_counter(), self._done)
        if time.perf_counter() - self._moved >= self.SECONDS or self._done == self._total:
            self._tell(figures)

    def stop(self) -> None:
        self._bar.stop()

    def _tell(self, figures: Sequence[str]) -> None:
        assert self._task is not None
        self._moved = time.perf_counter()
        since, before = self._begin or (self._moved, self._done)
        parts = [f"{self._done:,}" if self._total is None else f"{self._done:,}/{self._total:,}"]
        if self._total is not None and self._done > before:
            left = (self._total - self._done) * (self._moved - since) / (self._done - before)
            parts.append(f"{duration(left)} left")
        room = self._bar.console.width - len(self._what) - self.BAR - 2
        for part in figures:
            if len("  ".join([*parts, part])) <= room:
                parts.append(part)
        self._bar.update(self._task, completed=self._done, told="  ".join(parts))


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
Job = tuple[str, dict[str, str], dict[str, float], str]
"""Name, overrides by key, figures ({} where it has none), and what part of a split they are of, "" for all of it."""


class MultirunTable(Callback):
    """Prints a row per job and writes it to `multirun.csv` in the folder of the sweep; see also `grid`.

    Reads the jobs' folders, so that jobs on other machines (hydra/launcher=submitit_slurm) are in the table too.
    """

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Called by Hydra when all jobs of a sweep have ended; ends the process with code 1 if one has failed."""
        folder = Path(config.hydra.sweep.dir)
        rows = job_rows(folder)
        if not rows:
            return
        columns, table = comparison(rows)
        path = write_table(folder / "multirun.csv", columns, table)
        print_results(f"{len(rows)} jobs", table, {"jobs": folder, "table": path}, columns)
        if (crossed := grid(rows)) is not None:
            path = write_table(folder / "grid.csv", crossed.columns, crossed.rows)
            print_results(crossed.title, crossed.rows, {"grid": path}, crossed.columns)
        failed = [name for name, *_ in rows if (folder / name / FAILURE).is_file()]
        if failed:
            sys.exit(f"error: failed: {', '.join(failed)}; {FAILURE} in the folder of each says why.")


def write_table(path: Path, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Path:
    """Writes a table as CSV; returns its path."""
    with atomic_write(path) as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return path


def job_rows(folder: Path) -> list[Job]:
    """The jobs of a sweep, in their order. Raises UserError for a result file that is not of our doors."""
    rows = []
    for path in folder.glob("*/.hydra/overrides.yaml"):
        pairs = (str(one).lstrip("+~").partition("=") for one in OmegaConf.to_container(OmegaConf.load(path)) or [])
        job = path.parents[1]
        results, figures, part = job / "results.json", dict[str, float](), ""
        try:
            if results.is_file():
                content = json.loads(results.read_text(encoding="utf-8"))
                figures, part = results_summary(content), parts_told(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{results} is no result file of vinvl ({error}); remove it or run the job again."
            ) from error
        rows.append((job.name, {key: value for key, _, value in pairs}, figures, part))
    return sorted(rows, key=lambda row: (len(row[0]), row[0]))  # 2 before 10


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


def parts_told(results: Mapping[str, Any]) -> str:
    """What part of a split the figures of `results_summary` are of, where it is not all of it (`part_of`)."""
    if "summary" in results:
        return str(results.get("part", ""))
    parts = {"test": results.get("part"), "val": (results.get("validation") or {}).get("part")}
    return ", ".join(f"{where} {part}" for where, part in parts.items() if part)


def comparison(rows: Sequence[Job]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Columns and rows of the table: the overrides in which the jobs differ, the figures, and what the last one gains.

    Returns the names of the columns, and rows of as many texts. The gain is that of the last figure over the first job.
    Where a figure is of part of a split, a last column says of which.
    """
    differing, names = differing_keys(rows), figure_names(rows)
    first_job, _, first, _ = rows[0]
    in_parts = any(part for *_, part in rows)
    table = []
    for job, overrides, figures, part in rows:
        shown = [f"{figures[name]:.2f}" if name in figures else "" for name in names]
        if not figures:
            shown = [NOTHING, *shown[1:]]
        if names:
            last = names[-1]
            both = last in figures and last in first and job != first_job
            shown.append(f"{figures[last] - first[last]:+.2f}" if both else "")
        shown += [part] if in_parts else []
        table.append((job, *(overrides.get(key, "") for key in differing), *shown))
    gain = [f"gain over job {first_job}"] if names else ["result"]
    return ["job", *differing, *names, *gain, *(["only of"] if in_parts else [])], table


def differing_keys(rows: Sequence[Job]) -> list[str]:
    """The overrides in which jobs differ, in the order of the command."""
    keys = list(dict.fromkeys(key for _, overrides, *_ in rows for key in overrides))
    return [key for key in keys if len({overrides.get(key) for _, overrides, *_ in rows}) > 1]


def figure_names(rows: Sequence[Job]) -> list[str]:
    """Every figure in order: a job may lack some."""
    longest = max((figures for _, _, figures, _ in rows), key=len)
    return list(longest)


class Grid(NamedTuple):
    """One figure of jobs that differ in two things, as papers print ablations."""

    title: str
    columns: list[str]
    rows: list[tuple[str, ...]]


def grid(rows: Sequence[Job]) -> Grid | None:
    """The values of one key × those of another, a job a cell, with the gain of the last over the first both ways.

    The cells are the figure at test, or the last one where there is none. None unless jobs differ in exactly two keys,
    each pair of their values belongs to one job, and there is a figure.
    """
    keys, names = differing_keys(rows), figure_names(rows)
    pairs = {tuple(overrides.get(key, "") for key in keys): figures for _, overrides, figures, _ in rows}
    if len(keys) != 2 or len(pairs) < len(rows) or not names:
        return None
    shown = next((name for name in reversed(names) if "test" in name.split()), names[-1])
    down, across = ([*dict.fromkeys(pair[side] for pair in pairs)] for side in (0, 1))
    found = [[pairs.get((one, other), {}).get(shown, math.nan) for other in across] for one in down]
    table = [[name, *map(_cell, line), _gain(line)] for name, line in zip(down, found, strict=True)]
    table.append(["gain", *map(_gain, zip(*found, strict=True)), ""])
    return Grid(f"{shown}, {keys[0]} × {keys[1]}", [keys[0], *across, "gain"], [tuple(line) for line in table])


def _cell(value: float) -> str:
    return NOTHING if math.isnan(value) else f"{value:.2f}"


def _gain(line: Sequence[float]) -> str:
    return "" if math.isnan(gain := line[-1] - line[0]) or len(line) < 2 else f"{gain:+.2f}"
