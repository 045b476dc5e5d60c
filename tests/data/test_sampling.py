"""Batch samplers: nothing lost, nothing twice, resumable at any batch, equal work for ranks."""

from collections import Counter
from itertools import islice
from threading import Event, current_thread, main_thread
from threading import enumerate as enumerate_threads
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vinvl.data.sampling import (
    Draw,
    EvaluationBatchSampler,
    LengthBucketBatchSampler,
    finished_ahead,
    repeated_batches,
)
from vinvl.run.errors import UserError

sizes = st.integers(1, 300)
batch_sizes = st.integers(1, 20)
worlds = st.integers(1, 4)


def lengths_of(size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(5, 90, size=size)


def indices(batch: list[Draw]) -> list[int]:
    return [draw.index for draw in batch]


def sampler(
    size: int, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1, kinds: int = 0
) -> LengthBucketBatchSampler:
    """Of examples of so many kinds that are kept apart; with none, of those of many lengths."""
    lengths = lengths_of(size) % kinds if kinds else lengths_of(size)
    ranks = {"rank": rank, "world_size": world_size}
    return LengthBucketBatchSampler(lengths, batch_size, seed=seed, apart=kinds > 0, **ranks)


@example(300, 2, 1, 2)  # more than a pool
@given(sizes, batch_sizes, worlds, st.integers(0, 3))
@settings(deadline=None)
def test_an_epoch_sees_every_example_and_repeats_only_to_even_out_ranks(
    size: int, batch_size: int, world: int, kinds: int
) -> None:
    samplers = [sampler(size, batch_size, rank=rank, world_size=world, kinds=kinds) for rank in range(world)]
    ranks = [list(one) for one in samplers]
    assert {len(batches) for batches in ranks} == {len(one) for one in samplers} and len(set(map(len, ranks))) == 1
    if kinds:
        assert all(len(set(samplers[0].lengths[indices(batch)])) == 1 for batches in ranks for batch in batches)
        full = sum(len(batch) == batch_size for batches in ranks for batch in batches)
        assert full >= size // batch_size - kinds + 1, "only the last batch of a kind is smaller"
    seen = Counter(draw.index for batches in ranks for batch in batches for draw in batch)
    assert set(seen) == set(range(size))
    assert sum(seen.values()) - size <= (world - 1) * batch_size


@given(sizes, batch_sizes, worlds, st.integers(0, 2), st.data())
@settings(deadline=None)
def test_resuming_at_any_batch_goes_on_with_the_next_unseen_one(
    size: int, batch_size: int, world: int, kinds: int, data: st.DataObject
) -> None:
    rank = data.draw(st.integers(0, world - 1))
    whole = sampler(size, batch_size, rank=rank, world_size=world, kinds=kinds)
    three_epochs = []
    for epoch in range(3):
        whole.position = epoch * len(whole)
        three_epochs += list(whole)
    position = data.draw(st.integers(0, 2 * len(whole)))
    resumed = sampler(size, batch_size, rank=rank, world_size=world, kinds=kinds)
    resumed.position = position
    assert list(resumed) == three_epochs[position : position + len(whole)]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    first, again, other = sampler(200, 8), sampler(200, 8), sampler(200, 8, seed=1)
    assert list(first) == list(again) != list(other)
    again.position = len(again)
    assert list(first) != list(again)


@pytest.mark.parametrize(("asked", "count", "ranks"), [(2, 2, 1), (2, 2, 2), (0.5, 4, 1), (100, 8, 1), (1.0, 8, 2)])
def test_the_same_batches_every_epoch_where_a_run_is_to_overfit(asked: float, count: int, ranks: int) -> None:
    """Down to what is drawn in an item, and wherever in an epoch a run goes on; on each rank its own."""
    one = sampler(size=50 * ranks, batch_size=7, rank=ranks - 1, world_size=ranks)
    assert len(one) == 8
    trainer: Any = SimpleNamespace(overfit_batches=asked)
    expected = [indices(batch) for batch in one][:count]
    one.repeated = repeated_batches(trainer, len(one))
    first = [[draw.index for draw in batch] for batch in islice(one, len(expected))]
    for one.position in (count * 3, count * 3 + 1):
        again = list(islice(one, len(expected)))
        assert {draw.epoch for batch in again for draw in batch} == {0}
        shift = one.position % len(expected)
        assert [[draw.index for draw in batch] for batch in again] == first[shift:] + first[
            :shift
        ] and first == expected
    with pytest.raises(UserError, match=r"overfit_batches=0\.1 of 8 batches is none"):
        repeated_batches(SimpleNamespace(overfit_batches=0.1), 8)  # type: ignore[arg-type]
    assert repeated_batches(SimpleNamespace(overfit_batches=0.0), 8) is None  # type: ignore[arg-type]


def test_batches_hold_like_lengths() -> None:
    lengths = lengths_of(300)
    padding = sum(int((lengths[batch].max() - lengths[batch]).sum()) for batch in map(indices, sampler(300, 10)))
    shuffled = np.random.default_rng(0).permutation(300).reshape(-1, 10)
    unsorted_padding = sum(int((lengths[batch].max() - lengths[batch]).sum()) for batch in shuffled)
    assert padding < unsorted_padding / 5


@given(sizes, batch_sizes, worlds)
@settings(deadline=None)
def test_evaluation_sees_each_example_once_in_the_same_batches_on_any_number_of_ranks(
    size: int, batch_size: int, world: int
) -> None:
    lengths = lengths_of(size)
    if size < world:
        with pytest.raises(UserError, match="use fewer devices"):
            EvaluationBatchSampler(lengths, batch_size, world_size=world)
        return
    alone = list(EvaluationBatchSampler(lengths, batch_size))
    shared = [list(EvaluationBatchSampler(lengths, batch_size, rank=r, world_size=world)) for r in range(world)]
    assert all(shared)
    assert sorted(draw.index for batch in alone for draw in batch) == list(range(size))
    assert sorted(map(indices, alone)) == sorted(indices(batch) for batches in shared for batch in batches)


def test_what_is_drawn_in_an_item_changes_with_seed_epoch_and_item_alone() -> None:
    def numbers(seed: int, epoch: int, index: int) -> list[int]:
        return Draw(epoch, index).generator(seed).integers(0, 2**31, size=4).tolist()

    first = numbers(0, 0, 0)
    assert first == numbers(0, 0, 0)
    assert len({tuple(numbers(*key)) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]}) == 5
    whole = sampler(20, 4)
    assert {draw.epoch for batch in whole for draw in batch} == {0}
    whole.position = len(whole)
    assert {draw.epoch for batch in whole for draw in batch} == {1}


def test_a_batch_of_a_worker_is_finished_in_a_thread_while_the_one_before_it_is_in_use() -> None:
    second_is_done = Event()

    def finish(batch: int) -> int:
        assert current_thread() is not main_thread()
        if batch == 1:
            second_is_done.set()
        if batch == 3:
            raise UserError("batch 3 is damaged")
        return -batch

    found = finished_ahead(iter(range(5)), finish)
    assert next(found) == 0 and second_is_done.wait(10)
    assert [next(found), next(found)] == [-1, -2]
    with pytest.raises(UserError, match="batch 3"):
        next(found)
    unfinished = finished_ahead(iter(range(5)), lambda batch: batch)
    assert next(unfinished) == 0
    unfinished.close()  # as where training stops within an epoch
    assert not any(thread.name.startswith("batches") for thread in enumerate_threads())
