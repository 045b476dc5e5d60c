"""The demo world as a pre-training corpus: captions, descriptions of objects, questions with their true answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vinvl.data.demo.paths import SPLITS, DemoWorld
from vinvl.data.demo.world import ensure_demo_world
from vinvl.data.json_files import read_json
from vinvl.files import write_text_atomically


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
    """The rows of a split: captions and descriptions without tags, for those of the store are meant; then questions.

    Descriptions say all of one object, as Visual Genome's do of a region: from these a small model learns quickest.
    """
    for annotation in read_json(world.captions(split))["annotations"]:
        yield {"image_id": annotation["image_id"], "text": annotation["caption"], "source": "captions"}
    for scene in read_json(world.scenes(split))["scenes"]:
        for thing in scene["objects"]:
            text = f"a {thing['size']} {thing['texture']} {thing['colour']} {thing['shape']}"
            yield {"image_id": scene["image_id"], "text": text, "source": "descriptions"}
    # The true answers: those of the VQA annotations are as people give them, some of them wrong.
    for question in read_json(world.gqa(split)).values():
        yield {
            "image_id": question["imageId"],
            "text": question["question"],
            "answer": question["answer"],
            "source": "questions",
        }
