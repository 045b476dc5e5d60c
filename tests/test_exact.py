"""Means and accuracies that are the same to the last bit however their values were divided."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.exact import CategoryAccuracy, Earned, ExactMean, GroupedAccuracy

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(st.lists(floats, min_size=1, max_size=40), st.integers(1, 3), st.data())
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_order_batches_and_ranks_do_not_matter(numbers: list[float], num_ranks: int, data: st.DataObject) -> None:
    ranks = [ExactMean() for _ in range(num_ranks)]
    shuffled = data.draw(st.permutations(numbers))
    while shuffled:
        size = data.draw(st.integers(1, len(shuffled)))
        rank = ranks[data.draw(st.integers(0, num_ranks - 1))]
        batch = torch.tensor(shuffled[:size])
        rank(batch) if data.draw(st.booleans()) else rank.update(batch)
        shuffled = shuffled[size:]
    for other in ranks[1:]:
        ranks[0].merge_state(other)
    assert ranks[0].compute().item() == float(sum(map(Fraction, numbers))) / len(numbers)


def test_values_that_cancel() -> None:
    metric = ExactMean()
    metric.update(torch.tensor([1e30, 1.0, -1e30, 1.0]))
    assert metric.compute().item() == 0.5


def test_scalars_and_half_precision() -> None:
    metric = ExactMean()
    metric.update(torch.tensor(1.5))
    metric.update(torch.tensor([2.5], dtype=torch.bfloat16, requires_grad=True))
    assert metric.compute().item() == 2.0
    assert metric.compute().dtype == torch.float64


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("numbers", [[], [1.0, math.nan], [math.inf, -math.inf]])
def test_nan(numbers: list[float]) -> None:
    metric = ExactMean()
    metric.update(torch.tensor(numbers))
    assert metric.compute().isnan()


def test_infinity() -> None:
    metric = ExactMean()
    metric.update(torch.tensor([1.0, math.inf]))
    assert metric.compute().item() == math.inf


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.booleans(), st.integers(-1, 2)), max_size=20), cut=st.integers(0, 20))
def test_any_split_of_guesses_counts_alike(rows: list[tuple[bool, int]], cut: int) -> None:
    metric = GroupedAccuracy(3)
    for part in (rows[:cut], rows[cut:]):
        correct = torch.tensor([right for right, _ in part], dtype=torch.bool)
        metric.update(correct, torch.tensor([group for _, group in part], dtype=torch.long))
    overall, groups = metric.compute()
    for value, members in ((overall, {0, 1, 2}), *((groups[g], {g}) for g in range(3))):
        rights = [right for right, group in rows if group in members]
        expected = 100 * sum(rights) / len(rights) if rights else float("nan")
        assert value.item() == pytest.approx(expected, nan_ok=True)


def test_guesses_of_other_shapes() -> None:
    with pytest.raises(ValueError, match="Expected"):
        GroupedAccuracy(2).update(torch.ones(3, dtype=torch.bool), torch.zeros(2, dtype=torch.long))


EARNED = [("overall", 6, 1), ("overall", 9, 4), ("größe", 3, 3), ("line\nbreak", 6, 5), ("", 30, 27)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(EARNED), max_size=25), st.integers(1, 3), st.data())
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_categories_add_up_in_any_order(rows: list[tuple[str, int, int]], num_ranks: int, data: st.DataObject) -> None:
    ranks = [CategoryAccuracy() for _ in range(num_ranks)]
    for category, most, points in data.draw(st.permutations(rows)):
        metric, batch = data.draw(st.sampled_from(ranks)), [(category, most, points, 1)]
        metric(batch) if data.draw(st.booleans()) else metric.update(batch)  # forward: its value and the update in one
    for other in ranks[1:]:
        ranks[0].merge_state(other)
    found = {name: value.item() for name, value in ranks[0].compute().items()}
    expected = {}
    for name in {category for category, _, _ in rows}:
        scores = [Fraction(points, most) for category, most, points in rows if category == name]
        expected[name] = float(100 * sum(scores) / len(scores))
    if "overall" not in expected:
        assert math.isnan(found.pop("overall"))
    assert found == expected


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_the_state_of_categories_stays_small_and_is_forgotten() -> None:
    metric = CategoryAccuracy()
    rows: list[Earned] = [("overall", 6, 1, 1), ("yes/no", 6, 1, 1)]
    for _ in range(100):
        metric.update(rows * 4)
    assert sum(state.numel() for state in metric.seen) < 100
    assert metric.compute()["yes/no"].item() == pytest.approx(100 / 6)
    metric.reset()
    assert metric.compute()["overall"].isnan() and metric.compute()["overall"].dtype == torch.float64
