"""NLVR2's accuracy and consistency."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.nlvr2.metric import PairAccuracy
from vinvl.run.errors import UserError


def scored(rows: list[tuple[str, bool]]) -> dict[str, float]:
    metric = PairAccuracy()
    for identifier, right in rows:
        metric.update([identifier], torch.tensor([right]))
    return {name: value.item() for name, value in metric.compute().items()}


def test_groups_are_of_one_sentence() -> None:
    # Two sentences (last field) of set 7; the third field is the pair of images.
    rows = [("dev-7-0-0", True), ("dev-7-1-0", True), ("dev-7-0-1", True), ("dev-7-1-1", False), ("dev-8-0-0", True)]
    assert scored(rows) == {"accuracy": 80.0, "consistency": pytest.approx(200 / 3)}


@pytest.mark.parametrize(
    "own", ["q17", "dev-1-0", "test1-769-2-0-1", "my-own-pair-0", "9c5b94b1-35ad-49bb-b118-8e8fc24abf80"]
)
def test_other_identifiers_have_an_accuracy_and_no_consistency(own: str) -> None:
    assert scored([("dev-7-0-0", True), (own, False)]) == {"accuracy": 50.0}


identifiers = st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 1)).map(
    lambda i: f"dev-{i[0]}-{i[1]}-{i[2]}"
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(identifiers, st.booleans(), min_size=1), st.randoms(use_true_random=False))
def test_order_and_repeats_change_nothing(right: dict[str, bool], random: object) -> None:
    rows = list(right.items())
    shuffled = rows + rows[: len(rows) // 2]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    groups: dict[tuple[str, str], list[bool]] = {}
    for identifier, answer in rows:
        _, first, _, last = identifier.split("-")
        groups.setdefault((first, last), []).append(answer)
    consistent = sum(map(all, groups.values()))
    expected = {"accuracy": 100 * sum(right.values()) / len(right), "consistency": 100 * consistent / len(groups)}
    assert scored(shuffled) == scored(rows) == expected


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_bad_input_is_told() -> None:
    metric = PairAccuracy()
    assert all(value.isnan() for value in metric.compute().values())
    metric.update(["dev-1-0-0"] * 2, torch.tensor([True, False]))
    with pytest.raises(UserError, match="'dev-1-0-0' was seen twice, once answered right and once wrong"):
        metric.compute()
