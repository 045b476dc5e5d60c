"""Pre-training batches: what is in them, and what they depend on; what the data module reads and refuses."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from tests.pretraining.samples import (
    SPECIAL,
    TOKENIZER,
    datamodule,
    draws,
    mixed_dataset,
    mixed_rows,
    plain,
    store_of,
    write_lines,
)
from vinvl.data.batch import Batch
from vinvl.data.sampling import LengthBucketBatchSampler
from vinvl.pretraining.triplets import PairOptions
from vinvl.run.callbacks import SamplesPerSecond
from vinvl.run.errors import UserError


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.records == other.records
    found, expected = ({k: v for k, v in vars(b).items() if isinstance(v, torch.Tensor)} for b in (one, other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def restored(batch: Batch) -> torch.Tensor:
    """The tokens before any was hidden."""
    assert batch.labels is not None and batch.masked_positions is not None
    whole = batch.input_ids.clone()
    whole[batch.masked_positions] = batch.labels
    return whole


def assert_regions(batch: Batch, place: int, rows: np.ndarray) -> None:
    """They are those of a row of the batch, and seen."""
    found, seen = batch.region_features[place].numpy(), batch.attention_mask[place, batch.input_ids.shape[1] :]
    np.testing.assert_array_equal(found[: len(rows)], rows)
    assert not found[len(rows) :].any() and seen.tolist() == [True] * len(rows) + [False] * (len(found) - len(rows))


def test_fields_of_a_batch(tmp_path: Path) -> None:
    dataset = mixed_dataset(tmp_path)
    batch = dataset.collate(draws(range(60)))
    assert batch.labels is not None and batch.masked_positions is not None and batch.pair_labels is not None
    length, regions = batch.input_ids.shape[1], batch.region_features.shape[1]
    assert batch.attention_mask.shape == (60, length + regions) and batch.attention_mask.dtype == torch.bool
    assert batch.masked_positions.dtype == torch.bool and batch.labels.shape == (int(batch.masked_positions.sum()),)
    assert batch.pair_labels.dtype == torch.int64 and set(batch.pair_labels.tolist()) == {0, 1, 2}
    assert batch.loss_weights is None
    whole = restored(batch)
    special = (SPECIAL.cls_token_id, SPECIAL.sep_token_id, SPECIAL.pad_token_id, SPECIAL.mask_token_id)
    assert not torch.isin(batch.labels, torch.tensor(special)).any()
    text_mask = batch.attention_mask[:, :length]
    assert torch.equal(text_mask, whole != SPECIAL.pad_token_id)
    for row, given in enumerate(mixed_rows(60)):
        assert_regions(batch, row, dataset.rows.region_text.region_rows(given["image_id"]))
        if batch.pair_labels[row] == 0:
            tags = dataset.rows.region_text.tags.text(given["image_id"], 50).replace(",", "")
            second = " ".join(given["tags"]) if "tags" in given else given.get("answer", tags)
            ids = [SPECIAL.cls_token_id, *plain(given["text"]), SPECIAL.sep_token_id]
            ids += [*plain(second), SPECIAL.sep_token_id] if second else []
            assert whole[row][text_mask[row]].tolist() == ids


def test_batches_depend_on_seed_and_draws_alone(tmp_path: Path) -> None:
    dataset = mixed_dataset(tmp_path)

    def batches(workers: int, position: int = 0) -> list[Batch]:
        sampler = LengthBucketBatchSampler(dataset.lengths(), 16, seed=1)
        sampler.position = position
        loader: Any = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=dataset.collate)
        return list(loader)

    alone = batches(0)
    for one, other in zip(alone, batches(2), strict=True):
        assert_equal(one, other)
    for one, other in zip(alone[2:], batches(0, position=2), strict=False):  # of a run that goes on at batch 2
        assert_equal(one, other)
    first = dataset.collate(draws(range(30)))
    (tmp_path / "other").mkdir()
    other_seed = mixed_dataset(tmp_path / "other", seed=1).collate(draws(range(30)))
    for other in (dataset.collate(draws(range(30), epoch=1)), other_seed):
        assert first.pair_labels is not None and other.pair_labels is not None
        assert not torch.equal(first.pair_labels, other.pair_labels)


def test_variants(tmp_path: Path) -> None:
    """mmf: matched rows with hidden tokens, then mismatched ones with labels. matched: the first half alone."""
    batch = mixed_dataset(tmp_path, variant="mmf").collate(draws(range(60)))
    assert (len(batch), batch.num_items, batch.to("cpu").num_items) == (120, 60, 60)
    assert batch.pair_labels is not None and batch.masked_positions is not None
    assert (batch.pair_labels[:60] == -1).all() and set(batch.pair_labels[60:].tolist()) == {0, 1, 2}
    assert batch.masked_positions[:60].any() and not batch.masked_positions[60:].any()
    assert torch.equal(batch.region_features[:60], batch.region_features[60:])
    is_matched = batch.pair_labels[60:] == 0
    assert torch.equal(restored(batch)[:60][is_matched], batch.input_ids[60:][is_matched])
    assert not torch.equal(restored(batch)[:60], batch.input_ids[60:])
    (tmp_path / "matched").mkdir()
    matched = mixed_dataset(tmp_path / "matched", variant="matched").collate(draws(range(60)))
    assert matched.pair_labels is None and len(matched) == matched.num_items == 60
    assert torch.equal(restored(matched), restored(batch)[:60, : matched.input_ids.shape[1]])


def test_samples_are_items_whatever_is_made_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = mixed_dataset(tmp_path, variant="mmf").collate(draws(range(6)))
    logged: dict[str, float] = {}
    module, trainer = pl.LightningModule(), pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: value}))
    seconds = iter([10.0, 13.0])
    monkeypatch.setattr("vinvl.run.callbacks.time.perf_counter", lambda: next(seconds))
    callback = SamplesPerSecond(every_n_steps=2)
    callback.on_train_epoch_start(trainer, module)
    for number in range(2):
        callback.on_train_batch_end(trainer, module, None, batch, number)
    assert logged == {"samples/s": 4.0}


def test_a_wrong_second_text_is_left_whole_where_its_loss_is_dropped(tmp_path: Path) -> None:
    dropped = PairOptions(1, 0.0, mask_loss_for_unmatched=False)
    batch = mixed_dataset(tmp_path, options=dropped).collate(draws(list(range(60)) * 20))
    assert batch.pair_labels is not None and batch.masked_positions is not None
    in_second = batch.masked_positions & (batch.token_type_ids == 1)
    assert in_second[batch.pair_labels == 0].any() and not in_second[batch.pair_labels == 1].any()


def test_withheld_tags_leave_answers_and_withheld_regions_texts(tmp_path: Path) -> None:
    batch = mixed_dataset(tmp_path, use_tags=False).collate(draws(range(60)))
    assert batch.pair_labels is not None
    is_question = torch.arange(60) % 3 == 2
    assert torch.equal(batch.token_type_ids.any(dim=1), is_question)
    assert not (batch.pair_labels[~is_question] == 1).any()
    for variant in ("oscar", "mmf"):
        dataset = mixed_dataset(tmp_path, variant=variant, use_regions=False)
        batch = dataset.collate(draws(range(6)))
        assert batch.region_features.shape == (len(batch), 0, 9) and (dataset.lengths() <= 35).all()
        assert batch.attention_mask.shape == batch.input_ids.shape


@pytest.mark.parametrize("most", [2, 50])
def test_as_many_regions_as_may_be(tmp_path: Path, most: int) -> None:
    dataset = mixed_dataset(tmp_path, variant="mmf", max_regions=most)
    batch = dataset.collate(draws([3, 0, 17, 5]))
    assert batch.region_features.shape[:2] == (8, min(most, 4))
    for place, record in enumerate(batch.records):
        image = int(dataset.rows.images[record["index"]])
        assert_regions(batch, place, dataset.rows.region_text.region_rows(image))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_feature_that_is_no_number_is_refused(tmp_path: Path, value: float) -> None:
    dataset = mixed_dataset(tmp_path)
    with h5py.File(tmp_path / "regions.h5", "r+") as file:
        file["features"][3, 1] = value  # image 2 has the regions 3 to 5
        file["boxes"][:2] = [0, 0, 3.3e38, 3.3e38]  # whose sum overflows
        file["sizes"][:2] = 1
    with np.errstate(over="ignore"):
        assert torch.isfinite(dataset.collate(draws([0, 1])).region_features).all()
    with pytest.raises(UserError, match=r"image '2' has NaN or infinite features in region 0"):
        dataset.collate(draws([0, 2]))


def test_lengths_are_those_of_the_rows_where_the_rows_give_their_texts(tmp_path: Path) -> None:
    dataset = mixed_dataset(tmp_path, variant="matched", max_tokens=9)
    lengths = dataset.lengths()
    for index in (0, 2, 3, 5):
        assert lengths[index] == int(dataset.collate(draws([index])).attention_mask.sum())


def test_the_datamodule_reads_a_mixture_and_shows_an_example(tmp_path: Path) -> None:
    store_of(tmp_path)
    train, extra, val = (
        str(write_lines(tmp_path / f"{name}.jsonl", mixed_rows(count)))
        for name, count in (("train", 30), ("extra", 6), ("val", 12))
    )
    splits = {"train": [train, {"file": extra, "loss_weight": 0.5}], "val": {"file": val, "passes": 3}}
    data = datamodule(tmp_path, splits)
    data.prepare_data()
    data.setup("fit")
    assert len(data.datasets["train"]) == 36 and len(data.datasets["val"]) == 12 and data.num_pair_classes == 3
    batch: Any = next(iter(data.train_dataloader()))
    assert len(batch) == 8 and batch.loss_weights is not None
    assert sum(len(part) for part in data.val_dataloader()) == 12
    shown = data.example_text("train", 34)
    assert f"{extra} line 5 (image 4)" in shown
    assert "[CLS]" in shown and "hidden" in shown and "label" in shown


def test_another_tokenizer_gets_an_index_of_its_own(tmp_path: Path) -> None:
    store_of(tmp_path)
    splits = {"train": str(write_lines(tmp_path / "train.jsonl", CAPTIONS))}
    datamodule(tmp_path, splits, val_split="train").setup("fit")
    other = type(TOKENIZER).from_pretrained(tmp_path / "tokenizer")
    other.add_tokens(["a dog"])
    other.save_pretrained(tmp_path / "other")
    data = datamodule(tmp_path, splits, val_split="train", tokenizer=str(tmp_path / "other"))
    data.setup("fit")
    found: Any = data.datasets["train"]
    assert found.rows.mixture.shares[0].corpus.lengths[:, 0].tolist() == [1] * 4
    assert len(list(tmp_path.glob("train.jsonl.index-*"))) == 2


GOOD = {"image_id": 1, "text": "a dog"}
STRANGER = {**GOOD, "image_id": "x/77"}
CAPTIONS = [{**GOOD, "image_id": image} for image in range(4)]
OTHER_TAGS = [{**GOOD, "tags": ["aardvark", "zebra"]}, {**GOOD, "tags": ["zebra"]}]


@pytest.mark.parametrize(
    ("rows", "settings", "sentence"),
    [
        ([GOOD, {"image_id": 2}], {}, r"train\.jsonl line 2 has no text, and no tags"),
        ([], {}, r"train\.jsonl holds no rows"),
        (
            [GOOD, STRANGER], {"on_missing": "error"},
            r"regions\.h5.* has no image x/77 \(asked for by .*train\.jsonl line 2 \(image x/77\); 1 of 2 rec.*like "
            r"'0'\. Extract the missing ones or pass data\.on_missing=skip\.",
        ),
        ([STRANGER], {}, r"1 of 1 records in all lack theirs\)\. .*'0'\. Is it the store of these records\?"),
        (OTHER_TAGS, {}, r"train\.jsonl has tags of another label set: none of its 2 tag names \(such as 'zebra'\)"),
        ([GOOD] * 3, {}, r"All 3 rows of the split are of one image \(.*line 1 \(image 1\) is the fir"),
        ([GOOD] * 3, {"variant": "mmf"}, r"All 3 rows of the split are of one image"),
        ([GOOD] * 3, {"variant": "matched"}, None),
        (CAPTIONS, {"textb_sample_mode": 2}, "textb_sample_mode=2 takes wrong second texts from answers, and"),
        (mixed_rows(6), {"textb_sample_mode": 2}, None),
        (CAPTIONS, {"variant": "both"}, "data.variant is 'both'"),
        (CAPTIONS, {"mask_probability": 1.5}, "data.mask_probability"),
        (CAPTIONS, {"max_tokens": 3}, "data.max_tokens is 3"),
    ],
)  # fmt: skip
def test_corpora_and_settings_that_do_not_fit(
    tmp_path: Path, rows: list[dict[str, Any]], settings: dict[str, Any], sentence: str | None
) -> None:
    store_of(tmp_path)
    splits = {"train": str(write_lines(tmp_path / "train.jsonl", rows))}
    if sentence is None:
        datamodule(tmp_path, splits, val_split="train", **settings).setup("fit")
        return
    with pytest.raises(UserError, match=sentence) as raised:
        datamodule(tmp_path, splits, val_split="train", **settings).setup("fit")
    assert "\n" not in str(raised.value) and not list(tmp_path.glob(".*partial"))


def test_a_warning_of_tags_that_are_no_classes(tmp_path: Path) -> None:
    store_of(tmp_path)
    rows = [{**GOOD, "tags": ["cat", "zebra"]}, {**GOOD, "image_id": 2}]
    splits = {"train": str(write_lines(tmp_path / "train.jsonl", rows))}
    with pytest.warns(UserWarning, match="1 of its 2 tag names are no classes"):
        datamodule(tmp_path, splits, val_split="train").setup("fit")


@pytest.mark.parametrize(
    ("splits", "sentence"),
    [
        ({"train": []}, "names no corpus"),
        ({"train": [{"path": "x"}]}, r"data.splits.train has no file: give \{file: …, loss_weight: …, passes: …, t"),
        ({"train": {"file": "x.jsonl", "weight": 2}}, "has the key weight, which nothing reads"),
        ({"train": {"file": "x.jsonl", "passes": "two"}}, "has the passes 'two': give a number"),
        ({"train": {"file": "x.jsonl", "passes": 0}}, r"x\.jsonl has loss_weight 1.0 and passes 0"),
        ({"train": {"file": "x.jsonl", "passes": -1}}, r"x\.jsonl has loss_weight .* and passes"),
        ({"train": {"file": "x.jsonl", "loss_weight": -0.5}}, r"x\.jsonl has loss_weight -0\.5 and passes"),
        ({"train": {"file": "x.jsonl", "loss_weight": float("nan")}}, r"x\.jsonl has loss_weight nan and passes"),
        ({"train": [3]}, "data.splits.train is 3: give"),
        ({"train": "missing.jsonl"}, "missing.jsonl"),
        ({"train": "FOLDER"}, r"is a folder without corpus files \(\.jsonl\)"),
    ],
)
def test_splits_that_are_none(tmp_path: Path, splits: dict[str, Any], sentence: str) -> None:
    store_of(tmp_path)
    (tmp_path / "folder").mkdir()
    splits = {name: str(tmp_path / "folder") if files == "FOLDER" else files for name, files in splits.items()}
    with pytest.raises(UserError, match=sentence):
        datamodule(tmp_path, splits).setup("fit")
