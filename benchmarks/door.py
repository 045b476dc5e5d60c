"""What `python -m vinvl.train` costs beside its steps, at the size of the published data sets, phase by phase.

    python benchmarks/door.py [--task vqa] [--steps 12] [--eval-batches 3] [--scale 1.0] [OVERRIDE …]

Makes data in a folder: sparse stores of 36 regions an image (tags are real, features are zeros) and

    vqa                      443,757 and 214,354 questions with ten answers, 3,129 answers, 82,783 and 40,504 images
    captioning, scst         Karpathy's COCO: 113,287, 5,000 and 5,000 images with five captions; five beams
    retrieval                the same; validation scores 1,000 images in folds of 4, as the recipe does
    pretraining              500,000 rows about 100,000 images, a part of the size of the published corpus

Then it calls the door with the recipe of base size in a new process, twice: the first time nothing is there from
before. A callback tells the time and the processor's time of the phases. In the same process, after the training, the
very batches that it was trained and evaluated on go through the steps alone: for VQA `vqa_step.step`, else the task's
loss, backward, clipping and the optimiser, and what the task's evaluation computes without its metrics. "Of the steps
alone" is the door's rate against that; by processor time it does not depend on what else a machine does.

On a CPU of two cores a step of 32 takes 8 s. On a GPU: --steps 300 --eval-batches 60 trainer=gpu data.num_workers=8
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import get_class
from made_data import SPARSE_REGIONS, write_sparse_store
from pretraining_feed import make_tokenizer, write_corpus
from records import write_captions
from torch import nn
from vqa_feed import ANSWERS, CLASSES, write_questions, write_store
from vqa_step import Way, packed, step

from vinvl.regions.layout import ShardEntry, read_header, write_manifest

BEGAN, TOLD = "VINVL_DOOR_BEGAN", "VINVL_DOOR_TOLD"  # when the process was started, and where it writes LAPS
QUESTIONS, IMAGES = {"train": 443_757, "val": 214_354}, {"train": 82_783, "val": 40_504}
KARPATHY = {"train": 82_783, "restval": 30_504, "val": 5_000, "test": 5_000}
ROWS, CORPUS_IMAGES, HELD_OUT = 500_000, 100_000, 10_000
WARM_UP, MOST_KEPT = (
    {"train": 3, "val": 1},
    {"train": 20, "val": 8},
)  # batches before rates count, and for the steps alone
LAPS: dict[str, list[float]] = {}  # name → what the clock says, and the processor


# The data.


def make_store(folder: Path, images: Mapping[str, int]) -> None:
    """A folder of sparse shards, one for each name with so many images; ids are numbers from 0."""
    folder.mkdir(parents=True)
    write_store(template := folder.parent / "template.h5", 2)
    entries, first = [], 0
    for name, count in images.items():
        path, rows = folder / f"{name}.h5", count * SPARSE_REGIONS
        write_sparse_store(path, template, np.arange(first, first + count).astype(bytes))
        with h5py.File(path, "r+") as file:
            file["classes"][...] = np.random.default_rng(2).integers(1, len(CLASSES), rows, dtype=np.int32)
        entries.append(ShardEntry.of(path.name, count, read_header(path).checksums))
        first += count
    write_manifest(folder, entries)


def make_vqa(folder: Path, scale: float) -> None:
    """What conf/data/vqa2.yaml names, in the folder that `paths.data_dir` is to be."""
    data, first = folder / "vqa2", 0
    images = {f"{split}2014": int(IMAGES[split] * scale) for split in IMAGES}
    make_store(data / "regions", images)
    (data / "answers_train_val.json").write_text(json.dumps(ANSWERS))
    for split, count in QUESTIONS.items():
        name = f"{split}2014"
        files = write_questions(folder, int(count * scale), images[name], first=first)
        Path(files["questions"]).rename(data / f"v2_OpenEnded_mscoco_{name}_questions.json")
        Path(files["annotations"]).rename(data / f"v2_mscoco_{name}_annotations.json")
        first += images[name]


def make_captions(folder: Path, scale: float) -> None:
    """What conf/data/coco_captions.yaml and coco_retrieval.yaml name."""
    counts = {split: int(count * scale) for split, count in KARPATHY.items()}
    make_store(folder / "coco" / "regions", {"coco": sum(counts.values())})
    write_captions(folder / "coco", 5 * sum(counts.values()), counts)


def make_corpus(folder: Path, scale: float) -> None:
    """What conf/data/oscarplus.yaml names."""
    make_store(folder / "oscarplus" / "regions", {"corpus": int(CORPUS_IMAGES * scale)})
    for split, rows in (("train", ROWS), ("val", HELD_OUT)):
        (part := folder / "oscarplus" / "corpus" / split).mkdir(parents=True)
        write_corpus(part / "rows.jsonl", int(rows * scale), int(CORPUS_IMAGES * scale), tags=(10, 30))


# What each task computes in an evaluation but for its metrics; tasks are of different classes.


def captions_alone(task: Any, batch: Any) -> object:
    return task.write_captions(batch, task.validation_search, constrained=False)


def scores_alone(task: Any, batch: Any) -> object:
    return task._score(batch, task._folds[batch.number].captions) if batch.number >= 0 else None


@dataclass(frozen=True)
class Measured:
    """A task, the recipe that is called, and what is told it besides."""

    experiment: str
    make: Callable[[Path, float], None]
    evaluate: Callable[[Any, Any], object] = lambda task, batch: task(batch)
    told: Sequence[str] = ()


BEAMS = ("+task.options.validation_beams=5",)
TASKS = {
    "vqa": Measured("vqa2_base", make_vqa),
    "captioning": Measured("coco_caption_base_xe", make_captions, captions_alone, BEAMS),
    "scst": Measured("coco_caption_base_scst", make_captions, captions_alone, BEAMS),
    "retrieval": Measured("coco_ir_base", make_captions, scores_alone),
    "pretraining": Measured("oscarplus_base", make_corpus, lambda task, batch: task.guess(batch)),
}


# In the process of the door.


def since_start() -> list[float]:
    return [time.time() - float(os.environ[BEGAN]), time.process_time()]


def now() -> np.ndarray:
    """Seconds by the clock and of the processor, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def lap(name: str, work: Callable[..., Any], *given: Any, **named: Any) -> Any:
    begin = now()
    result = work(*given, **named)
    LAPS[name] = (LAPS.get(name, 0.0) + now() - begin).tolist()
    return result


