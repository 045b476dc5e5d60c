"""What the rows of an epoch of VinVL's four detection sets cost each rank: seconds to the first batch, and memory.

Writes made annotations of the sets' sizes (2.5 million pictures, 28 million objects, most classes rare) as Arrow files
into a temporary folder; a new process maps them and samples rows as VinVL did.

    python benchmarks/detector_rows.py [--share 0.1]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from vinvl.detector.sampling import SetLabels, SetSampling, sampled_rows

SETS = {  # pictures, objects, classes, sampling
    "visual_genome": (97_000, 2_230_000, 1594, SetSampling(copies=8)),
    "coco": (111_000, 1_900_000, 171, SetSampling(copies=8)),
    "objects365": (609_000, 9_600_000, 365, SetSampling(copies=2, at_least=2000)),
    "open_images": (1_670_000, 14_600_000, 500, SetSampling(at_least=2000)),
}
BATCH = 4096  # pictures of a record batch


def write(path: Path, pictures: int, objects: int, classes: int) -> None:
    generator = np.random.default_rng(len(path.name))
    shares = 1 / np.arange(1, classes + 1) ** 1.5
    shares /= shares.sum()
    schema = pa.schema({"boxes": pa.list_(pa.float32()), "labels": pa.list_(pa.int32()), "crowd": pa.list_(pa.bool_())})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for first in range(0, pictures, BATCH):
            counts = generator.poisson(objects / pictures, min(BATCH, pictures - first))
            offsets, total = np.insert(np.cumsum(counts), 0, 0).astype(np.int32), int(counts.sum())
            columns = (
                (4 * offsets, generator.random(4 * total, dtype=np.float32)),
                (offsets, generator.choice(classes, total, p=shares).astype(np.int32) + 1),
                (offsets, generator.random(total) < 0.01),
            )
            lists = [pa.ListArray.from_arrays(pa.array(starts), pa.array(values)) for starts, values in columns]
            writer.write_batch(pa.record_batch(lists, schema=schema))


def memory() -> str:
    kept = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if line)
    fields = {"most": "VmHWM", "own": "RssAnon", "mapped": "RssFile"}
    return ", ".join(f"{name} {int(kept[field].split()[0]) / 1024:,.0f} MB" for name, field in fields.items())


def measure(folder: Path) -> None:
    print(f"start: {memory()}")
    began = time.perf_counter()
    sets = []
    for name, (*_, sampling) in SETS.items():
        table = pa.ipc.open_stream(pa.memory_map(str(folder / f"{name}.arrow"))).read_all()
        sets.append((SetLabels(table["labels"], table["crowd"]), sampling))
    print(f"mapped: {time.perf_counter() - began:.1f} s, {memory()}")
    for one in sets:
        began = time.perf_counter()
        rows = sampled_rows([one], seed=88)
        most, seconds = np.bincount(rows).max(), time.perf_counter() - began
        print(f"{len(one[0]):,} pictures, {len(rows):,} rows, one {most} times: {seconds:.1f} s, {memory()}")
    began = time.perf_counter()
    rows = sampled_rows(sets, seed=88)
    print(f"{len(rows):,} rows: {time.perf_counter() - began:.1f} s, {memory()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--share", type=float, default=1.0, help="of the pictures and objects")
    share = parser.parse_args().share
    with tempfile.TemporaryDirectory() as folder:
        for name, (pictures, objects, classes, _) in SETS.items():
            write(Path(folder, f"{name}.arrow"), int(pictures * share), int(objects * share), classes)
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(Path(folder),))
        process.start()
        process.join()


if __name__ == "__main__":
    main()
