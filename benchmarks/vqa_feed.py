"""VQA samples a second: batches as training gets them, by the core that makes them and through data workers.

    python benchmarks/vqa_feed.py [--questions 20000] [--images 500] [--batch-size 128] [--workers 0 1 2] [--cache ram]

Makes a store of random half-precision features, about 36 regions an image, and questions with ten answers each in the
files of VQA v2 in a temporary folder, then makes batches with `VQADataModule` in the order of training, from files that
are in the page cache. `made_data.print_feed` tells what is shown.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from made_data import FEED_TITLES, print_feed
from pretraining_feed import WORDS, make_tokenizer

from vinvl.regions import LabelMap, Regions, RegionStoreWriter
from vinvl.vqa.data import VQADataModule

ANSWERS = tuple(f"answer{number}" for number in range(3129))
CLASSES, DIMENSION = WORDS[:1594], 2048


def write_store(path: Path, images: int) -> None:
    generator = np.random.default_rng(0)
    pool = generator.standard_normal((400, DIMENSION)).astype(np.float16)
    label_map = LabelMap(("background", *CLASSES), ())
    with RegionStoreWriter(path, feature_dim=DIMENSION, detector="random", label_map=label_map) as writer:
        for number in range(images):
            count = int(np.clip(generator.normal(36, 10), 10, 50))
            start = int(generator.integers(len(pool) - count + 1))
            corner, size = generator.random((count, 2)) * 300, generator.random((count, 2)) * 150
            writer.add(
                Regions(
                    image_id=str(number),
                    features=pool[start : start + count],
                    boxes=np.concatenate([corner, corner + size], axis=1).astype(np.float32),
                    classes=generator.integers(1, len(CLASSES), count).astype(np.int32),
                    class_scores=np.ones(count, dtype=np.float32),
                    attributes=np.zeros((count, 0), dtype=np.int32),
                    attribute_scores=np.zeros((count, 0), dtype=np.float32),
                    width=640,
                    height=480,
                )
            )


def write_questions(folder: Path, questions: int, images: int, every: int = 1, first: int = 0) -> dict[str, str]:
    """The official files of a split: about 8 words a question, ten answers of three kinds.

    They are asked about so many images, of which the store holds `every` times as many; `first` is the lowest id.
    """
    generator = np.random.default_rng(1)
    asked, annotated = [], []
    for number in range(questions):
        words = generator.integers(0, len(WORDS), int(np.clip(generator.normal(8, 2.2), 3, 20)))
        entry = {"question_id": first * 1000 + number, "image_id": first + number % images * every}
        asked.append(entry | {"question": " ".join(WORDS[word] for word in words)})
        three = generator.integers(0, len(ANSWERS), 3)
        given = [ANSWERS[three[place]] for place in (0, 0, 0, 0, 0, 1, 1, 1, 2, 2)]
        answers = [
            {"answer": text, "answer_confidence": "yes", "answer_id": place + 1} for place, text in enumerate(given)
        ]
        annotated.append(
            entry
            | {"answers": answers, "answer_type": "other", "question_type": "what", "multiple_choice_answer": given[0]}
        )
    paths = {"questions": folder / "questions.json", "annotations": folder / "annotations.json"}
    paths["questions"].write_text(json.dumps({"questions": asked}))
    paths["annotations"].write_text(json.dumps({"annotations": annotated}))
    return {name: str(path) for name, path in paths.items()}


def datamodule_of(folder: Path, files: dict[str, str], batch_size: int, workers: int) -> VQADataModule:
    return VQADataModule(
        answers=str(folder / "answers.json"),
        min_answer_count=1,
        target_rule="leave_one_out",
        splits={"train": [files]},
        regions=str(folder / "regions.h5"),
        tokenizer=str(folder / "tokenizer"),
        tags=None,
        train_split="train",
        val_split="train",
        test_split="train",
        predict_split="train",
        max_tokens=128,
        max_regions=50,
        use_tags=True,
        use_regions=True,
        on_missing="error",
        batch_size=batch_size,
        eval_batch_size=batch_size,
        num_workers=workers,
        pin_memory=False,
        seed=0,
        prepare=None,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_store(folder / "regions.h5", options.images)
        files = write_questions(folder, options.questions, options.images)
        make_tokenizer().save_pretrained(folder / "tokenizer")
        (folder / "answers.json").write_text(json.dumps(ANSWERS))
        print(FEED_TITLES)
        for workers in options.workers:
            data = datamodule_of(folder, files, options.batch_size, workers)
            data.setup("fit")
            print_feed(data.train_dataloader(), workers)


if __name__ == "__main__":
    main()
