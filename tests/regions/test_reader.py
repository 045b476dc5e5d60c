"""Reading by id and index: sentences for what is not there, pickling, and DataLoader workers; feature records."""

from __future__ import annotations

import gc
import pickle
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from tests.regions.samples import LABELS, ROW_NAMES, assert_same, make_regions, write
from vinvl.regions import RegionStore
from vinvl.regions.store import FeatureRecord
from vinvl.run.errors import UserError

LAYOUTS: list[dict[str, Any]] = [{}, {"compression": "gzip", "chunk_rows": 2}, {"max_images_per_shard": 4}]


class StoreItems(Dataset[list[object]]):
    """What a worker sends back: every array of an image as lists, from each of several stores in turn."""

    def __init__(self, stores: list[RegionStore]) -> None:
        self.stores = stores

    def __len__(self) -> int:
        return sum(len(store) for store in self.stores)

    def __getitem__(self, index: int) -> list[object]:
        image, store = divmod(index, len(self.stores))
        regions = self.stores[store][self.stores[store].at(image).image_id]
        return [regions.image_id, *(getattr(regions, name).tolist() for name in ROW_NAMES)]


def first(batch: list[list[object]]) -> list[object]:
    return batch[0]


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_workers_read_the_same_values(tmp_path: Path, start_method: str) -> None:
    images = [make_regions(f"n{number}", 1 + number % 4, attributes=1, seed=number) for number in range(12)]
    paths = [write(tmp_path / str(number), images, attributes=1, **layout) for number, layout in enumerate(LAYOUTS)]
    items = StoreItems([RegionStore(path) for path in paths])
    expected = [items[index] for index in range(len(items))]  # before workers start, so that they inherit opened files
    workers = 2 if start_method == "fork" else 1
    loader = DataLoader(items, num_workers=workers, multiprocessing_context=start_method, collate_fn=first)
    assert list(loader) == expected
    assert [items[index] for index in range(len(items))] == expected


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_pickled_store_carries_no_data(tmp_path: Path, layout: dict[str, Any]) -> None:
    images = [make_regions(f"n{number}", 40, feature_dim=64, seed=number) for number in range(9)]
    store = RegionStore(write(tmp_path / "a", images, feature_dim=64, **layout))
    # Opens the file and makes the table of ids, neither of which may travel.
    assert store["n3"].image_id == store.image_ids[3]
    content = pickle.dumps(store)
    assert len(content) < 8000
    copy = pickle.loads(content)
    assert len(copy) == 9 and copy.label_map == LABELS
    for image in images:
        assert_same(copy[image.image_id], image)


def test_what_a_store_does_not_hold_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "coco.h5", [make_regions("262148", 1), make_regions("9", 1)])
    store = RegionStore(path)
    store.require_feature_dim(3)
    with pytest.raises(UserError, match=r"coco.h5 holds features of dimension 3, the model wants 2048"):
        store.require_feature_dim(2048)
    with pytest.raises(UserError) as caught:
        store["391895"]
    assert str(caught.value) == f"{path} has no image '391895'; it holds 2 images, ids like '262148'."
    for unknown in ("", "2621489", "26214", "9\0", "\ud800", "x" * 1000):
        assert unknown not in store
    assert store[9].image_id == store[np.int64(9)].image_id == "9" and 262148 in store and 8 not in store  # type: ignore
    for other in (True, 9.0, b"9", None):
        with pytest.raises(UserError, match=f"text or whole numbers, not {type(other).__name__}"):
            store[other]  # type: ignore[index]
    for index in (-1, 2):
        with pytest.raises(UserError, match=f"no image at index {index}; it holds 2 images"):
            store.at(index)
    assert store.at(np.int64(1)).image_id == "9"  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_empty_store_is_a_store(tmp_path: Path, layout: dict[str, Any]) -> None:
    store = RegionStore(write(tmp_path / "a", [], **layout))
    assert len(store) == 0 and store.verify() == [] and store.image_ids.tolist() == []
    assert "1" not in store and store.num_regions.shape == (0,)
    with pytest.raises(UserError, match="it holds no images"):
        store["1"]


