"""The demo world as retrieval data, for several files of tests."""

from pathlib import Path
from typing import Any

from vinvl.retrieval.data import RetrievalDataModule


def retrieval_data(demo_data: Path, **changes: Any) -> RetrievalDataModule:
    world = demo_data / "demo"
    file = str(world / "dataset_demo.json")
    arguments: dict[str, Any] = {
        "splits": {"train": {"karpathy": file, "splits": ["train", "restval"]}}
        | {name: {"karpathy": file, "splits": [name]} for name in ("val", "test")},
        "regions": [str(world / f"{split}.h5") for split in ("train", "val", "test")],
        "tokenizer": str(world / "tokenizer"), "tags": None, "train_split": "train", "val_split": "val",
        "test_split": "test", "predict_split": "test", "max_tokens": 70, "max_regions": 70, "use_tags": True,
        "use_regions": True, "on_missing": "error", "batch_size": 4, "eval_batch_size": 16, "num_workers": 0,
        "pin_memory": False, "seed": 3, "prepare": None, "captions_per_image": 5, "attention_type": "CLR",
        "on_missing_captions": "error", "val_images": None, "val_fold_images": 3, "test_images": None,
        "test_candidates": "all", "block_images": 4, "scores_dir": None,
    }  # fmt: skip
    return RetrievalDataModule(**arguments | changes)
