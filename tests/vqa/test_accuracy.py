"""The official VQA accuracy: recorded scores, the definition, and independence of order, batches and ranks."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import golden
from vinvl.vqa.accuracy import VQAAccuracy, leave_one_out_points, official_accuracy

CASES = golden.facts("vqa_eval/cases")["cases"]


class Question(NamedTuple):
    prediction: str
    answers: list[str]
    answer_type: str
    question_type: str


def add(metric: VQAAccuracy, questions: Sequence[Question]) -> None:
    columns = list(zip(*questions, strict=True)) or [(), (), (), ()]
    metric.update(*(list(column) for column in columns))


def values(metric: VQAAccuracy) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


def test_all_recorded_accuracies() -> None:
    assert len(CASES) == 300
    for case in CASES:
        accuracy = official_accuracy(case["prediction"], case["answers"])
        # The official code adds ten rounded thirds; ours is rounded once.
        assert accuracy == pytest.approx(case["accuracy"], abs=1e-12, rel=0), case
        assert round(100 * accuracy, 2) == case["evalqa_percent"], case


def test_metric_over_all_recorded_cases() -> None:
    metric = VQAAccuracy()
    kinds = [case["kind"] for case in CASES]
    metric.update([case["prediction"] for case in CASES], [case["answers"] for case in CASES], kinds)
    result = values(metric)
    assert set(result) == {"overall", *kinds}
    for kind in set(kinds):
        expected = [case["accuracy"] for case in CASES if case["kind"] == kind]
        assert result[kind] == pytest.approx(100 * sum(expected) / len(expected), abs=1e-10)
    assert result["overall"] == pytest.approx(100 * sum(case["accuracy"] for case in CASES) / 300, abs=1e-10)


def test_nothing_is_normalised_when_all_ten_agree() -> None:
    assert official_accuracy("Yes", ["yes"] * 10) == 0
    assert official_accuracy(" yes\n", ["yes", "\tyes"] * 5) == 1
    assert official_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1
    assert official_accuracy("Yes", ["yes"] * 9 + ["yes!"]) == 1


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_scores_among_ten(matches: int, expected: float) -> None:
    others = ["b", "c", "d", "e", "f", "g", "h", "i", "j", "k"]
    assert official_accuracy("x", ["x"] * matches + others[matches:]) == expected


def test_few_people() -> None:
    assert official_accuracy("Red", ["the red"]) == 1
    assert official_accuracy("blue", ["red"]) == 0
    assert official_accuracy("red", ["red", "red"]) == 1 / 3
    assert official_accuracy("red", ["red", "blue"]) == 1 / 6
    with pytest.raises(ValueError, match="without answers"):
        official_accuracy("red", [])


@settings(deadline=None)
@given(st.integers(2, 15), st.data())
def test_points_follow_the_definition(people: int, data: st.DataObject) -> None:
    matches = data.draw(st.integers(0, people))
    agrees = [True] * matches + [False] * (people - matches)
    scores = [min(Fraction(1), Fraction(sum(agrees[:i] + agrees[i + 1 :]), 3)) for i in range(people)]
    assert Fraction(leave_one_out_points(matches, people), 3 * people) == sum(scores) / people


texts = st.sampled_from(["yes", "Yes", "no", "2", "two", "a cat", "cat", "cat ", "dog!", ""])
questions_ = st.builds(
    Question,
    texts,
    st.lists(texts, min_size=1, max_size=12),
    st.sampled_from(["yes/no", "number", "other", "overall", "question_type/what"]),
    st.sampled_from(["what", "is the", "größe", "line\nbreak", ""]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(questions_, min_size=1, max_size=25), st.integers(1, 4), st.data())
@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_order_batches_and_ranks_do_not_matter(questions: list[Question], num_ranks: int, data: st.DataObject) -> None:
    whole = VQAAccuracy()
    add(whole, questions)
    expected = values(whole)

    ranks = [VQAAccuracy() for _ in range(num_ranks)]
    shuffled = data.draw(st.permutations(questions))
    batches = data.draw(st.lists(st.integers(0, num_ranks - 1), min_size=len(questions), max_size=len(questions)))
    for rank, question in zip(batches, shuffled, strict=True):
        if data.draw(st.booleans()):
            add(ranks[rank], [question])
        else:
            ranks[rank](*([item] for item in question))  # forward: the batch's value and the update in one
    for other in ranks[1:]:
        ranks[0].merge_state(other)
    assert values(ranks[0]) == expected

    exact = sum(Fraction(official_accuracy(q.prediction, q.answers)).limit_denominator(36) for q in questions)
    assert expected["overall"] == float(100 * exact / len(questions))


def test_names_that_clash_with_other_entries_are_kept_apart() -> None:
    metric = VQAAccuracy()
    metric.update(["a", "b"], [["a"], ["a"]], ["overall", "question_type/x"], ["x", "y"])
    assert values(metric) == {
        "overall": 50.0,
        "answer_type/overall": 100.0,
        "answer_type/question_type/x": 0.0,
        "question_type/x": 100.0,
        "question_type/y": 0.0,
    }


def test_state_stays_small_and_is_forgotten() -> None:
    metric = VQAAccuracy()
    for _ in range(300):
        metric.update(["yes"] * 4, [["yes", "no"]] * 4, ["yes/no"] * 4, ["is the"] * 4)
    assert sum(state.numel() for state in metric.tally) < 200
    assert values(metric)["overall"] == pytest.approx(100 / 6)
    metric.reset()
    metric.update(["no"], [["no"]], ["yes/no"])
    assert values(metric) == {"overall": 100.0, "yes/no": 100.0}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_nan() -> None:
    result = VQAAccuracy().compute()
    assert list(result) == ["overall"]
    assert result["overall"].isnan() and result["overall"].dtype == torch.float64


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="different lengths: 2, 1, 2"):
        VQAAccuracy().update(["a", "b"], [["a"]], ["other", "other"])
