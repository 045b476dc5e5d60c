"""Building an index under bad luck: killed, raced, of another tokenizer, or with a manifest that lies."""

import json
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from tests.pretraining.samples import TOKENIZER, mixed_rows, write_lines
from vinvl.pretraining.corpus import Corpus, build, ensure_index, index_folder, tokenizer_fingerprint
from vinvl.run import lines as line_chunks
from vinvl.run.errors import UserError


def in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "split_file", lambda file: line_chunks.split_file(file, 300))


def test_a_build_that_is_killed_leaves_no_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(30))
    folder = index_folder(path, tokenizer_fingerprint(TOKENIZER))
    in_small_chunks(monkeypatch)
    real, calls = build.tokenize_chunk, []

    def killed(chunk: line_chunks.Chunk, tokenizer: Any) -> Any:
        calls.append(chunk)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(chunk, tokenizer)

    with monkeypatch.context() as patch:
        patch.setattr(build, "tokenize_chunk", killed)
        child = get_context("fork").Process(target=ensure_index, args=(path, TOKENIZER))
        child.start()
        child.join()
    assert child.exitcode == -signal.SIGKILL and not folder.exists()
    corpus = ensure_index(path, TOKENIZER)
    assert len(corpus) == 30 and corpus.problems() == []


def test_two_builders_at_once_end_with_one_sound_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(30))
    context = get_context("fork")
    barrier, real = context.Barrier(3), build.write_parts

    def together(*arguments: Any) -> None:
        barrier.wait(30)
        real(*arguments)

    monkeypatch.setattr(build, "write_parts", together)
    children = [context.Process(target=ensure_index, args=(path, TOKENIZER)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 2
    corpus = Corpus(index_folder(path, tokenizer_fingerprint(TOKENIZER)))
    assert len(corpus) == 30 and corpus.problems() == []


def test_the_slower_builder_leaves_the_index_that_others_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(6))
    real, made = build.write_parts, []

    def slower(*arguments: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(build, "write_parts", real)
            made.append((ensure_index(path, TOKENIZER).folder / "manifest.json").stat().st_ino)
        real(*arguments)

    monkeypatch.setattr(build, "write_parts", slower)
    corpus = ensure_index(path, TOKENIZER)
    assert [(corpus.folder / "manifest.json").stat().st_ino] == made
    assert len(list(tmp_path.iterdir())) == 2


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return edit


LIES = {
    "objects": edited(lambda m: m["arrays"]["starts"].update(dtype="|O8")),
    "other type": edited(lambda m: m["arrays"]["kinds"].update(dtype="|i1")),
    "huge ids": edited(lambda m: m["arrays"]["image_ids"].update(dtype="|S99999")),
    "other shape": edited(lambda m: m["arrays"]["lengths"].update(shape=[12])),
    "negative": edited(lambda m: m["arrays"]["tokens"].update(shape=[-1])),
    "no shape": edited(lambda m: m["arrays"]["tokens"].pop("shape")),
    "fewer rows": edited(lambda m: m.update(rows=5)),
    "no counts": edited(lambda m: m.update(kinds={"caption": [1]})),
    "no tags": edited(lambda m: m.pop("tags")),
    "no size": edited(lambda m: m.pop("file_bytes")),
    "no tokenizer": edited(lambda m: m.pop("tokenizer")),
    "no arrays": edited(lambda m: m.update(arrays=[])),
    "an array less": edited(lambda m: m["arrays"].pop("lines")),
    "a list": lambda folder: (folder / "manifest.json").write_text("[]"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_lies_is_refused_and_the_index_made_again(tmp_path: Path, lie: str) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(6))
    folder = ensure_index(path, TOKENIZER).folder
    LIES[lie](folder)  # type: ignore[operator]
    with pytest.raises(UserError, match=r"manifest\.json .*build it again"):
        Corpus(folder)
    assert len(ensure_index(path, TOKENIZER)) == 6


def test_an_index_of_another_tokenizer_is_made_again(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "c.jsonl", mixed_rows(6))
    folder = ensure_index(path, TOKENIZER).folder
    edited(lambda manifest: manifest.update(tokenizer="0" * 24))(folder)
    assert ensure_index(path, TOKENIZER).manifest["tokenizer"] == tokenizer_fingerprint(TOKENIZER)
