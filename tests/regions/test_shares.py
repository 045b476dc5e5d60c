"""Boxes in shares of the image are refused, and a comparison that finds nothing to compare says so."""

from pathlib import Path

import numpy as np
import pytest

from vinvl.regions import Regions, RegionStore, RegionStoreWriter
from vinvl.regions.__main__ import compare_stores
from vinvl.run.errors import UserError


def store(path: Path, boxes: list[list[float]]) -> RegionStore:
    rng = np.random.default_rng(0)
    with RegionStoreWriter(path, feature_dim=4) as writer:
        features = rng.random((len(boxes), 4), dtype=np.float32)
        writer.add(Regions("1", features, np.array(boxes, dtype=np.float32), width=640, height=480))
    return RegionStore(path)


def test_boxes_from_0_to_1_are_shares(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"image '1': boxes run from 0 to 0\.9 in 640 × 480 pixels, so they are shares"):
        store(tmp_path / "a.h5", [[0, 0, 0.5, 0.9]])
    assert not list(tmp_path.iterdir())
    for number, boxes in enumerate(([[0, 0, 1, 1]], [[0, 0, 0, 0]], [[0, 0, 0.5, 0.9], [0, 0, 300, 200]])):
        assert len(store(tmp_path / f"{number}.h5", boxes)) == 1


def test_boxes_that_have_nothing_in_common_have_no_figures(tmp_path: Path) -> None:
    first, second = store(tmp_path / "a.h5", [[0, 0, 9, 9]]), store(tmp_path / "b.h5", [[100, 100, 300, 300]])
    rows = dict(compare_stores(first, second).rows())
    assert rows["same boxes (IoU 0.9)"] == "0.0 % of the first's"
    assert rows["cosine of features"] == rows["ratio of norms"] == "nothing to compare"
    assert not [value for value in rows.values() if "nan" in value]
