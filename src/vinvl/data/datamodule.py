"""The base LightningDataModule: samplers, loaders and ranks; what every dataset shares."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from vinvl.data.batch import Batch, Example
from vinvl.data.sampling import EvaluationBatchSampler, LengthBucketBatchSampler


class RegionDataModule(pl.LightningDataModule):
    """Builds length-bucketed loaders; a dataset file adds its splits, lengths and collate.

    Sub-classes fill `self.datasets` (split name → dataset) in `setup` and implement `lengths` and `collate_function`.

    Attributes:
        batches_seen: batches of this rank trained on so far; the task restores it when a run is resumed.
    """

    def __init__(self, *, batch_size: int, eval_batch_size: int, num_workers: int, pin_memory: bool, seed: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.seed = seed
        self.datasets: dict[str, Dataset[Example]] = {}
        self._train_sampler: LengthBucketBatchSampler | None = None
        self._batches_seen = 0

    @property
    def batches_seen(self) -> int:
        return self._batches_seen

    @batches_seen.setter
    def batches_seen(self, count: int) -> None:
        self._batches_seen = count
        if self._train_sampler is not None:
            self._train_sampler.position = count

    def lengths(self, split: str) -> np.ndarray:
        """(N,) int64: the cost of each example of a split, its tokens and regions together."""
        raise NotImplementedError

    def collate_function(self, split: str) -> Callable[[Sequence[Example]], Batch]:
        """Examples → Batch for a split. Must be picklable without this object: it runs in the data workers."""
        raise NotImplementedError

    def training_loader(self, split: str) -> DataLoader[Example]:
        """Shuffled, bucketed batches of this rank, from `batches_seen` on."""
        rank, world_size = self._rank_and_world_size()
        self._train_sampler = LengthBucketBatchSampler(
            self.lengths(split), self.batch_size, seed=self.seed, rank=rank, world_size=world_size
        )
        self._train_sampler.position = self._batches_seen
        return self._loader(split, self._train_sampler)

    def evaluation_loader(self, split: str) -> DataLoader[Example]:
        """Every example of a split once over all ranks."""
        rank, world_size = self._rank_and_world_size()
        sampler = EvaluationBatchSampler(self.lengths(split), self.eval_batch_size, rank=rank, world_size=world_size)
        return self._loader(split, sampler)

    def _loader(self, split: str, batch_sampler: Any) -> DataLoader[Example]:
        return DataLoader(
            self.datasets[split],
            batch_sampler=batch_sampler,
            num_workers=self.num_workers,
            collate_fn=self.collate_function(split),
            pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size
