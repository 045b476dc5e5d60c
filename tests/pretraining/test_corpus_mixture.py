"""Several corpora over several files of regions, as a run reads them: through loaders, workers, epochs and ranks."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pytorch_lightning.utilities import rank_zero_only

from tests.pretraining.samples import TOKENIZER, datamodule, mixed_rows, write_lines
from tests.regions.samples import make_regions, write
from vinvl.pretraining import triplets
from vinvl.pretraining.corpus import ensure_index
from vinvl.pretraining.data import PretrainingDataModule
from vinvl.regions import RegionStore


def write_shards(folder: Path, images: range, per_shard: int = 3) -> RegionStore:
    regions = [make_regions(str(number), 1 + number % 4, seed=number) for number in images]
    return RegionStore(write(folder, regions, max_images_per_shard=per_shard))


def rows_of_epochs(data: PretrainingDataModule, epochs: int) -> list[Counter[str]]:
    """How often each row was in the batches of each epoch, by its file and line."""
    loader: Any = data.train_dataloader()
    found = []
    for _ in range(epochs):
        rows: Counter[str] = Counter()
        for batch in loader:
            dataset: Any = data.datasets["train"]
            for record in batch.records:
                rows[dataset.rows.mixture.describe(record["index"]).split("/")[-1].split(" (")[0]] += 1
        found.append(rows)
    return found


def test_passes_and_loss_weights_over_two_epochs(tmp_path: Path) -> None:
    write_shards(tmp_path / "regions.h5", range(10))
    files = {name: str(write_lines(tmp_path / f"{name}.jsonl", mixed_rows(10))) for name in ("a", "half", "twice")}
    train = [files["a"], {"file": files["half"], "passes": 0.5, "loss_weight": 0.25}]
    train.append({"file": files["twice"], "passes": 2, "loss_weight": 3})
    data = datamodule(tmp_path, {"train": train, "val": files["a"]}, batch_size=5)
    data.setup("fit")
    first, second = rows_of_epochs(data, 2)
    for epoch in (first, second):
        assert epoch.total() == 10 + 5 + 20
        assert {epoch[f"a.jsonl line {line}"] for line in range(1, 11)} == {1}
        assert {epoch[f"twice.jsonl line {line}"] for line in range(1, 11)} == {2}
    halves = [{row for row in epoch if row.startswith("half")} for epoch in (first, second)]
    assert len(halves[0]) == len(halves[1]) == 5 and not halves[0] & halves[1]
    for batch in data.train_dataloader():
        dataset: Any = data.datasets["train"]
        assert batch.loss_weights is not None
        for record, weight in zip(batch.records, batch.loss_weights.tolist(), strict=True):
            name = dataset.rows.mixture.describe(record["index"]).split("/")[-1].split(".")[0]
            assert weight == {"a": 1.0, "half": 0.25, "twice": 3.0}[name]


def test_regions_come_from_the_shard_that_has_the_image(tmp_path: Path) -> None:
    stores = [write_shards(tmp_path / "one", range(7)), write_shards(tmp_path / "two", range(7, 10), per_shard=2)]
    assert [len(store.headers) for store in stores] == [3, 2]
    folder = tmp_path / "train"
    folder.mkdir()
    write_lines(folder / "coco.jsonl", mixed_rows(20))
    write_lines(folder / "gqa.jsonl", mixed_rows(10))
    data = datamodule(
        tmp_path, {"train": str(folder)}, val_split="train", variant="matched",
        regions=[str(tmp_path / "one"), str(tmp_path / "two")], num_workers=2,
    )  # fmt: skip
    data.setup("fit")
    dataset: Any = data.datasets["train"]
    images = set()
    for batch in data.train_dataloader():
        for place, record in enumerate(batch.records):
            image = dataset.rows.mixture.describe(record["index"])[-2]
            expected = next(store for store in stores if image in store)[image].rows(50)
            found = batch.region_features[place].numpy()
            np.testing.assert_array_equal(found[: len(expected)], expected)
            assert not found[len(expected) :].any()
            images.add(image)
    assert images == {str(number) for number in range(10)} and len(dataset) == 30


def told(data: PretrainingDataModule) -> list[str]:
    """What is warned of from setup to the end of the first epoch."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.setup("fit")
        rows = sum(len(batch) for batch in data.train_dataloader())
    assert rows == 20
    return [str(warning.message) for warning in caught if "left out" in str(warning.message)]


def test_missing_images_are_reported_once_in_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "regions.h5", range(5))
    splits = {"train": [str(write_lines(tmp_path / f"{name}.jsonl", mixed_rows(15))) for name in ("a", "b")]}
    reports = []
    for rank in (0, 1):
        monkeypatch.setattr(rank_zero_only, "rank", rank)
        reports.append(told(datamodule(tmp_path, splits, val_split="train", num_workers=2)))
    assert len(reports[0]) == 1 and reports[1] == []
    assert "left out 10 of 30 records" in reports[0][0] and "a.jsonl line 6 (image 5)" in reports[0][0]


ids = st.text("ab7é", min_size=1, max_size=6)


@example({"a", "b"}, ["é7", "ab7", "b"], 4)  # ids of the store that are longer than all of the corpus
@given(st.sets(ids, min_size=1, max_size=12), st.lists(ids, max_size=12, unique=True), st.integers(1, 4))
def test_positions_are_those_of_the_same_id(wanted: set[str], stored: list[str], block: int) -> None:
    encoded = np.array(sorted(text.encode() for text in wanted), dtype=np.bytes_)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(triplets, "BLOCK_IMAGES", block)
        found = triplets._positions(encoded, np.array([text.encode() for text in stored] or [], dtype=np.bytes_))
    places = {text.encode(): place for place, text in enumerate(stored)}
    assert found.tolist() == [places.get(key, -1) for key in encoded.tolist()] and found.dtype == np.int32


def test_rows_may_be_selected_again(tmp_path: Path) -> None:
    paths = [write_lines(tmp_path / f"{name}.jsonl", mixed_rows(6)) for name in ("a", "b")]
    whole = triplets.Mixture.of([triplets.CorpusShare(ensure_index(path, TOKENIZER)) for path in paths])
    some = whole.select(np.arange(12) % 4 != 0).select(np.arange(9) % 2 == 0)
    lines = [some.describe(row).split("/")[-1].split(" (")[0] for row in range(len(some))]
    assert lines == [f"{name}.jsonl line {n}" for name, n in [("a", 2), ("a", 4), ("b", 1), ("b", 4), ("b", 6)]]
    places = np.array([1, 3, 6, 9, 11])
    assert some.column("kinds").tolist() == whole.column("kinds")[places].tolist()
    sides = np.array([0, 1, 1, 0, 1])
    found, expected = some.texts(np.arange(5), sides), whole.texts(places, sides)
    assert np.array_equal(found.values, expected.values) and np.array_equal(found.offsets, expected.offsets)
    assert some.image_ids.tolist() == whole.image_ids[places].tolist()
