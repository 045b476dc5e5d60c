"""What a checkpoint carries of how its features were made."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.regions.samples import write
from vinvl.regions import RegionStore
from vinvl.regions.store import FeatureRecord

MADE = {"boxes": "regressed", "architecture": {"blocks": [3, 8, 36, 3]}, "score_threshold": 0.2}


def test_of_a_store_and_through_a_checkpoint_file(tmp_path: Path) -> None:
    record = FeatureRecord.of_store(RegionStore(write(tmp_path / "f.h5", [], provenance=MADE)))
    assert record.detector == "X152-C4, NMS_FILTER 1" and record.feature_dtype == "float16"
    assert record.provenance == MADE
    torch.save({"features": record.plain()}, tmp_path / "c.ckpt")
    found = torch.load(tmp_path / "c.ckpt", weights_only=True)["features"]
    assert FeatureRecord.of_plain(found) == record


@pytest.mark.parametrize("provenance", [None, b"[1]", b"{"])
def test_a_store_that_says_nothing_or_nonsense_stops_nothing(provenance: bytes | None, tmp_path: Path) -> None:
    path = write(tmp_path / "f.h5", [], provenance=None if provenance is None else MADE)
    if provenance is not None:
        with h5py.File(path, "r+") as file:
            file.attrs["provenance"] = np.bytes_(provenance)
    assert FeatureRecord.of_store(RegionStore(path)) == FeatureRecord("X152-C4, NMS_FILTER 1", "float16", {})


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        [],
        {},
        {"detector": 3, "feature_dtype": "int8", "provenance": [1]},
        {"feature_dtype": ["float16"]},
        {"provenance": {"boxes": torch.zeros(1)}},
        {"provenance": {"architecture": {(1, 2): 3}}},
        {"provenance": {"size": 10**5000}},
    ],
)
def test_damaged_records_and_those_of_older_checkpoints_say_nothing(value: Any) -> None:
    assert FeatureRecord.of_plain(value) == FeatureRecord()
