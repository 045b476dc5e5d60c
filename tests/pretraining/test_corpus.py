"""The index of a corpus: what goes in comes out, it is made anew exactly when it must be, and damage is found."""

import os
import pickle
import random
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pretraining.samples import TOKENIZER, as_in_processes, mixed_rows, plain, write_lines
from vinvl.data.table import about_of, map_batch, write_batch
from vinvl.data.text import tokenizer_fingerprint
from vinvl.pretraining import corpus as corpora
from vinvl.pretraining.command import main
from vinvl.pretraining.corpus import Corpus, RowKind, ensure_index, index_path
from vinvl.run import lines as line_chunks
from vinvl.run.errors import UserError

words = st.lists(st.sampled_from(["dog", "table", "umbrellas", "zyx", "[MASK]", "é"]), min_size=1, max_size=5)
rows_of_any_kind = st.lists(
    st.builds(
        lambda image, text, more: {"image_id": image, "text": " ".join(text), **more},
        st.one_of(st.integers(0, 30), st.text("abé_/", min_size=1, max_size=6)),
        words,
        st.one_of(
            st.just({}),
            words.map(lambda tags: {"tags": tags}),
            words.map(lambda answer: {"answer": " ".join(answer), "source": "qa"}),
        ),
    ),
    min_size=1,
    max_size=12,
)


def texts_of(corpus: Corpus, side: int) -> list[list[int]]:
    found = corpus.texts(np.arange(len(corpus)), np.full(len(corpus), side))
    return [found[row].tolist() for row in range(len(corpus))]


@given(rows_of_any_kind, st.integers(20, 400))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], chunk_bytes: int
) -> None:
    path = write_lines(tmp_path_factory.mktemp("corpus") / "c.jsonl", rows)
    pieces, _ = line_chunks.split_file(path, chunk_bytes)
    assert b"".join(path.read_bytes()[piece.start : piece.stop] for piece in pieces) == path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "split_file", lambda file: line_chunks.split_file(file, chunk_bytes))
        corpus = ensure_index(path, TOKENIZER)
    assert len(corpus) == len(rows) and corpus.problems() == []
    assert texts_of(corpus, 0) == [plain(row["text"]) for row in rows]
    assert texts_of(corpus, 1) == [plain(" ".join(row.get("tags", [])) or row.get("answer", "")) for row in rows]
    for number, row in enumerate(rows):
        kind = RowKind.ANSWER if "answer" in row else RowKind.GIVEN_TAGS if "tags" in row else RowKind.STORE_TAGS
        assert corpus.kinds[number] == kind
        assert corpus.describe(number) == f"{path} line {number + 1} (image {row['image_id']})"


def test_rows_are_read_in_any_order_and_after_pickling(tmp_path: Path) -> None:
    corpus = ensure_index(write_lines(tmp_path / "c.jsonl", mixed_rows(30)), TOKENIZER)
    order, sides = np.array([29, 3, 3, 0]), np.array([0, 1, 0, 1])
    for one in (corpus, pickle.loads(pickle.dumps(corpus))):
        found = one.texts(order, sides)
        expected = [texts_of(corpus, side)[row] for row, side in zip(order, sides, strict=True)]
        assert [found[place].tolist() for place in range(4)] == expected
    assert len(pickle.dumps(corpus)) < 1000


def in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "split_file", lambda file: line_chunks.split_file(file, 300))


def test_several_processes_make_the_same_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_small_chunks(monkeypatch)
    monkeypatch.setattr(corpora, "pool_map", as_in_processes)
    made = []
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        path = write_lines(tmp_path / str(workers) / "c.jsonl", mixed_rows(30))
        made.append(map_batch(ensure_index(path, TOKENIZER, workers).path))
    assert made[0].equals(made[1]) and len(made[0]) == 30


def test_an_index_is_made_again_when_the_file_or_the_tokenizer_changes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(6))
    first = ensure_index(path, TOKENIZER)
    made = first.path.stat().st_ino

    def inode() -> int:
        return ensure_index(path, TOKENIZER).path.stat().st_ino

    assert inode() == made
    os.utime(path, (1, 1))  # another time and the same content
    assert inode() == made
    changed = [{**row, "text": row["text"].replace("near", "on")} for row in mixed_rows(7)]
    write_lines(path, changed)
    assert inode() != made and len(ensure_index(path, TOKENIZER)) == 7
    path.write_text(path.read_text().replace("a woman", "a table"))  # of the same size
    assert texts_of(ensure_index(path, TOKENIZER), 0)[0] == plain("a table on the woman")
    rewrite(first.path, facts={"tokenizer": "0" * 24})
    assert ensure_index(path, TOKENIZER).facts.tokenizer == tokenizer_fingerprint(TOKENIZER)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c.jsonl", first.path.name]


