"""Score files: whole or absent, known as one's own, refused with a sentence; and an honest estimate of time left."""

from pathlib import Path

import numpy as np
import pytest

from vinvl.retrieval.candidates import Block, Fold
from vinvl.retrieval.run import ScoreFiles
from vinvl.run.errors import UserError

FOLD = Fold(np.arange(5), np.arange(7), np.array([0, 0, 1, 2, 3, 4, 4]))
BLOCKS = [Block(0, 0, 2), Block(0, 2, 4), Block(0, 4, 5)]


def files(folder: Path, fingerprint: str = "a" * 24) -> ScoreFiles:
    made = ScoreFiles(folder, fingerprint, [FOLD], BLOCKS)
    made.prepare({})
    return made


def finished(store: ScoreFiles) -> tuple[frozenset[int], list[str]]:
    return store.prepare({})


def scores(number: int) -> np.ndarray:
    block = BLOCKS[number]
    return np.random.default_rng(number).random((block.stop - block.start, 7)).astype(np.float32)


def test_what_is_written_is_read_and_known_as_finished(tmp_path: Path) -> None:
    store = files(tmp_path)
    assert finished(store) == (frozenset(), [])
    for number in (0, 2):
        store.write(number, scores(number))
        assert store.path(number).stat().st_size == store.bytes_of(number)
        np.testing.assert_array_equal(np.load(store.path(number)), scores(number))
    assert finished(files(tmp_path)) == (frozenset({0, 2}), [])
    np.testing.assert_array_equal(store.read(2), scores(2))
    with pytest.raises(UserError, match=r"fold000_images0000002-0000003\.npy is missing or damaged: run the same"):
        store.read(1)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "magic", "shape", "header", "fingerprint", "other block", "text"])
def test_damaged_and_foreign_files_are_not_taken_for_finished(tmp_path: Path, damage: str) -> None:
    store = files(tmp_path)
    store.write(0, scores(0))
    path = store.path(0)
    content = path.read_bytes()
    if damage == "fingerprint":
        ScoreFiles(tmp_path, "b" * 24, [FOLD], BLOCKS).write(0, scores(0))
    elif damage == "other block":
        store.write(2, scores(2))
        path.write_bytes(store.path(2).read_bytes())
        store.path(2).unlink()
    else:
        assert b"(2, 7)" in content
        path.write_bytes(
            {
                "cut": content[:-9],
                "empty": b"",
                "magic": b"PK" + content[2:],
                "shape": content.replace(b"(2, 7)", b"(7, 2)"),
                "header": content.replace(b"(2, 7)", b"(((((("),
                "text": b"hello",
            }[damage]
        )
    assert finished(store) == (frozenset(), [path.name])
    with pytest.raises(UserError, match="missing or damaged"):
        store.read(0)
    store.write(0, scores(0))
    assert finished(store) == (frozenset({0}), [])


def test_scores_without_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NaN or infinite"):
        files(tmp_path).write(0, np.full((2, 7), np.nan, dtype=np.float32))
    assert not finished(files(tmp_path))[0]


def test_a_folder_of_other_scores_and_one_that_cannot_be_made_are_refused(tmp_path: Path) -> None:
    files(tmp_path / "scores")
    with pytest.raises(UserError, match="is of other scores than these"):
        files(tmp_path / "scores", "b" * 24)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"pass data\.scores_dir=FOLDER"):
        files(tmp_path / "file" / "scores")


def test_a_candidate_set_that_the_disk_cannot_hold_is_refused(tmp_path: Path) -> None:
    images, captions = 10_000_000, 50_000_000
    huge = Fold(np.arange(1), np.broadcast_to(np.int64(0), captions), np.broadcast_to(np.int64(0), captions))
    store = ScoreFiles(tmp_path, "a" * 24, [huge], [Block(0, 0, images)])
    with pytest.raises(UserError, match=r"The scores need 2000000\.0 GB and .* free: make room"):
        store.prepare({})
