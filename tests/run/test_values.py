"""Lists within a JSON object of any size, item by item."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.reader_checks import BROKEN_FILES, refusal
from vinvl.run import values
from vinvl.run.values import json_listed

TEXTS = st.sampled_from(["", "a", "},{", "}, {", ']}, "b": [{', "\\", 'ü"', "{", "\u2028"])
VALUES = st.recursive(
    st.none() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
ITEMS = st.lists(st.dictionaries(st.sampled_from("abc"), VALUES) | VALUES, max_size=8)


class Thing(msgspec.Struct):
    id: int
    name: str = ""


def listed(path: Path, kinds: Any, needed: Any = ()) -> list[tuple[str, Any]]:
    return list(json_listed(path, kinds, needed, "give another file"))


@settings(max_examples=150, deadline=None)
@given(
    content=st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), ITEMS, max_size=4),
    chunk=st.sampled_from([1, 7, 40, 10_000]),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
)
def test_items_are_those_of_the_whole_file(
    tmp_path_factory: pytest.TempPathFactory, content: Any, chunk: int, indent: int | None, ascii_only: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "lists.json"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "_CHUNK", chunk)
        found = listed(path, {"a": Any, "b": Any, "d": Any})
    assert found == [(key, item) for key, items in content.items() if key != "c" for item in items]


def test_most_items_are_decoded_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, one_by_one = tmp_path / "lists.json", 0
    things = [{"id": number, "more": [{"x": 1}, {"y": 2}], "name": "a" * 20} for number in range(20_000)]
    path.write_text(json.dumps({"info": {"a": [1]}, "things": things, "last": [{"id": 1}, {"id": 2}, {"id": 3}]}))
    convert = msgspec.convert

    def counting(*arguments: Any) -> Any:
        nonlocal one_by_one
        one_by_one += 1
        return convert(*arguments)

    monkeypatch.setattr(values, "_CHUNK", 1 << 14)
    monkeypatch.setattr(msgspec, "convert", counting)
    tracemalloc.start()
    numbers = [item.id for _, item in json_listed(path, {"things": Thing}, (), "")]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert numbers == list(range(20_000)) and one_by_one < 1000  # of each piece read the last one, and the last piece
    assert peak < path.stat().st_size, peak


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a": [{"id": 1}, {"id": "2"}, {"id": 3}]}', "Expected `int`, got `str` at $.a[1].id"),
        ('{"a": [{"id": 1}, 7]}', "Expected `object`, got `int` at $.a[1]"),
        ('{"a": [{"id": 1}, {}]}', "missing required field `id` at $.a[1]"),
        ('{"a": {"id": 1}}', "Expected `array`, got `object` at $.a; give another file"),
        ('{"a": "x"}', "Expected `array`, got `str` at $.a; give another file"),
        ('{"b": []}', "missing required field `a` at $; give another file"),
        ('{"a": null}', "missing required field `a` at $"),
        ('{"a": [{"id": 1}, {"id": 2}', "$.a[1] is not valid JSON"),
        ('{"a": [{"id": 1} {"id": 2}]}', "is not valid JSON"),
        ('{"a": [{"id": 1}, {"id": 2},]}', "$.a[2] is not valid JSON"),
        ('{"a": [{"id": 1}, {"id" 2}, {"id": 3}]}', "$.a[1] is not valid JSON"),
        ('{"a": [{"id": 1}]} {}', "does not end after its object"),
        ("[]", "should be one JSON object; found '['"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "lists.json"
    path.write_text(content)
    sentence = refusal(listed, path, {"a": Thing}, ["a"])
    assert words in sentence and sentence.startswith(str(path)), sentence


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "lists.json"
    for content, _ in BROKEN_FILES:
        path.write_bytes(content)
        assert refusal(listed, path, {"a": Thing}).startswith(str(path))
    assert "does not exist" in refusal(listed, tmp_path / "none.json", {})