def listen(kind: type, names: Mapping[str, str]) -> None:
    """Takes the time of methods of a class, whatever calls them: method → what it does."""
    for method, told in names.items():
        work = getattr(kind, method, None)
        if work is not None:
            setattr(kind, method, lambda *given, work=work, told=told, **named: lap(told, work, *given, **named))


def samples_in(batch: Any) -> int:
    """Examples of a batch, or images of a block that is scored."""
    return len(batch.tag_ids) if hasattr(batch, "tag_ids") else len(batch)


class Clock(pl.Callback):
    """Tells what the start costs, the rates of training and evaluation, and those of the same batches alone."""

    def __init__(self, task: str, data: str) -> None:
        """`data`: the class of the data module."""
        from vinvl.task import VinVLTask

        LAPS["imports done after, s"] = since_start()
        self.measured, self.is_vqa = TASKS[task], task == "vqa"
        phases = {"read_split": "records", "places_of": "images found", "tokens_of": "tokens", "targets_of": "targets"}
        phases |= {"commonest_of": "commonest answers, with targets", "prepare_data": "prepared"}
        listen(get_class(data), {"setup": "reading, s"} | {name: f"  {told}, s" for name, told in phases.items()})
        listen(VinVLTask, {"_start": "model, s"})
        self.kept: dict[str, list[Any]] = {"train": [], "val": []}
        self.begun, self.samples = {"train": now(), "val": now()}, {"train": 0, "val": 0}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        LAPS["ready to train after, s"] = since_start()
        save = partial(lap, "checkpoints, s", trainer.strategy.save_checkpoint)
        trainer.strategy.save_checkpoint = save  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            LAPS["first step begun after, s"] = since_start()
            LAPS["memory of the process then, MB"] = most_memory()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            now()
            LAPS["first step done after, s"] = since_start()
        self._count("train", batch, batch_idx, batch_idx + 1 == trainer.max_steps)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._count("val", batch, batch_idx, batch_idx + 1 == trainer.num_val_batches[0])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        LAPS["figures of the evaluation, s"] = (now() - self.ended).tolist()

    def _count(self, stage: str, batch: Any, number: int, last: bool) -> None:
        if number < WARM_UP[stage]:
            self.begun[stage] = now()
            return
        self.samples[stage] += samples_in(batch)
        if len(self.kept[stage]) < MOST_KEPT[stage]:
            self.kept[stage].append(batch)
        if last:
            self.ended = now()
            name = {"train": "training", "val": "evaluation"}[stage]
            LAPS[f"{name}, samples/s"] = (self.samples[stage] / (self.ended - self.begun[stage])).tolist()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        LAPS["peak memory of the process, MB"] = most_memory()
        pl_module.log = lambda *given, **named: None  # nothing is kept outside of a run
        half = torch.autocast(pl_module.device.type, torch.bfloat16, enabled=trainer.precision == "bf16-mixed")
        for stage, name in (("train", "training"), ("val", "evaluation")):
            batches = self.kept[stage]
            if not batches:
                continue
            pl_module.train(stage == "train")
            with torch.no_grad() if stage == "val" else nullcontext(), half:
                self._alone(pl_module, trainer, batches[:1])
                begin = now()
                self._alone(pl_module, trainer, batches)
                alone = sum(map(samples_in, batches)) / (now() - begin)
            LAPS[f"{name} alone, samples/s"] = alone.tolist()
            LAPS[f"{name}, of the steps alone"] = (np.array(LAPS[f"{name}, samples/s"]) / alone).tolist()
        Path(os.environ[TOLD]).write_text(json.dumps(LAPS))

    def _alone(self, task: Any, trainer: pl.Trainer, batches: Sequence[Any]) -> None:
        optimizer = trainer.optimizers[0]
        way = Way(task.model, packed, lambda batch: batch, optimizer, trainer.precision == "bf16-mixed")  # type: ignore[arg-type]
        for batch in batches:
            if not task.training:
                self.measured.evaluate(task, batch)
            elif self.is_vqa:
                step(way, batch, task.device, forward_alone=False)
            else:
                task.training_loss(batch).backward()
                nn.utils.clip_grad_norm_(way.parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()


def most_memory() -> list[float]:
    return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3] * 2


