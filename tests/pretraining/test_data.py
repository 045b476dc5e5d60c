"""Pre-training batches: what is in them, and what they depend on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.pretraining.samples import (
    SPECIAL,
    TOKENIZER,
    dataset_of,
    draws,
    mixed_dataset,
    mixed_rows,
    store_of,
    write_lines,
)
from tests.regions.samples import make_regions, write
from vinvl.data.batch import Batch
from vinvl.data.sampling import LengthBucketBatchSampler
from vinvl.pretraining.corpus import ensure_index
from vinvl.pretraining.data import PretrainingDataModule, PretrainingDataset
from vinvl.pretraining.mixture import CorpusShare
from vinvl.pretraining.triplets import PairOptions
from vinvl.run.errors import UserError


def tensors(batch: Batch) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.records == other.records
    assert tensors(one).keys() == tensors(other).keys()
    for name, value in tensors(one).items():
        assert torch.equal(value, tensors(other)[name]), name


def restored(batch: Batch) -> torch.Tensor:
    """The tokens before any was hidden."""
    assert batch.labels is not None and batch.masked_positions is not None
    whole = batch.input_ids.clone()
    whole[batch.masked_positions] = batch.labels
    return whole


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
    matched = np.flatnonzero(batch.pair_labels == 0).tolist()
    for row, given in enumerate(mixed_rows(60)):
        image = dataset.rows.region_text.region_rows(given["image_id"])
        assert int(batch.attention_mask[row, length:].sum()) == len(image)
        np.testing.assert_array_equal(batch.region_features[row, : len(image)], image)
        if row in matched:
            tags = dataset.rows.region_text.tags.text(given["image_id"], 50).replace(",", "")
            second = " ".join(given["tags"]) if "tags" in given else given.get("answer", tags)
            ids = [SPECIAL.cls_token_id, *plain(given["text"]), SPECIAL.sep_token_id]
            ids += [*plain(second), SPECIAL.sep_token_id] if second else []
            assert whole[row][text_mask[row]].tolist() == ids


def plain(text: str) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return ids


def test_batches_are_the_same_however_many_workers_make_them(tmp_path: Path) -> None:
    dataset = mixed_dataset(tmp_path)

    def batches(workers: int, position: int = 0) -> list[Batch]:
        sampler = LengthBucketBatchSampler(dataset.lengths(), 16, seed=1)
        sampler.position = position
        loader: Any = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=dataset.collate)
        return list(loader)

    alone = batches(0)
    for workers in (1, 2):
        for one, other in zip(alone, batches(workers), strict=True):
            assert_equal(one, other)
    # A run that goes on at batch 2 meets the batches it would have met.
    for one, other in zip(alone[2:], batches(0, position=2), strict=False):
        assert_equal(one, other)


def test_epochs_and_seeds_differ(tmp_path: Path) -> None:
    dataset = mixed_dataset(tmp_path)
    assert_equal(dataset.collate(draws(range(30))), dataset.collate(draws(range(30))))
    first = dataset.collate(draws(range(30)))
    (tmp_path / "other").mkdir()
    others = [
        dataset.collate(draws(range(30), epoch=1)),
        mixed_dataset(tmp_path / "other", seed=1).collate(draws(range(30))),
    ]
    for other in others:
        assert first.pair_labels is not None and other.pair_labels is not None
        assert not torch.equal(first.pair_labels, other.pair_labels)


def test_mmf_has_matched_rows_with_hidden_tokens_then_mismatched_ones_with_labels(tmp_path: Path) -> None:
    batch = mixed_dataset(tmp_path, variant="mmf").collate(draws(range(60)))
    assert len(batch) == 120 and batch.pair_labels is not None and batch.masked_positions is not None
    assert (batch.pair_labels[:60] == -1).all() and set(batch.pair_labels[60:].tolist()) == {0, 1, 2}
    assert batch.masked_positions[:60].any() and not batch.masked_positions[60:].any()
    assert torch.equal(batch.region_features[:60], batch.region_features[60:])
    matched = batch.pair_labels[60:] == 0
    assert torch.equal(restored(batch)[:60][matched], batch.input_ids[60:][matched])
    assert not torch.equal(restored(batch)[:60], batch.input_ids[60:])


def test_without_contrast_nothing_is_mismatched(tmp_path: Path) -> None:
    batch = mixed_dataset(tmp_path, variant="matched").collate(draws(range(30)))
    assert batch.pair_labels is None and len(batch) == 30
    (tmp_path / "mmf").mkdir()
    same = mixed_dataset(tmp_path / "mmf", variant="mmf").collate(draws(range(30)))
    assert torch.equal(restored(batch), restored(same)[:30, : batch.input_ids.shape[1]])


def test_a_wrong_second_text_is_left_whole_where_its_loss_is_dropped(tmp_path: Path) -> None:
    dropped = PairOptions(1, 0.0, mask_loss_for_unmatched=False)
    batch = mixed_dataset(tmp_path, options=dropped).collate(draws(list(range(60)) * 20))
    assert batch.pair_labels is not None and batch.masked_positions is not None
    in_second = batch.masked_positions & (batch.token_type_ids == 1)
    assert in_second[batch.pair_labels == 0].any() and not in_second[batch.pair_labels == 1].any()


def test_withheld_tags_leave_answers(tmp_path: Path) -> None:
    dataset = mixed_dataset(tmp_path, use_tags=False)
    batch = dataset.collate(draws(range(60)))
    assert batch.pair_labels is not None
    is_question = torch.arange(60) % 3 == 2
    assert torch.equal(batch.token_type_ids.any(dim=1), is_question)
    assert not (batch.pair_labels[~is_question] == 1).any()


@pytest.mark.parametrize("variant", ["oscar", "mmf"])
def test_withheld_regions_leave_texts(tmp_path: Path, variant: str) -> None:
    dataset = mixed_dataset(tmp_path, variant=variant, use_regions=False)
    batch = dataset.collate(draws(range(6)))
    assert batch.region_features.shape == (len(batch), 0, 9)
    assert batch.attention_mask.shape == batch.input_ids.shape
    assert (dataset.lengths() <= 35).all()


def test_corpora_have_loss_weights_and_passes(tmp_path: Path) -> None:
    files = [write_lines(tmp_path / f"{name}.jsonl", mixed_rows(10)) for name in ("a", "b", "c")]
    corpora = [ensure_index(file, TOKENIZER) for file in files]
    shares = [CorpusShare(corpora[0]), CorpusShare(corpora[1], 0.5, 0.3), CorpusShare(corpora[2], 1.0, 2.0)]
    dataset = dataset_of(store_of(tmp_path), shares)
    assert len(dataset) == 10 + 3 + 20 == len(dataset.lengths())
    items = np.arange(33)
    weights = dataset.collate(draws(items)).loss_weights
    assert weights is not None and weights.dtype == torch.float32
    assert weights.tolist() == [1.0] * 10 + [0.5] * 3 + [1.0] * 20
    assert dataset.row_of(items, 0).tolist() == [*range(10), 10, 11, 12, *range(20, 30), *range(20, 30)]
    # Later epochs take what earlier ones left of the corpus that is passed over in part.
    taken = [row for epoch in range(10) for row in dataset.row_of(np.arange(10, 13), epoch).tolist()]
    assert sorted(taken) == sorted([*range(10, 20)] * 3)


def test_lengths_are_those_of_the_rows_where_the_rows_give_their_texts(tmp_path: Path) -> None:
    dataset = mixed_dataset(tmp_path, variant="matched", max_tokens=9)
    lengths = dataset.lengths()
    for index in (0, 2, 3, 5):
        assert lengths[index] == int(dataset.collate(draws([index])).attention_mask.sum())


def test_answers_must_be_there_for_mode_2(tmp_path: Path) -> None:
    rows = [row for row in mixed_rows(9) if "answer" not in row]
    corpus = ensure_index(write_lines(tmp_path / "c.jsonl", rows), TOKENIZER)
    with pytest.raises(UserError, match="textb_sample_mode=2 takes wrong second texts from answers"):
        dataset_of(store_of(tmp_path), [corpus], options=PairOptions(2, 0.25, True))


def datamodule(tmp_path: Path, splits: dict[str, Any], **settings: Any) -> PretrainingDataModule:
    tokenizer = tmp_path / "tokenizer"
    if not tokenizer.exists():
        TOKENIZER.save_pretrained(tokenizer)
    shared: dict[str, Any] = {
        "regions": str(tmp_path / "regions.h5"),
        "tokenizer": str(tokenizer),
        "tags": None,
        "train_split": "train",
        "val_split": "val",
        "test_split": "val",
        "predict_split": "val",
        "max_tokens": 35,
        "max_regions": 50,
        "use_tags": True,
        "use_regions": True,
        "on_missing": "skip",
        "batch_size": 8,
        "eval_batch_size": 8,
        "num_workers": 0,
        "pin_memory": False,
        "seed": 0,
        "prepare": None,
        "variant": "oscar",
        "textb_sample_mode": 1,
        "texta_false_prob": 0.25,
        "mask_loss_for_unmatched": True,
        "mask_probability": 0.15,
        "index_workers": 1,
    }
    return PretrainingDataModule(splits=splits, **{**shared, **settings})


def test_the_datamodule_reads_a_mixture_and_shows_an_example(tmp_path: Path) -> None:
    store_of(tmp_path)
    train = write_lines(tmp_path / "train.jsonl", mixed_rows(30))
    extra, val = (
        write_lines(tmp_path / "extra.jsonl", mixed_rows(6)),
        write_lines(tmp_path / "val.jsonl", mixed_rows(12)),
    )
    data = datamodule(
        tmp_path,
        {"train": [str(train), {"file": str(extra), "loss_weight": 0.5}], "val": {"file": str(val), "passes": 3}},
    )
    data.prepare_data()
    data.setup("fit")
    assert len(data.datasets["train"]) == 36 and len(data.datasets["val"]) == 12 and data.num_pair_classes == 3
    loader: Any = data.train_dataloader()
    batch = next(iter(loader))
    assert len(batch) == 8 and batch.loss_weights is not None
    assert sum(len(part) for part in data.val_dataloader()) == 12
    shown = data.example_text("train", 34)
    assert f"{extra} line 5 (image 4)" in shown
    assert "[CLS]" in shown and "hidden" in shown and "label" in shown


def test_images_that_are_missing_are_counted_and_reported_once(tmp_path: Path) -> None:
    write(tmp_path / "regions.h5", [make_regions(str(i), 2) for i in (0, 1, 2)])
    splits = {"train": str(write_lines(tmp_path / "train.jsonl", mixed_rows(30)))}
    data = datamodule(tmp_path, splits, val_split="train", test_split="train")
    with pytest.warns(UserWarning, match="left out 21 of 30 records") as warned:
        data.setup("fit")
    assert len([w for w in warned if "left out" in str(w.message)]) == 1  # though two stages read the split
    dataset = data.datasets["train"]
    assert isinstance(dataset, PretrainingDataset)
    assert sorted(set(dataset.rows.mixture.image_ids.tolist())) == ["0", "1", "2"]
    batch = dataset.collate(draws(range(9)))
    for record in batch.records:
        assert int(dataset.rows.mixture.describe(record["index"])[-2]) in (0, 1, 2)
    given = [row["text"] for row in mixed_rows(30) if row["image_id"] < 3]
    found = dataset.rows.texts(np.arange(9), np.zeros(9, dtype=np.int64))
    assert [found[row].tolist() for row in range(9)] == [plain(text) for text in given]
    with pytest.raises(UserError, match=r"has no image 3 .*train\.jsonl line 4 \(image 3\); 21 of 30 records"):
        datamodule(tmp_path, splits, val_split="train", on_missing="error").setup("fit")


def test_tags_of_another_label_set_are_refused(tmp_path: Path) -> None:
    store_of(tmp_path)
    rows: list[dict[str, Any]] = [{"image_id": 1, "text": "a dog", "tags": ["aardvark", "zebra"]}]
    rows.append({"image_id": 2, "text": "a cat"})
    splits = {"train": str(write_lines(tmp_path / "train.jsonl", rows))}
    with pytest.raises(UserError, match="tags of another label set: none of its 2 tag names"):
        datamodule(tmp_path, splits, val_split="train").setup("fit")
    rows[0]["tags"] = ["cat", "zebra"]
    write_lines(tmp_path / "train.jsonl", rows)
    with pytest.warns(UserWarning, match="1 of its 2 tag names are no classes"):
        datamodule(tmp_path, splits, val_split="train").setup("fit")


@pytest.mark.parametrize(
    ("splits", "settings", "sentence"),
    [
        ({"train": []}, {}, "names no corpus"),
        ({"train": [{"path": "x"}]}, {}, r"data.splits.train has no file: give \{file: …, loss_weight: …, passes: …\}"),
        ({"train": {"file": "x.jsonl", "weight": 2}}, {}, "has the key weight, which nothing reads"),
        ({"train": {"file": "x.jsonl", "passes": "two"}}, {}, "has the passes 'two': give a number"),
        ({"train": [3]}, {}, "data.splits.train is 3: give"),
        ({"train": "missing.jsonl"}, {}, "missing.jsonl"),
        ({}, {"variant": "both"}, "data.variant is 'both'"),
        ({}, {"mask_probability": 1.5}, "data.mask_probability"),
    ],
)
def test_refusals(tmp_path: Path, splits: dict[str, Any], settings: dict[str, Any], sentence: str) -> None:
    store_of(tmp_path)
    with pytest.raises(UserError, match=sentence):
        datamodule(tmp_path, splits, **settings).setup("fit")