def test_the_fingerprint_is_of_vocabulary_and_ways_alone() -> None:
    own = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]"}
    other = type(TOKENIZER)(tokenizer_object=TOKENIZER.backend_tokenizer, **own)
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(TOKENIZER)
    other.split_special_tokens = True
    apart = tokenizer_fingerprint(other)
    other.split_special_tokens = False
    other.add_tokens(["umbrellaman"])
    assert len({apart, tokenizer_fingerprint(other), tokenizer_fingerprint(TOKENIZER)}) == 3


def test_long_texts_are_cut_where_no_model_looks(tmp_path: Path) -> None:
    rows = [{"image_id": 1, "text": "dog " * 600, "answer": "dog"}, {"image_id": 2, "text": "table", "answer": "park"}]
    corpus = ensure_index(write_lines(tmp_path / "c.jsonl", rows), TOKENIZER)
    assert texts_of(corpus, 0) == [plain("dog") * 512, plain("table")]
    assert texts_of(corpus, 1) == [plain("dog"), plain("park")]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"image_id": 1}', "line 3 has no text, and no tags"),
        ('{"image_id": 1, "text": "  "}', "line 3 has an empty text"),
        ('{"text": "a dog"}', "line 3 is no row .*`image_id`"),
        ('{"image_id": 1, "text": "a dog", "tags": "cat"}', r"line 3 is no row .*`str` - at `\$\.tags`"),
        ('{"image_id": 1, "text": "a dog", "tags": [3]}', r"line 3 is no row .*`int` - at `\$\.tags\[0\]`"),
        ('{"image_id": 1, "text": "a dog", "tags": [], "answer": "no"}', "line 3 has both tags and an answer"),
        ('{"image_id": 1, "text": "a dog", "answer": ""}', "line 3 has an empty answer"),
        ('{"image_id": 1, "text": "\\u0000\\u200b"}', "line 3: the tokenizer finds no token"),
        ("[1]", "line 3 is no row .*`array`"),
        ('{"image_id": 1, ', "line 3 is no row .*truncated"),
        ('{"image_id": 1, "text": "\\ud800 a dog"}', "line 3 is no row"),
        ('{"image_id": "' + "9" * 257 + '", "text": "a dog"}', "line 3: image_id is longer than 256"),
        ('{"image_id": true, "text": "a dog"}', "line 3 is no row .*image_id"),
        ('{"image_id": 1, "text": "a dog", "x": ' + "[" * 10**5, "line 3 is no row .*recursion"),
    ],
)
def test_lines_that_are_no_rows_are_refused(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"image_id": 1, "text": "a dog"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=sentence):
        ensure_index(path, TOKENIZER)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.jsonl"]


