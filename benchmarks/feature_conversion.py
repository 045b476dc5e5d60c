"""How fast other people's features become a store, against reading their files alone: MB/s of input in one run.

Writes made-up features (40 regions of 2048 numbers an image) into a temporary folder and converts them, in rounds of
which the median counts. "alone" is one process that reads the same and drops it: the bytes of a TSV, the arrays of
HDF5, the members of npz with their decompression. "MB/s a core" is by processor time, which a busy machine hides less.
All this is from the system's cache; two columns are of the disk, in MB of input too: "cold" is reading alone what is
not in the cache, "written" is writing the store's bytes to a plain file until they are on the disk, which a store waits
for too. "of disk" is the conversion against the slower of the two.
With `--memory` each size is converted once, in a fresh process, whose largest resident memory is told, and that of the
largest of its workers with what it shares with it.

    python benchmarks/feature_conversion.py --megabytes 300 --workers 1 2
    python benchmarks/feature_conversion.py --memory --megabytes 150 600 --workers 2
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import pickle
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np
import torch  # as the command has it loaded

from vinvl.regions.formats.convert import convert_features
from vinvl.regions.formats.rows import FeatureOptions

REGIONS, FEATURES = 40, 2048
WIDTH, HEIGHT = 640, 480
BOXES = np.tile(np.array([10, 20, 300, 400], dtype="<f4"), (REGIONS, 1))
SHARES = BOXES / np.array([WIDTH, HEIGHT] * 2, dtype="<f4")
GEOMETRY = np.concatenate([SHARES, SHARES[:, 2:] - SHARES[:, :2]], axis=1)
NUMBERS = np.maximum(np.random.default_rng(0).standard_normal((REGIONS, FEATURES), dtype=np.float32), 0)


def features(number: int) -> np.ndarray:
    return np.roll(NUMBERS, number)


def text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode()


def write_bottom_up(path: Path, images: int) -> None:
    with path.open("w") as file:
        for number in range(images):
            columns = (number, WIDTH, HEIGHT, REGIONS, text(BOXES), text(features(number)))
            file.write("\t".join(map(str, columns)) + "\n")


def write_oscar(path: Path, images: int) -> None:
    with path.open("w") as file:
        for number in range(images):
            file.write(f"{number}\t{REGIONS}\t{text(np.concatenate([features(number), GEOMETRY], axis=1))}\n")


def write_m2(path: Path, images: int, **stored: str) -> None:
    with h5py.File(path, "w") as file:
        for number in range(images):
            file.create_dataset(f"{number}_features", data=features(number), **stored)
            file[f"{number}_boxes"], file[f"{number}_size"] = BOXES, [HEIGHT, WIDTH]


def write_m2_gzip(path: Path, images: int) -> None:
    write_m2(path, images, compression="gzip")


def write_npz(path: Path, images: int, save: Callable[..., None] = np.savez) -> None:
    path.mkdir()
    for number in range(images):
        size = {"image_w": WIDTH, "image_h": HEIGHT, "num_boxes": REGIONS}
        save(path / f"{number}.npz", x=features(number), bbox=BOXES, **size)


def write_npz_compressed(path: Path, images: int) -> None:
    write_npz(path, images, np.savez_compressed)


def write_gqa(path: Path, images: int) -> None:
    """Numbered files of 50 MB and their index, as GQA's, but of 40 boxes where it has 100."""
    path.mkdir()
    info: dict[str, object] = {}
    part = 150
    for number in range(-(-images // part)):
        rows = range(number * part, min(images, (number + 1) * part))
        with h5py.File(path / f"gqa_objects_{number}.h5", "w") as file:
            file["features"] = np.stack([features(row) for row in rows])
            file["bboxes"] = np.stack([BOXES] * len(rows))
        place = {"file": number, "width": WIDTH, "height": HEIGHT, "objectsNum": REGIONS}
        info |= {str(row): {**place, "idx": row - rows[0]} for row in rows}
    (path / "gqa_objects_info.json").write_text(json.dumps(info))


def write_spans(path: Path, images: int) -> None:
    """As BAN's `train.hdf5` with its index, whose regions of all images follow each other."""
    path.mkdir()
    with h5py.File(path / "train.hdf5", "w") as file:
        rows = images * REGIONS
        file["pos_boxes"] = np.stack([np.arange(0, rows, REGIONS), np.arange(0, rows, REGIONS) + REGIONS], axis=1)
        for name, width in (("image_features", FEATURES), ("image_bb", 4), ("spatial_features", 6)):
            file.create_dataset(name, (rows, width), dtype="<f4")
        for row in range(images):
            of_image = slice(row * REGIONS, (row + 1) * REGIONS)
            file["image_features"][of_image] = features(row)
            file["image_bb"][of_image], file["spatial_features"][of_image] = BOXES, GEOMETRY
    (path / "train_imgid2idx.pkl").write_bytes(pickle.dumps({row: row for row in range(images)}))


def write_train36(path: Path, images: int) -> None:
    """As bottom-up-attention-vqa's `train36.hdf5` with its index."""
    path.mkdir()
    with h5py.File(path / "train36.hdf5", "w") as file:
        for name, width in (("image_features", FEATURES), ("image_bb", 4), ("spatial_features", 6)):
            file.create_dataset(name, (images, REGIONS, width), dtype="<f4")
        for row in range(images):
            file["image_features"][row] = features(row)
            file["image_bb"][row], file["spatial_features"][row] = BOXES, GEOMETRY
    (path / "train36_imgid2idx.pkl").write_bytes(pickle.dumps({row: row for row in range(images)}))


def write_lmdb(path: Path, images: int) -> None:
    """As MMF's `lmdb_conversion.py`."""
    import lmdb

    size = {"image_width": WIDTH, "image_height": HEIGHT, "num_boxes": REGIONS}
    path.mkdir()
    with lmdb.open(str(path), map_size=2**34) as database, database.begin(write=True) as transaction:
        for number in range(images):
            record = {"features": features(number), "bbox": BOXES, **size}
            transaction.put(f"{number:08}".encode(), pickle.dumps(record))
        transaction.put(b"keys", pickle.dumps([f"{number:08}".encode() for number in range(images)]))


def read_lines(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(2**23):
            pass


def read_hdf5(path: Path) -> None:
    with h5py.File(path) as file:
        for name in file:
            file[name][()]


def read_npz(path: Path) -> None:
    for one in path.iterdir():
        with np.load(one) as arrays:
            for name in arrays:
                arrays[name]


KINDS: dict[str, tuple[str, Callable[[Path, int], None], Callable[[Path], None]]] = {
    "bottom-up TSV": (".tsv", write_bottom_up, read_lines),
    "Oscar TSV": (".tsv", write_oscar, read_lines),
    "M2 HDF5": (".hdf5", write_m2, read_hdf5),
    "M2 HDF5, gzip": (".hdf5", write_m2_gzip, read_hdf5),
    "npz": ("", write_npz, read_npz),
    "npz, compressed": ("", write_npz_compressed, read_npz),
}


MORE = {"GQA HDF5": write_gqa, "BAN HDF5": write_spans, "train36 HDF5": write_train36, "LMDB": write_lmdb}


def convert_alone(source: Path, target: Path, workers: int, told: Connection) -> None:
    """Tells the largest memory of this process and of one of its workers, in MB."""
    torch.set_num_threads(1)
    convert_features(source, target, FeatureOptions(assume_size=(WIDTH, HEIGHT), workers=workers))
    lines = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    told.send((own / 1e3, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3))


def measure_memory(kinds: Sequence[str], sizes: Sequence[int], workers: Sequence[int]) -> None:
    print(f"{'format':<16} {'workers':>7} {'images':>7} {'MB':>5} {'process MB':>10} {'worker MB':>9}")
    for kind in kinds:
        suffix, write = KINDS[kind][:2] if kind in KINDS else ("", MORE[kind])
        for megabytes in sizes:
            with tempfile.TemporaryDirectory() as folder:
                source, images = Path(folder) / f"in{suffix}", megabytes * 10**6 // len(text(NUMBERS))
                write(source, images)
                size = sum(path.stat().st_size for path in files_of(source)) / 1e6
                for number in workers:
                    context = multiprocessing.get_context("spawn")
                    here, there = context.Pipe()
                    given = (source, Path(folder) / f"{number}.h5", number, there)
                    process = context.Process(target=convert_alone, args=given)
                    process.start()
                    process.join()
                    own, worker = here.recv()
                    print(f"{kind:<16} {number:>7} {images:>7,} {size:>5.0f} {own:>10.0f} {worker:>9.0f}", flush=True)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor in all processes."""
    before, begin = os.times(), time.perf_counter()
    work()
    took, after = time.perf_counter() - begin, os.times()
    return took, sum(after[:4]) - sum(before[:4])


def files_of(source: Path) -> list[Path]:
    return sorted(source.iterdir()) if source.is_dir() else [source]


def to_disk(files: Sequence[Path], *, drop: bool = False) -> None:
    """Waits until files are on the disk, and takes them out of the cache with `drop`."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            if drop:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_plainly(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    to_disk([path])


def one_round(read: Callable[[Path], None], source: Path, target: Path, workers: int) -> tuple[float, ...]:
    """Seconds of the conversion, of its processor time, of reading alone, the same cold, and of writing alone."""
    alone, _ = timed(lambda: read(source))
    settings = FeatureOptions(assume_size=(WIDTH, HEIGHT), workers=workers)
    took, processor = timed(lambda: convert_features(source, target, settings))
    content = target.read_bytes()
    target.unlink()
    written, _ = timed(lambda: write_plainly(content, target))
    target.unlink()
    to_disk(files_of(source), drop=True)
    cold, _ = timed(lambda: read(source))
    return took, processor, alone, cold, written


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--megabytes", type=int, nargs="+", default=[300], help="of a TSV; others have as many images (default: 300)"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1], help="processes to try")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (default: 3)")
    parser.add_argument("--memory", action="store_true", help="measure memory instead, of more formats")
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, *MORE], help="formats to try (default: all)")
    options = parser.parse_args(arguments)
    if options.memory:
        measure_memory(options.kinds or [*KINDS, *MORE], options.megabytes, options.workers)
        return
    torch.set_num_threads(1)
    images = options.megabytes[0] * 10**6 // len(text(NUMBERS))
    heads = ("MB", "MB/s", "MB/s a core", "alone MB/s", "of alone", "cold MB/s", "written MB/s", "of disk")
    print(f"{'format':<16} workers", *heads, sep="  ")
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds or KINDS:
            suffix, write, read = KINDS[kind]
            source, target = Path(folder) / f"in{len(kind)}{suffix}", Path(folder) / "store.h5"
            write(source, images)
            to_disk(files_of(source))
            megabytes = sum(path.stat().st_size for path in files_of(source)) / 1e6
            for workers in options.workers:
                runs = [one_round(read, source, target, workers) for _ in range(options.rounds)]
                took, core, alone, cold, written = (
                    megabytes / statistics.median(column) for column in zip(*runs, strict=True)
                )
                shares = f"{took / alone:.2f}", f"{took / min(cold, written):.2f}"
                rates = [f"{rate:,.0f}" for rate in (megabytes, took, core, alone, cold, written)]
                row = [*rates[:4], shares[0], *rates[4:], shares[1]]
                cells = (f"{cell:>{len(head)}}" for head, cell in zip(heads, row, strict=True))
                print(f"{kind:<16} {workers:>7}", *cells, sep="  ", flush=True)


if __name__ == "__main__":
    main()
