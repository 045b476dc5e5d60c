"""The answer vocabulary: how it is built, read from files (no code of a file is run), and turned into soft targets."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.data.table import TEXTS, Column
from vinvl.run.errors import UserError
from vinvl.vqa.accuracy import normalise_answer, official_accuracy
from vinvl.vqa.answers import AnswerTargets, AnswerVocabulary, read_answers

ANSWERS = ["net", "", "T-shirt", "café", "2"]  # as they are: neither normalised nor sorted


def test_building_counts_normalised_choices_and_sorts() -> None:
    choices = ["Yes", "yes.", "no", "two", "2", "2", "rare", "No"]
    vocabulary = AnswerVocabulary.build([["ignored"]] * 8, min_count=2, multiple_choice_answers=choices)
    assert vocabulary.answers == ("2", "no", "yes") and len(vocabulary) == 3
    assert [vocabulary.find(answer) for answer in ("2", "no", "Yes!", "rare")] == [0, 1, 2, None]


def test_without_choices_the_most_common_answer_counts() -> None:
    people = [["Cat", "dog", "cat.", "dog", "a cat"], ["dog", "cat"], ["cat", "dog"]]
    assert AnswerVocabulary.build(people, min_count=1).answers == ("cat", "dog")
    assert AnswerVocabulary.build(people, min_count=2).answers == ("cat",)
    assert AnswerVocabulary.build(people, 3, multiple_choice_answers=["dog", "", "dog"]).answers == ("dog",)
    assert AnswerVocabulary.build([["a"]] * 2, min_count=2).answers == ("",)  # of articles only
    assert AnswerVocabulary.build([["cat"]] * 9 + [["dog"]] * 8).answers == ("cat",)
    with pytest.raises(UserError, match=r"at least 9 of the 2 training questions.*lower the minimum count"):
        AnswerVocabulary.build([["cat"], ["cat"]])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, unique=True))
def test_saving_and_loading(tmp_path_factory: pytest.TempPathFactory, answers: list[str]) -> None:
    path = tmp_path_factory.mktemp("vocabulary") / "answers.json"
    vocabulary = AnswerVocabulary(tuple(answers))
    vocabulary.save(path)
    assert AnswerVocabulary.load(path) == vocabulary
    assert json.loads(path.read_text(encoding="utf-8")) == answers
    with pytest.raises(UnicodeEncodeError):
        AnswerVocabulary(("\ud800",)).save(path)
    assert AnswerVocabulary.load(path) == vocabulary and [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    "content",
    [
        ANSWERS,
        tuple(ANSWERS),
        np.array(ANSWERS),
        {answer: number for number, answer in reversed(list(enumerate(ANSWERS)))},  # trainval_ans2label.pkl
        dict(reversed(list(enumerate(ANSWERS)))),  # trainval_label2ans.pkl as a dict
        {answer: np.int64(number) for number, answer in enumerate(ANSWERS)},
        {np.int32(number): answer for number, answer in enumerate(ANSWERS)},
    ],
    ids=["list", "tuple", "array", "ans2label", "label2ans", "numpy values", "numpy keys"],
)
def test_pickles_of_every_shape_and_protocol(content: Any, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "trainval_label2ans.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert AnswerVocabulary.load(path).answers == tuple(ANSWERS)
    assert all(type(answer) is str for answer in read_answers(path))


@pytest.mark.parametrize("content", ['{"2": "2", "0": "yes", "1": "7"}', '{"yes": 0, "2": 2, "7": 1}'])
def test_json_objects_by_number_and_by_answer(tmp_path: Path, content: str) -> None:
    path = tmp_path / "answers.json"
    path.write_text(content)
    assert read_answers(path) == ("yes", "7", "2")


class Harmful:
    """What a pickle calls when it is read with Python's own loader."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"yes": 0, "no": 2}, "of its 2 answers none has the number 1; they must be 0 to 1"),
        ({0: "yes", 2: "no"}, "of its 2 answers none has the number 1"),
        ({1: "yes", 2: "no"}, "none has the number 0"),
        ({-1: "yes", 0: "no"}, "none has the number 1"),
        ({"yes": 0, "no": 0}, "'yes' and 'no' both have the number 0"),
        ({0: "yes", np.int64(0): "no", "0": "maybe"}, "both have the number 0"),
        ({"yes": 10**18, "no": 10**18 + 1}, "none has the number 0"),
        ({"yes": 10**5000, "no": 10**5000 + 1}, "a whole number of more than 64 bits"),
        ({10**18: "yes", "x": "no"}, "'x' is no number"),
        ({"yes": 0.0}, "'yes' is no number"),
        ({"yes": True, "no": 0}, "'yes' is no number"),
        ({0: b"yes"}, "b'yes' is no text"),
        ({0: ["yes"]}, "'yes'. is no text"),
        ({("a", 1): 0}, "a tuple as a key"),
        (["yes", 2], "2 is no text; expected a list of texts, an object answer → number"),
        (["yes", None], "missing or null is no text"),
        (np.array([["yes"], ["no"]]), "'yes'. is no text"),
        (np.array("yes"), "expected a list of texts"),
        (["yes", "no", "yes"], "the answer 'yes' 2 times"),
        ([], "holds no answers"),
        ({}, "holds no answers"),
        (3, "expected a list of texts"),
        ({"yes", "no"}, "expected a list of texts"),  # a set has no order
        (Harmful(), "wants to call posix.system"),
        ({0: Harmful()}, "wants to call posix.system"),
        (b"", "is a damaged pickle"),
        (b"no pickle", "is a damaged pickle"),
        (b"\x80\x04]q\x00", "is a damaged pickle"),
        (b'["yes"]', "is a damaged pickle"),
    ],
)
def test_whatever_is_no_vocabulary_is_refused_in_one_sentence(
    content: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "answers.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=4))
    with pytest.raises(UserError, match=sentence) as refused:
        AnswerVocabulary.load(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert [file.name for file in tmp_path.iterdir()] == ["answers.pkl"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b'["yes", "no", "yes"]', "'yes' 2 times"),
        (b'"yes"', "expected a list of texts"),
        (b'{"0": "yes", "1": 3}', "3 is no text"),
        (b'{"0": "yes", "00": "no"}', "'yes' and 'no' both have the number 0"),
        (b'["yes", "no"', "column 13: Expecting"),
        (b"\xff\xfe[", "not UTF-8"),
        (b"\x80\x04]q\x00.", "not UTF-8"),  # a pickle
    ],
)
def test_bad_json_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as error:
        AnswerVocabulary.load(path)
    assert str(path) in str(error.value)


