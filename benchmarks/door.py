"""What `python -m vinvl.train experiment=vqa2_base` costs beside its steps: VQA v2 at full size, phase by phase.

Makes 443,757 training and 214,354 validation questions with ten answers each, a vocabulary of 3,129 answers and sparse
stores of 82,783 and 40,504 images (36 regions; tags are real, features are zeros) in a folder, then calls the door in a
new process, twice: the first time there are no token ids from before. The door is given a data module and a callback
that tell the time. In the same process, after the training, the very batches that it was trained and evaluated on go
through `vqa_step.step` alone: "of the step alone" is the door's rate against that.

    python benchmarks/door.py [--steps 12] [--eval-batches 3] [--scale 1.0] [OVERRIDE …]

On a CPU of two cores a step of 32 takes 8 s. On a GPU: --steps 300 --eval-batches 60 trainer=gpu data.num_workers=8
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytorch_lightning as pl
import torch
from made_data import SPARSE_REGIONS, timed, write_sparse_store
from pretraining_feed import make_tokenizer
from vqa_feed import ANSWERS, CLASSES, write_questions, write_store
from vqa_step import Way, packed, steps

from vinvl.data.batch import Batch
from vinvl.regions.layout import ShardEntry, read_header, write_manifest
from vinvl.vqa.data import VQADataModule

BEGAN, TOLD = "VINVL_DOOR_BEGAN", "VINVL_DOOR_TOLD"  # when the process was started, and where it writes LAPS
QUESTIONS, IMAGES = {"train": 443_757, "val": 214_354}, {"train": 82_783, "val": 40_504}
WARM_UP, MOST_KEPT = {"train": 3, "val": 1}, 50  # batches before the rate counts, and kept for the steps alone
LAPS: dict[str, float] = {}


def make_files(folder: Path, scale: float) -> None:
    """What conf/data/vqa2.yaml names, in the folder that `paths.data_dir` is to be."""
    data = folder / "vqa2"
    (store := data / "regions").mkdir(parents=True)
    make_tokenizer().save_pretrained(folder / "tokenizer")
    (data / "answers_train_val.json").write_text(json.dumps(ANSWERS))
    write_store(folder / "template.h5", 2)
    entries, first = [], 0
    for split, name in (("train", "train2014"), ("val", "val2014")):
        images = int(IMAGES[split] * scale)
        files = write_questions(folder, int(QUESTIONS[split] * scale), images, first=first)
        Path(files["questions"]).rename(data / f"v2_OpenEnded_mscoco_{name}_questions.json")
        Path(files["annotations"]).rename(data / f"v2_mscoco_{name}_annotations.json")
        path, rows = store / f"{name}.h5", images * SPARSE_REGIONS
        write_sparse_store(path, folder / "template.h5", np.arange(first, first + images).astype(bytes))
        with h5py.File(path, "r+") as file:
            file["classes"][...] = np.random.default_rng(2).integers(1, len(CLASSES), rows, dtype=np.int32)
        entries.append(ShardEntry.of(path.name, images, read_header(path).checksums))
        first += images
    write_manifest(store, entries)


# In the process of the door.


def since_start() -> float:
    return time.time() - float(os.environ[BEGAN])


def now() -> float:
    """Seconds, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def lap(name: str, work: Callable[..., Any], *given: Any, **named: Any) -> Any:
    begin = time.perf_counter()
    result = work(*given, **named)
    LAPS[name] = LAPS.get(name, 0.0) + time.perf_counter() - begin
    return result


class TimedData(VQADataModule):
    """Tells how long each part of reading takes."""

    def __init__(self, **given: Any) -> None:
        LAPS["process, imports, configuration, s"] = since_start()
        super().__init__(**given)

    def setup(self, stage: str | None = None) -> None:
        lap("reading, s", super().setup, stage)

    def read_split(self, split: str) -> Any:
        return lap("  records, s", super().read_split, split)

    def places_of(self, records: Any) -> Any:
        return lap("  images found, s", super().places_of, records)

    def tokens_of(self, texts: Any) -> Any:
        return lap("  tokens, s", super().tokens_of, texts)

    def targets_of(self, records: Any) -> Any:
        return lap("  targets, s", super().targets_of, records)


class Clock(pl.Callback):
    """Tells when training begins, the rates of training and evaluation, and those of the same batches alone."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Batch]] = {"train": [], "val": []}
        self.begun, self.samples = {"train": 0.0, "val": 0.0}, {"train": 0, "val": 0}

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        LAPS["ready to train after, s"] = since_start()
        save = partial(lap, "checkpoints, s", trainer.strategy.save_checkpoint)
        trainer.strategy.save_checkpoint = save  # type: ignore[method-assign]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            now()
            LAPS["first step done after, s"] = since_start()
        self._count("train", batch, batch_idx, batch_idx + 1 == trainer.max_steps)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._count("val", batch, batch_idx, batch_idx + 1 == trainer.num_val_batches[0])

    def _count(self, stage: str, batch: Batch, number: int, last: bool) -> None:
        if number < WARM_UP[stage]:
            self.begun[stage] = now()
            return
        self.samples[stage] += len(batch)
        if len(self.kept[stage]) < MOST_KEPT:
            self.kept[stage].append(batch)
        if last:
            name = {"train": "training", "val": "evaluation"}[stage]
            LAPS[f"{name}, samples/s"] = self.samples[stage] / (now() - self.begun[stage])

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        LAPS["peak memory of the process, MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        half, device = trainer.precision == "bf16-mixed", pl_module.device
        way = Way(pl_module.model, packed, lambda batch: batch, trainer.optimizers[0], half)  # type: ignore[arg-type]
        for stage, name in (("train", "training"), ("val", "evaluation")):
            batches = self.kept[stage]
            pl_module.train(stage == "train")
            steps(way, batches[:1], device, stage == "val")
            seconds = timed(partial(steps, way, batches, device, stage == "val"), device)
            alone = sum(map(len, batches)) / seconds
            LAPS[f"{name} alone, samples/s"] = alone
            LAPS[f"{name}, of the step alone"] = LAPS[f"{name}, samples/s"] / alone
        Path(os.environ[TOLD]).write_text(json.dumps(LAPS))


def call_door(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    told = folder / "laps.json"
    command = [sys.executable, "-m", "vinvl.train", "experiment=vqa2_base", f"paths.data_dir={folder}"]
    command += [f"paths.runs_dir={folder}/runs", f"data.tokenizer={folder}/tokenizer", "model.init=null"]
    command += ["data._target_=door.TimedData", "+callbacks.clock._target_=door.Clock", "test_after_fit=false"]
    command += ["model.config.vocab_size=30522", f"trainer.max_steps={options.steps}", "trainer.max_epochs=1"]
    command += [f"trainer.limit_val_batches={options.eval_batches}", f"trainer.val_check_interval={options.steps}"]
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, BEGAN: str(time.time()), TOLD: str(told)}
    subprocess.run([*command, *options.overrides], env=environment, check=True, stdout=subprocess.DEVNULL)
    laps: dict[str, float] = json.loads(told.read_text())
    return laps


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--eval-batches", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of questions and images")
    parser.add_argument("overrides", nargs="*", help="of the door")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_files(Path(folder), options.scale)
        first, second = (call_door(Path(folder), options) for _ in range(2))
    print(f"{'':<40}{'first':>12}{'again':>12}")
    for name in dict.fromkeys([*first, *second]):
        print(f"{name:<40}{first.get(name, 0):>12,.2f}{second.get(name, 0):>12,.2f}")


if __name__ == "__main__":
    main()
