"""The demo world as a pre-training corpus: captions, and questions with their true answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vinvl.data.demo.paths import SPLITS, DemoWorld
from vinvl.data.demo.world import ensure_demo_world
from vinvl.data.json_files import read_json, write_text_atomically


def ensure_demo_corpus(
    folder: Path,
    *,
    seed: int,
    num_train_images: int,
    num_val_images: int,
    num_test_images: int,
    questions_per_image: int,
) -> DemoWorld:
    """The demo world of these sizes with its pre-training corpus; both are made where they are missing.

    The corpus lies in the world's folder and goes with it when another world is made there. Arguments and errors are
    those of `ensure_demo_world`.
    """
    world = ensure_demo_world(
        folder,
        seed=seed,
        num_train_images=num_train_images,
        num_val_images=num_val_images,
        num_test_images=num_test_images,
        questions_per_image=questions_per_image,
    )
    for split in SPLITS:
        path = world.pretraining_corpus(split)
        if not path.exists():
            lines = (json.dumps(row) + "\n" for row in corpus_rows(world, split))
            write_text_atomically(path, "".join(lines))
    return world


def corpus_rows(world: DemoWorld, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a split: captions without tags, for those of the store are meant; then questions with answers."""
    for annotation in read_json(world.captions(split))["annotations"]:
        yield {"image_id": annotation["image_id"], "text": annotation["caption"], "source": "captions"}
    # The true answers: those of the VQA annotations are as people give them, some of them wrong.
    for question in read_json(world.gqa(split)).values():
        yield {
            "image_id": question["imageId"],
            "text": question["question"],
            "answer": question["answer"],
            "source": "questions",
        }
