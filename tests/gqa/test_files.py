"""GQA question files: what is read, how parts are joined and how bad files are refused."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.reader_checks import BROKEN_FILES, refusal, sentences
from vinvl.data import table
from vinvl.data.table import RecordTable
from vinvl.gqa.files import read_gqa
from vinvl.run import values

SAMPLES = Path(__file__).parents[1] / "data/samples/gqa"


def question(**changes: Any) -> dict[str, Any]:
    types = {"structural": "query", "semantic": "rel", "detailed": "relS"}
    return {"imageId": "n7", "question": "What?", "answer": "cat", "isBalanced": True, "types": types} | changes


def gqa_file(folder: Path, records: Any, name: str = "questions.json") -> Path:
    (folder / name).write_text(json.dumps(records))
    return folder / name


def contents(records: RecordTable) -> list[Any]:
    names = ["question_id", "image_id", "question", "answer", "structural", "semantic"]
    return [list(records[name]) if name in records else None for name in names]


def test_samples_in_name_order_of_their_folder() -> None:
    records = read_gqa([SAMPLES])
    assert contents(records) == [
        ["202218649", "20240871"],
        ["n578564", "n166008"],
        ["What is hanging above the chalkboard?", "Does the table below the water look wooden and round?"],
        ["picture", "yes"],
        ["query", "logical"],
        ["rel", "attr"],
    ]
    assert records.describe(1) == f"{SAMPLES / 'questions1.json'} record 1 (question 20240871)"
    assert contents(pickle.loads(pickle.dumps(records))) == contents(records)
    backwards = read_gqa([SAMPLES / "questions1.json", SAMPLES / "questions0.json"])
    assert list(backwards["question_id"]) == ["20240871", "202218649"]
    assert contents(read_gqa(SAMPLES / "questions0.json")) == contents(records.select(np.array([True, False])))


def test_split_without_answers_and_optional_fields(tmp_path: Path) -> None:
    records = read_gqa([gqa_file(tmp_path, {"1": {"imageId": 5, "question": "?"}, "2": question(answer=None)})])
    assert not records.annotated and records.image_ids.tolist() == ["5", "n7"]
    assert list(records["structural"]) == ["unstated", "query"]
    bare = read_gqa([gqa_file(tmp_path, {"1": {"imageId": 5, "question": "?", "types": None}})])
    assert "structural" not in bare and "semantic" not in bare


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ({}, "questions.json holds no questions; an empty split"),
        ([question()], "should be one JSON object of question ids with their questions; found '[' at the start"),
        (3, "found '3' at the start"),
        ({"9": 3}, "questions.json record 1 (question 9): Expected `object`"),
        ({"8": question(), "9": {"imageId": "n7"}}, "record 2 (question 9): Object missing required field `question`"),
        ({"9": {"question": "?"}}, "record 1 (question 9): Object missing required field `imageId`"),
        ({"9": question(question=" \n")}, "(question 9): Expected `str` that is not blank at $.question"),
        ({"9": question(question=float("nan"))}, "at $.question"),
        ({"9": question(question="\udc00")}, "record 1 is not usable JSON ($.question holds half of a surrogate pair"),
        ({"9": question(imageId=None)}, "at $.imageId"),
        ({"9": question(imageId=10**300)}, "image_id is an integer of more than 256 digits; use a shorter id"),
        ({"9": question(imageId="x" * 300)}, "256 characters at most at $.imageId"),
        ({"9": question(answer="")}, "that is not blank at $.answer"),
        ({"9": question(answer=["cat"])}, "at $.answer"),
        ({"9": question(answer="\ud83d")}, "$.answer holds half of a surrogate pair"),
        ({"9": question(types={"structural": 1})}, "at $.types.structural"),
        ({"9": question(isBalanced="yes")}, "at $.isBalanced"),
        ({"": question()}, "questions.json record 1: the question id is '', expected an integer or a text"),
        ({"\ud800": question()}, "record 1 is not usable JSON ($ holds half of a surrogate pair"),
        ({"x" * 300: question()}, "record 1: the question id is longer than 256 characters"),
        ({"8": question(), "9": question(answer=None)}, "json record 2 has no answer and "),
        ({"8": question(answer=None), "9": question()}, "questions.json record 2 has (1 of 2 records have none)"),
    ],
)
def test_bad_records_are_refused(tmp_path: Path, records: Any, sentence: str) -> None:
    path = gqa_file(tmp_path, records)
    message = refusal(read_gqa, [path])
    assert sentence in message and message.startswith(str(path)), message


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        *BROKEN_FILES,
        (b'{"1": {"a": 1}', "record 1 .question 1.: Object missing required field `imageId`"),
        (b'{"1": 2 "3": 4}', "record 1 .question 1.: Expected `object`"),
        (b"{1: 2}", "record 1 is not valid JSON .character 2: Expecting property name"),
        (b'{"1" {}}', "record 1 is not valid JSON .character 6: Expecting ':'"),
        (b'{"1": }', "record 1 is not valid JSON .character 7: Expecting value"),
        (b"{", "record 1 is not valid JSON .character 2: Expecting property name"),
        (b"{} {}", "does not end after its object"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "questions.json"
    path.write_bytes(content)
    message = refusal(read_gqa, [path])
    assert message.startswith(str(path)) and re.search(sentence, message), message


@pytest.mark.parametrize("end", [b"", b"}x", b" ]", b", }", b",", b", 3: 4}"])
def test_files_that_end_badly_are_refused(tmp_path: Path, end: bytes) -> None:
    path = gqa_file(tmp_path, {"1": question()})
    path.write_bytes(path.read_bytes()[:-1] + end)
    assert "is not valid JSON" in refusal(read_gqa, [path]) or end == b"}x"
    assert end != b"}x" or "does not end after its object" in refusal(read_gqa, [path])


def test_missing_files_and_empty_folders(tmp_path: Path) -> None:
    assert "none.json does not exist; check the path" in refusal(read_gqa, [tmp_path / "none.json"])
    assert "is a folder without .json files" in refusal(read_gqa, [tmp_path])
    assert "No file is named" in refusal(read_gqa, [])
    (tmp_path / "odd.json").mkdir()
    assert "odd.json cannot be read" in refusal(read_gqa, [tmp_path])


def test_repeated_questions_are_refused(tmp_path: Path) -> None:
    first = gqa_file(tmp_path, {"8": question(), "9": question()}, "first.json")
    first.write_bytes(b"\xef\xbb\xbf" + first.read_bytes())  # a byte-order mark is skipped
    second = gqa_file(tmp_path, {"10": question(), "9": question()}, "second.json")
    message = refusal(read_gqa, [first, second])
    assert re.search(r"second\.json record 2 has the question_id 9 of .*first\.json record 2", message), message
    second.write_text('{"5": %s, "5": %s}' % ((json.dumps(question()),) * 2))
    assert "second.json record 2 has the question_id 5 of" in refusal(read_gqa, [second])


def test_joining_and_selecting(tmp_path: Path) -> None:
    first = read_gqa([gqa_file(tmp_path, {"8": question(types={"semantic": "obj"}), "9": question(answer="dog")})])
    second = read_gqa([gqa_file(tmp_path, {"123": question(isBalanced=False)}, "b.json")])
    joined = RecordTable.join([first, second])
    assert list(joined["question_id"]) == ["8", "9", "123"]
    assert list(joined["structural"]) == ["unstated", "query", "query"]
    kept = joined.select(np.array([False, True, True]))
    assert len(kept) == 2 and list(kept["question"]) == ["What?"] * 2
    assert list(kept["answer"]) == ["dog", "cat"]
    assert kept.describe(1) == f"{tmp_path / 'b.json'} record 1 (question 123)"
    empty = joined.select(np.zeros(3, dtype=bool))
    bare = read_gqa([gqa_file(tmp_path, {"1": question(answer=None)}, "c.json")])
    assert len(RecordTable.join([empty, empty])) == 0
    assert len(empty) == 0 and contents(RecordTable.join([empty, bare])) == contents(bare)
    assert re.search(
        r"c\.json record 1 has no answer and .*json record 1 has ", refusal(RecordTable.join, [bare, joined])
    )
    with pytest.raises(ValueError, match="no records"):
        RecordTable.join([])
    with pytest.raises(ValueError):
        joined.select(np.array([True]))


members = st.dictionaries(
    sentences.filter(lambda text: "\0" not in text),
    st.fixed_dictionaries(
        {"imageId": st.integers(0, 10**9).map(str), "question": sentences, "answer": sentences},
        optional={
            "isBalanced": st.booleans(),
            "other": st.recursive(st.floats() | sentences, st.lists, max_leaves=6),
        },
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None, max_examples=40)
@given(members, st.booleans(), st.integers(1, 40), st.integers(1, 3), st.sampled_from([None, 2]))
def test_round_trip_in_pieces(
    tmp_path_factory: pytest.TempPathFactory,
    records: dict[str, dict[str, Any]],
    ascii_only: bool,
    chunk: int,
    block: int,
    indent: int | None,
) -> None:
    path = tmp_path_factory.mktemp("gqa") / "questions.json"
    path.write_text(json.dumps(records, ensure_ascii=ascii_only, indent=indent), encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "_CHUNK", chunk)
        patch.setattr(table, "BLOCK", block)
        read = read_gqa([path])
    assert contents(read) == [
        list(records),
        [record["imageId"] for record in records.values()],
        [record["question"] for record in records.values()],
        [record["answer"] for record in records.values()],
        None,
        None,
    ]
    assert [read.place(index) for index in range(len(read))] == [f"{path} record {n + 1}" for n in range(len(read))]


def test_numbers_are_not_cut_where_a_piece_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "members.json"
    path.write_text('{"a": 1234567, "b": -1.5e3, "c": true, "d": 1e+2}')
    for chunk in range(1, 20):
        monkeypatch.setattr(values, "_CHUNK", chunk)
        assert list(values.json_members(path, "")) == [("a", 1234567), ("b", -1500.0), ("c", True), ("d", 100.0)]


def test_a_broken_member_is_not_searched_for_its_end_without_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "members.json"
    # Were the file read to its end, it would be refused for the byte that is not UTF-8.
    path.write_bytes(b'{"a": [1 2], "b": "' + b"x" * 100_000 + b'\xff"}')
    monkeypatch.setattr(values, "_CHUNK", 100)
    monkeypatch.setattr(values, "_LONGEST_MEMBER", 1000)
    message = refusal(lambda: list(values.json_members(path, "")))
    assert "record 1 is not valid JSON (character 10: Expecting ',' delimiter)" in message
