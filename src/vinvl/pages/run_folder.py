"""What the folder of a run holds that a person looks at afterwards: settings, figures, curves, examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vinvl.examples import BOXES, EXAMPLES, SPLITS, Examples, SeenPicture, examples_of, read_boxes
from vinvl.pages.curves import read_curves
from vinvl.run.errors import UserError
from vinvl.run.files import json_object, read_bytes

NEWEST = "last"  # what run= may say instead of a folder
SETTINGS, GIVEN, RESULTS = ".hydra/config.yaml", ".hydra/overrides.yaml", "results.json"
METRICS = ("csv/metrics.csv", "metrics.csv")
MOST_CHARACTERS = 200_000  # of the settings


@dataclass(frozen=True)
class FinishedRun:
    """A run of `vinvl.train` or `vinvl.evaluate`.

    Attributes:
        results: results.json; {} where the run has not ended.
        settings: Hydra's configuration as YAML, and what the command gave, "" where they are not there.
        trained: the folder of the run that trained the checkpoint, which may be another one, or none.
        curves: of that run; see `read_curves`.
        examples: None where there are none.
        boxes: of a detector some pictures with their true and found boxes.
    """

    folder: Path
    results: dict[str, Any]
    settings: str
    given: str
    trained: Path | None
    curves: dict[str, list[tuple[float, float]]]
    examples: Examples | None
    boxes: Sequence[SeenPicture] = ()

    @classmethod
    def of(cls, place: str, runs_dir: Path, split: str | None = None) -> FinishedRun:
        """That of a folder, a file of examples in one, the newest in a folder of runs or, with "last", of all.

        `split`: which examples, where an evaluation has scored several. Raises UserError for anything else.
        """
        folder = find_run(place, runs_dir)
        results = _results(folder)
        trained = next((one for one in (folder, _trained_in(results)) if one is not None and _metrics(one)), None)
        metrics = None if trained is None else _metrics(trained)
        given = Path(place).expanduser()
        source = given if given.is_file() else folder if any(folder.glob("examples*.parquet")) else None
        return cls(
            folder,
            results,
            _text(folder / SETTINGS),
            _text(folder / GIVEN),
            trained,
            {} if metrics is None else read_curves(metrics),
            None if source is None else examples_of(source, split),
            read_boxes(folder / BOXES) if (folder / BOXES).is_file() else (),
        )

    @property
    def scores(self) -> dict[str, float]:
        """The figures by name, the headline first."""
        headline, found = self.results.get("headline"), self.results.get("scores") or {}
        return {name: found[name] for name in sorted(found, key=lambda one: one != headline)}


def find_run(place: str, runs_dir: Path) -> Path:
    """The folder of a run. Raises UserError if there is none."""
    path = Path(place).expanduser()
    if place == NEWEST and not path.exists():
        return _newest(runs_dir, ("*/*", "*/*/*"), f"run=last: no run under {runs_dir} has left anything to look at")
    if not path.exists():
        raise UserError(f"run={place} does not exist: give the folder of a run, or run=last for the newest.")
    if path.is_file():
        return path.parent
    return path if _is_run(path) else _newest(path, ("*",), f"{path} is no folder of a run, and holds none")


def _newest(folder: Path, patterns: Sequence[str], none: str) -> Path:
    found = [one for pattern in patterns for one in folder.glob(pattern) if _is_run(one)]
    if not found:
        raise UserError(f"{none}: give the folder of a run of vinvl.train or vinvl.evaluate, with a {RESULTS}.")
    return max(found, key=_last_written)


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and _last_written(folder) > 0


def _last_written(folder: Path) -> float:
    """When a run has last written something to look at; 0 if it has not."""
    there = [one for name in (EXAMPLES, SPLITS, RESULTS, *METRICS) for one in folder.glob(name)]
    return max((one.stat().st_mtime for one in there), default=0)


def _results(folder: Path) -> dict[str, Any]:
    path = folder / RESULTS
    if not path.exists():
        return {}
    if (folder / "predictions.jsonl").exists():
        raise UserError(f"{folder} is a run of vinvl.predict, which scores nothing: give one of vinvl.evaluate.")
    found = json_object(path)
    scores = found.get("scores", {})
    if not isinstance(scores, dict) or not all(isinstance(value, int | float) for value in scores.values()):
        raise UserError(f"{path} is no result file of vinvl: its scores are no numbers by name; run the job again.")
    return found


def _trained_in(results: dict[str, Any]) -> Path | None:
    """The run folder of the checkpoint that was scored."""
    path = results.get("checkpoint")
    return Path(path).parents[1] if isinstance(path, str) and len(Path(path).parents) > 1 else None


def _metrics(folder: Path) -> Path | None:
    return next((folder / name for name in METRICS if (folder / name).is_file()), None)


def _text(path: Path) -> str:
    return read_bytes(path).decode("utf-8", "replace")[:MOST_CHARACTERS] if path.is_file() else ""
