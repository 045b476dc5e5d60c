"""What VinVL's four detection sets cost each rank before its first batch: seconds, and memory.

Writes made annotations of the sets' sizes (2.5 million pictures, 28 million objects, most classes rare) into a
temporary folder, as `vinvl.convert annotations=…` writes them, and as many names of a few pictures of the right sizes.
A new process sets the data module up as a rank does, with VinVL's sampling, and takes batches of one orientation.

    python benchmarks/detector_rows.py [--share 0.1] [--folder DIR]
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from PIL import Image

from vinvl.data.table import ABOUT, DIGEST, batch_digest
from vinvl.detector.annotations import BATCH, FORMAT, VERSION, About
from vinvl.detector.config import DetectorConfig
from vinvl.detector.data import DetectionDataModule
from vinvl.detector.records import SCHEMA
from vinvl.regions.regions import LabelMap

SETS = {  # pictures, objects, classes, and what the configuration says
    "visual_genome": (97_000, 2_230_000, 1594, {"copies": 8}),
    "coco": (111_000, 1_900_000, 171, {"copies": 8}),
    "objects365": (609_000, 9_600_000, 365, {"copies": 2, "at_least": 2000}),
    "open_images": (1_670_000, 14_600_000, 500, {"at_least": 2000}),
}
SIZES = np.array([(640, 480), (480, 640), (1024, 768), (1024, 683), (500, 500)], dtype=np.int32)
BATCH_SIZE = 16
A_FOLDER, LINKS = 10_000, 50_000  # files in a folder, and names of one file at most


def names_of(classes: int) -> LabelMap:
    return LabelMap(("__background__", *(f"class {number}" for number in range(1, classes + 1))))


def write(path: Path, pictures: int, objects: int, classes: int) -> None:
    generator = np.random.default_rng(len(path.name))
    shares = 1 / np.arange(1, classes + 1) ** 1.5
    about = msgspec.json.encode(About(FORMAT, VERSION, names_of(classes).to_json(), "random numbers"))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA.with_metadata({ABOUT: about})) as writer:
        for first in range(0, pictures, BATCH):
            numbers = range(first, min(first + BATCH, pictures))
            counts = generator.poisson(objects / pictures, len(numbers))
            offsets, total = np.insert(np.cumsum(counts), 0, 0).astype(np.int32), int(counts.sum())
            corners = generator.uniform(0, 200, (total, 2)).astype(np.float32)
            labels = generator.choice(classes, total, p=shares / shares.sum()).astype(np.int32) + 1
            none = pa.ListArray.from_arrays(np.zeros(total + 1, dtype=np.int32), pa.array([], pa.int32()))
            lists = (
                (4 * offsets, np.concatenate([corners, corners + 100], axis=1).ravel()),
                (offsets, labels),
                (offsets, generator.random(total) < 0.01),
                (offsets, none),
            )
            sizes = SIZES[generator.integers(0, len(SIZES), len(numbers))]
            names = [pa.array([f"{number:012d}" for number in numbers]), pa.array(link(path, numbers, sizes))]
            filled = [pa.ListArray.from_arrays(pa.array(starts), pa.array(values)) for starts, values in lists]
            batch = pa.record_batch([*names, *map(pa.array, sizes.T), *filled], schema=SCHEMA)
            writer.write_batch(batch, custom_metadata={DIGEST: batch_digest(batch, about)})


def link(path: Path, numbers: range, sizes: np.ndarray) -> list[str]:
    """The file names of pictures, which come to lie in the folder of the set's name."""
    names = [f"{number // A_FOLDER:04d}/{number:012d}.jpg" for number in numbers]
    for number, name, (width, height) in zip(numbers, names, sizes.tolist(), strict=True):
        target = path.with_suffix("") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = path.parent / f"{path.stem}_{width}_{height}_{number // LINKS}.jpg"
        if not source.exists():
            Image.new("RGB", (width, height)).save(source)
        os.link(source, target)
    return names


@contextmanager
def measured(what: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    seconds = time.perf_counter() - begin
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory = {name: int(said[key].split()[0]) // 1024 for name, key in (("own", "RssAnon"), ("most", "VmHWM"))}
    told = ", ".join(f"{name} {size:,} MB" for name, size in memory.items())
    print(f"{what:<50} {seconds:>6.1f} s   {told}, mapped {int(said['RssFile'].split()[0]) // 1024:,} MB", flush=True)


def act_as_rank(folder: Path) -> None:
    with measured("imports"):
        importlib.import_module("vinvl.train_detector")
    sets: list[dict[str, Any]] = [
        {"annotations": str(folder / f"{name}.arrow"), "pictures": str(folder / name), **said}
        for name, (*_, said) in SETS.items()
    ]
    (folder / "class2ind.json").write_text(
        json.dumps({name: index for index, name in enumerate(names_of(1848).classes)})
    )
    data = DetectionDataModule(
        splits={"train": sets, "val": {key: sets[0][key] for key in ("annotations", "pictures")}},
        detector=DetectorConfig(), label_map=str(folder / "class2ind.json"),
        train_split="train", val_split="val", test_split="val", empty_pictures="skip", bad_boxes="refuse",
        on_missing="error", flip_probability=0.5, min_sizes=None, batch_size=BATCH_SIZE, eval_batch_size=1,
        num_workers=0, pin_memory=False, seed=88, prepare=None, group_by="orientation",
    )  # fmt: skip
    with measured("data module set up, every byte and every file seen"):
        data.setup("fit")
    with measured("first batch of the plan of an epoch"):
        sampler: Any = data.train_dataloader().batch_sampler
        batches = iter(sampler)
        next(batches)
    train = data.datasets["train"]
    with measured("objects of 1,000 batches"):
        for _, batch in zip(range(1000), batches, strict=False):
            for draw in batch:
                assert train.rows is not None
                train.records.objects(int(train.rows[draw.index]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--share", type=float, default=1.0, help="of the pictures and objects (default: 1)")
    parser.add_argument("--folder", help="where the files are made for as long; there are 2.5 million of them")
    options = parser.parse_args()
    share = options.share
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, (pictures, objects, classes, _) in SETS.items():
            write(Path(folder, f"{name}.arrow"), int(pictures * share), int(objects * share), classes)
        size = sum(path.stat().st_size for path in Path(folder).glob("*.arrow"))
        print(f"{sum(pictures for pictures, *_ in SETS.values()) * share:,.0f} pictures in {size / 1e9:.1f} GB")
        rank = multiprocessing.get_context("spawn").Process(target=act_as_rank, args=(Path(folder),))
        rank.start()
        rank.join()


if __name__ == "__main__":
    main()
