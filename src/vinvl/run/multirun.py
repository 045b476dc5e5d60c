"""The table that ends a --multirun: what each job was given, and what came out."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from vinvl.run.errors import UserError
from vinvl.run.files import write_text_atomically
from vinvl.run.folders import FAILURE
from vinvl.run.progress import print_results

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
