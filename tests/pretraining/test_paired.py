"""A corpus and an extra one: modes of their own, batches of both, and the loss, as published."""

from collections.abc import Sequence
from itertools import islice, pairwise
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import get_worker_info

from tests.data.test_batch import assert_same
from tests.pretraining.samples import SIZES, datamodule, mixed_rows, plain_forward, store_of, task_of, write_lines
from tests.pretraining.samples import triplets as made_batch
from tests.regions.samples import make_regions, write
from vinvl.data.batch import Batch
from vinvl.data.sampling import Draw, LengthBucketBatchSampler, PairedBatchSampler
from vinvl.pretraining.data import PretrainingDataModule, PretrainingDataset
from vinvl.pretraining.triplets import ANSWER, SECOND_TEXT
from vinvl.run.errors import UserError

CAPTION = {"text": "a dog in the park", "tags": ["cat"]}
CAPTIONS = [{**CAPTION, "image_id": number % 10} for number in range(20)]


def corpus(folder: Path, name: str, rows: Sequence[Any]) -> str:
    return str(write_lines(folder / f"{name}.jsonl", rows))


def split_corpus(folder: Path, weights: tuple[float, float] = (0.5, 0.5), **settings: Any) -> PretrainingDataModule:
    """30 rows with questions, mode 2, paired with 20 captions, mode 1: the zoo's two parts, set up."""
    store_of(folder)
    first = {"file": corpus(folder, "first", mixed_rows(30)), "textb_sample_mode": 2, "loss_weight": weights[0]}
    extra = {"file": corpus(folder, "extra", CAPTIONS), "textb_sample_mode": 1, "loss_weight": weights[1]}
    data = datamodule(folder, {"train": [first, extra]}, val_split="train", **{"paired": True, **settings})
    data.setup("fit")
    return data


def sizes_of_parts(dataset: Any, batch: Any) -> list[int]:
    rows = np.array([record["index"] for record in batch.records])
    return np.bincount(dataset.rows.mixture.corpus_of(rows), minlength=2).tolist()


def test_every_batch_has_rows_of_both_and_each_goes_round_at_its_own_pace(tmp_path: Path) -> None:
    data = split_corpus(tmp_path, batch_size=6)
    dataset: Any = data.datasets["train"]
    loader: Any = data.train_dataloader()
    batches = [*loader, *loader]
    assert len(loader) == 5 and all(
        len(batch) == batch.num_items == sum(sizes_of_parts(dataset, batch)) for batch in batches
    )
    assert [sizes_of_parts(dataset, batch)[0] for batch in batches] == [6] * 10
    # 20 rows are three batches of six and one of two, whose place in the epoch is random, as in the published sampler.
    extra = [sizes_of_parts(dataset, batch)[1] for batch in batches]
    assert sorted(extra[:4]) == sorted(extra[4:8]) == [2, 6, 6, 6]
    seen = [record["index"] - 30 for batch in batches[:4] for record in batch.records if record["index"] >= 30]
    assert sorted(seen) == list(range(20))