def call_door(folder: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    measured, told = TASKS[options.task], folder / "laps.json"
    command = [sys.executable, "-m", "vinvl.train", f"experiment={measured.experiment}", f"paths.data_dir={folder}"]
    command += [f"paths.runs_dir={folder}/runs", f"data.tokenizer={folder}/tokenizer", "model.init=null"]
    command += ["test_after_fit=false", "model.config.vocab_size=30522", f"trainer.max_steps={options.steps}"]
    command += [f"trainer.limit_val_batches={options.eval_batches}", f"trainer.val_check_interval={options.steps}"]
    command += ["trainer.devices=1", "trainer.accumulate_grad_batches=1", "+callbacks.clock._target_=door.Clock"]
    command += [f"+callbacks.clock.task={options.task}", "+callbacks.clock.data=${data._target_}", *measured.told]
    if not any(one.startswith("trainer=") for one in options.overrides):
        command.append("trainer=default")
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, BEGAN: str(time.time()), TOLD: str(told)}
    subprocess.run([*command, *options.overrides], env=environment, check=True, stdout=subprocess.DEVNULL)
    laps: dict[str, list[float]] = json.loads(told.read_text())
    return laps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="vqa")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--eval-batches", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of texts and images")
    parser.add_argument(
        "--folder", type=Path, help="where data are made, or are from an earlier call; else a temporary one"
    )
    parser.add_argument("overrides", nargs="*", help="of the door")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary) / "data"
        if not folder.exists():
            make_tokenizer().save_pretrained(folder / "tokenizer")
            TASKS[options.task].make(folder, options.scale)
            if options.folder:
                return print(f"The data are in {folder}: call again to measure.")
        shutil.rmtree(folder / "token_cache", ignore_errors=True)
        first, second = (call_door(folder, options) for _ in range(2))
    print(f"{'':<44}{'first':>10}{'processor':>11}{'again':>10}{'processor':>11}")
    for name in dict.fromkeys([*first, *second]):
        figures = [*first.get(name, [0, 0]), *second.get(name, [0, 0])]
        print(f"{name:<44}" + "".join(f"{figure:>{10 + place % 2},.2f}" for place, figure in enumerate(figures)))


if __name__ == "__main__":
    main()
