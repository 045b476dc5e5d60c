"""Recall against recordings of the published code and a naive version."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import golden
from vinvl.retrieval.recall import RecallAtK

GOLDEN = golden.facts("oscar/data__retrieval_ranks")


@pytest.mark.parametrize("way", ["i2t", "t2i"])
def test_recorded_figures(way: str) -> None:
    recorded = GOLDEN["eval"][f"{way}_retrieval"]
    metric = RecallAtK()
    metric.update(torch.tensor(GOLDEN[f"{way}_ranks"]))
    found = metric.compute()
    assert {key: found[key].item() / 100 for key in recorded} == recorded


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 9))
def test_recall_over_batches(ranks: list[int], size: int) -> None:
    metric = RecallAtK()
    for start in range(0, len(ranks), size):
        metric.update(torch.tensor(ranks[start : start + size]))
    found = {name: value.item() for name, value in metric.compute().items()}
    for k in (1, 5, 10):
        assert found[f"R@{k}"] == pytest.approx(100 * np.mean(np.array(ranks) < k))
    assert found["median_rank"] == np.median(ranks) + 1
    assert found["mean_rank"] == pytest.approx(np.mean(ranks) + 1)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_recall_of_nothing_and_of_something_else() -> None:
    metric = RecallAtK()
    found = metric.compute()
    assert set(found) == {"R@1", "R@5", "R@10", "median_rank", "mean_rank"}
    assert all(value.isnan() and value.dtype == torch.float64 for value in found.values())
    with pytest.raises(ValueError, match="int64"):
        metric.update(torch.zeros(3))
