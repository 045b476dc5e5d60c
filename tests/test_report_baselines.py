"""Baselines that never look."""

import json
from pathlib import Path

from vinvl.data.caption_files import CaptionRecords, read_caption_jsonl
from vinvl.data.gqa_files import GQARecords, read_gqa
from vinvl.data.vqa_files import VQARecords, read_jsonl
from vinvl.metrics import evaluate_captions
from vinvl.report.baselines import constant_caption, question_text_prior, question_type_prior


def records(path: Path, rows: list[tuple[str, str]]) -> VQARecords:
    lines = [
        {"image_id": "1", "question": "what?", "answers": [answer] * 10, "question_type": kind} for kind, answer in rows
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return read_jsonl(path)


def test_each_type_gets_its_own_most_frequent_answer(tmp_path: Path) -> None:
    train = records(tmp_path / "train.jsonl", [("count", "2"), ("count", "2"), ("count", "3"), ("is", "yes")])
    test = records(tmp_path / "test.jsonl", [("count", "2"), ("count", "3"), ("is", "yes"), ("new", "2")])
    scores = question_type_prior(train, test)
    assert scores["question_type/count"] == 50.0
    assert scores["question_type/is"] == 100.0
    assert scores["question_type/new"] == 100.0
    assert scores["overall"] == 75.0


def test_the_same_words_get_the_same_answer(tmp_path: Path) -> None:
    def gqa(name: str, rows: list[tuple[str, str]]) -> GQARecords:
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
