"""The document-frequency table's file and its checks."""

import json
from pathlib import Path

import pytest

from vinvl.errors import UserError
from vinvl.metrics.captions import DocumentFrequencies, read_document_frequencies


def test_written_table_is_read_back(tmp_path: Path) -> None:
    table = DocumentFrequencies(7.5, {"a": 4, "a café <eos>": 2.5, "«»": 1})
    table.write(tmp_path / "new" / "table.json")
    assert read_document_frequencies(tmp_path / "new" / "table.json") == table


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "other"}, "is no document-frequency table of vinvl"),
        ({"version": 2}, "has version 2, this vinvl reads version 1"),
        ({"frequencies": [["a", 1]]}, "has no object under 'frequencies'"),
        ({"num_images": None}, "counts None images"),
        ({"num_images": True}, "counts True images"),
        ({"num_images": float("nan")}, "counts nan images"),
        ({"num_images": float("inf")}, "counts inf images"),
        ({"num_images": 0}, "counts 0 images"),
        ({"frequencies": {"a": 4}}, "gives 'a' the frequency 4; expected 0 to the number of images, 3"),
        ({"frequencies": {"a": -1}}, "gives 'a' the frequency -1"),
        ({"frequencies": {"a": "1"}}, "gives 'a' the frequency '1'"),
        ({"frequencies": {"a": float("nan")}}, "gives 'a' the frequency nan"),
        ({"frequencies": {"a  b": 1}}, "lists 'a  b'"),
        ({"frequencies": {"": 1}}, "lists ''"),
        ({"frequencies": {"a b c d e": 1}}, "lists 'a b c d e'"),
    ],
)
def test_bad_tables_are_told_with_their_file(tmp_path: Path, change: dict[str, object], sentence: str) -> None:
    path = tmp_path / "table.json"
    good = {"format": "vinvl document frequencies", "version": 1, "num_images": 3, "frequencies": {"a": 1}}
    path.write_text(json.dumps(good))
    read_document_frequencies(path)
    path.write_text(json.dumps(good | change))
    with pytest.raises(UserError) as error:
        read_document_frequencies(path)
    assert str(error.value).startswith(f"{path} ") and sentence in str(error.value)


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "coco-train-words.p"
    path.write_bytes(b"\x80\x04\x95\x0b\x00\x00\x00")
    with pytest.raises(UserError, match="is not UTF-8 text"):
        read_document_frequencies(path)


def test_table_made_by_hand_is_checked() -> None:
    with pytest.raises(UserError, match="The document-frequency table gives 'a' the frequency 5"):
        DocumentFrequencies(4, {"a": 5})