def test_what_cannot_be_indexed_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("\n\n")
    missing = [(tmp_path / name, "does not exist|cannot be read") for name in ("no.jsonl", "no/no.jsonl")]
    for name, sentence in ((path, "holds no rows"), *missing):
        with pytest.raises(UserError, match=sentence):
            ensure_index(name, TOKENIZER)
    write_lines(path, mixed_rows(6))
    monkeypatch.setattr(corpora, "write_batch", raising(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left on device"):
        ensure_index(path, TOKENIZER)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.jsonl"]


def test_a_build_that_is_killed_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(30))
    target = index_path(path, tokenizer_fingerprint(TOKENIZER))
    in_small_chunks(monkeypatch)
    real, calls = corpora.tokenize_chunk, []

    def killed(chunk: line_chunks.Chunk, tokenizer: Any) -> Any:
        calls.append(chunk)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(chunk, tokenizer)

    with monkeypatch.context() as patch:
        patch.setattr(corpora, "tokenize_chunk", killed)
        child = get_context("fork").Process(target=ensure_index, args=(path, TOKENIZER))
        child.start()
        child.join()
    assert child.exitcode == -signal.SIGKILL and not target.exists()
    corpus = ensure_index(path, TOKENIZER)
    assert len(corpus) == 30 and corpus.problems() == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c.jsonl", target.name]


def test_builders_at_once_end_with_one_sound_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(30))
    target = index_path(path, tokenizer_fingerprint(TOKENIZER))
    target.mkdir()  # a folder was written by earlier versions
    (target / "manifest.json").write_text("{}")
    context = get_context("fork")
    barrier, real = context.Barrier(3), corpora.write_index

    def together(*arguments: Any) -> None:
        barrier.wait(30)
        real(*arguments)

    monkeypatch.setattr(corpora, "write_index", together)
    children = [context.Process(target=ensure_index, args=(path, TOKENIZER)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 2
    corpus = Corpus(target)
    assert len(corpus) == 30 and corpus.problems() == []


def raising(error: Exception) -> Callable[..., None]:
    def call(*arguments: object) -> None:
        raise error

    return call


def rewrite(path: Path, facts: dict[str, Any] | None = None, **columns: Any) -> None:
    """Writes an index anew with other columns, each made of the one that was, and other facts; the digest fits."""
    batch = map_batch(path)
    about = msgspec.json.decode(about_of(batch.schema)) | (facts or {})
    changed = {name: columns.get(name, lambda array: array)(batch.column(name)) for name in batch.schema.names}
    with (path.parent / "new").open("wb") as file:
        write_batch(file, changed, msgspec.json.encode(about))
    (path.parent / "new").replace(path)


def first_is(value: int) -> Callable[[pa.Array], pa.Array]:
    return lambda array: pa.array([value, *array.to_pylist()[1:]], array.type)


def named(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[pa.Array], pa.Array]:
    def rename(array: pa.Array) -> pa.Array:
        names = pa.array(change(array.dictionary.to_pylist()), array.dictionary.type)
        return pa.DictionaryArray.from_arrays(array.indices, names)

    return rename


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no Arrow file"),
    "folder": lambda path: (path.unlink(), path.mkdir(), (path / "manifest.json").write_text("{}")),
    "format": lambda path: rewrite(path, facts={"format": "vinvl corpus index 1"}),
    "no size": lambda path: rewrite(path, facts={"file_bytes": None}),
    "counts": lambda path: rewrite(path, facts={"kinds": {"answer": [1]}}),
    "huge ids": lambda path: rewrite(path, facts={"id_bytes": 99999}),
    "vocabulary": lambda path: rewrite(path, facts={"vocab_size": 10}),
    "column": lambda path: rewrite(path, line=lambda array: array.cast(pa.uint64())),
    "kind": lambda path: rewrite(path, kind=first_is(4)),
    "null": lambda path: rewrite(path, kind=lambda array: pa.array([None, *array.to_pylist()[1:]], array.type)),
    "lengths": lambda path: rewrite(path, lengths=lambda array: pa.array([[1, 1]] * len(array), array.type)),
    "order": lambda path: rewrite(path, image=named(lambda names: names[::-1])),
    "no text": lambda path: rewrite(path, image=named(lambda names: [*names[:-1], b"\xdc"])),
    "no rows": lambda path: rewrite(path, **dict.fromkeys(corpora._schema(Corpus(path).facts).names, lambda a: a[:0])),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_refused_and_made_again(tmp_path: Path, damage: str) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(6))
    corpus = ensure_index(path, TOKENIZER)
    DAMAGE[damage](corpus.path)
    with pytest.raises(UserError, match=r"c\.jsonl\.index-.*build it again"):
        Corpus(corpus.path)
    again = ensure_index(path, TOKENIZER)
    assert again.problems() == [] and texts_of(again, 0)[0] == plain("a woman near the woman")


def test_no_changed_byte_passes_or_ends_the_process(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(6))
    sound = ensure_index(path, TOKENIZER)
    whole, batch, facts = sound.path.read_bytes(), sound._batch, sound.facts
    dice, refused, found = random.Random(0), 0, 0
    for _ in range(400):
        changed, place = bytearray(whole), dice.choice([dice.randrange(len(whole)), -1 - dice.randrange(600)])
        changed[place] = dice.choice([0, 1, 127, 128, 255])
        (tmp_path / "changed").write_bytes(changed[: dice.choice([len(whole)] * 9 + [dice.randrange(len(whole))])])
        try:
            corpus = Corpus(tmp_path / "changed")
        except UserError:
            refused += 1
            continue
        found += bool(corpus.problems())
        same = corpus._batch.equals(batch) and corpus.facts == facts
        assert same or corpus.problems(), "neither refused nor found"
    assert refused > 50 and found > 5


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    path = str(write_lines(tmp_path / "c.jsonl", mixed_rows(30)))
    assert main(["info", path]) == 1 and "has no index beside it" in capsys.readouterr().err
    assert main(["build", path, "--tokenizer", str(tmp_path / "tokenizer"), "--workers", "1"]) == 0
    index = Path(capsys.readouterr().out.strip())
    assert main(["info", path]) == 0
    out = capsys.readouterr().out
    assert "30: 10 store_tags, 10 given_tags, 10 answer" in out and "s 30" in out
    assert main(["verify", str(index)]) == 0 and "sound" in capsys.readouterr().out
    batch = map_batch(index)
    content, line = bytearray(index.read_bytes()), np.asarray(batch.column("line")).tobytes()
    content[content.index(line)] ^= 1  # which line a row is of
    index.write_bytes(content)
    assert main(["verify", str(index)]) == 1 and "is not what was written" in capsys.readouterr().out
