"""Baselines that never look."""

import json
from pathlib import Path

from vinvl.data.vqa_files import VQARecords, read_jsonl
from vinvl.report.baselines import question_type_prior


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
