"""Random reads of region features: RegionStore against a raw memory map, h5py slices and base64 TSV rows.

Makes a store of random features in a temporary folder, then reads whole images in a random order with each reader, all
in this process on the same images. Every read ends with the features of the image in one and the same buffer, so
that all bytes are touched. The file has just been written, so what is measured is reading from the page cache.

    python benchmarks/store_reads.py --images 3000
"""

from __future__ import annotations

import argparse
import base64
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import h5py
import numpy as np

from vinvl.regions import LabelMap, Regions, RegionStore, RegionStoreWriter

Reader = Callable[[int], np.ndarray]


def write_images(path: Path, images: int, regions: int, feature_dim: int) -> None:
    """Write images with about `regions` regions each, of random halves."""
    random = np.random.default_rng(0)
    pool = random.standard_normal((4 * regions, feature_dim)).astype(np.float16)
    with RegionStoreWriter(path, feature_dim=feature_dim, detector="random", label_map=LabelMap((), ())) as writer:
        for number in range(images):
            count = int(random.integers(regions // 2, regions + regions // 2 + 1))
            start = int(random.integers(0, len(pool) - count + 1))
            writer.add(
                Regions(
                    image_id=str(number),
                    features=pool[start : start + count],
                    boxes=np.zeros((count, 4), dtype=np.float32),
                    classes=np.zeros(count, dtype=np.int32),
                    class_scores=np.zeros(count, dtype=np.float32),
                    attributes=np.zeros((count, 0), dtype=np.int32),
                    attribute_scores=np.zeros((count, 0), dtype=np.float32),
                    width=640,
                    height=480,
                )
            )


def write_tsv(store: RegionStore, path: Path) -> np.ndarray:
    """Write `image id, number of regions, base64 of float32 features` rows; returns (N,) the byte offset of each."""
    starts = np.zeros(len(store), dtype=np.int64)
    with path.open("wb") as file:
        for index in range(len(store)):
            regions = store.at(index)
            starts[index] = file.tell()
            text = base64.b64encode(regions.features.astype(np.float32).tobytes())
            file.write(b"%s\t%d\t%s\n" % (regions.image_id.encode(), len(regions), text))
    return starts


def images_per_second(read: Reader, order: np.ndarray, buffer: np.ndarray) -> tuple[float, float]:
    """(images/s, bytes of halves/s) for reading the images in `order` and copying each into `buffer`."""
    copied = 0
    begin = time.perf_counter()
    for index in order.tolist():
        features = read(index)
        target = buffer[: len(features)]
        if not np.shares_memory(target, features):
            np.copyto(target, features, casting="same_kind")
        copied += target.nbytes
    seconds = time.perf_counter() - begin
    return len(order) / seconds, copied / seconds


def make_readers(
    path: Path, store: RegionStore, handle: h5py.File, tsv: Path, starts: np.ndarray, buffer: np.ndarray
) -> dict[str, Reader]:
    """What is compared, by name; each takes an index and returns the features (R, D) of that image."""
    layout = store.headers[0].arrays["features"]
    raw = np.memmap(path, dtype=layout.dtype, mode="r", offset=layout.offset or 0, shape=layout.shape).view(np.ndarray)
    offsets = np.concatenate([[0], np.cumsum(store.num_regions)])
    ids = store.image_ids.tolist()
    dataset, lines = handle["features"], tsv.open("rb")
    others = [handle[name] for name in ("boxes", "classes", "class_scores", "attributes", "attribute_scores")]

    def all_from_hdf5(index: int) -> np.ndarray:
        for other in others:
            other[offsets[index] : offsets[index + 1]]
        return dataset[offsets[index] : offsets[index + 1]]

    def from_tsv(index: int) -> np.ndarray:
        lines.seek(starts[index])
        _, count, text = lines.readline().split(b"\t")
        return np.frombuffer(base64.b64decode(text), dtype=np.float32).reshape(int(count), -1)

    def features_alone(index: int) -> np.ndarray:
        rows = buffer[: offsets[index + 1] - offsets[index]]
        store.features_into(index, rows)
        return rows

    def all_of(regions: Regions) -> np.ndarray:
        for name in ("boxes", "classes", "class_scores", "attributes", "attribute_scores"):
            getattr(regions, name)
        return regions.features

    return {
        "raw memory map": lambda index: raw[offsets[index] : offsets[index + 1]],
        "RegionStore, features only, as batches are filled": features_alone,
        "RegionStore by index": lambda index: all_of(store.at(index)),
        "RegionStore by image id": lambda index: all_of(store[ids[index]]),
        "h5py slice of features": lambda index: dataset[offsets[index] : offsets[index + 1]],
        "h5py slices of all arrays": all_from_hdf5,
        "base64 TSV rows": from_tsv,
    }


def print_table(results: dict[str, tuple[float, float]]) -> None:
    best = results["RegionStore by image id"][0]
    raw = results["raw memory map"][0]
    print(f"{'reader':<52}{'images/s':>10}{'GB/s':>8}{'of the raw map':>16}{'RegionStore by id is':>24}")
    for name, (images, size) in results.items():
        print(f"{name:<52}{images:>10,.0f}{size / 1e9:>8.2f}{images / raw:>16.2f}{best / images:>18.2f} times")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=3000, help="images in the store (default: 3000)")
    parser.add_argument("--regions", type=int, default=36, help="mean number of regions an image (default: 36)")
    parser.add_argument("--feature-dim", type=int, default=2048, help="feature dimension (default: 2048)")
    parser.add_argument("--passes", type=int, default=3, help="the best of so many passes is shown (default: 3)")
    parser.add_argument("--tsv-images", type=int, default=500, help="reads of the slow TSV reader (default: 500)")
    parser.add_argument("--folder", type=Path, default=None, help="where to make the temporary folder")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path, tsv = Path(folder) / "store.h5", Path(folder) / "features.tsv"
        begin = time.perf_counter()
        write_images(path, options.images, options.regions, options.feature_dim)
        seconds = time.perf_counter() - begin
        size = path.stat().st_size
        print(f"{options.images:,} images, {size / 1e6:,.0f} MB, written at {size / seconds / 1e6:,.0f} MB/s")
        store = RegionStore(path)
        starts = write_tsv(store, tsv)
        order = np.random.default_rng(1).permutation(options.images)
        buffer = np.empty((2 * options.regions, options.feature_dim), dtype=np.float16)
        results = {}
        with h5py.File(path, "r") as handle:
            for name, read in make_readers(path, store, handle, tsv, starts, buffer).items():
                reads = order[: options.tsv_images] if "TSV" in name else order
                results[name] = max(images_per_second(read, reads, buffer) for _ in range(options.passes))
        print_table(results)


if __name__ == "__main__":
    main()
