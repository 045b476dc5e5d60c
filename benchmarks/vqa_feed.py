"""VQA samples a second: batches as training gets them, by the core that makes them and through data workers.

    python benchmarks/vqa_feed.py [--questions 20000] [--images 500] [--batch-size 128] [--workers 0 1 2] [--cache ram]

Makes a store of random half-precision features, about 36 regions an image, and questions with ten answers each in the
files of VQA v2 in a temporary folder, then makes batches with `VQADataModule` in the order of training, from files that
are in the page cache. Rates are by the CPU time of the processes that make batches, so that other programs do not
count, and by the clock; memory is what a process has for itself, and what it shares with others.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pretraining_feed import WORDS, make_tokenizer

from vinvl.regions import LabelMap, Regions, RegionStoreWriter
from vinvl.vqa.data import VQADataModule

ANSWERS = tuple(f"answer{number}" for number in range(3129))
CLASSES, DIMENSION = WORDS[:1594], 2048
ROUNDS = 2  # of each way; the first warms up


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
        answers = [{"answer": text, "answer_id": place + 1} for place, text in enumerate(given)]
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


def children() -> list[int]:
    return [int(text) for text in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int) -> tuple[int, int]:
    """Megabytes that a process has for itself, and that it shares with others: forked pages, mapped files."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines}
    return found["Private_Clean"] + found["Private_Dirty"], found["Shared_Clean"] + found["Shared_Dirty"]


def measure(data: VQADataModule, workers: int) -> None:
    """One pass that warms up and one that counts, printed as a row."""
    loader = data.train_dataloader()
    for _ in range(ROUNDS):
        start, cpu, own = time.perf_counter(), 0.0, time.process_time()
        before = {process: cpu_seconds(process) for process in children()}
        samples = 0
        for batch in loader:
            samples += len(batch)
        seconds = time.perf_counter() - start
        makers = [process for process in children() if process in before] if workers else []
        cpu = (
            sum(cpu_seconds(process) - before[process] for process in makers) if workers else time.process_time() - own
        )
    per_core = f"{samples / cpu:,.0f}" if cpu > 0 else "–"
    held = ", ".join("{} + {}".format(*memory(process)) for process in makers) or "{} + {}".format(*memory(os.getpid()))
    print(f"{workers:>7}{samples / seconds:>18,.0f}{per_core:>24}   {held}", flush=True)


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
        print(f"{'workers':>7}{'samples/s by clock':>18}{'samples/s a maker core':>24}   MB own + shared, each maker")
        for workers in options.workers:
            data = datamodule_of(folder, files, options.batch_size, workers)
            data.setup("fit")
            measure(data, workers)


if __name__ == "__main__":
    main()
