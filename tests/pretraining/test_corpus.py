"""The indexed form of a corpus: what goes in comes out, and it is made anew exactly when it must be."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pretraining.samples import TOKENIZER, mixed_rows, write_lines
from vinvl.pretraining.corpus import Corpus, RowKind, build, ensure_index, index_folder, tokenizer_fingerprint
from vinvl.pretraining.corpus.__main__ import main
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


def plain(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


def texts_of(corpus: Corpus, side: int) -> list[list[int]]:
    found = corpus.texts(np.arange(len(corpus)), np.full(len(corpus), side))
    return [found[row].tolist() for row in range(len(corpus))]


@given(rows_of_any_kind, st.integers(20, 400))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_goes_in_comes_out(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], chunk_bytes: int
) -> None:
    path = write_lines(tmp_path_factory.mktemp("corpus") / "c.jsonl", rows)
    pieces, _ = line_chunks.split_file(path, chunk_bytes)
    assert b"".join(path.read_bytes()[piece.start : piece.stop] for piece in pieces) == path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "split_file", lambda file: line_chunks.split_file(file, chunk_bytes))
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


def test_several_processes_make_the_same_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "split_file", lambda file: line_chunks.split_file(file, 300))
    folders = []
    for workers in (1, 2):
        (tmp_path / str(workers)).mkdir()
        folders.append(
            ensure_index(write_lines(tmp_path / str(workers) / "c.jsonl", mixed_rows(30)), TOKENIZER, workers)
        )
    one, two = (corpus.manifest["arrays"] for corpus in folders)
    assert one == two


def test_an_index_is_made_again_when_the_file_or_the_tokenizer_changes(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(6))
    first = ensure_index(path, TOKENIZER)
    made = (first.folder / "manifest.json").stat().st_ino

    def inode() -> int:
        return (ensure_index(path, TOKENIZER).folder / "manifest.json").stat().st_ino

    assert inode() == made
    os.utime(path, (1, 1))  # another time and the same content
    assert inode() == made
    changed = [{**row, "text": row["text"].replace("near", "on")} for row in mixed_rows(7)]
    write_lines(path, changed)
    assert inode() != made and len(ensure_index(path, TOKENIZER)) == 7
    same_size = path.read_text().replace("a woman", "a table")
    path.write_text(same_size)
    assert texts_of(ensure_index(path, TOKENIZER), 0)[0] == plain("a table on the woman")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["c.jsonl", first.folder.name]
    other = type(TOKENIZER)(
        tokenizer_object=TOKENIZER.backend_tokenizer, unk_token="[UNK]", pad_token="[PAD]", mask_token="[MASK]"
    )
    assert tokenizer_fingerprint(other) == tokenizer_fingerprint(TOKENIZER)
    other.add_tokens(["umbrellaman"])
    assert index_folder(path, tokenizer_fingerprint(other)) != first.folder


def test_long_texts_are_cut_where_no_model_looks(tmp_path: Path) -> None:
    rows = [{"image_id": 1, "text": "dog " * 600, "answer": "dog"}, {"image_id": 2, "text": "table", "answer": "park"}]
    corpus = ensure_index(write_lines(tmp_path / "c.jsonl", rows), TOKENIZER)
    assert texts_of(corpus, 0) == [plain("dog") * 512, plain("table")]
    assert texts_of(corpus, 1) == [plain("dog"), plain("park")]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"image_id": 1}', "line 3 has no text"),
        ('{"image_id": 1, "text": "  "}', "line 3 has an empty text"),
        ('{"text": "a dog"}', "line 3 has no image_id"),
        ('{"image_id": 1, "text": "a dog", "tags": "cat"}', "line 3: tags is 'cat', expected a list"),
        ('{"image_id": 1, "text": "a dog", "tags": [3]}', "line 3: tag 1 is 3"),
        ('{"image_id": 1, "text": "a dog", "tags": [], "answer": "no"}', "line 3 has both tags and an answer"),
        ('{"image_id": 1, "text": "a dog", "answer": ""}', "line 3 has an empty answer"),
        ('{"image_id": 1, "text": "\\u0000\\u200b"}', "line 3: the tokenizer finds no token"),
        ("[1]", "line 3 is"),
        ('{"image_id": 1, ', "line 3 is not valid JSON"),
    ],
)
def test_lines_that_are_no_rows_are_refused(tmp_path: Path, line: str, sentence: str) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"image_id": 1, "text": "a dog"}\n\n' + line + "\n")
    with pytest.raises(UserError, match=sentence):
        ensure_index(path, TOKENIZER)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.jsonl"]


def test_files_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match="holds no rows"):
        ensure_index(tmp_path / "c.jsonl", TOKENIZER)
    for missing in (tmp_path / "no.jsonl", tmp_path / "no" / "no.jsonl"):
        with pytest.raises(UserError, match=r"does not exist|cannot be read"):
            ensure_index(missing, TOKENIZER)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(6))

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        ensure_index(path, TOKENIZER)
    assert [entry.name for entry in tmp_path.iterdir()] == ["c.jsonl"]


def cut(folder: Path) -> None:
    tokens = folder / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])


def other_format(folder: Path) -> None:
    (folder / "manifest.json").write_text(json.dumps({"format": "vinvl corpus index 0"}))


def without_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def changed(name: str, content: bytes) -> Callable[[Path], None]:
    """The first bytes of an array are others."""

    def change(folder: Path) -> None:
        path = folder / f"{name}.bin"
        path.write_bytes(content + path.read_bytes()[len(content) :])

    return change


CHANGED = [
    changed("starts", b"\xff" * 8), changed("starts", b"\xff" * 7 + b"\x7f"), changed("lengths", b"\xff\xff"),
    changed("images", b"\0\1"), changed("image_ids", b"\xdc"), changed("kinds", b"\3"), changed("tokens", b"\xff\xff"),
]  # fmt: skip


@pytest.mark.parametrize("damage", [cut, other_format, without_manifest, *CHANGED])
def test_a_damaged_index_is_refused_and_made_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(6))
    corpus = ensure_index(path, TOKENIZER)
    damage(corpus.folder)
    with pytest.raises(UserError, match="build it again"):
        Corpus(corpus.folder)
    assert ensure_index(path, TOKENIZER).problems() == []


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    TOKENIZER.save_pretrained(tmp_path / "tokenizer")
    path = str(write_lines(tmp_path / "c.jsonl", mixed_rows(30)))
    assert main(["info", path]) == 1 and "has no index beside it" in capsys.readouterr().err
    assert main(["build", path, "--tokenizer", str(tmp_path / "tokenizer"), "--workers", "1"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert main(["info", path]) == 0
    out = capsys.readouterr().out
    assert "30: 10 store_tags, 10 given_tags, 10 answer" in out and "s 30" in out
    assert main(["verify", str(folder)]) == 0 and "sound" in capsys.readouterr().out
    tokens = bytearray((folder / "tokens.bin").read_bytes())
    tokens[0] ^= 1
    (folder / "tokens.bin").write_bytes(tokens)
    assert main(["verify", str(folder)]) == 1 and "is not what was written" in capsys.readouterr().out
