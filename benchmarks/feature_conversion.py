"""How fast other people's features become a store, against reading their files alone: MB/s of input in one run.

Writes made-up features (40 regions of 2048 numbers an image) into a temporary folder and converts them, in rounds of
which the median counts. "alone" is one process that reads the same and drops it: the bytes of a TSV, the arrays of
HDF5, the members of npz with their decompression. "MB/s a core" is by processor time, which a busy machine hides less.

    python benchmarks/feature_conversion.py --megabytes 300 --workers 1 2
"""

from __future__ import annotations

import argparse
import base64
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
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


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock, and of the processor in all processes."""
    before, begin = os.times(), time.perf_counter()
    work()
    took, after = time.perf_counter() - begin, os.times()
    return took, sum(after[:4]) - sum(before[:4])


def one_round(read: Callable[[Path], None], source: Path, target: Path, workers: int) -> tuple[float, float, float]:
    """Seconds of reading alone, of the conversion, and of its processor time."""
    alone, _ = timed(lambda: read(source))
    settings = FeatureOptions(assume_size=(WIDTH, HEIGHT), workers=workers)
    took, processor = timed(lambda: convert_features(source, target, settings))
    target.unlink()
    return alone, took, processor


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--megabytes", type=int, default=300, help="of a TSV; others have as many images (default: 300)"
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1], help="processes to try")
    parser.add_argument("--rounds", type=int, default=3, help="of which the median counts (default: 3)")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS), help="formats to try")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    images = options.megabytes * 10**6 // len(text(NUMBERS))
    print(f"{'format':<16} {'workers':>7} {'MB':>5} {'MB/s':>6} {'MB/s a core':>11} {'alone MB/s':>10} {'of alone':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            suffix, write, read = KINDS[kind]
            source, target = Path(folder) / f"in{len(kind)}{suffix}", Path(folder) / "store.h5"
            write(source, images)
            files = source.iterdir() if source.is_dir() else [source]
            megabytes = sum(path.stat().st_size for path in files) / 1e6
            for workers in options.workers:
                runs = [one_round(read, source, target, workers) for _ in range(options.rounds)]
                alone, took, core = (megabytes / statistics.median(column) for column in zip(*runs, strict=True))
                row = f"{megabytes:>5.0f} {took:>6.0f} {core:>11.0f} {alone:>10.0f} {took / alone:>8.2f}"
                print(f"{kind:<16} {workers:>7} {row}", flush=True)


if __name__ == "__main__":
    main()
