"""The token cache: the same tokens as without it, made once, and never those of other texts or of a damaged file."""

import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from tests.door_in_process import TINY, run_in_process
from vinvl.data import text as token_cache
from vinvl.data.table import Column, write_batch
from vinvl.data.text import cache_key, cached_tokens, encode_texts

TEXTS = ["a red star", "", "Blue CIRCLE?", "star star", "über [SEP] a"]


def tokenizer_of(folder: Path, lower: bool = True, extra: tuple[str, ...] = ()) -> BertTokenizerFast:
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "star", "circle", "?", *extra]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=lower)


@pytest.fixture
def tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BertTokenizerFast:
    monkeypatch.setattr(token_cache, "LEAST_TEXTS", 1)
    return tokenizer_of(tmp_path / "tokenizer")


def assert_same(found: Any, expected: Any) -> None:
    assert found.values.dtype == np.int32 and found.offsets.dtype == np.int64
    np.testing.assert_array_equal(found.values, expected.values)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


def entry(folder: Path) -> Path:
    (path,) = folder.glob("*.arrow")
    return path


@settings(deadline=None, max_examples=25)
@given(texts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=12), min_size=1, max_size=9))
def test_tokens_are_those_made_without_it(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("cache")
    tokenizer = tokenizer_of(folder / "tokenizer")
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(token_cache, "LEAST_TEXTS", 1)
        for given_ in (texts, Column.of(texts)):
            assert_same(cached_tokens(tokenizer, given_, folder / "cache"), encode_texts(tokenizer, texts))
    assert len(list((folder / "cache").glob("*.arrow"))) == 1


def test_the_second_time_nothing_is_tokenized(
    tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = encode_texts(tokenizer, TEXTS)
    assert_same(cached_tokens(tokenizer, TEXTS, None), expected)
    monkeypatch.setattr(token_cache, "LEAST_TEXTS", len(TEXTS) + 1)
    cached_tokens(tokenizer, TEXTS, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()  # few texts
    monkeypatch.setattr(token_cache, "LEAST_TEXTS", len(TEXTS))
    first = cached_tokens(tokenizer, TEXTS, tmp_path / "cache")
    monkeypatch.setattr(token_cache, "encode_texts", lambda *arguments: pytest.fail("tokenized again"))
    again = cached_tokens(tokenizer, TEXTS, tmp_path / "cache")
    for found in (first, again):
        assert_same(found, expected)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == ["", ".arrow"]  # .lock has no suffix
    assert os.environ.get("TOKENIZERS_PARALLELISM") == "false"


def test_what_makes_a_difference_has_another_key(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    texts = Column.of(["ab", "c"])
    others = [["a", "bc"], ["c", "ab"], ["ab", "c", ""], ["ab", "C"], ["abc"], []]
    keys = {cache_key(tokenizer, Column.of(other)) for other in [["ab", "c"], *others]}
    keys |= {cache_key(tokenizer_of(tmp_path / "upper", lower=False), texts)}
    keys |= {cache_key(tokenizer_of(tmp_path / "more", extra=("green",)), texts)}
    assert len(keys) == 9
    part = Column(Column.of(["x", "ab", "c"]).values[1:])
    assert (
        cache_key(tokenizer_of(tmp_path / "same"), texts) == cache_key(tokenizer, texts) == cache_key(tokenizer, part)
    )


def cached(path: Path, lists: Any, type_: pa.DataType) -> None:
    with path.open("wb") as file:
        write_batch(file, {"tokens": pa.array(lists, type_)})


KIND = pa.large_list(pa.int32())
DAMAGE: dict[str, Callable[[Path, list[list[int]]], object]] = {
    "empty": lambda path, ids: path.write_bytes(b""),
    "magic": lambda path, ids: path.write_bytes(path.read_bytes()[:-1] + b"?"),
    "cut": lambda path, ids: os.truncate(path, path.stat().st_size - 3),
    "longer": lambda path, ids: path.write_bytes(path.read_bytes() + b"\0" * 4),
    "type": lambda path, ids: cached(path, ids, pa.large_list(pa.int64())),
    "count": lambda path, ids: cached(path, ids[:-1], KIND),
    "negative": lambda path, ids: cached(path, [[-1], *ids[1:]], KIND),
    "word": lambda path, ids: cached(path, [[10**6], *ids[1:]], KIND),
    "null": lambda path, ids: cached(path, [[None], *ids[1:]], KIND),
    "bit": lambda path, ids: path.write_bytes(other_bit(path.read_bytes(), np.int32(ids[-1]).tobytes())),
}  # fmt: skip


def other_bit(content: bytes, within: bytes) -> bytes:
    """Another id that there is."""
    changed = bytearray(content)
    changed[content.index(within)] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_anew(tokenizer: BertTokenizerFast, tmp_path: Path, damage: str) -> None:
    expected = encode_texts(tokenizer, TEXTS)
    cached_tokens(tokenizer, TEXTS, tmp_path / "cache")
    path = entry(tmp_path / "cache")
    whole = path.read_bytes()
    DAMAGE[damage](path, [expected[text].tolist() for text in range(len(TEXTS))])
    assert path.read_bytes() != whole
    found = cached_tokens(tokenizer, TEXTS, tmp_path / "cache")
    assert path.read_bytes() == whole
    path.unlink()  # what was read outlives it
    assert_same(found, expected)


def test_a_folder_that_cannot_be_written_to(
    tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match="cannot be written to .* so texts are tokenized at every start"):
        found = cached_tokens(tokenizer, TEXTS, tmp_path / "file" / "cache")
    assert_same(found, encode_texts(tokenizer, TEXTS))

    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_cache.os, "replace", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        cached_tokens(tokenizer, TEXTS, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_two_processes_at_once(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    texts, context = ["a red star " * (number % 7) for number in range(20_000)], get_context("fork")
    barrier, sums = context.Barrier(2), context.SimpleQueue()

    def read() -> None:
        barrier.wait(60)
        sums.put(int(cached_tokens(tokenizer, texts, tmp_path / "cache").values.sum()))

    processes = [context.Process(target=read) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert {sums.get(), sums.get()} == {int(encode_texts(tokenizer, texts).values.sum())}
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1


@pytest.mark.slow
def test_a_run_makes_and_uses_it(demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "LEAST_TEXTS", 1)
    command = [*TINY, f"data.token_cache={tmp_path / 'cache'}", "data.num_workers=0", "trainer.max_steps=1"]
    run_in_process("train", demo_data, tmp_path / "first", *command)
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.arrow")}
    assert len(made) == 3  # of train, val and test
    run_in_process("train", demo_data, tmp_path / "second", *command)
    assert made == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cache").glob("*.arrow")}
