"""A conversion that is killed goes on after its last finished shard, to the same bytes; nothing else stays."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.regions.formats.samples import (
    DIM,
    bottom_up_line,
    published_folder,
    refused,
    run,
    samples,
    write_gqa,
    write_lines,
    write_lmdb,
    write_npy_folder,
    write_tensors,
)
from tests.regions.samples import ROW_NAMES
from vinvl.regions import RegionStore
from vinvl.regions import writer as writer_module
from vinvl.regions.writer import Unfinished, shard_files
from vinvl.run.errors import UserError

IMAGES = samples(20)


def damaged_lines(folder: Path) -> Path:
    """Rows that cannot be read at the begin, in the middle and at the end, and one that comes twice."""
    lines = list(map(bottom_up_line, IMAGES))
    for number in (0, 9, 10, 19):
        lines[number] = lines[number][:60] + "\n"
    lines[5] = "\n"
    lines[7] = bottom_up_line(IMAGES[3])
    return write_lines(folder / "in.tsv", lines, lineidx=True)


def damaged_published(folder: Path) -> Path:
    source = published_folder(folder / "in", IMAGES)
    lines = (source / "features.tsv").read_text().splitlines(keepends=True)
    lines[4] = lines[4][:50] + "!" * (len(lines[4]) - 51) + "\n"
    (source / "features.tsv").write_text("".join(lines))
    return source


def damaged_npy(folder: Path) -> Path:
    source = write_npy_folder(folder / "in", IMAGES)
    (source / f"{IMAGES[3].image_id}_info.npy").unlink()
    (source / f"{IMAGES[8].image_id}.npy").unlink()
    return source


SKIP, OFFSET = "on_damaged=skip", "class_offset=1"
SOURCES: dict[str, tuple[Callable[[Path], Path], list[str]]] = {
    "damaged rows": (damaged_lines, [SKIP]),
    "with predictions, damaged": (damaged_published, [SKIP]),
    "tensors": (lambda folder: write_tensors(folder / "in", IMAGES), ["assume_size=[10,10]"]),
    "npy": (damaged_npy, [SKIP, OFFSET]),
    "LMDB": (lambda folder: write_lmdb(folder / "in", IMAGES), [OFFSET]),
    "HDF5": (lambda folder: write_gqa(folder / "in", IMAGES), []),
    "shards": (
        lambda folder: write_lines(folder / "in.tsv", list(map(bottom_up_line, IMAGES))),
        ["images_per_shard=6"],
    ),
}


def killed(source: Path, target: Path, settings: list[str], call: int, patch: pytest.MonkeyPatch) -> None:
    """A conversion that is killed with signal 9 when something gets its name for that time; 0: when the store does."""
    child = os.fork()
    if child == 0:
        calls, put = [], writer_module.put_in_place

        def put_or_die(made: Path, name: Path, **named: Any) -> None:
            calls.append(1)
            if len(calls) == call or (call == 0 and name == target):
                os.kill(os.getpid(), signal.SIGKILL)
            put(made, name, **named)

        patch.setattr(writer_module, "put_in_place", put_or_die)
        try:
            run(source, target, *settings)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (call, status)


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", SOURCES)
def test_killed_again_and_again_it_makes_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make, settings = SOURCES[kind]
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    source, settings = make(tmp_path), [*settings, "workers=1"]
    run(source, tmp_path / "whole" / "out.h5", *settings)
    first = RegionStore(tmp_path / "whole" / "out.h5").at(0)
    size = sum(getattr(first, name).nbytes for name in ROW_NAMES) + 8  # of the image's own size
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 2 * size + 1)
    target = tmp_path / "killed" / "out.h5"
    numbers = []
    for call in (1, 3, 2, 0):
        killed(source, target, settings, call, monkeypatch)
        numbers.append(len(shard_files(Unfinished(target).folder)))
    assert numbers[0] == 0 and numbers[1] == 2 and numbers[2] == 3 and numbers[3] > 3
    monkeypatch.delattr("vinvl.regions.formats.convert._until_regions")  # it does not begin anew
    run(source, target, *settings)
    assert content(target.parent) == content(tmp_path / "whole")


def begun(folder: Path, patch: pytest.MonkeyPatch, *settings: str) -> tuple[Path, Path]:
    """A source, and the work on its store with two finished shards."""
    patch.setattr(writer_module, "SHARD_BYTES", 1)
    source = write_lines(folder / "in.tsv", list(map(bottom_up_line, IMAGES)))
    killed(source, folder / "out.h5", [*settings], 3, patch)
    return source, Unfinished(folder / "out.h5").folder


def test_a_damaged_shard_and_what_follows_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, folder = begun(tmp_path, monkeypatch)
    first = shard_files(folder)[0]
    written = first.read_bytes()
    features = written.index(IMAGES[0].features.astype("<f2").tobytes())
    first.write_bytes(written[:features] + b"\1\2" + written[features + 2 :])
    store = run(source, tmp_path / "out.h5")
    assert store.verify() == [] and len(store) == len(IMAGES)
    assert (store[IMAGES[0].image_id].features == IMAGES[0].features).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda source: source.write_text(source.read_text() + "\n"), "from was "),
        (lambda source: os.utime(source, (1, 1)), "from was "),
        (lambda source: "dtype=float32", 'dtype was "float16" and is "float32"'),
        (lambda source: "on_damaged=skip", 'on_damaged was "refuse"'),
        (lambda source: "images_per_shard=3", "images_per_shard was null and is 3"),
        (lambda source: "detector=other", "detector was null"),
    ],
)
def test_other_source_or_settings_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object], words: str
) -> None:
    source, folder = begun(tmp_path, monkeypatch)
    given = change(source)
    sentence = refused(source, tmp_path, *([given] if isinstance(given, str) else []))
    assert str(folder) in sentence and words in sentence, sentence


def test_a_row_that_is_refused_later_ends_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1)
    lines = list(map(bottom_up_line, IMAGES))
    lines[15] = "cut\n"
    source = write_lines(tmp_path / "in.tsv", lines)
    assert "line 16" in refused(source, tmp_path, "workers=1")


def test_control_c_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1)
    source = write_lines(tmp_path / "in.tsv", list(map(bottom_up_line, IMAGES)))
    put, made = writer_module.put_in_place, []

    def stop(*arguments: Any, **named: Any) -> None:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(1)
        put(*arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(writer_module, "put_in_place", stop)
        run(source, tmp_path / "out.h5")
    assert len(shard_files(Unfinished(tmp_path / "out.h5").folder)) == 3
    assert len(run(source, tmp_path / "out.h5")) == len(IMAGES) and DIM
    assert sorted(os.listdir(tmp_path)) == ["in.tsv", "out.h5"]


def test_what_is_left_when_all_was_done_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the store's name and the end of its shards."""
    source, folder = begun(tmp_path, monkeypatch)
    (folder / "settings.json").unlink()
    (tmp_path / "out.h5").write_text("the store")
    with pytest.raises(UserError, match=r"out\.h5 exists already"):
        run(source, tmp_path / "out.h5")
    assert sorted(os.listdir(tmp_path)) == ["in.tsv", "out.h5"]