def test_files_that_are_not_there_and_cannot_be_made(tmp_path: Path) -> None:
    for name in ("none.json", "none.pkl"):
        with pytest.raises(UserError, match=r"none\.\w+ does not exist"):
            AnswerVocabulary.load(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        AnswerVocabulary.load(tmp_path)
    with pytest.raises(UserError, match=r"none\.pkl does not exist, and none is written as a pickle"):
        AnswerVocabulary(("yes",)).save(tmp_path / "none.pkl")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a_file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        AnswerVocabulary(("yes",)).save(tmp_path / "a_file" / "answers.json")
    with pytest.raises(ValueError, match="holds the answer 'yes' 2 times"):
        AnswerVocabulary(("yes", "yes"))


def targets(vocabulary: AnswerVocabulary, answers: list[str], rule: str = "leave_one_out") -> dict[str, float]:
    found = AnswerTargets.of_people(Column.of([["red"], answers], TEXTS), vocabulary, rule)
    assert (found.ids.dtype, found.scores.dtype, found.offsets.dtype) == (np.int64, np.float32, np.int64)
    assert len(found.offsets) == 3 and found.offsets[-1] == len(found.ids) == len(found.scores)
    ids, scores = found[1]
    assert ids.tolist() == sorted(ids.tolist())
    return {vocabulary.answers[index]: score for index, score in zip(ids.tolist(), scores.tolist(), strict=True)}


def test_published_targets() -> None:
    vocabulary = AnswerVocabulary(("net", "mesh", "fence", "web", "0"))
    answers = ["net", "Net.", "the net", "net", "mesh", "mesh", "fence", "fence", "fence", "goal"]
    expected = {"net": 1.0, "mesh": 0.6, "fence": 0.9}
    assert targets(vocabulary, answers) == pytest.approx(expected, rel=1e-7)
    expected = {"net": 1.0, "mesh": 2 / 3, "fence": 1.0}
    assert targets(vocabulary, answers, "count/3") == pytest.approx(expected, rel=1e-7)
    assert targets(vocabulary, ["none"] + ["x"] * 9) == pytest.approx({"0": 0.3})
    assert targets(vocabulary, ["x"] * 10) == {}


def test_few_people_and_entries_that_are_not_in_normal_form() -> None:
    vocabulary = AnswerVocabulary(("red", "blue"))
    for rule in ("leave_one_out", "count/3"):
        assert targets(vocabulary, ["Red"], rule) == {"red": 1.0}
    assert targets(vocabulary, ["red", "red"], "count/3") == {"red": 1.0}
    assert targets(vocabulary, ["red", "blue"], "count/3") == {"red": 0.5, "blue": 0.5}
    vocabulary = AnswerVocabulary(("T-Shirt", "t shirt", "The Dog", "a dog"))
    assert targets(vocabulary, ["t-shirt"] * 4 + ["dog"] * 4) == {"t shirt": 1.0, "The Dog": 1.0}


people_ = st.lists(st.sampled_from(["yes", "Yes!", "no", "two", "2", "a cat", "cat", "dog"]), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(people_)
def test_targets_are_the_official_accuracy_of_each_answer(answers: list[str]) -> None:
    """The one exception: people who agree to the letter are officially compared without normalisation."""
    vocabulary = AnswerVocabulary(("yes", "no", "2", "cat", "rabbit"))
    found = targets(vocabulary, answers)
    unanimous = len(answers) > 1 and len(set(answers)) == 1
    compared = [normalise_answer(answer) for answer in answers] if unanimous else answers
    for answer in vocabulary.answers:
        _, most, points, _ = official_accuracy(answer, compared, "other")[0]
        assert found.get(answer, 0.0) == np.float32(points / most)


@settings(deadline=None, max_examples=40)
@given(st.lists(people_, max_size=8), st.sampled_from(["leave_one_out", "count/3"]))
def test_targets_of_all_questions_are_those_of_each(questions: list[list[str]], rule: str) -> None:
    vocabulary = AnswerVocabulary(("yes", "no", "2", "cat", "rabbit"))
    together = AnswerTargets.of_people(Column.of(questions, TEXTS), vocabulary, rule)
    assert len(together.offsets) == len(questions) + 1
    for index, answers in enumerate(questions):
        alone = AnswerTargets.of_people(Column.of([answers], TEXTS), vocabulary, rule)
        assert [one.tolist() for one in together[index]] == [alone.ids.tolist(), alone.scores.tolist()]