def test_a_file_that_changes_after_it_was_opened_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", [make_regions("1", 1)])
    store = RegionStore(path)
    write(path, [make_regions("1", 9), make_regions("2", 9)])
    with pytest.raises(UserError, match=r"a.h5 was changed after it was opened"):
        store["1"]


@pytest.mark.parametrize("layout", [{}, {"chunk_rows": 7}, {"compression": "gzip"}], ids=str)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_store_that_is_cut_short_while_it_is_read_is_told(tmp_path: Path, layout: dict[str, Any]) -> None:
    images = [make_regions(f"n{number}", 9, feature_dim=299, attributes=1, seed=number) for number in range(12)]
    path = write(tmp_path / "a.h5", images, feature_dim=299, attributes=1, **layout)
    items = StoreItems([RegionStore(path)])
    whole = items[11]
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    told = r"a\.h5 was (cut short while it was read: copy or write it again|changed after it was opened)"
    for read in (
        lambda: [items[index] for index in range(12)],
        lambda: items.stores[0].features_into(11, np.zeros((9, 299), dtype=np.float16)),
        lambda: items.stores[0].sources[0].rows("features", 0, 108),
        lambda: list(DataLoader(Subset(items, [11]), num_workers=1, multiprocessing_context="fork", collate_fn=first)),
    ):
        with pytest.raises(UserError, match=told if not layout.get("compression") else rf"{told}|cannot be read"):
            read()
    assert len(whole) == 7


@pytest.mark.parametrize("layout", [{}, {"compression": "gzip"}], ids=["contiguous", "gzip"])
def test_features_alone_are_those_of_the_image(tmp_path: Path, layout: dict[str, Any]) -> None:
    paths = [
        write(tmp_path / f"{part}.h5", [make_regions(f"{part}{n}", n, seed=n) for n in range(4)], **layout)
        for part in "ab"
    ]
    store = RegionStore(paths)
    for index in range(len(store)):
        regions = store.at(index)
        for count in range(len(regions) + 1):
            store.features_into(index, out := np.full((count, 3), 7, dtype=np.float16))
            np.testing.assert_array_equal(out, regions.features[:count])
        with pytest.raises(UserError, match=f"has {len(regions)} regions, not"):
            store.features_into(index, np.empty((len(regions) + 1, 3), dtype=np.float16))
        np.testing.assert_array_equal(store.classes_at(index), regions.classes)
    for outside in (-1, len(store)):
        with pytest.raises(UserError, match=f"has no image at index {outside}"):
            store.classes_at(outside)


MADE = {"boxes": "regressed", "architecture": {"blocks": [3, 8, 36, 3]}, "score_threshold": 0.2}


def test_the_feature_record_goes_through_a_checkpoint_file(tmp_path: Path) -> None:
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


DAMAGED = [
    None, 3, [], {}, {"detector": 3, "feature_dtype": "int8", "provenance": [1]}, {"feature_dtype": ["float16"]},
    {"provenance": {"boxes": torch.zeros(1)}}, {"provenance": {"architecture": {(1, 2): 3}}},
    {"provenance": {"size": 10**5000}},
]  # fmt: skip


@pytest.mark.parametrize("value", DAMAGED)
def test_damaged_records_and_those_of_older_checkpoints_say_nothing(value: Any) -> None:
    assert FeatureRecord.of_plain(value) == FeatureRecord()


def test_a_store_that_nobody_holds_any_more_closes_its_file(tmp_path: Path) -> None:
    store = RegionStore(write(tmp_path / "f.h5", [make_regions("a", 3)]))
    assert len(store.at(0).features) == 3
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        del store
        gc.collect()
    assert not [one for one in told if str(tmp_path) in str(one.message)]
