"""Intervals and tests against simulation with a known truth, SciPy's figures and exact counts."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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

SIMULATIONS, DRAWS = 200, 300
PICTURES = 120
# Of 200 intervals of 95 % each 177 or fewer hold the truth with a chance of one in 2,500, if the coverage is right.
LEAST, MOST = 178, 199


def simulated(rng: np.random.Generator, effect: float, shared: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures (N,) and scores (N,) of A and B, right or wrong, to 1 to 12 questions a picture.

    A is right more often by `effect` percent; `shared`: how much of the chance to be right is the picture's own, and
    each model's own view of it.
    """
    pictures = np.repeat(np.arange(PICTURES), rng.integers(1, 13, PICTURES))
    chances = []
    for more in (effect / 100, 0.0):
        own = rng.uniform(-shared, shared, PICTURES)[pictures]
        chances.append(0.5 + more + own)
    return pictures, *(100.0 * (rng.random(len(pictures)) < chance) for chance in chances)


def summed(pictures: np.ndarray, differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = int(pictures.max()) + 1
    sums = sums_by_picture(pictures, differences, count), sums_by_picture(pictures, np.ones(len(pictures)), count)
    return sums[0][:, None], sums[1][:, None]


@pytest.mark.parametrize(("effect", "shared"), [(0.0, 0.0), (8.0, 0.0), (5.0, 0.45)])
def test_intervals_hold_the_true_difference_as_often_as_they_say(effect: float, shared: float) -> None:
    rng, held, naive = np.random.default_rng(7), 0, 0
    for _ in range(SIMULATIONS):
        pictures, one, other = simulated(rng, effect, shared)
        low, high = interval(bootstrap(*summed(pictures, one - other), DRAWS, rng))
        held += bool(low[0] <= effect <= high[0])
        if shared:  # as if each question had a picture of its own
            low, high = interval(bootstrap(*summed(np.arange(len(one)), one - other), DRAWS, rng))
            naive += bool(low[0] <= effect <= high[0])
    assert LEAST <= held <= MOST
    if shared:
        assert naive < 160  # which would be told as 95 % and is not


@pytest.mark.parametrize("shared", [0.0, 0.45])
def test_p_values_are_uniform_where_neither_is_better(shared: float) -> None:
    rng, found = np.random.default_rng(8), []
    for _ in range(SIMULATIONS):
        pictures, one, other = simulated(rng, 0.0, shared)
        sums = summed(pictures, one - other)
        found.append(flip_p_values(mean_differences(*sums), sign_flips(*sums, DRAWS, rng))[0])
    assert_uniform(np.array(found))


def test_mcnemar_is_uniform_where_neither_is_better_and_questions_are_independent() -> None:
    rng = np.random.default_rng(9)
    alone = rng.binomial(20_000, 0.4, 1000)  # questions that one model alone has right
    first = rng.binomial(alone, 0.5)
    assert_uniform(np.array([mcnemar_p_value(one, count - one) for one, count in zip(first, alone, strict=True)]))


def assert_uniform(p_values: np.ndarray) -> None:
    """Within the Kolmogorov-Smirnov bound of 1 in 1,000, and what the steps of p values add to it."""
    ordered, count = np.sort(p_values), len(p_values)
    distance = np.abs(ordered - np.arange(1, count + 1) / count).max()
    assert distance < 1.95 / math.sqrt(count) + 0.03


# A picture's sum of differences, and its questions.
SUMS = np.array([100.0, 0, -100, 100, 200, 0, -100, 100, 0, 300, 0, 100])[:, None]
COUNTS = np.array([2.0, 1, 3, 2, 4, 1, 2, 2, 1, 5, 1, 3])[:, None]


def test_interval_is_that_of_scipy() -> None:
    """scipy.stats.bootstrap 1.17 of the ratio of both sums, paired, percentile, 200,000 resamples."""
    low, high = interval(bootstrap(SUMS, COUNTS, 40_000, np.random.default_rng(0)))
    assert low[0] == pytest.approx(0.0, abs=0.6) and high[0] == pytest.approx(45.16129, abs=0.6)


def test_flips_are_those_of_scipy() -> None:
    """scipy.stats.permutation_test 1.17, permutation_type="samples", all 4,096 of them: 0.1796875."""
    flipped = sign_flips(SUMS, COUNTS, 40_000, np.random.default_rng(0))
    assert flip_p_values(mean_differences(SUMS, COUNTS), flipped)[0] == pytest.approx(0.1796875, abs=0.008)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 6, 0.03125),
        (3, 12, 0.03515625),
        (10, 10, 1.0),
        (140, 101, 0.014204262213416814),
        (5300, 5100, 0.05100954672317941),
        (40, 0, 1.8189894035458565e-12),
    ],
)
def test_mcnemar_is_the_binomial_test_of_scipy(first: int, second: int, p: float) -> None:
    """scipy.stats.binomtest 1.17."""
    assert mcnemar_p_value(first, second) == pytest.approx(p, rel=1e-9)
    assert mcnemar_p_value(second, first) == mcnemar_p_value(first, second)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_count_of_all_splits(first: int, second: int) -> None:
    total, fewer = first + second, min(first, second)
    exact = Fraction(2 * sum(math.comb(total, one) for one in range(fewer + 1)), 2**total)
    assert mcnemar_p_value(first, second) == pytest.approx(float(min(exact, Fraction(1))), rel=1e-9)


def test_mcnemar_of_millions_takes_no_time_and_is_a_number() -> None:
    assert 0.8 < mcnemar_p_value(499_631, 499_817) < 0.9
    assert mcnemar_p_value(600_000, 500_000) == 0.0


def test_holm() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


def test_a_group_that_no_draw_has_is_not_a_number() -> None:
    counts = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    drawn = bootstrap(100 * counts, counts, 500, np.random.default_rng(0))
    assert np.isnan(drawn[:, 1]).any() and interval(drawn)[0].tolist() == [100.0, 100.0]
    nothing = bootstrap(0 * counts, 0 * counts, 50, np.random.default_rng(0))
    assert np.isnan(interval(nothing)).all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn() -> list[np.ndarray]:
        return [draw(SUMS, COUNTS, 50, np.random.default_rng(3)) for draw in (bootstrap, sign_flips)]

    whole = drawn()
    monkeypatch.setattr("vinvl.comparison.statistics.BLOCK_BYTES", 8 * len(SUMS) * 7)
    np.testing.assert_allclose(whole, drawn(), rtol=1e-6)


def test_what_never_came_by_chance_has_the_least_p_of_so_many_draws() -> None:
    """It counts itself as one more draw, so that no p is 0."""
    assert flip_p_values(np.array([5.0, 0.0]), np.zeros((99, 2))).tolist() == [0.01, 1.0]
