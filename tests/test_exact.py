"""A mean that is the same to the last bit however its values were divided."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.exact import ExactMean

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
