"""How fast other people's features become a store: MB/s of input and images/s, by format and number of processes.

Writes a TSV of made-up features (36 regions of 2048 numbers an image) into a temporary folder and converts it.

    python benchmarks/feature_conversion.py --megabytes 300 --workers 1 2
"""

from __future__ import annotations

import argparse
import base64
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vinvl.regions.formats.convert import convert_features
from vinvl.regions.formats.rows import FeatureOptions

REGIONS, FEATURES = 36, 2048
WIDTH, HEIGHT = 640, 480


def write_bottom_up(path: Path, size: int) -> int:
    """Rows of bottom-up-attention until the file has `size` bytes; the number of rows."""
    random = np.random.default_rng(0)
    boxes = np.tile(np.array([10, 20, 300, 400], dtype="<f4"), (REGIONS, 1))
    features = random.random((REGIONS, FEATURES), dtype=np.float32)
    rows = 0
    with path.open("w") as file:
        while file.tell() < size:
            columns = (rows, WIDTH, HEIGHT, REGIONS, text(boxes), text(np.roll(features, rows)))
            file.write("\t".join(map(str, columns)) + "\n")
            rows += 1
    return rows


def write_oscar(path: Path, size: int) -> int:
    """Rows of Oscar's `features.tsv` until the file has `size` bytes; the number of rows."""
    random = np.random.default_rng(0)
    geometry = np.tile(np.array([0.1, 0.2, 0.5, 0.8, 0.4, 0.6], dtype="<f4"), (REGIONS, 1))
    features = random.random((REGIONS, FEATURES), dtype=np.float32)
    rows = 0
    with path.open("w") as file:
        while file.tell() < size:
            regions = np.concatenate([np.roll(features, rows), geometry], axis=1)
            file.write(f"{rows}\t{REGIONS}\t{text(regions)}\n")
            rows += 1
    return rows


def text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--megabytes", type=int, default=300, help="of the TSV (default: 300)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, os.cpu_count() or 1], help="processes to try")
    options = parser.parse_args(arguments)
    print(f"{'format':<20} {'workers':>7} {'images':>7} {'seconds':>8} {'MB/s':>8} {'images/s':>9}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, write in (("bottom-up-attention", write_bottom_up), ("Oscar", write_oscar)):
            source = folder / "rows.tsv"
            rows = write(source, options.megabytes * 10**6)
            megabytes = source.stat().st_size / 1e6
            for workers in options.workers:
                target = folder / "store.h5"
                settings = FeatureOptions(assume_size=(WIDTH, HEIGHT), workers=workers)
                begin = time.perf_counter()
                convert_features(source, target, settings)
                took = time.perf_counter() - begin
                target.unlink()
                speed = f"{took:>8.2f} {megabytes / took:>8.1f} {rows / took:>9.0f}"
                print(f"{kind:<20} {workers:>7} {rows:>7} {speed}", flush=True)


if __name__ == "__main__":
    main()
