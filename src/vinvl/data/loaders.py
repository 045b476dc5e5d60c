"""The DataLoaders of a data module: whose batches a rank gets, in which order, and from where on in a resumed run."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from vinvl.data.batch import Batch
from vinvl.data.device_features import DeviceFeatures
from vinvl.data.sampling import EvaluationBatchSampler, LengthBucketBatchSampler
from vinvl.data.store import RegionStore
from vinvl.errors import UserError


class RegionLoader(DataLoader[Any]):
    """A DataLoader that fills in the features which batches from data workers lack (see `image_regions`)."""

    def __init__(
        self, dataset: Any, *, store: RegionStore | None, on_device: DeviceFeatures | None, **options: Any
    ) -> None:
        """`options` are DataLoader's; for the others see `Loaders`."""
        self.store = store
        self.on_device = on_device
        super().__init__(dataset, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return map(self._filled, super().__iter__())

    def _filled(self, batch: Any) -> Any:
        if not isinstance(batch, Batch):
            return batch
        if self.on_device is not None:
            rows = self.on_device.rows_of(batch.regions.stored)
            return replace(batch, regions=replace(batch.regions, features=None, store_rows=rows))
        if batch.regions.features is not None:
            return batch
        assert self.store is not None
        return replace(batch, regions=batch.regions.filled(self.store, self.pin_memory))


class Loaders:
    """Batches of items of like length. Datasets have `lengths()` and `collate(items)`.

    Attributes:
        store: where the features of batches of regions are.
        on_device: the same, where they are kept on the device; batches then name its rows.
        batches_seen: batches of this rank trained on so far; set anew, training goes on from there.
    """

    def __init__(self, *, batch_size: int, eval_batch_size: int, num_workers: int, pin_memory: bool, seed: int) -> None:
        """
        Args:
            batch_size, eval_batch_size: items, per device.
            num_workers: of the loaders.
            pin_memory: page-locked batches, which travel to a GPU without the host waiting; means nothing without one.
            seed: of the order of the training batches.
        """
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory and torch.cuda.is_available()
        self.seed = seed
        self.store: RegionStore | None = None
        self.on_device: DeviceFeatures | None = None
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
        self._sampler.repeated = repeated_batches(trainer, len(self._sampler))
        return self.loader(dataset, self._sampler)

    def evaluation(self, dataset: Any, trainer: pl.Trainer | None) -> DataLoader[Any]:
        """Every item once over all ranks."""
        rank, world_size = rank_and_world_size(trainer)
        sampler = EvaluationBatchSampler(dataset.lengths(), self.eval_batch_size, rank=rank, world_size=world_size)
        return self.loader(dataset, sampler)

    def loader(self, dataset: Any, batch_sampler: Any, *, persistent: bool = True) -> DataLoader[Any]:
        """The batches of a sampler. Workers stay for the next epoch, or, not `persistent`, begin anew for each."""
        return RegionLoader(
            dataset,
            store=self.store,
            on_device=self.on_device,
            batch_sampler=batch_sampler,
            num_workers=self.num_workers,
            collate_fn=dataset.collate,
            pin_memory=self.pin_memory,
            persistent_workers=persistent and self.num_workers > 0,
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
