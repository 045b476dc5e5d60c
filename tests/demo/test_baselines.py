"""Baselines that never look."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from vinvl.captioning.data import CaptioningDataModule
from vinvl.captioning.files import CaptionRecords, read_caption_jsonl
from vinvl.captioning.scores import evaluate_captions
from vinvl.captioning.task import CaptioningTask
from vinvl.data.table import RecordTable
from vinvl.data.words import commonest_answers, commonest_for
from vinvl.demo.baselines import constant_caption, question_text_prior, question_type_prior
from vinvl.gqa.files import read_gqa
from vinvl.nlvr2.data import NLVR2DataModule
from vinvl.nlvr2.files import read_nlvr2
from vinvl.nlvr2.task import NLVR2Task
from vinvl.vqa.answers import AnswerTargets, AnswerVocabulary
from vinvl.vqa.files import read_own


def records(path: Path, rows: list[tuple[str, str]]) -> RecordTable:
    lines = [
        {"image_id": "1", "question": "what?", "answers": [answer] * 10, "question_type": kind} for kind, answer in rows
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return read_own(path)


def test_each_type_gets_its_own_most_frequent_answer(tmp_path: Path) -> None:
    train = records(tmp_path / "train.jsonl", [("count", "2"), ("count", "2"), ("count", "3"), ("is", "yes")])
    test = records(tmp_path / "test.jsonl", [("count", "2"), ("count", "3"), ("is", "yes"), ("new", "2")])
    scores = question_type_prior(train, test)
    assert scores["question_type/count"] == 50.0
    assert scores["question_type/is"] == 100.0
    assert scores["question_type/new"] == 100.0
    assert scores["overall"] == 75.0


def test_the_commonest_answer_is_counted_and_not_the_first_of_the_file(tmp_path: Path) -> None:
    """Of all questions, and of those that begin alike where there are enough of them."""
    vocabulary = AnswerVocabulary(("rare", "no", "3", "2", "yes"))
    asked = [("how many dogs?", "2"), ("how many cats?", "2"), ("how many men?", "3"), ("how high?", "rare")]
    asked += [("how many?", "2"), ("How many cups?", "2"), ("what?", "unknown"), ("why?", "rare"), ("why?", "rare")]
    asked += [("is it?", answer) for answer in ("yes", "no", "yes", "no", "no", "yes")]
    asked += [("is it", "no"), ("can it?", "no"), ("was it?", "no")]
    lines = [{"image_id": "1", "question": q, "answers": [a] * 6 + ["yes"] * 3} for q, a in asked]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    train = read_own(tmp_path / "train.jsonl")
    found = commonest_answers(
        train["question"],
        AnswerTargets.of_people(train["answers"], vocabulary, "count/3").best(),
        vocabulary.answers,
    )
    assert found == {"": "no", "how": "2", "how many": "2", "is": "no", "is it": "no"}
    for question, answer in (("how many birds?", "2"), ("How tall", "2"), ("is she?", "no"), ("où est-il ?", "no")):
        assert commonest_for(question, found) == answer
    assert commonest_for("how", {}) is None and commonest_answers(["what?"], np.array([-1]), ("yes",)) == {}


def test_the_same_words_get_the_same_answer(tmp_path: Path) -> None:
    def gqa(name: str, rows: list[tuple[str, str]]) -> RecordTable:
        content = {str(n): {"question": q, "answer": a, "imageId": "1"} for n, (q, a) in enumerate(rows)}
        (tmp_path / name).write_text(json.dumps(content))
        return read_gqa([tmp_path / name])

    train = gqa("train.json", [("is it?", "no"), ("is it?", "no"), ("is it?", "yes"), ("what?", "red")])
    test = gqa("test.json", [("is it?", "no"), ("is it?", "yes"), ("what?", "red"), ("new?", "no")])
    assert question_text_prior(train, test) == 75.0


def test_the_best_constant_caption_is_found(tmp_path: Path) -> None:
    def captions(name: str, rows: list[list[str]]) -> CaptionRecords:
        lines = [{"image_id": n, "captions": texts} for n, texts in enumerate(rows)]
        (tmp_path / name).write_text("\n".join(map(json.dumps, lines)))
        return read_caption_jsonl(tmp_path / name)

    train = captions("train.jsonl", [["a dog runs on grass", "a cat"], ["a dog runs on grass", "two birds fly high"]])
    test = captions("test.jsonl", [["a dog runs on grass"], ["a dog runs on green grass"], ["one boat at sea"]])
    caption, cider = constant_caption(train, test)
    assert caption == "a dog runs on grass"
    references = {str(n): test.captions_of(n) for n in range(3)}
    assert cider == 100 * evaluate_captions(dict.fromkeys(references, caption), references).corpus["CIDEr"] > 0
    assert constant_caption(train, test, candidates=1) == (caption, cider)


def test_what_stands_for_a_statement_or_a_caption_about_pictures_without_regions(tmp_path: Path) -> None:
    rows = [
        {"identifier": f"q-{n}", "sentence": "x", "label": label} for n, label in enumerate(["True", "False", "False"])
    ]
    (tmp_path / "train.json").write_text("\n".join(map(json.dumps, rows)))
    statements = read_nlvr2(tmp_path / "train.json")
    captions = [{"image_id": f"0{n}", "captions": texts} for n, texts in enumerate([["b", "a"], ["a"]])]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, captions)))
    captioned = read_caption_jsonl(tmp_path / "train.jsonl")
    nobody: Any = None
    known: Any = SimpleNamespace(commonest=NLVR2DataModule.commonest_of(nobody, statements))
    assert NLVR2Task.filled_in(known, statements, 1) == (0, "q-1", False)
    known = SimpleNamespace(commonest=CaptioningDataModule.commonest_of(nobody, captioned))
    assert CaptioningTask.filled_in(known, captioned, 1) == (0, "01", ("a",), (0.0,), True)
    assert CaptioningTask.filled_in(SimpleNamespace(commonest={}), captioned, 1) is None  # type: ignore[arg-type]
