"""What a file of results says is brought to the records that it says it of, and nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vinvl.captioning.results import read_captions_given
from vinvl.data.table import RecordTable
from vinvl.run.errors import UserError
from vinvl.said import LEAVE_OUT, REFUSE, WRONG, by_name, matched
from vinvl.vqa.files import VQA
from vinvl.vqa.results import people_scored, targets_scored

PEOPLE = ["the", "the", "a", "The."]  # all of which the official evaluation compares as nothing


@pytest.fixture
def records() -> RecordTable:
    """Questions 7, 8 and 9."""
    rows = [
        ("q.json record", number, 6 + number, str(number), f"{number}.jpg", "What?", PEOPLE, "other", None, None)
        for number in (1, 2, 3)
    ]
    return RecordTable.of(VQA, rows, "q.json")


def said_of(records: RecordTable, missing: str, *rows: tuple[str, str]) -> Any:
    names = [by_name(records["question_id"]), by_name(records["image_file"])]
    placed = ((f"r.json record {number}", *row) for number, row in enumerate(rows, start=1))
    return matched(placed, names, records, Path("r.json"), missing)


def test_what_is_missing_is_wrong_though_nothing_would_be_right(records: RecordTable) -> None:
    said = said_of(records, WRONG, ("8", "an"))
    found = people_scored(records, said)
    assert [one.score for one in found.examples] == [0, 100, 0] and found.missing == 2
    assert found.scores["accuracy/overall"] == found.scores["accuracy/other"] == pytest.approx(100 / 3)
    said = said_of(records, LEAVE_OUT, ("8", "an"))
    assert people_scored(records, said).scores["accuracy/overall"] == 100 and said.places == [1]
    with pytest.raises(UserError, match=r"2 of 3 questions are missing in r.json, the first q.json record 1"):
        said_of(records, REFUSE, ("8", "an"))


def test_targets_of_what_is_missing_do_not_count() -> None:
    class Targets(dict[str, Any]):
        table = None

    targets: Any = Targets(target_answers=[["", "x"], ["x"]], target_scores=[[1.0, 0.3], [0.6]])
    said: Any = type("Said", (), {"values": ["", "x"], "places": [0, 1], "lacking": {0}, "told": [], "missing": 1})
    assert targets_scored(targets, said).scores == {"accuracy/overall": pytest.approx(30)}


def test_names_that_several_records_have_tell_none_of_them() -> None:
    assert by_name(["a", 1, "b", "1", "c", "a", "a"]) == {"b": 2, "c": 4}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([("7", "x"), ("7", "x")], "r.json record 2 is about 7 again, which r.json record 1 is about"),
        ([("7", "x"), ("1.jpg", "x")], "r.json record 2 is about 1.jpg again, which r.json record 1 is about"),
        ([("5", "x"), ("6", "x")], "which are called like 7: r.json record 1 \\(5\\) is not among them"),
        ([], "called like 7: the file is empty"),
    ],
)
def test_refused(records: RecordTable, rows: list[tuple[str, str]], told: str) -> None:
    with pytest.raises(UserError, match=told):
        said_of(records, LEAVE_OUT, *rows)


def test_told(records: RecordTable) -> None:
    said = said_of(records, WRONG, ("8", "x"), ("5", "x"), ("7", "z"), ("6", "x"))
    assert said.values == ["z", "x", ""] and said.places == [0, 1, 2] and said.lacking == {2}
    foreign, missing = said.told
    assert foreign.startswith("2 entries are of none of these questions, the first r.json record 2 (5)")
    assert missing.startswith("1 of 3 questions are missing in r.json, the first q.json record 3 (question_id 9)")


def with_mark(text: str) -> str:
    return "\ufeff" + text


@pytest.mark.parametrize("change", [str, with_mark, lambda text: text.replace("\n", "\r\n") + "\r\n\r\n"])
def test_oscars_captions_in_every_dress(tmp_path: Path, change: Callable[[str], str]) -> None:
    lines = [f"{number}\t{json.dumps([{'caption': 'a cat', 'conf': 0.5}])}" for number in (7, 8)]
    (tmp_path / "p.tsv").write_bytes(change("\n".join(lines)).encode())
    assert [row[1:] for row in read_captions_given(tmp_path / "p.tsv")] == [("7", "a cat"), ("8", "a cat")]
