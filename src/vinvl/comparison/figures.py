"""The figures of two models on one split, how they differ, and how sure that is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from vinvl.comparison.pairing import Pairs
from vinvl.comparison.statistics import (
    bootstrap,
    flip_p_values,
    holm,
    interval,
    mcnemar_p_value,
    mean_differences,
    sign_flips,
    sums_by_picture,
)
from vinvl.examples import GROUPINGS, OTHERS, RETRIEVAL, RIGHT_FROM

DRAWS = 10_000
RECALL_AT = (1, 5, 10)


class Figure(NamedTuple):
    """A figure of A and of B over some of the examples: the mean of their scores."""

    name: str
    grouping: str  # what is told apart, "" of all examples
    rows: np.ndarray  # (N,) bool
    one: np.ndarray  # (N,) float64, scores in percent
    other: np.ndarray


@dataclass(frozen=True)
class Difference:
    """What came out for a figure. `p` is by sign flips; `p_holm` the same within all of its grouping."""

    name: str
    grouping: str
    examples: int
    units: int  # pictures with such examples
    first: float
    second: float
    difference: float  # first − second
    low: float  # of the interval of 95 %
    high: float
    p: float
    p_holm: float | None = None


@dataclass(frozen=True)
class McNemar:
    """How many examples one model alone has right, and how likely so uneven a split would be by chance."""

    only_first: int
    only_second: int
    p: float


@dataclass(frozen=True)
class RunComparison:
    """The headline figure first; then those of groups."""

    differences: tuple[Difference, ...]
    mcnemar: McNemar | None  # of accuracies
    units: int  # drawn by the bootstrap
    unit: str  # what they are: "pictures"
    draws: int
    seed: int

    @property
    def headline(self) -> Difference:
        return self.differences[0]

    def plain(self) -> dict[str, Any]:
        """As it goes into compare.json; nan becomes null."""
        rows = [
            {name: None if value != value else value for name, value in asdict(one).items()} for one in self.differences
        ]
        return asdict(self) | {"differences": rows}


def figures_of(pairs: Pairs) -> list[Figure]:
    """Of retrieval six recalls, or those that there are; of all others the headline, and the same of each group."""
    scores, everything = pairs.numpy("score"), np.ones(len(pairs), dtype=bool)
    groupings = GROUPINGS.get(pairs.task, OTHERS)
    if pairs.task == RETRIEVAL:
        ranks = pairs.numpy("rank")
        directions, codes = pairs.codes("group")
        ways = [(way.replace("_to_", " → "), codes == code) for code, way in enumerate(directions)]
        return [
            Figure(f"{way} R@{k}", "direction", rows, *(100.0 * ((one >= 0) & (one < k)) for one in ranks))
            for way, rows in ways
            for k in RECALL_AT
        ]
    figures = [Figure(pairs.first.about.headline, "", everything, *scores)]
    for column, called in groupings.items():
        groups, codes = pairs.codes(column)
        if len(groups) > 1:
            named = ((group or "(none)", codes == code) for code, group in enumerate(groups))
            figures += [Figure(group, called, rows, *scores) for group, rows in named]
    return figures


def compare(pairs: Pairs, draws: int = DRAWS, seed: int = 0) -> RunComparison:
    """Compares all figures of two models; of retrieval also the mean of the recalls, which is its headline."""
    figures = figures_of(pairs)
    names, pictures, called = pairs.units()

    def sums(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        return sums_by_picture(pictures[rows], values[rows], len(names))

    differences = np.stack([sums(one.rows, one.one - one.other) for one in figures], axis=1)  # (M, K)
    counts = np.stack([sums(one.rows, one.rows * 1.0) for one in figures], axis=1)
    rng = np.random.default_rng(seed)
    found = mean_differences(differences, counts)
    drawn, flipped = bootstrap(differences, counts, draws, rng), sign_flips(differences, counts, draws, rng)
    told = [(one.name, one.grouping) for one in figures]
    sizes = [(int(size.sum()), int(np.count_nonzero(size))) for size in counts.T]
    means = np.array([[scores[one.rows].mean() for scores in (one.one, one.other)] for one in figures])
    if pairs.task == RETRIEVAL:
        told, sizes = [("mean of the recalls", ""), *told], [(len(pairs), len(names)), *sizes]
        means = np.insert(means, 0, means.mean(axis=0), axis=0)
        found, drawn, flipped = (
            np.concatenate([one.mean(axis=-1, keepdims=True), one], axis=-1) for one in (found, drawn, flipped)
        )
    results = np.stack([*means.T, found, *interval(drawn), flip_p_values(found, flipped)], axis=1).tolist()
    found_of = [
        Difference(*name, *size, first, second, difference, low, high, p)
        for name, size, (first, second, difference, low, high, p) in zip(told, sizes, results, strict=True)
    ]
    return RunComparison(adjusted(found_of), mcnemar_of(pairs), len(names), called, draws, seed)


def adjusted(differences: Sequence[Difference]) -> tuple[Difference, ...]:
    """With the p values after Holm within each grouping."""
    result = list(differences)
    for grouping in {one.grouping for one in differences} - {""}:
        places = [place for place, one in enumerate(differences) if one.grouping == grouping]
        for place, p in zip(places, holm(np.array([differences[one].p for one in places])).tolist(), strict=True):
            result[place] = replace(differences[place], p_holm=p)
    return tuple(result)


def mcnemar_of(pairs: Pairs) -> McNemar | None:
    """Of accuracies; an example is right from a score of `RIGHT_FROM` on."""
    if "accuracy" not in pairs.first.about.headline:
        return None
    one, other = (scores >= RIGHT_FROM for scores in pairs.numpy("score"))
    only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
    return McNemar(only_first, only_second, mcnemar_p_value(only_first, only_second))
