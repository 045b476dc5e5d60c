"""Batches of like lengths, dealt to ranks, resumable at any batch.

The order of a whole training run is a function of (seed, number of the batch): nothing but the number of batches
already seen is needed to continue after a kill.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from vinvl.run.errors import UserError

# Random numbers of many items at once, each item's own: a function of (seed, epoch, item) alone.


# SplitMix64 (Steele, Lea and Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
STEP = np.uint64(0x9E3779B97F4A7C15)
FIRST_FACTOR, SECOND_FACTOR = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def uniform_numbers(seed: int, epochs: np.ndarray, items: np.ndarray, count: int) -> np.ndarray:
    """(B, count) float64 from [0, 1): `count` numbers of each of the items (B,) in its epoch (B,).

    What an item gets depends on no other item, so batches may be cut in any way and made by any process.
    """
    state = _mixed(np.full(len(items), seed % 2**64, dtype=np.uint64) + STEP)
    for part in (epochs, items):
        state = _mixed(state + (part.astype(np.uint64) + np.uint64(1)) * STEP)
    counter = np.arange(1, count + 1, dtype=np.uint64) * STEP
    return (_mixed(state[:, None] + counter) >> np.uint64(11)) * 2.0**-53


def _mixed(bits: np.ndarray) -> np.ndarray:
    """Every bit of each uint64 depends on all of it; overflow is meant."""
    bits = (bits ^ (bits >> np.uint64(30))) * FIRST_FACTOR
    bits = (bits ^ (bits >> np.uint64(27))) * SECOND_FACTOR
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed


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
    ) -> None:
        """`lengths` (N,): cost of each example (tokens and regions)."""
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.position = 0
        self.repeated = repeated

    def __len__(self) -> int:
        batches = -(-len(self.lengths) // self.batch_size)
        return -(-batches // self.world_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        length = len(self)
        planned_epoch, plan = -1, []
        for position in range(self.position, self.position + length):
            epoch, index = divmod(position, length) if self.repeated is None else (0, position % self.repeated)
            if epoch != planned_epoch:
                planned_epoch, plan = epoch, self.epoch_batches(epoch)
            yield [Draw(epoch, item) for item in plan[index].tolist()]

    def epoch_batches(self, epoch: int) -> list[np.ndarray]:
        """This rank's batches of one epoch, each an array of example indices."""
        generator = np.random.default_rng((self.seed, epoch))
        # In place and in four bytes where they suffice: a corpus has millions of examples, and each rank does this.
        order = np.arange(len(self.lengths), dtype=np.int32 if len(self.lengths) < 2**31 else np.int64)
        generator.shuffle(order)
        pool_size = POOL_BATCHES * self.batch_size * self.world_size
        for start in range(0, len(order), pool_size):
            pool = order[start : start + pool_size]
            # A stable sort keeps the shuffled order among equal lengths.
            pool[:] = pool[np.argsort(self.lengths[pool], kind="stable")]
        count = -(-len(order) // self.batch_size)
        groups = generator.permutation(len(self))
        mine = ((group * self.world_size + self.rank) % count * self.batch_size for group in groups.tolist())
        return [order[start : start + self.batch_size] for start in mine]


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