@pytest.mark.parametrize("paired", [True, False])
def test_workers_make_the_same_batches_and_all_that_is_drawn_in_them(
    paired: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collate, wanted = PretrainingDataset.collate, False

    def collated(self: PretrainingDataset, items: Sequence[Draw]) -> Batch:
        assert (get_worker_info() is not None) == wanted, "a batch was made elsewhere"
        return collate(self, items)

    monkeypatch.setattr(PretrainingDataset, "collate", collated)
    data, made = split_corpus(tmp_path, batch_size=6, paired=paired), []
    for data.num_workers in (0, 2):
        wanted = data.num_workers > 0
        loader: Any = data.train_dataloader()
        made.append([*loader, *loader])
    assert len(made[0]) == (10 if paired else 18)
    for one, other in zip(*made, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("paired", [True, False])
def test_wrong_texts_come_from_the_same_corpus_by_its_own_mode(tmp_path: Path, paired: bool) -> None:
    data = split_corpus(tmp_path, paired=paired, textb_sample_mode=0)
    dataset: Any = data.datasets["train"]
    rows = np.tile(np.arange(50), 40)
    made = dataset._triplets(np.random.default_rng(0).permutation(rows), np.random.default_rng(1))
    own, first, second = (
        dataset.rows.mixture.corpus_of(one) for one in (made.image_rows, made.first_rows, made.second_rows)
    )
    assert (own == first).all() and (own == second).all() and (made.second_sides == 1).all()
    wrong = made.labels == 1
    kinds = dataset.rows._kinds[made.second_rows[wrong]]
    assert (kinds[own[wrong] == 0] == 2).all() and (kinds[own[wrong] == 1] == 1).all()
    assert 0.4 < (made.labels == 0).mean() < 0.6 and sorted(np.unique(made.labels)) == [0, 1, 2]
    assert {pool.textb_sample_mode for pool in dataset.rows.mixture.pools} == {ANSWER, SECOND_TEXT}


def test_corpora_without_a_mode_draw_from_each_other(tmp_path: Path) -> None:
    store_of(tmp_path)
    files = [corpus(tmp_path, name, CAPTIONS) for name in ("a", "b", "c")]
    train = [files[0], {"file": files[1], "textb_sample_mode": 1}, files[2]]
    data = datamodule(tmp_path, {"train": train}, val_split="train")
    data.setup("fit")
    dataset: Any = data.datasets["train"]
    assert [(pool.start, pool.end) for pool in dataset.rows.mixture.pools] == [(0, 40), (40, 60)]
    made = dataset._triplets(np.repeat(np.arange(60), 20), np.random.default_rng(1))
    moved = {(a, b) for a, b in zip(made.image_rows // 20, made.first_rows // 20, strict=True)}
    assert moved == {(0, 0), (0, 1), (1, 0), (1, 1), (2, 2)}


def test_one_corpus_of_several_files(tmp_path: Path) -> None:
    store_of(tmp_path)
    files = [corpus(tmp_path, name, mixed_rows(12)) for name in ("a", "b", "c")]
    train = [{"file": files[:2], "textb_sample_mode": 2}, {"file": files[2]}]
    data = datamodule(tmp_path, {"train": train}, val_split="train", paired=True, batch_size=4)
    data.setup("fit")
    dataset: Any = data.datasets["train"]
    assert dataset.part_starts == [0, 24, 36] and len(data.train_dataloader()) == 6  # type: ignore[arg-type]


@pytest.mark.parametrize("variant", ["oscar", "mmf", "matched"])
def test_the_loss_is_the_sum_of_both_means_by_their_weights(tmp_path: Path, variant: str) -> None:
    """Published: (1 - extra_loss_weight) × the loss of a batch + extra_loss_weight × that of an extra one."""
    weights = (0.75, 0.25)
    data = split_corpus(tmp_path, weights, variant=variant, batch_size=7, mask_probability=0.4)
    dataset: Any = data.datasets["train"]
    batch: Any = next(iter(data.train_dataloader()))
    parts = torch.from_numpy(dataset.rows.mixture.corpus_of(np.array([one["index"] for one in batch.records])))
    task = task_of(variant, sizes={**SIZES, "vocab_size": len(data.tokenizer), "img_feature_dim": 9})
    words, classes = plain_forward(task, batch)
    of_tokens = parts[:, None].expand(batch.masked_positions.shape)[batch.masked_positions]
    expected = torch.zeros(())
    for part, weight in enumerate(weights):
        own, labelled = of_tokens == part, (parts == part) & (task.pair_labels(batch) >= 0)
        loss = torch.nn.functional.cross_entropy(words[own], batch.labels[own])
        if labelled.any():
            loss = loss + torch.nn.functional.cross_entropy(classes[labelled], batch.pair_labels[labelled])
        expected = expected + weight * loss
    output = task.guess(batch, batch.loss_weights)
    assert output.masked_word_loss is not None and output.pair_loss is not None
    torch.testing.assert_close(output.masked_word_loss + output.pair_loss, expected, rtol=1e-5, atol=1e-6)


def test_evaluation_takes_each_row_once_and_weighs_nothing(tmp_path: Path) -> None:
    data = split_corpus(tmp_path)
    batches: list[Any] = list(data.val_dataloader())
    assert sorted(record["index"] for batch in batches for record in batch.records) == list(range(50))


sizes = st.lists(st.integers(1, 40), min_size=2, max_size=3)


@given(sizes, st.integers(1, 9), st.integers(1, 3), st.integers(0, 30))
def test_a_run_goes_on_where_it_was(parts: list[int], batch_size: int, world_size: int, position: int) -> None:
    starts = [0, *np.cumsum(parts).tolist()]
    lengths = np.arange(starts[-1]) % 7

    def sampler(rank: int, at: int) -> PairedBatchSampler:
        made = PairedBatchSampler(lengths, batch_size, part_starts=starts, seed=3, rank=rank, world_size=world_size)
        made.position = at
        return made

    def run(rank: int, at: int, count: int) -> list[list[Draw]]:
        found, made = [], sampler(rank, at)
        while len(found) < count:
            for batch in islice(made, count - len(found)):
                found.append(batch)
                made.position += 1
        return found

    for rank in range(world_size):
        whole = run(rank, 0, position + 8)
        assert run(rank, position, 8) == whole[position:]
        assert len(sampler(rank, 0)) == ceil(ceil(parts[0] / batch_size) / world_size)
        for number, (start, end) in enumerate(pairwise(starts)):
            alone = LengthBucketBatchSampler(
                lengths[start:end], batch_size, seed=3 + number, rank=rank, world_size=world_size
            )
            own = [[draw for draw in batch if start <= draw.index < end] for batch in whole]
            assert own == [[Draw(d.epoch, d.index + start) for d in alone.batch_at(n)] for n in range(len(whole))]


def test_overfitted_batches_come_again(tmp_path: Path) -> None:
    made = PairedBatchSampler(np.arange(30), 4, part_starts=[0, 20, 30], seed=1)
    made.repeated = 2
    first, second, third = (made.batch_at(position) for position in (0, 1, 2))
    assert first == third != second


def test_images_of_a_part_that_the_store_lacks(tmp_path: Path) -> None:
    write(tmp_path / "regions.h5", [make_regions(str(number), 2, seed=number) for number in range(5)])
    first, extra = mixed_rows(30), [{**CAPTION, "image_id": 8}] * 3
    files = [corpus(tmp_path, "first", first), corpus(tmp_path, "extra", extra)]
    data = datamodule(tmp_path, {"train": files}, val_split="train", paired=True)
    with pytest.raises(
        UserError, match=r"two corpora or more, and .*extra\.jsonl has no rows with regions in the store"
    ):
        data.setup("fit")


@pytest.mark.parametrize(
    ("first", "extra", "sentence"),
    [
        ({"textb_sample_mode": 2}, {}, None),
        ({}, {"textb_sample_mode": 2}, r"textb_sample_mode=2 takes .* answers, and .*extra\.jsonl has none: add rows"),
        ({"textb_sample_mode": 3}, {}, r"data\.splits\.train: .*first\.jsonl has textb_sample_mode 3: choose"),
        ({"textb_sample_mode": True}, {}, r"first\.jsonl has textb_sample_mode True: choose 0, 1 or 2"),
        ({"textb_sample_mode": "1"}, {}, r"first\.jsonl has textb_sample_mode '1': choose 0, 1 or 2"),
        ({"passes": 2}, {}, r"first\.jsonl has passes 2, and data\.paired=true takes as many rows of each"),
        ({"loss_weight": -1}, {}, r"first\.jsonl has loss_weight -1 and passes"),
        ({"loss_weight": float("inf")}, {}, r"first\.jsonl has loss_weight inf and passes"),
        ({"loss_weight": True}, {}, r"has the loss_weight True: give a number"),
        ({"file": []}, {}, r"data\.splits\.train has no file as file"),
        ({"file": ["x", 3]}, {}, r"data\.splits\.train has no file as file"),
        ({}, None, r"data\.paired=true takes rows of two corpora or more, and data\.splits names one"),
        ({}, {"rows": CAPTIONS[:1]}, r"All 1 rows of .*extra\.jsonl are of one image \(.*line 1 \(image 0\) is"),
        ({}, {"rows": []}, r"extra\.jsonl holds no rows"),
        ({}, {"rows": [{**CAPTIONS[0], "tags": ["aardvark"]}]}, r"extra\.jsonl has tags of another label set"),
    ],
)  # fmt: skip
def test_pairs_that_do_not_fit(tmp_path: Path, first: Any, extra: Any, sentence: str | None) -> None:
    store_of(tmp_path)
    train = [{"file": corpus(tmp_path, "first", mixed_rows(12)), **first}]
    if extra is not None:
        given = dict(extra)
        train.append({"file": corpus(tmp_path, "extra", given.pop("rows", CAPTIONS)), **given})
    data = datamodule(tmp_path, {"train": train}, val_split="train", paired=True)
    if sentence is None:
        data.setup("fit")
        return
    with pytest.raises(UserError, match=sentence) as raised:
        data.setup("fit")
    assert "\n" not in str(raised.value)


def test_two_weights_of_a_row_are_those_of_its_two_losses() -> None:
    task, batch = task_of(), made_batch(6)
    weights = torch.rand(6, 2, generator=torch.Generator().manual_seed(1))
    both = task.guess(batch, weights)
    tokens, rows = (task.guess(batch, weights[:, place]) for place in (0, 1))
    assert both.masked_word_loss == tokens.masked_word_loss and both.pair_loss == rows.pair_loss
    with pytest.raises(UserError, match="do not fit 6 triplets; give one each, or two"):
        task.guess(batch, torch.ones(6, 3))
