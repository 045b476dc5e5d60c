"""The regions of pre-training batches, and the samples that a batch counts for."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from tests.pretraining.samples import draws, mixed_dataset
from vinvl.data.inputs import InputLimits, RegionText
from vinvl.run.callbacks import SamplesPerSecond
from vinvl.run.errors import UserError


@pytest.mark.parametrize("variant", ["oscar", "mmf"])
@pytest.mark.parametrize("most", [2, 50])
def test_regions_are_the_rows_of_each_image(tmp_path: Path, variant: str, most: int) -> None:
    dataset = mixed_dataset(tmp_path, variant=variant)
    text = dataset.rows.region_text
    dataset.rows.region_text = RegionText(text.store, text.tags, InputLimits(35, most), text.special)
    batch = dataset.collate(draws([3, 0, 17, 5]))
    wide = batch.region_features.shape[1]
    assert wide == min(most, 4)
    for place, record in enumerate(batch.records):
        image = int(dataset.rows.images[record["index"]])
        rows = dataset.rows.region_text.region_rows(image)
        found = batch.region_features[place]
        assert np.array_equal(found[: len(rows)].numpy(), rows) and not found[len(rows) :].any()
        present = batch.attention_mask[place, batch.input_ids.shape[1] :]
        assert present.tolist() == [True] * len(rows) + [False] * (wide - len(rows))


def test_no_regions_where_they_are_withheld(tmp_path: Path) -> None:
    batch = mixed_dataset(tmp_path, use_regions=False).collate(draws([0, 1]))
    assert batch.region_features.shape == (2, 0, 9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    dataset = mixed_dataset(tmp_path)
    with h5py.File(tmp_path / "regions.h5", "r+") as file:
        file["features"][3, 1] = value  # image 2 has the regions 3 to 5
    dataset.collate(draws([0, 1]))
    with pytest.raises(UserError, match=r"image '2' has NaN or infinite features in region 0"):
        dataset.collate(draws([0, 2]))


def test_features_whose_sum_overflows_are_numbers(tmp_path: Path) -> None:
    dataset = mixed_dataset(tmp_path)
    with h5py.File(tmp_path / "regions.h5", "r+") as file:
        file["boxes"][0] = [0, 0, 3.3e38, 3.3e38]
        file["boxes"][1] = [0, 0, 3.3e38, 3.3e38]
        file["sizes"][:2] = 1
    with np.errstate(over="ignore"):
        assert torch.isfinite(dataset.collate(draws([0, 1])).region_features).all()


@pytest.mark.parametrize(("variant", "rows"), [("oscar", 6), ("mmf", 12), ("matched", 6)])
def test_samples_are_items_whatever_is_made_of_them(
    tmp_path: Path, variant: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = mixed_dataset(tmp_path, variant=variant).collate(draws(range(6)))
    assert (len(batch), batch.num_items, batch.to("cpu").num_items) == (rows, 6, 6)
    logged: dict[str, float] = {}
    module, trainer = pl.LightningModule(), pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    seconds = iter([10.0, 13.0])
    monkeypatch.setattr("vinvl.run.callbacks.time.perf_counter", lambda: next(seconds))
    callback = SamplesPerSecond(every_n_steps=2)
    callback.on_train_epoch_start(trainer, module)
    callback.on_train_batch_end(trainer, module, None, batch, 0)
    callback.on_train_batch_end(trainer, module, None, batch, 1)
    assert logged == {"samples/s": 4.0}
