"""What VinVL's four detection sets cost each rank before its first batch: seconds, and memory.

Writes made annotations of the sets' sizes (2.5 million pictures, 28 million objects, most classes rare) into a
temporary folder, as `vinvl.convert annotations=…` writes them. A new process opens them as a rank does, samples rows as
VinVL did, and takes batches of one orientation; there are no pictures, so all are said to be there.

    python benchmarks/detector_rows.py [--share 0.1]
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np
import pyarrow as pa

from vinvl.data.sampling import LengthBucketBatchSampler
from vinvl.data.table import ABOUT, DIGEST, batch_digest
from vinvl.detector.annotations import BATCH, FORMAT, SCHEMA, VERSION, About
from vinvl.detector.config import DetectorConfig
from vinvl.detector.data import DetectionDataset
from vinvl.detector.instances import InstanceOptions
from vinvl.detector.records import PictureFiles
from vinvl.detector.sampling import told_rows
from vinvl.detector.sets import SetEntry, read_sets, used_rows
from vinvl.regions.regions import LabelMap

SETS = {  # pictures, objects, classes, and what the configuration says
    "visual_genome": (97_000, 2_230_000, 1594, {"copies": 8}),
    "coco": (111_000, 1_900_000, 171, {"copies": 8}),
    "objects365": (609_000, 9_600_000, 365, {"copies": 2, "at_least": 2000}),
    "open_images": (1_670_000, 14_600_000, 500, {"at_least": 2000}),
}
SIZES = np.array([(640, 480), (480, 640), (1024, 768), (1024, 683), (500, 500)], dtype=np.int32)
BATCH_SIZE = 16


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
            names = [pa.array([f"{prefix}{number:012d}" for number in numbers]) for prefix in ("", "train/")]
            filled = [pa.ListArray.from_arrays(pa.array(starts), pa.array(values)) for starts, values in lists]
            batch = pa.record_batch([*names, *map(pa.array, sizes.T), *filled], schema=SCHEMA)
            writer.write_batch(batch, custom_metadata={DIGEST: batch_digest(batch, about)})


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
    listed = [
        {"annotations": str(folder / f"{name}.arrow"), "pictures": "", **said} for name, (*_, said) in SETS.items()
    ]
    entries, options = SetEntry.all_of(listed, "data.splits.train"), InstanceOptions(empty_pictures="skip")
    present = mock.patch(
        "vinvl.detector.sets.find_files",
        lambda names, ids, pictures: PictureFiles(pictures, np.ones(len(names), dtype=bool)),
    )
    with measured("sets opened, every byte checked"), present:
        records, labels, _ = read_sets(entries, names_of(1848), options, "the vocabulary")
    with measured("rows"):
        rows = used_rows(records, entries, options, training=True, seed=88)
    print(*told_rows(rows, records.starts, list(SETS)), f"{len(rows):,} rows in all", sep="\n")
    dataset = DetectionDataset(records, DetectorConfig(), labels, None, 88, rows=rows, by_orientation=True)
    with measured("first batch"):
        sampler = LengthBucketBatchSampler(dataset.lengths(), BATCH_SIZE, seed=88, world_size=8, apart=True)
        batches = iter(sampler)
        next(batches)
    with measured("objects of 1,000 batches"):
        for _, batch in zip(range(1000), batches, strict=False):
            for draw in batch:
                records.objects(int(rows[draw.index]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--share", type=float, default=1.0, help="of the pictures and objects (default: 1)")
    share = parser.parse_args().share
    with tempfile.TemporaryDirectory() as folder:
        for name, (pictures, objects, classes, _) in SETS.items():
            write(Path(folder, f"{name}.arrow"), int(pictures * share), int(objects * share), classes)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        print(f"{sum(pictures for pictures, *_ in SETS.values()) * share:,.0f} pictures in {size / 1e9:.1f} GB")
        rank = multiprocessing.get_context("spawn").Process(target=act_as_rank, args=(Path(folder),))
        rank.start()
        rank.join()


if __name__ == "__main__":
    main()
