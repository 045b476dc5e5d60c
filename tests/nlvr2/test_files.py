"""NLVR2 statements: what is read, and how bad files are refused."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.reader_checks import BROKEN_FILES, ids, refusal, sentences, unique_ids
from vinvl.data.table import RecordTable
from vinvl.nlvr2.files import read_nlvr2

SAMPLES = Path(__file__).parents[1] / "data/samples/nlvr2"


def statement(**changes: Any) -> dict[str, Any]:
    return {"identifier": "dev-1-0-0", "sentence": "Both show a cat.", "label": "True"} | changes


def lines_file(folder: Path, *records: Any, name: str = "dev.json") -> Path:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder / name


def contents(records: RecordTable) -> list[Any]:
    labels = list(records["label"]) if records.annotated else None
    return [list(records["identifier"]), records.image_ids.tolist(), list(records["sentence"]), labels]


@pytest.mark.parametrize(("split", "count", "true"), [("dev", 20, 9), ("test1", 20, 10), ("test2", 10, 6)])
def test_samples(split: str, count: int, true: int) -> None:
    path = SAMPLES / f"{split}.sample.jsonl"
    raw = [json.loads(line) for line in path.read_text().splitlines()]
    records = read_nlvr2(path)
    assert len(records) == count and sum(records["label"]) == true
    assert list(records["label"]) == [record["label"] == "True" for record in raw]
    assert list(records["sentence"]) == [record["sentence"] for record in raw]
    assert list(records["identifier"]) == [record["identifier"] for record in raw]
    assert contents(pickle.loads(pickle.dumps(records))) == contents(records)


def test_official_image_names() -> None:
    records = read_nlvr2(SAMPLES / "dev.sample.jsonl")
    assert records["identifier"][1] == "dev-308-2-0"
    assert records.image_ids.shape == (20, 2) and records.image_ids[1].tolist() == ["dev-308-2-img0", "dev-308-2-img1"]
    assert records.describe(1) == f"{SAMPLES / 'dev.sample.jsonl'} line 2 (identifier dev-308-2-0)"


def test_pictures_of_ones_own_and_a_json_list(tmp_path: Path) -> None:
    own = {"left_image_id": 17, "right_image_id": "b.jpg"}
    records = [statement(identifier="mine", label=True, **own), statement(label="fAlSe", left_image_id=None)]
    path = tmp_path / "own.json"
    path.write_text("\ufeff \n" + json.dumps(records, indent=1), encoding="utf-8")
    read = read_nlvr2(path)
    images = [["17", "b.jpg"], ["dev-1-0-img0", "dev-1-0-img1"]]
    assert contents(read) == [["mine", "dev-1-0-0"], images, ["Both show a cat."] * 2, [True, False]]
    assert read.describe(1) == f"{path} record 2 (identifier dev-1-0-0)"


def test_test_split_without_labels(tmp_path: Path) -> None:
    records = [statement(identifier="test2-1-0-0", label=None), {"identifier": "test2-1-0-1", "sentence": "x"}]
    assert not read_nlvr2(lines_file(tmp_path, *records)).annotated


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        ([3], "dev.json line 1: Expected `object`"),
        (["text"], "dev.json line 1: Expected `object`"),
        ([{"sentence": "x"}], "dev.json line 1: Object missing required field `identifier`"),
        ([{"identifier": "a-b"}], "dev.json line 1: Object missing required field `sentence`"),
        ([statement(sentence=" ")], "that is not blank at $.sentence"),
        ([statement(sentence=float("nan"))], "line 1 is not valid JSON"),
        ([statement(sentence="\ud800")], "$.sentence holds half of a surrogate pair"),
        ([statement(identifier=True)], "line 1: Expected `int | str`, got `bool` at $.identifier"),
        ([statement(identifier="x-" * 200)], "256 characters at most at $.identifier"),
        ([statement(identifier=10**256)], "no pictures can be derived"),
        ([statement(identifier="dev")], "line 1: no pictures can be derived from the identifier 'dev'"),
        ([statement(identifier="-0")], "no pictures can be derived"),
        ([statement(identifier="dev-")], "no pictures can be derived"),
        ([statement(identifier=7)], "no pictures can be derived from the identifier '7'"),
        ([statement(left_image_id="a")], "line 1 has left_image_id only; give both"),
        ([statement(right_image_id="a")], "line 1 has right_image_id only; give both"),
        ([statement(left_image_id="a", right_image_id=[])], "at $.right_image_id"),
        ([statement(label="yes")], """line 1: label is 'yes', expected "True" or "False"."""),
        ([statement(label=1)], "at $.label"),
        ([statement(label="")], "line 1: label is '', expected"),
        ([statement(label=float("nan"))], "line 1 is not valid JSON"),
        ([statement(), statement()], "dev.json line 2 has the identifier dev-1-0-0 of"),
        ([statement(), statement(identifier="a-b", label=None)], "line 2 has no label and "),
    ],
)
def test_bad_records_are_refused(tmp_path: Path, records: list[Any], sentence: str) -> None:
    message = refusal(read_nlvr2, lines_file(tmp_path, *records))
    assert sentence in message and message.startswith(str(tmp_path / "dev.json")), message


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        *BROKEN_FILES[2:4],
        *BROKEN_FILES[5:],
        (b'{"identifier": ' + b"9" * 5000 + b"}", "out of range at ..identifier"),
        (b"", "holds no statements"),
        (b"\n \n", "holds no statements"),
        (b"[]", "holds no statements"),
        (b'[{"identifier": "a-b"', "is not valid JSON"),
        (b'["a"]', "Expected `object`, got `str` at ..0."),
        (b'{"identifier": "a-b",\n"sentence": "x"}', "line 1 is not valid JSON"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "dev.json"
    path.write_bytes(content)
    message = refusal(read_nlvr2, path)
    assert message.startswith(str(path)) and re.search(sentence, message), message


def test_missing_files(tmp_path: Path) -> None:
    assert "none.json does not exist" in refusal(read_nlvr2, tmp_path / "none.json")
    assert "cannot be read" in refusal(read_nlvr2, tmp_path)


@settings(deadline=None, max_examples=30)
@given(unique_ids, st.data(), st.booleans(), st.booleans())
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    identifiers: list[int | str],
    data: st.DataObject,
    ascii_only: bool,
    as_list: bool,
) -> None:
    path = tmp_path_factory.mktemp("nlvr2") / "own.json"
    fields = {"sentence": sentences, "left_image_id": ids, "right_image_id": ids, "label": st.booleans()}
    records = [{"identifier": name} | data.draw(st.fixed_dictionaries(fields)) for name in identifiers]
    dumped = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
    path.write_text(f"[{','.join(dumped)}]" if as_list else "\n".join(dumped), encoding="utf-8", newline="")
    assert contents(read_nlvr2(path)) == [
        [str(name) for name in identifiers],
        [[str(record["left_image_id"]), str(record["right_image_id"])] for record in records],
        [record["sentence"] for record in records],
        [record["label"] for record in records],
    ]
