"""Batches of like lengths, dealt to ranks, resumable at any batch; and their loaders.

The order of a whole training run is a function of (seed, number of the batch): nothing but the number of batches
already seen is needed to continue after a kill.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader, Sampler

from vinvl.run.errors import UserError
from vinvl.run.machine import workers_here
from vinvl.run.values import shown

LEAST_EVALUATION_BATCHES = 64  # so that each of up to 64 ranks has one, without the batches depending on the ranks
POOL_BATCHES = 64  # batches whose examples are sorted together: enough for little padding, few enough to stay random


@dataclass(frozen=True, slots=True)
class Draw:
    """Which item is wanted, and in which epoch: what is random in an item depends on (seed, epoch, index) alone.

    The epoch travels with the index because data workers live longer than an epoch and are told nothing else.
    """

    epoch: int
    index: int

    def generator(self, seed: int) -> np.random.Generator:
        """The random numbers of this item in this epoch, the same in every process."""
        return np.random.default_rng((seed, self.epoch, self.index))


class LengthBucketBatchSampler(Sampler[list[Draw]]):
    """Training batches: random, yet of examples of similar length; the same number on each rank.

    Each epoch the examples are shuffled, cut into pools of `POOL_BATCHES` batches per rank, sorted by length within a
    pool, cut into batches, and the batches shuffled in groups of `world_size`, so that ranks work on batches of like
    cost at the same time. Where the batches do not divide among the ranks, the epoch's first ones are repeated.
    Where examples of few lengths are kept `apart`, all of an epoch are one pool, and no batch has two lengths.

    One pass yields `len(self)` batches from `position` on, across the end of an epoch if need be: a pass is what
    Lightning calls an epoch, also where `limit_train_batches` cuts it short.

    Attributes:
        position: batches of this rank seen since training began, which the loader keeps up to date.
        repeated: the first so many batches of the first epoch come again and again, with what is drawn in their items;
            None: all batches of all epochs. It stands for Lightning's `overfit_batches`.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        repeated: int | None = None,
        apart: bool = False,
    ) -> None:
        """`lengths` (N,): cost of each example (tokens and regions), or of what kind it is, to be kept apart."""
        self.lengths = np.asarray(lengths)
        self.apart = apart
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.position = 0
        self.repeated = repeated
        self._planned: tuple[int, np.ndarray, np.ndarray] | None = None  # an epoch and its plan
        counts = np.unique(self.lengths, return_counts=True)[1] if apart else np.array([len(self.lengths)])
        ends = np.cumsum(counts)
        parts = [np.arange(end - count, end, batch_size) for end, count in zip(ends, counts, strict=True)]
        self.starts = np.concatenate(parts)  # (batches of all ranks,) where each begins in the order of an epoch
        self.ends = np.append(self.starts[1:], ends[-1])

    def __len__(self) -> int:
        return -(-len(self.starts) // self.world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        return map(self.batch_at, range(self.position, self.position + len(self)))

    def batch_at(self, position: int) -> list[Draw]:
        """This rank's batch after `position` others."""
        epoch, index = divmod(position if self.repeated is None else position % self.repeated, len(self))
        if self._planned is None or self._planned[0] != epoch:
            self._planned = None  # before the next is made: an order of millions is held once
            self._planned = (epoch, *self.plan(epoch))
        _, order, mine = self._planned
        batch = order[self.starts[mine[index]] : self.ends[mine[index]]]
        return [Draw(epoch, item) for item in batch.tolist()]

    def plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order (N,) of examples in an epoch, and (len,) which of its batches are this rank's, in turn."""
        generator = np.random.default_rng((self.seed, epoch))
        # In place and in four bytes where they suffice: a corpus has millions of examples, and each rank does this.
        order = np.arange(len(self.lengths), dtype=np.int32 if len(self.lengths) < 2**31 else np.int64)
        generator.shuffle(order)
        pool_size = len(order) if self.apart else POOL_BATCHES * self.batch_size * self.world_size
        for start in range(0, len(order), pool_size):
            pool = order[start : start + pool_size]
            # A stable sort keeps the shuffled order among equal lengths.
            pool[:] = pool[np.argsort(self.lengths[pool], kind="stable")]
        groups = generator.permutation(len(self))
        return order, (groups * self.world_size + self.rank) % len(self.starts)


class PairedBatchSampler(LengthBucketBatchSampler):
    """Training batches of a batch each of several parts of a dataset, one after the other: `batch_size` rows of each.

    Each part goes round at its own pace, in epochs of its own; a pass is one over the first part. As published for two
    corpora (Oscar+, `--extra_dataset_file`), where every update takes a batch of both.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        *,
        part_starts: Sequence[int],
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """`lengths` (N,), see `LengthBucketBatchSampler`; `part_starts`: the first item of each part, and N."""
        spans = list(pairwise(part_starts))
        # Seeds of their own, or parts of one size would meet in the same order in each epoch.
        self.parts = [
            (
                start,
                LengthBucketBatchSampler(
                    lengths[start:end], batch_size, seed=seed + n, rank=rank, world_size=world_size
                ),
            )
            for n, (start, end) in enumerate(spans)
        ]
        first = lengths[: spans[0][1]]
        super().__init__(first, batch_size, seed=seed, rank=rank, world_size=world_size)

    def batch_at(self, position: int) -> list[Draw]:
        if self.repeated is not None:
            position %= self.repeated
        found = []
        for start, part in self.parts:
            found += [Draw(draw.epoch, draw.index + start) for draw in part.batch_at(position)]
        return found


class EvaluationBatchSampler(Sampler[list[Draw]]):
    """Every example exactly once over all ranks, longest batches first.

    The batches are the same whatever the number of ranks (rank r takes every world_size-th), so a padded batch has the
    same floats in it and evaluation gives the same digits on one rank and on many. Longest first: memory runs out at
    once or never. Small splits are cut into batches smaller than `batch_size`, because a rank without a batch would
    leave the others waiting for its metrics.

    Raises:
        UserError: there are fewer examples than ranks.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        order = np.argsort(-np.asarray(lengths), kind="stable")
        batch_size = max(1, min(batch_size, len(order) // LEAST_EVALUATION_BATCHES))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        if len(batches) < world_size:
            raise UserError(
                f"A split of {len(order)} examples makes {len(batches)} batches, too few to evaluate on {world_size} "
                "ranks: use fewer devices."
            )
        self.batches = batches[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Draw]]:
        return ([Draw(0, item) for item in batch.tolist()] for batch in self.batches)


# The loaders of a data module, which tells `batch_size`, `eval_batch_size`, `num_workers`, `pin_memory` and `seed`.


class BatchLoader(DataLoader[Any]):
    """A DataLoader that finishes each batch in the training process, and counts those of a training run.

    Batches of data workers are finished in a thread of their own, one ahead of the one that is in use: what is read
    from files there would make the thread wait that starts a device's work.

    Lightning saves the count with its loops. What a run goes on from is the count of its task, which all checkpoints
    have; the two can only differ in a damaged one.
    """

    def __init__(self, dataset: Any, finish: Callable[[Any], Any] | None, **options: Any) -> None:
        """`finish`: batch as the workers gave it → batch; `options` are DataLoader's."""
        self.finish = finish
        super().__init__(dataset, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: Iterator[Any] = super().__iter__()
        if self.finish is not None:
            batches = finished_ahead(batches, self.finish) if self.num_workers else map(self.finish, batches)
        return map(self._given, batches)

    def _given(self, batch: Any) -> Any:
        if isinstance(self.batch_sampler, LengthBucketBatchSampler):
            self.batch_sampler.position += 1
        return batch

    def items_of(self, number: int) -> list[Any]:
        """What is asked of the dataset for the batch of a number in evaluation, in training for the one given last."""
        sampler: Any = self.batch_sampler
        if isinstance(sampler, LengthBucketBatchSampler):
            return sampler.batch_at(sampler.position - 1)
        return next(islice(iter(sampler), number, None))

    def made_of(self, items: list[Any]) -> Any:
        """A batch made on the spot."""
        batch = self.collate_fn([self.dataset[item] for item in items])
        return batch if self.finish is None else self.finish(batch)

    def state_dict(self) -> dict[str, int]:
        """Batches given so far, which is not how many the workers are ahead."""
        assert isinstance(self.batch_sampler, LengthBucketBatchSampler)
        return {"position": self.batch_sampler.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        seen, said = self.state_dict()["position"], state_dict.get("position")
        if type(said) is not int or said != seen:
            raise UserError(
                f"ckpt_path names a checkpoint of {seen} training batches whose data go on at {shown(said)}: it is "
                "damaged; begin a new run from its weights."
            )


def finished_ahead(batches: Iterator[Any], finish: Callable[[Any], Any]) -> Iterator[Any]:
    """Finished batches, each finished in a thread while the one before it is used."""
    with ThreadPoolExecutor(1, "batches") as thread:
        ahead: Future[Any] | None = None
        for batch in batches:
            before, ahead = ahead, thread.submit(finish, batch)
            if before is not None:
                yield before.result()
        if ahead is not None:
            yield ahead.result()


def training_loader(
    data: Any,
    dataset: Any,
    finish: Callable[[Any], Any] | None = None,
    *,
    apart: bool = False,
    part_starts: Sequence[int] | None = None,
) -> BatchLoader:
    """Shuffled batches of this rank, from where the trainer's task is; datasets have `lengths` and `collate`.

    `apart`: as `LengthBucketBatchSampler` has it; `part_starts`: as `PairedBatchSampler` has it.
    """
    trainer = data.trainer
    rank, world_size = rank_and_world_size(trainer)
    lengths, ranks = dataset.lengths(), {"rank": rank, "world_size": world_size}
    batches = LengthBucketBatchSampler(lengths, data.batch_size, seed=data.seed, apart=apart, **ranks)
    if part_starts is not None:
        batches = PairedBatchSampler(lengths, data.batch_size, part_starts=part_starts, seed=data.seed, **ranks)
    batches.position = getattr(None if trainer is None else trainer.lightning_module, "batches_seen", 0)
    batches.repeated = repeated_batches(trainer, len(batches))
    return loader(data, dataset, batches, finish)


def evaluation_loader(data: Any, dataset: Any, finish: Callable[[Any], Any] | None = None) -> BatchLoader:
    """Every item once over all ranks."""
    rank, world_size = rank_and_world_size(data.trainer)
    batches = EvaluationBatchSampler(dataset.lengths(), data.eval_batch_size, rank=rank, world_size=world_size)
    return loader(data, dataset, batches, finish)


def loader(
    data: Any, dataset: Any, batches: Any, finish: Callable[[Any], Any] | None = None, *, persistent: bool = True
) -> BatchLoader:
    """The batches of a sampler. Workers stay for the next epoch, or, if not `persistent`, are started for each."""
    workers = workers_here(data.num_workers, "data.num_workers")
    return BatchLoader(
        dataset,
        finish,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=dataset.collate,
        pin_memory=data.pin_memory,
        persistent_workers=persistent and workers > 0,
    )


def repeated_batches(trainer: pl.Trainer | None, length: int) -> int | None:
    """How many batches, of a pass of `length`, make up every epoch by `trainer.overfit_batches`; None for all."""
    asked = 0 if trainer is None else trainer.overfit_batches  # type: ignore[attr-defined]
    if not asked:
        return None
    batches = asked if isinstance(asked, int) else int(asked * length)
    if batches < 1:
        raise UserError(
            f"trainer.overfit_batches={asked} of {length} batches is none: give 1 or more, or a greater share."
        )
    return min(batches, length)


def rank_and_world_size(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Of this process among those of a trainer; without one it is alone."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
