"""The curves of a training run, from the metrics.csv that it leaves, as paths of SVG."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.run.files import reading

WIDTH, HEIGHT, LEFT, BELOW = 420.0, 190.0, 48.0, 22.0  # units of a chart; its axes' numbers stand left and below
MOST_POINTS = 200  # of a curve; of more, several together are one, their mean
DOTTED = 30  # points up to which each has a dot
MOST_CHARTS = 24
COLOURS = ("#24508f", "#c2571a", "#2b7a3d", "#7a3d8f", "#8f6d24", "#3d7a8f")
TAIL = ("epoch", "step")
Curve = Sequence[tuple[float, float]]


def read_curves(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Figure → its (step, value) in order, without cells that are no numbers. UserError if the file is unreadable."""
    curves = defaultdict[str, list[tuple[float, float]]](list)
    with reading(path), open(path, encoding="utf-8", errors="replace", newline="") as file:
        for row in _rows(csv.DictReader(file)):
            step = _number(row.get("step"))
            for name, cell in row.items() if math.isfinite(step) else ():
                if isinstance(name, str) and name not in TAIL and math.isfinite(value := _number(cell)):
                    curves[name].append((step, value))
    return {name: sorted(points, key=lambda one: one[0]) for name, points in curves.items()}


def _rows(reader: csv.DictReader[str]) -> Any:
    """The rows up to where the file is damaged."""
    try:
        yield from reader
    except csv.Error:
        return


def _number(cell: object) -> float:
    try:
        return float(cell) if isinstance(cell, str) else math.nan
    except ValueError:
        return math.nan


def charts(curves: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """What a page draws, losses and the score first: title, curves with their paths, ticks of both axes, `main`.

    Figures of a test are no curves.
    """
    shown = {name: curve for name, curve in curves.items() if not name.startswith("test/") and curve}
    losses = [name for name in shown if name.rpartition("/")[2] == "loss"]
    groups = {"loss": losses, "score in validation": [name for name in ("val/score",) if name in shown]}
    rest = [name for name in sorted(shown) if name not in (*losses, "val/score")]
    main = [_chart(title, {name: shown[name] for name in names}, True) for title, names in groups.items() if names]
    return [*main, *(_chart(name, {name: shown[name]}, False) for name in rest[: MOST_CHARTS - len(main)])]


def _chart(title: str, curves: Mapping[str, Curve], main: bool) -> dict[str, Any]:
    points = {name: np.array(curve, dtype=np.float64) for name, curve in curves.items()}  # (N, 2) each
    thinned = {name: _thinned(one) for name, one in points.items()}
    every = np.concatenate(list(thinned.values()))
    (first, low), (last, high) = every.min(axis=0), every.max(axis=0)
    margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    low, high, last = low - margin, high + margin, last if last > first else first + 1

    def place(point: Sequence[float]) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - 8) * (point[0] - first) / (last - first)
        return round(float(across), 1), round(float((HEIGHT - BELOW) * (high - point[1]) / (high - low)), 1)

    lines = []
    for colour, (name, curve) in zip(COLOURS * len(thinned), thinned.items(), strict=False):
        places = [place(one) for one in curve.tolist()]
        dots = [(*at, _told(name, *one)) for at, one in zip(places, curve.tolist(), strict=True)]
        path = "M" + "L".join(f"{x} {y}" for x, y in places)
        own = {"name": name, "path": path, "colour": colour, "dots": dots if len(dots) <= DOTTED else []}
        lines.append({**own, "last": f"{points[name][-1, 1]:.4g}"})
    heights = np.linspace(low + margin, high - margin, 4)
    return {
        "title": title,
        "main": main,
        "lines": lines,
        "together": max(math.ceil(len(one) / MOST_POINTS) for one in points.values()),
        "across": [(place((step, low))[0], f"{step:,.0f}") for step in np.linspace(first, last, 4)],
        "up": [(place((first, value))[1], f"{value:.3g}") for value in heights],
    }


def _told(name: str, step: float, value: float) -> str:
    return f"{name} {value:.4g} at step {step:,.0f}"


def _thinned(points: np.ndarray) -> np.ndarray:
    """(M, 2) of points (N, 2): the means of as many neighbours as leave no more than `MOST_POINTS`."""
    together = math.ceil(len(points) / MOST_POINTS)
    starts = np.arange(0, len(points), together)
    counts = np.diff(np.append(starts, len(points)))[:, None]
    means: np.ndarray = np.add.reduceat(points, starts, axis=0) / counts
    return means
