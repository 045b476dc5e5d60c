"""Scores are found again by a fingerprint of all that they depend on; their files are whole, or known not to be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.retrieval.samples import retrieval_data
from vinvl.retrieval.data import Block, Fold
from vinvl.retrieval.run import ScoreFiles, scores_fingerprint
from vinvl.run.errors import UserError

WEIGHTS = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.bfloat16), "c": torch.tensor(1)}


def fingerprint(
    demo_data: Path, weights: dict[str, Tensor] = WEIGHTS, settings: dict[str, Any] | None = None, **changes: Any
) -> str:
    data = retrieval_data(demo_data, **changes)
    data.setup("test")
    return scores_fingerprint(weights, data.candidates("test"), data.folds("test"), settings or {"precision": "32"})


def test_the_same_scores_have_the_same_fingerprint(demo_data: Path) -> None:
    reordered = {name: WEIGHTS[name].clone() for name in "cab"}
    changed = {
        "batch_size": 9,
        "eval_batch_size": 3,
        "num_workers": 1,
        "seed": 8,
        "val_images": 2,
        "train_split": "val",
    }
    assert fingerprint(demo_data) == fingerprint(demo_data, reordered, **changed)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": WEIGHTS | {"a": torch.tensor([0.0, 1.0, 2.0, 3.0001])}},
        {"weights": WEIGHTS | {"c": torch.tensor(2)}},
        {"settings": {"precision": "bf16-mixed"}},
        {"captions_per_image": 4},
        {"test_images": 5},
        {"test_candidates": 3},
        {"test_split": "val"},
        {"use_tags": False},
        {"max_regions": 2},
    ],
)
def test_other_scores_have_another(demo_data: Path, changes: dict[str, Any]) -> None:
    assert fingerprint(demo_data, **changes) != fingerprint(demo_data)


def test_captions_and_tags_count(demo_data: Path, tmp_path: Path) -> None:
    file = demo_data / "demo" / "dataset_demo.json"
    text = file.read_text()
    assert " red " in text
    (tmp_path / "other.json").write_text(text.replace(" red ", " blue "))
    splits = {"test": {"karpathy": str(tmp_path / "other.json"), "splits": ["test"]}}
    (tmp_path / "same.json").write_text(text)
    same = {"test": {"karpathy": str(tmp_path / "same.json"), "splits": ["test"]}}
    assert fingerprint(demo_data, splits=same) == fingerprint(demo_data) != fingerprint(demo_data, splits=splits)
    data = retrieval_data(demo_data)
    data.setup("test")
    first = str(data.candidates("test").records.image_ids[0])
    (tmp_path / "tags.json").write_text(json.dumps({first: ["star", "star"]}))
    assert fingerprint(demo_data, tags=str(tmp_path / "tags.json")) != fingerprint(demo_data)


FOLD = Fold(np.arange(5), np.arange(7), np.array([0, 0, 1, 2, 3, 4, 4]))
BLOCKS = [Block(0, 0, 2), Block(0, 2, 4), Block(0, 4, 5)]


def files(folder: Path, fingerprint: str = "a" * 24) -> ScoreFiles:
    made = ScoreFiles(folder, fingerprint, [FOLD], BLOCKS)
    made.prepare({})
    return made


def scores(number: int) -> np.ndarray:
    block = BLOCKS[number]
    return np.random.default_rng(number).random((block.stop - block.start, 7)).astype(np.float32)


def test_what_is_written_is_read_and_known_as_finished(tmp_path: Path) -> None:
    store = files(tmp_path)
    assert store.prepare({}) == (frozenset(), [])
    for number in (0, 2):
        store.write(number, scores(number))
        assert store.path(number).stat().st_size == store.bytes_of(number)
        np.testing.assert_array_equal(np.load(store.path(number)), scores(number))
    assert files(tmp_path).prepare({}) == (frozenset({0, 2}), [])
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
    assert store.prepare({}) == (frozenset(), [path.name])
    with pytest.raises(UserError, match="missing or damaged"):
        store.read(0)
    store.write(0, scores(0))
    assert store.prepare({}) == (frozenset({0}), [])


def test_scores_without_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NaN or infinite"):
        files(tmp_path).write(0, np.full((2, 7), np.nan, dtype=np.float32))
    assert not files(tmp_path).prepare({})[0]


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
