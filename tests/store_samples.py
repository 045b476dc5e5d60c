"""Small made-up images for the tests of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vinvl.data.store import LabelMap, Regions, RegionStoreWriter

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


def write(path: Path, images: list[Regions], feature_dim: int = 3, attributes: int = 0, **layout: Any) -> Path:
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
    return path
