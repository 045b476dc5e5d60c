"""Small made-up images for the tests of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vinvl.regions import LabelMap, Regions, RegionStoreWriter

LABELS = LabelMap(("__background__", "cat", "chien 🐕"), ("__no_attribute__", "red"))
ROW_NAMES = ("features", "boxes", "classes", "class_scores", "attributes", "attribute_scores")


def make_regions(image_id: str, count: int, feature_dim: int = 3, attributes: int = 0, seed: int = 0) -> Regions:
    random = np.random.default_rng(seed)
    corners = np.sort(random.uniform(0, 100, size=(count, 2, 2)), axis=1)
    return Regions(
        image_id=image_id,
        features=random.standard_normal((count, feature_dim)).astype(np.float16),
        boxes=corners.reshape(count, 4).astype(np.float32),
        classes=random.integers(0, 3, size=count, dtype=np.int32),
        class_scores=random.random(count, dtype=np.float32),
        attributes=random.integers(0, 2, size=(count, attributes), dtype=np.int32),
        attribute_scores=random.random((count, attributes), dtype=np.float32),
        width=100,
        height=120,
    )


def assert_same(read: Regions, written: Regions) -> None:
    assert (read.image_id, read.width, read.height) == (written.image_id, written.width, written.height)
    for name in ROW_NAMES:
        array, expected = getattr(read, name), getattr(written, name)
        assert array.dtype == expected.dtype and array.shape == expected.shape
        np.testing.assert_array_equal(array, expected)


def write(
    path: Path,
    images: list[Regions],
    feature_dim: int = 3,
    attributes: int = 0,
    compression: str | None = None,
    chunk_rows: int | None = None,
    **layout: Any,
) -> Path:
    """A store of ours; with a compression, or rows a chunk, its features are laid out anew as other writers may."""
    writer = RegionStoreWriter(
        path,
        feature_dim=feature_dim,
        detector="X152-C4, NMS_FILTER 1",
        label_map=LABELS,
        num_attributes=attributes,
        **layout,
    )
    with writer:
        for regions in images:
            writer.add(regions)
    if compression is not None or chunk_rows is not None:
        for file in path.glob("*.h5") if path.is_dir() else [path]:
            _chunk_features(file, compression, chunk_rows or 32)
    return path


def _chunk_features(path: Path, compression: str | None, chunk_rows: int) -> None:
    made = path.with_name(f"{path.name}.chunked")
    with h5py.File(path) as source, h5py.File(made, "w", libver=("v108", "v108")) as target:
        target.attrs.update(dict(source.attrs))
        for name, dataset in source.items():
            if name != "features" or len(dataset) == 0:
                source.copy(dataset, target)
                continue
            chunks = (min(chunk_rows, len(dataset)), *dataset.shape[1:])
            shuffle = compression is not None
            target.create_dataset(name, data=dataset[...], chunks=chunks, compression=compression, shuffle=shuffle)
    made.replace(path)
