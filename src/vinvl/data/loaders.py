"""The DataLoaders of a data module: whose batches a rank gets, in which order, and from where on in a resumed run."""

from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from vinvl.data.sampling import EvaluationBatchSampler, LengthBucketBatchSampler


class Loaders:
    """Batches of items of like length. Datasets have `lengths()` and `collate(items)`.

    Attributes:
        batches_seen: batches of this rank trained on so far; set anew, training goes on from there.
    """

    def __init__(self, *, batch_size: int, eval_batch_size: int, num_workers: int, pin_memory: bool, seed: int) -> None:
        """
        Args:
            batch_size, eval_batch_size: items, per device.
            num_workers, pin_memory: of the loaders.
            seed: of the order of the training batches.
        """
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.seed = seed
        self._sampler: LengthBucketBatchSampler | None = None
        self._batches_seen = 0

    @property
    def batches_seen(self) -> int:
        return self._batches_seen

    @batches_seen.setter
    def batches_seen(self, count: int) -> None:
        self._batches_seen = count
        if self._sampler is not None:
            self._sampler.position = count

    def training(self, dataset: Any, trainer: pl.Trainer | None) -> DataLoader[Any]:
        """Shuffled batches of this rank, from `batches_seen` on."""
        rank, world_size = rank_and_world_size(trainer)
        self._sampler = LengthBucketBatchSampler(
            dataset.lengths(), self.batch_size, seed=self.seed, rank=rank, world_size=world_size
        )
        self._sampler.position = self._batches_seen
        return self.loader(dataset, self._sampler)

    def evaluation(self, dataset: Any, trainer: pl.Trainer | None) -> DataLoader[Any]:
        """Every item once over all ranks."""
        rank, world_size = rank_and_world_size(trainer)
        sampler = EvaluationBatchSampler(dataset.lengths(), self.eval_batch_size, rank=rank, world_size=world_size)
        return self.loader(dataset, sampler)

    def loader(self, dataset: Any, batch_sampler: Any, *, persistent: bool = True) -> DataLoader[Any]:
        """The batches of a sampler. Workers stay for the next epoch, or, not `persistent`, begin anew for each."""
        return DataLoader(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=self.num_workers,
            collate_fn=dataset.collate,
            pin_memory=self.pin_memory,
            persistent_workers=persistent and self.num_workers > 0,
        )


def rank_and_world_size(trainer: pl.Trainer | None) -> tuple[int, int]:
    """Of this process among those of a trainer; without one it is alone."""
    return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
