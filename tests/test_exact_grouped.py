"""Accuracy by group, however the guesses come."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.exact import GroupedAccuracy


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.booleans(), st.integers(-1, 2)), max_size=20), cut=st.integers(0, 20))
def test_any_split_counts_alike(rows: list[tuple[bool, int]], cut: int) -> None:
    metric = GroupedAccuracy(3)
    for part in (rows[:cut], rows[cut:]):
        correct = torch.tensor([right for right, _ in part], dtype=torch.bool)
        metric.update(correct, torch.tensor([group for _, group in part], dtype=torch.long))
    overall, groups = metric.compute()
    for value, members in ((overall, {0, 1, 2}), *((groups[g], {g}) for g in range(3))):
        rights = [right for right, group in rows if group in members]
        expected = 100 * sum(rights) / len(rights) if rights else float("nan")
        assert value.item() == pytest.approx(expected, nan_ok=True)


def test_other_shapes() -> None:
    with pytest.raises(ValueError, match="Expected"):
        GroupedAccuracy(2).update(torch.ones(3, dtype=torch.bool), torch.zeros(2, dtype=torch.long))
