"""Answers from the pickles of published models: read as they are, in their order, and no code of a file is run."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vinvl.run.errors import UserError
from vinvl.vqa.answers import AnswerVocabulary, read_answers

ANSWERS = ["net", "", "T-shirt", "café", "2"]  # as they are: neither normalised nor sorted


class Harmful:
    """What a pickle calls when it is read with Python's own loader."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


def pickled(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", range(6))
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
    path = pickled(tmp_path / "trainval_label2ans.pkl", content, protocol)
    assert AnswerVocabulary.load(path).answers == tuple(ANSWERS)
    assert all(type(answer) is str for answer in read_answers(path))


def test_json_with_numbers_as_keys(tmp_path: Path) -> None:
    path = tmp_path / "label2ans.json"
    path.write_text('{"1": "no", "0": "yes", "2": "2"}')
    assert read_answers(path) == ("yes", "no", "2")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"yes": 0, "no": 2}, "of its 2 answers none has the number 1"),
        ({0: "yes", 2: "no"}, "of its 2 answers none has the number 1"),
        ({1: "yes", 2: "no"}, "none has the number 0"),
        ({-1: "yes", 0: "no"}, "none has the number 1"),
        ({"yes": 0, "no": 0}, "'yes' and 'no' both have the number 0"),
        ({0: "yes", np.int64(0): "no", "0": "maybe"}, "both have the number 0"),
        ({"yes": 10**18, "no": 10**18 + 1}, "none has the number 0"),
        ({"yes": 10**5000, "no": 10**5000 + 1}, "a whole number of more than 64 bits"),
        ({10**18: "yes", "x": "no"}, "'x' is no number"),
        ({"yes": 0.0}, "'yes' is no number"),
        ({0: b"yes"}, "a bytes is no text"),
        ({0: ["yes"]}, "a list is no text"),
        ({("a", 1): 0}, "a tuple as a key"),
        (["yes", 2], "2 is no text"),
        (["yes", None], "None is no text"),
        (["yes", "no", "yes"], "the answer 'yes' 2 times"),
        ([], "holds no answers"),
        ({}, "holds no answers"),
        (3, "expected a list of texts"),
        ({"yes", "no"}, "expected a list of texts"),  # a set has no order
        (Harmful(), "wants to call posix.system"),
        ({0: Harmful()}, "wants to call posix.system"),
    ],
)
def test_whatever_is_no_vocabulary_is_refused_in_one_sentence(
    content: Any, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = pickled(tmp_path / "answers.pkl", content)
    with pytest.raises(UserError, match=sentence) as refused:
        AnswerVocabulary.load(path)
    assert str(path) in str(refused.value) and "\n" not in str(refused.value) and len(str(refused.value)) < 400
    assert [file.name for file in tmp_path.iterdir()] == ["answers.pkl"]


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04]q\x00", b'["yes"]'])
def test_damaged_pickles_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "answers.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is a damaged pickle"):
        AnswerVocabulary.load(path)


def test_a_pickle_that_is_missing_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"answers\.pkl does not exist"):
        AnswerVocabulary.load(tmp_path / "answers.pkl")
    with pytest.raises(UserError, match=r"answers\.pkl does not exist, and none is written as a pickle"):
        AnswerVocabulary(("yes",)).save(tmp_path / "answers.pkl")
    assert not list(tmp_path.iterdir())
