"""What a store of as many images as the paper's corpus costs: opening it, finding an image by id, and memory.

The shards are sparse files of 36 regions an image, of which only ids, sizes and offsets take room on the disk. Each
moment is told in a new process that imports nothing but the store, twice: what the first finds is from the system's
cache, unless `sync; echo 3 > /proc/sys/vm/drop_caches` came before.

    python benchmarks/store_scale.py --images 5650000 --shards 57
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
from made_data import write_sparse_store
from store_reads import write_images

from vinvl.regions import RegionStore
from vinvl.regions.layout import ShardEntry, read_header, write_manifest

LOOK_UPS = 100_000


def write_shards(folder: Path, images: int, shards: int) -> None:
    """A folder of sparse shards, as `RegionStoreWriter` makes them with `max_images_per_shard`; ids in no order."""
    template = folder.parent / "template.h5"
    write_images(template, 2, 36, 2048)
    folder.mkdir()
    ids, entries = np.char.mod("%016x", np.random.default_rng(0).integers(0, 2**62, images)).astype(bytes), []
    for number, part in enumerate(np.array_split(ids, shards)):
        path = folder / f"shard-{number:05d}.h5"
        write_sparse_store(path, template, part)
        entries.append(ShardEntry.of(path.name, len(part), read_header(path).checksums))
    write_manifest(folder, entries)


def memory() -> tuple[float, float]:
    """(anonymous, of files) MB of this process."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1e3 for name in ("RssAnon", "RssFile"))  # type: ignore[return-value]


def measure(path: Path) -> None:
    """Prints what each moment took, and memory after it."""
    begin, laps = time.process_time(), [("imports", 0.0, memory())]

    def lap(name: str) -> None:
        nonlocal begin
        laps.append((name, time.process_time() - begin, memory()))
        begin = time.process_time()

    store = RegionStore(path)
    lap("opened")
    ids = store.encoded_ids
    chosen = [ids[number].decode() for number in np.random.default_rng(1).integers(0, len(store), LOOK_UPS)]
    del ids
    begin = time.process_time()
    store.index_of(chosen[0])
    lap("first image found")
    for image_id in chosen:
        store.index_of(image_id)
    lap(f"{LOOK_UPS:,} found")
    for image_id in chosen[::10]:
        store[image_id].features.sum()
    lap(f"{LOOK_UPS // 10:,} read")
    store.require_sound()
    lap("checked as a run does")
    for name, seconds, (own, files) in laps:
        print(f"{name:<24}{seconds:>8.2f} s{own:>8.0f} MB anonymous{files:>8.0f} MB of files")
    print(f"{laps[3][1] / LOOK_UPS * 1e6:.1f} µs an image")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=5_650_000)
    parser.add_argument("--shards", type=int, default=57)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_shards(path := Path(folder) / "store", options.images, options.shards)
        for _ in range(2):
            process = multiprocessing.get_context("spawn").Process(target=measure, args=(path,))
            process.start()
            process.join()


if __name__ == "__main__":
    main()
