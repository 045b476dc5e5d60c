"""Label TSVs joined by image id: seconds and memory of `data.tags=FILE` over a store of as many images.

Writes the TSV (10 objects an image, a real one has 20 to 50 with longer numbers) and a store without regions.

    python benchmarks/label_join.py --images 2500000
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from made_data import made_regions
from pretraining_feed import make_tokenizer

from vinvl.data.tags import tag_source
from vinvl.regions import LabelMap, RegionStore, RegionStoreWriter

NAMES = [f"thing {number}" for number in range(1594)]
OBJECTS = 10


def write_labels(path: Path, images: int) -> None:
    """Lines in no order of the store."""
    random = np.random.default_rng(0)
    order, classes = random.permutation(images), random.integers(0, len(NAMES), (1000, OBJECTS))
    lists = [
        json.dumps([{"class": NAMES[one], "rect": [1.5, 2.5, 301.5, 402.5], "conf": 0.5} for one in row])
        for row in classes
    ]
    with path.open("w") as file:
        file.writelines(f"{image:012d}\t{lists[image % 1000]}\n" for image in order.tolist())


def make(labels: Path, path: Path, images: int) -> None:
    write_labels(labels, images)
    empty = made_regions(0, 1, np.random.default_rng(0))
    with RegionStoreWriter(path, feature_dim=1, detector="none", label_map=LabelMap((), ())) as writer:
        for image in range(images):
            object.__setattr__(empty, "image_id", f"{image:012d}")
            writer.add(empty)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2_500_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        labels, path = Path(name) / "labels.label.tsv", Path(name) / "store.h5"
        maker = get_context("spawn").Process(
            target=make, args=(labels, path, options.images)
        )  # whose memory is its own
        maker.start()
        maker.join()
        store, tokenizer = RegionStore(path), make_tokenizer()
        before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        tags = tag_source(str(labels), store, tokenizer)
        took, peak = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        size = labels.stat().st_size / 1e6
        print(f"{options.images:,} images, {size:,.0f} MB: {took:.1f} s, {size / took:.0f} MB/s")
        print(f"memory {before / 1e3:,.0f} MB before, {peak / 1e3:,.0f} MB at the most; {tags.text(0, 50)[:40]} …")


if __name__ == "__main__":
    main()
