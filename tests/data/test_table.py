"""Records as Arrow tables: what was put in comes out, in blocks, joined, pickled and selected."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.data import table
from vinvl.data.table import IDS, TEXT, TEXTS, Column, Form, RecordTable, kept_records
from vinvl.run.errors import UserError

FORM = Form(
    noun="notes",
    called="note",
    columns={"note_id": pa.int64(), "image_id": TEXT, "words": TEXTS, "kind": TEXT},
    annotation="words",
    filled={"kind": "unstated"},
)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


def rows(*ids: int | str, words: Any = ("a",), kind: str | None = None, file: str = "a.json record") -> list[tuple]:
    return [(file, number, own_id, number % 3, words, kind) for number, own_id in enumerate(ids, start=1)]


@settings(deadline=None)
@given(st.lists(st.lists(texts)), st.integers(1, 5))
def test_columns_hold_what_was_put_in(values: list[list[str]], block: int) -> None:
    column = pickle.loads(pickle.dumps(Column.of(values, TEXTS)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "BLOCK", block)
        assert list(column) == values
    assert [column[index] for index in range(-len(values), 0)] == values
    flat = [text for one in values for text in one]
    assert [list(column.flat())[a:b] for a, b in zip(column.starts(), column.starts()[1:], strict=False)] == values
    names, codes = column.flat().categories()
    assert names == list(dict.fromkeys(flat)) and [names[code] for code in codes] == flat
    with pytest.raises(IndexError):
        column[len(values)]


@pytest.mark.parametrize("block", [1, 2, 100])
def test_blocks_change_nothing(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "BLOCK", block)
    given_ = [*rows(5, 2**70, 3), ("b.json line", 9, "x", "n1", ["b", "c"], "own")]
    records = pickle.loads(pickle.dumps(RecordTable.of(FORM, given_, "a.json")))
    assert list(records["note_id"]) == ["5", str(2**70), "3", "x"]
    assert list(records["words"]) == [["a"], ["a"], ["a"], ["b", "c"]]
    assert list(records["kind"]) == ["unstated"] * 3 + ["own"] and records.image_ids.tolist() == ["1", "2", "0", "n1"]
    assert records.row(3) == {"note_id": "x", "image_id": "n1", "words": ["b", "c"], "kind": "own"}
    kept = records.select(np.array([False, True, False, True]))
    assert kept.describe(1) == "b.json line 9 (note x)" and list(kept["note_id"]) == [str(2**70), "x"]


@pytest.mark.parametrize("block", [1, 2, 100])
def test_lists_of_ids_are_texts_where_one_is(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "BLOCK", block)
    form = Form("images", "image", {"image_id": TEXT, "ids": IDS})
    listed: list[Any] = [[1, 2], None, [], [3], ["x", 4]]
    for lists, kind in ((listed[:4], int), (listed, str)):
        rows = [("a.json", number, number, ids) for number, ids in enumerate(lists)]
        records = RecordTable.of(form, rows, "a.json")
        assert list(records["ids"]) == [ids if ids is None else [kind(one) for one in ids] for ids in lists]
        assert list(records["ids"].starts()) == [0, 2, 2, 2, 3, 5][: len(lists) + 1]
    with pytest.raises(UserError, match="7: ids is an integer of more than 256 digits"):
        RecordTable.of(form, [("a.json", 7, 1, [10**300])], "a.json")


def test_what_nobody_says_is_no_column() -> None:
    records = RecordTable.of(FORM, rows(1, 2, words=None), "a.json")
    assert not records.annotated and "kind" not in records and records.get("kind") is None
    assert list(records["note_id"]) == [1, 2]


@pytest.mark.parametrize(
    ("given_", "sentence"),
    [
        ([], "a.json holds no notes"),
        ([*rows(1, 2), *rows(3, words=None, file="b.json record")], "b.json record 1 has no words and a.json record 1"),
        ([*rows(1, 2), *rows(2, file="b.json record")], "b.json record 1 has the note_id 2 of a.json record 2"),
        (rows(1, 10**300), "a.json record 2: note_id is an integer of more than 256 digits"),
    ],
)
def test_refusals(given_: list[tuple], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "BLOCK", 2)
    with pytest.raises(UserError) as error:
        RecordTable.of(FORM, given_, "a.json")
    assert sentence in str(error.value)


# Records of large files, kept from one start to the next.


def notes(folder: Path) -> list[Path]:
    files = [folder / "a.json", folder / "b.json"]
    for file in files:
        file.write_text(f"of {file.name}")
    return files


def reading(files: list[Path]) -> RecordTable:
    given_ = rows(5, 3, words=("\u00e9", ""), file=f"{files[0]} record")
    return RecordTable.of(FORM, [*given_, ("b.json line", 9, 8, "n1", ["b"], "own")], files[0])


def unread() -> RecordTable:
    pytest.fail("read again")


def test_large_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, folder = notes(tmp_path), tmp_path / "cache"
    records = kept_records(FORM, files, folder, lambda: reading(files))
    assert not folder.exists()  # the files are small
    monkeypatch.setattr(table, "LEAST_BYTES", 1)
    kept_records(FORM, files, folder, lambda: reading(files))
    again = kept_records(FORM, files, folder, unread)
    assert again.table.equals(records.table, check_metadata=True) and again.form is FORM
    assert [again.describe(row) for row in range(3)] == [records.describe(row) for row in range(3)]
    assert RecordTable.join([again, again.select(np.zeros(3, dtype=bool))]).row(2) == records.row(2)
    assert kept_records(FORM, files, None, lambda: reading(files)).table.equals(records.table)


CHANGES: dict[str, Callable[[Path], object]] = {
    "other bytes": lambda folder: (folder / "b.json").write_text("of b.jso2"),
    "another program": lambda folder: (folder / "source" / "room" / "more.py").touch(),
    "empty": lambda folder: cache_of(folder).write_bytes(b""),
    "cut": lambda folder: cache_of(folder).write_bytes(cache_of(folder).read_bytes()[:-9]),
    "a bit": lambda folder: cache_of(folder).write_bytes(cache_of(folder).read_bytes().replace(b"own", b"oWn")),
}


def cache_of(folder: Path) -> Path:
    (path,) = (folder / "cache").glob("records_*.arrow")
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_damaged_or_of_something_else_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    (tmp_path / "source" / "room").mkdir(parents=True)
    monkeypatch.setattr(table, "__file__", str(tmp_path / "source" / "room" / "table.py"))
    monkeypatch.setattr(table, "LEAST_BYTES", 1)
    files, read = notes(tmp_path), list[int]()

    def reader() -> RecordTable:
        read.append(1)
        return reading(files)

    records = [kept_records(FORM, files, tmp_path / "cache", reader)]
    before = cache_of(tmp_path).stat().st_ino
    CHANGES[change](tmp_path)
    records += [kept_records(FORM, files, tmp_path / "cache", reader) for _ in range(2)]
    assert len(read) == 2 and cache_of(tmp_path).stat().st_ino != before
    assert records[1].table.equals(records[0].table) and records[2].table.equals(records[0].table)


def test_other_files_of_the_same_bytes_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "LEAST_BYTES", 1)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files = notes(tmp_path / name)
        found = kept_records(FORM, files, tmp_path / "cache", lambda files=files: reading(files))  # type: ignore[misc]
        assert found.place(0) == f"{tmp_path / name / 'a.json'} record 1"


def test_a_folder_that_cannot_be_written_to_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "LEAST_BYTES", 1)
    files = notes(tmp_path)
    for _ in range(2):
        assert len(kept_records(FORM, files, tmp_path / "a.json", lambda: reading(files))) == 3
