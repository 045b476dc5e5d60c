"""Scores are found again by a fingerprint: the same for the same scores, another where anything counts that changed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.retrieval.samples import retrieval_data
from vinvl.retrieval.run import scores_fingerprint

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
