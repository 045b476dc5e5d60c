"""The answer vocabulary: how it is built, kept in a file, and turned into soft targets."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.data.table import TEXTS, Column
from vinvl.run.errors import UserError
from vinvl.vqa.accuracy import normalise_answer, official_accuracy
from vinvl.vqa.answers import AnswerVocabulary


def targets(vocabulary: AnswerVocabulary, answers: list[str], rule: str = "leave_one_out") -> dict[str, float]:
    ids, scores = vocabulary.soft_targets(answers, rule=rule)
    assert ids.dtype == np.int64 and scores.dtype == np.float32
    assert ids.tolist() == sorted(ids.tolist())
    return {vocabulary[index]: score for index, score in zip(ids.tolist(), scores.tolist(), strict=True)}


def test_building_counts_normalised_choices_and_sorts() -> None:
    choices = ["Yes", "yes.", "no", "two", "2", "2", "rare", "No"]
    vocabulary = AnswerVocabulary.build([["ignored"]] * 8, min_count=2, multiple_choice_answers=choices)
    assert vocabulary.answers == ("2", "no", "yes")
    assert [vocabulary.index_of(answer) for answer in ("2", "no", "yes", "rare", "Yes")] == [0, 1, 2, None, None]
    assert "no" in vocabulary and "rare" not in vocabulary and len(vocabulary) == 3


def test_nine_questions_are_enough_and_eight_are_not() -> None:
    vocabulary = AnswerVocabulary.build([["cat"]] * 9 + [["dog"]] * 8)
    assert vocabulary.answers == ("cat",)


def test_without_choices_the_most_common_answer_counts() -> None:
    people = [["Cat", "dog", "cat.", "dog", "a cat"], ["dog", "cat"], ["cat", "dog"]]
    assert AnswerVocabulary.build(people, min_count=1).answers == ("cat", "dog")
    assert AnswerVocabulary.build(people, min_count=2).answers == ("cat",)
    assert AnswerVocabulary.build(people, 3, multiple_choice_answers=["dog", "", "dog"]).answers == ("dog",)


def test_an_answer_of_articles_only_is_the_empty_text() -> None:
    assert AnswerVocabulary.build([["a"]] * 2, min_count=2).answers == ("",)


def test_nothing_frequent_enough_is_refused() -> None:
    with pytest.raises(UserError, match=r"at least 9 of the 2 training questions.*lower the minimum count"):
        AnswerVocabulary.build([["cat"], ["cat"]])


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, unique=True))
def test_saving_and_loading(tmp_path_factory: pytest.TempPathFactory, answers: list[str]) -> None:
    path = tmp_path_factory.mktemp("vocabulary") / "answers.json"
    vocabulary = AnswerVocabulary(tuple(answers))
    vocabulary.save(path)
    assert AnswerVocabulary.load(path) == vocabulary
    assert json.loads(path.read_text(encoding="utf-8")) == answers
    assert [file.name for file in path.parent.iterdir()] == ["answers.json"]


def test_object_form_is_read_by_index(tmp_path: Path) -> None:
    path = tmp_path / "ans2label.json"
    path.write_text('{"yes": 1, "no": 0, "2": 2}')
    assert AnswerVocabulary.load(path).answers == ("no", "yes", "2")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty"),
        ("[]", "holds no answers"),
        ("{}", "holds no answers"),
        ('["yes", "no", "yes"]', "'yes' 2 times"),
        ('["yes", 3]', "3 is no text; expected a list of texts, an object answer → number"),
        ('"yes"', "expected a list of texts"),
        ('{"yes": true, "no": 0}', "'yes' is no number"),
        ('{"0": "yes", "1": 3}', "3 is no text"),
        ('{"0": "yes", "x": "no"}', "'x' is no number"),
        ('{"yes": 0, "no": 2}', "of its 2 answers none has the number 1; they must be 0 to 1"),
        ('{"0": "yes", "00": "no"}', "'yes' and 'no' both have the number 0"),
        ('{"yes": 0, "no": 0}', "'yes' and 'no' both have the number 0"),
        ('["yes", "no"', "column 13: Expecting"),
        (b"\xff\xfe[", "not UTF-8"),
        (b"\x80\x04]q\x00.", "not UTF-8"),  # a pickle
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: str | bytes, sentence: str) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=sentence) as error:
        AnswerVocabulary.load(path)
    assert str(path) in str(error.value)


def test_missing_file_and_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json does not exist"):
        AnswerVocabulary.load(tmp_path / "none.json")
    with pytest.raises(UserError, match="cannot be read"):
        AnswerVocabulary.load(tmp_path)
    (tmp_path / "a_file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        AnswerVocabulary(("yes",)).save(tmp_path / "a_file" / "answers.json")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    AnswerVocabulary(("yes",)).save(path)
    with pytest.raises(UnicodeEncodeError):
        AnswerVocabulary(("\ud800",)).save(path)
    assert AnswerVocabulary.load(path).answers == ("yes",)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("answers", [(), ("yes", "yes")])
def test_a_vocabulary_cannot_be_empty_or_repeat(answers: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="answer vocabulary holds"):
        AnswerVocabulary(answers)


def test_published_targets() -> None:
    vocabulary = AnswerVocabulary(("net", "mesh", "fence", "web", "0"))
    answers = ["net", "Net.", "the net", "net", "mesh", "mesh", "fence", "fence", "fence", "goal"]
    expected = {"net": 1.0, "mesh": 0.6, "fence": 0.9}
    assert targets(vocabulary, answers) == pytest.approx(expected, rel=1e-7)
    expected = {"net": 1.0, "mesh": 2 / 3, "fence": 1.0}
    assert targets(vocabulary, answers, "count/3") == pytest.approx(expected, rel=1e-7)
    assert targets(vocabulary, ["none"] + ["x"] * 9) == pytest.approx({"0": 0.3})
    assert targets(vocabulary, ["x"] * 10) == {}


def test_few_people() -> None:
    vocabulary = AnswerVocabulary(("red", "blue"))
    for rule in ("leave_one_out", "count/3"):
        assert targets(vocabulary, ["Red"], rule) == {"red": 1.0}
    assert targets(vocabulary, ["red", "red"], "count/3") == {"red": 1.0}
    assert targets(vocabulary, ["red", "blue"], "count/3") == {"red": 0.5, "blue": 0.5}


def test_entries_that_are_not_in_normal_form_are_matched_too() -> None:
    vocabulary = AnswerVocabulary(("T-Shirt", "t shirt", "The Dog"))
    assert targets(vocabulary, ["t-shirt"] * 4 + ["dog"] * 4) == {"t shirt": 1.0, "The Dog": 1.0}


def test_another_rule_is_refused() -> None:
    vocabulary = AnswerVocabulary(("red",))
    with pytest.raises(UserError, match="'hard' is no rule for soft targets; use leave_one_out or count/3"):
        vocabulary.soft_targets(["red"], rule="hard")
    with pytest.raises(UserError, match="'hard' is no rule"):
        vocabulary.soft_targets_of_all(Column.of([["red"]], TEXTS), rule="hard")


people_ = st.lists(st.sampled_from(["yes", "Yes!", "no", "two", "2", "a cat", "cat", "dog"]), min_size=1, max_size=12)


@settings(deadline=None)
@given(people_)
def test_targets_are_the_official_accuracy_of_each_answer(answers: list[str]) -> None:
    """The one exception: people who agree to the letter are officially compared without normalisation."""
    vocabulary = AnswerVocabulary(("yes", "no", "2", "cat", "rabbit"))
    found = targets(vocabulary, answers)
    unanimous = len(answers) > 1 and len(set(answers)) == 1
    compared = [normalise_answer(answer) for answer in answers] if unanimous else answers
    for answer in vocabulary.answers:
        assert found.get(answer, 0.0) == np.float32(official_accuracy(answer, compared))


@settings(deadline=None)
@given(st.lists(people_, max_size=8), st.sampled_from(["leave_one_out", "count/3"]))
def test_targets_of_all_questions_are_those_of_each(questions: list[list[str]], rule: str) -> None:
    vocabulary = AnswerVocabulary(("yes", "no", "2", "cat", "rabbit"))
    ids, scores, offsets = vocabulary.soft_targets_of_all(Column.of(questions, TEXTS), rule)
    assert (ids.dtype, scores.dtype, offsets.dtype) == (np.int64, np.float32, np.int64)
    assert len(offsets) == len(questions) + 1 and offsets[-1] == len(ids) == len(scores)
    for index, answers in enumerate(questions):
        expected_ids, expected_scores = vocabulary.soft_targets(answers, rule)
        span = slice(offsets[index], offsets[index + 1])
        np.testing.assert_array_equal(ids[span], expected_ids)
        np.testing.assert_array_equal(scores[span], expected_scores)
