"""How sure a difference between two models is, where both were asked the same about pictures.

Questions about one picture are not independent: a model that misreads a picture fails several of them. So whole
pictures are drawn (cluster bootstrap, Field and Welsh 2007) and have their signs flipped, never single questions.
Letters: M pictures, K figures, R draws.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
BLOCK_BYTES = 1 << 25  # of the weights that are held at a time
COVERAGE = 95.0  # percent, of the intervals


def sums_by_picture(pictures: NDArray[np.int64], values: Floats, num_pictures: int) -> Floats:
    """(M,) sums of the values (N,) of each picture, whose number (N,) each example has."""
    return np.bincount(pictures, values, num_pictures).astype(np.float64, copy=False)


def mean_differences(differences: Floats, counts: Floats) -> Floats:
    """(K,) mean difference of an example in each figure, of the pictures' sums and their numbers of examples (M, K)."""
    return _means(differences.sum(axis=0), counts.sum(axis=0))


def bootstrap(differences: Floats, counts: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """(R, K) mean differences of R draws of M pictures with replacement; nan where a draw has no example of a figure.

    Args:
        differences, counts: (M, K) sums of a picture's examples in each figure, and how many these are.
    """
    pictures = len(differences)
    # Half the time of double precision; the sums are right to six digits, far below what the draws vary.
    both = np.concatenate([differences, counts], axis=1).astype(np.float32)

    def weights() -> NDArray[np.int64]:
        """(M,) how often each picture is drawn."""
        return np.bincount(rng.integers(0, pictures, pictures, dtype=np.int32), minlength=pictures)

    sums, sizes = np.split(_weighed(both, draws, weights), 2, axis=1)
    return _means(sums.astype(np.float64), sizes.astype(np.float64))


def sign_flips(differences: Floats, counts: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """(R, K) mean differences where a coin decides for each picture which of the two models is called the first.

    That is how they vary where neither is better.
    """
    pictures = len(differences)

    def signs() -> NDArray[np.int8]:
        return 2 * rng.integers(0, 2, pictures, dtype=np.int8) - 1

    return _means(_weighed(differences, draws, signs), counts.sum(axis=0))


def _weighed(columns: np.ndarray, draws: int, weights: Callable[[], np.ndarray]) -> np.ndarray:
    """(R, K) sums of the columns (M, K), weighed anew R times by (M,) weights, in the precision of the columns."""
    block = max(1, BLOCK_BYTES // (8 * len(columns)))
    sums = np.empty((draws, columns.shape[1]), columns.dtype)
    held = np.empty((block, len(columns)), columns.dtype)
    for start in range(0, draws, block):
        size = min(block, draws - start)
        for row in held[:size]:
            row[:] = weights()
        sums[start : start + size] = held[:size] @ columns
    return sums


def _means(sums: Floats, sizes: Floats) -> Floats:
    return np.divide(sums, sizes, out=np.full(np.broadcast(sums, sizes).shape, np.nan), where=sizes > 0)


def interval(drawn: Floats) -> tuple[Floats, Floats]:
    """The percentile interval (K,), low and high, of `bootstrap`'s draws (R, K); nan where nothing was ever drawn."""
    ends, some, outside = np.full((2, drawn.shape[1]), np.nan), np.isfinite(drawn).any(axis=0), (100 - COVERAGE) / 2
    if some.any():
        ends[:, some] = np.nanpercentile(drawn[:, some], [outside, 100 - outside], axis=0)
    return ends[0], ends[1]


def flip_p_values(observed: Floats, flipped: Floats) -> Floats:
    """(K,) two-sided p values: the share of `sign_flips` (R, K) as far from 0 as what was observed (K,), itself one."""
    tolerance = 1e-9 * np.maximum(np.abs(observed), 1.0)  # the same sum in another order
    as_far = np.abs(flipped) >= np.abs(observed) - tolerance
    return (1 + as_far.sum(axis=0)) / (1 + len(flipped))


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """McNemar's exact test: how likely so uneven a split of the examples is that one model alone had right.

    Two-sided binomial test with a half (McNemar 1947). Examples count as independent of each other.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    i = np.arange(fewer, dtype=np.float64)
    chances = np.concatenate([[0.0], np.cumsum(np.log((total - i) / (i + 1)))]) - total * math.log(2)  # logarithms
    return min(1.0, 2 * float(np.exp(chances).sum()))


def holm(p_values: Floats) -> Floats:
    """(K,) p values of K tests at once, each as it stands for its test within the whole (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    steps = np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1))
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted
