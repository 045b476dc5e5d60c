"""GQA's accuracy by type and the distance of distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.gqa.metric import TypedAccuracy, answer_distribution_distance

rows_strategy = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["query", "verify", "choose"]), st.sampled_from(["rel", "obj", "query"])),
    min_size=1,
    max_size=20,
)


def scored(rows: list[tuple[bool, str, str]], size: int) -> dict[str, float]:
    metric = TypedAccuracy()
    for start in range(0, len(rows), size):
        correct, structural, semantic = zip(*rows[start : start + size], strict=True)
        metric.update(torch.tensor(correct), structural, semantic)
    return {name: value.item() for name, value in metric.compute().items()}


def test_each_type_has_its_accuracy() -> None:
    rows = [(True, "query", "rel"), (False, "query", "obj"), (True, "verify", "obj"), (True, "choose", "obj")]
    assert scored(rows, 2) == {
        "overall": 75,
        "open": 50,
        "binary": 100,
        "structural/query": 50,
        "structural/verify": 100,
        "structural/choose": 100,
        "semantic/rel": 100,
        "semantic/obj": pytest.approx(200 / 3),
    }


@settings(max_examples=40, deadline=None)
@given(rows_strategy, st.integers(1, 6))
def test_order_and_batches_change_nothing(rows: list[tuple[bool, str, str]], size: int) -> None:
    found = scored(rows, size)
    assert found == scored(rows[::-1], len(rows))
    assert found["overall"] == 100 * sum(right for right, _, _ in rows) / len(rows)
    verify = [right for right, structural, _ in rows if structural == "verify"]
    assert found.get("structural/verify") == (100 * sum(verify) / len(verify) if verify else None)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_bad_input_is_told() -> None:
    metric = TypedAccuracy()
    assert set(metric.compute()) == {"overall"} and metric.compute()["overall"].isnan()
    with pytest.raises(ValueError, match="1 structural and 2 semantic"):
        metric.update(torch.tensor([True, False]), ["query"], ["rel", "obj"])
    with pytest.raises(ValueError, match="int64"):
        metric.update(torch.tensor([1]), ["query"], ["rel"])


def test_distribution_distance() -> None:
    groups = ["colour"] * 4 + ["shape"] * 2 + [None]
    answers = ["red", "red", "red", "blue", "disc", "star", "yes"]
    assert answer_distribution_distance(groups, answers, answers) == 0
    predictions = ["red", "red", "red", "red", "disc", "cube", "no"]
    # colour: (4−3)²/3 + (0−1)²/1 = 4/3, four questions; shape: 0 + (0−1)²/1 = 1, two; the group that is null: none.
    assert answer_distribution_distance(groups, answers, predictions) == pytest.approx((4 * 4 / 3 + 2 * 1) / 6)
    assert math.isnan(answer_distribution_distance([None], ["yes"], ["no"]))
    with pytest.raises(ValueError):
        answer_distribution_distance(groups, answers, predictions[:-1])
