"""Tiny trained models of every task, and stores made of pictures, for the tests of the predictor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate

from tests.detector.samples import SMALL, small_detector
from tests.door_in_process import TINY, checkpoint, composed, run_in_process
from tests.extraction.samples import LABELS, pictures, run_extract
from vinvl.detector.weights import save_detector
from vinvl.regions import LabelMap, RegionStore
from vinvl.restore import Restored, restore

# A few updates at a high rate: no model learns anything, but its outputs differ from example to example.
BRIEF = [
    "optim.optimizer.lr=3e-3", "optim.scheduler.warmup_steps=0", "trainer.limit_train_batches=6",
    "trainer.limit_val_batches=1", "test_after_fit=false", "data.num_workers=0", "model.config.hidden_dropout_prob=0",
    "model.config.attention_probs_dropout_prob=0",
]  # fmt: skip
OF_TASK = {
    "vqa": ["data.min_answer_count=2", "data.max_tokens=40", "data.max_regions=7"],
    "gqa": ["data.max_regions=9", "data.use_tags=false"],
    "nlvr2": ["data.max_tokens=16"],  # so short that tags and statements are cut
    "retrieval": ["data.max_tokens=20", "data.val_fold_images=3", "data.test_images=null", "data.attention_type=CR"],
    "captioning": ["task.options.java_metrics=false", "decoding.num_beams=3", "data.max_caption_tokens=12"],
}
USED_AS = replace(SMALL, rpn_proposals=20)  # how `extracted` uses the detector
QUESTIONS = ("what is red?", "how many circles are there?", "is the star above the square?")


def train(task: str, data: Path, folder: Path, *overrides: str) -> Path:
    """The best checkpoint of a run on the demo world."""
    run_in_process("train", data, folder, f"task={task}", *TINY, *BRIEF, *OF_TASK[task], *overrides)
    return folder / "checkpoints" / "best.ckpt"


def detector_file(folder: Path) -> Path:
    """The small recorded detector in a file of our own, which carries its settings (`SMALL`) and names."""
    folder.mkdir(parents=True, exist_ok=True)
    save_detector(folder / "detector.pth", small_detector(), LabelMap.from_json(json.dumps(LABELS)))
    return folder / "detector.pth"


def extracted(folder: Path, *given: str) -> Path:
    """A store of six pictures made by `detector_file` as `USED_AS` says; it and pictures/ lie beside the store."""
    weights = detector_file(folder)
    pictures(folder / "pictures", 6)
    made = [f"images={folder / 'pictures'}", f"output={folder / 'features.h5'}", f"weights={weights}", "labels=null"]
    made += [f"detector.{name}={getattr(USED_AS, name)}" for name in ("min_size", "max_size")]
    run_extract(folder, *made, *given)
    return folder / "features.h5"


def picture_paths(folder: Path) -> dict[str, Path]:
    """Image id → file."""
    return {path.stem: path for path in sorted((folder / "pictures").rglob("*.png"))}


def train_on(store: Path, task: str, data: Path, folder: Path, *overrides: str) -> Path:
    """The best checkpoint of a run on a store of pictures, whose answers and captions are made up."""
    ids = [str(image_id) for image_id in RegionStore(store).image_ids]
    rows: list[dict[str, Any]] = [
        {"image_id": image_id, "captions": [f"a red circle {i}", "two squares on a table"]}
        for i, image_id in enumerate(ids)
    ]
    if task == "vqa":
        rows = [
            {"image_id": image_id, "question": question, "answers": [("yes", "no", "two")[(i + j) % 3]]}
            for i, image_id in enumerate(ids)
            for j, question in enumerate(QUESTIONS)
        ]
    path = folder.with_suffix(".jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = str(path) if task == "vqa" else f"{{jsonl:{path}}}"
    run_in_process(
        "train", data, folder, f"task={task}",
        f"data={ {'vqa': 'vqa_jsonl', 'captioning': 'captions', 'retrieval': 'retrieval'}[task] }".replace(" ", ""),
        f"data.splits={{train:{split},val:{split},predict:{split}}}", f"data.regions={store}",
        f"data.tokenizer={data / 'demo' / 'tokenizer'}", "data.pin_memory=false", "data.batch_size=8",
        f"model.config.img_feature_dim={RegionStore(store).feature_dim + 6}",
        *(one for one in TINY if not one.startswith("data.")), *BRIEF, *overrides,
    )  # fmt: skip
    return folder / "checkpoints" / "best.ckpt"


@contextmanager
def door_opened(path: Path, data: Path, output: Path, *overrides: str) -> Iterator[tuple[Restored, pl.Trainer]]:
    """What `vinvl.predict` and `vinvl.evaluate` work with: the restored task with its data, and the trainer."""
    given = [checkpoint(path.parents[1]), "trainer.accelerator=cpu", *overrides]
    with composed("predict", data, output, *given) as config:
        restored = restore(config, "predict")
        trainer = instantiate(config.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False)
        yield restored, trainer


def predictions(path: Path, data: Path, output: Path, *overrides: str) -> list[Any]:
    """What the door predicts of a split, in the order of its file, before anything is rounded for a file."""
    with door_opened(path, data, output, *overrides) as (restored, trainer):
        restored.datamodule.setup("predict")
        batches = trainer.predict(restored.task, datamodule=restored.datamodule) or []
        return sorted((one for batch in batches for one in batch), key=lambda one: one.position)


def close(found: Any, expected: Any) -> None:
    """The same numbers but for the rounding of another batch."""
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=2e-5, atol=2e-6)


def store_of(data: Path, split: str = "test") -> Path:
    return data / "demo" / f"{split}.h5"


def tensors(path: Path) -> dict[str, Any]:
    """The content of a checkpoint."""
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content
