"""The base LightningDataModule: splits, store, tokenizer, samplers, loaders and ranks; what every dataset shares."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from vinvl.data.batch import Batch, Example
from vinvl.data.contracts import LeftOut, Records, RegionDataset, split_entry
from vinvl.data.inputs import InputLimits, RegionText
from vinvl.data.sampling import Draw, EvaluationBatchSampler, LengthBucketBatchSampler
from vinvl.data.tags import tag_source
from vinvl.data.text import RaggedTokens, Texts, cached_tokens, load_tokenizer
from vinvl.data.words import Commonest
from vinvl.models.config import SpecialTokens
from vinvl.regions.caches import DeviceFeatures, SharedCopies
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError, printable
from vinvl.run.values import shown

# The DataLoaders of a data module: whose batches a rank gets, in which order, and from where on in a resumed run.


class RegionLoader(DataLoader[Any]):
    """A DataLoader that fills in the features which batches from data workers lack (see `image_regions`).

    One of training batches knows how many it has given, on which Lightning saves and restores it (`state_dict`); the
    batches of an evaluation have no place to continue from.
    """

    def __init__(
        self, dataset: Any, *, store: RegionStore | None, on_device: DeviceFeatures | None, **options: Any
    ) -> None:
        """`options` are DataLoader's; for the others see `Loaders`."""
        self.store = store
        self.on_device = on_device
        super().__init__(dataset, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return map(self._given, super().__iter__())

    def state_dict(self) -> dict[str, int]:
        """Batches given so far, which is not how many the workers are ahead."""
        return {"position": self._order().position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        position = state_dict.get("position")
        if type(position) is not int or not 0 <= position < 2**31:
            raise UserError(
                f"ckpt_path names a checkpoint whose training batches go on at {shown(position)}, which cannot be: "
                "it is damaged; begin a new run from its weights."
            )
        self._order().position = position

    def _order(self) -> LengthBucketBatchSampler:
        assert isinstance(self.batch_sampler, LengthBucketBatchSampler)
        return self.batch_sampler

    def _given(self, batch: Any) -> Any:
        if isinstance(self.batch_sampler, LengthBucketBatchSampler):
            self.batch_sampler.position += 1
        return self._filled(batch)

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

    def training(self, dataset: Any, trainer: pl.Trainer | None) -> DataLoader[Any]:
        """Shuffled batches of this rank, from where the trainer's task is.

        Lightning gives a loader its state only within an epoch; at the end of one, and in checkpoints of versions whose
        loaders had none, the batches that the task has been trained on say the same.
        """
        rank, world_size = rank_and_world_size(trainer)
        sampler = LengthBucketBatchSampler(
            dataset.lengths(), self.batch_size, seed=self.seed, rank=rank, world_size=world_size
        )
        sampler.position = getattr(None if trainer is None else trainer.lightning_module, "batches_seen", 0)
        sampler.repeated = repeated_batches(trainer, len(sampler))
        return self.loader(dataset, sampler)

    def evaluation(self, dataset: Any, trainer: pl.Trainer | None) -> DataLoader[Any]:
        """Every item once over all ranks."""
        rank, world_size = rank_and_world_size(trainer)
        sampler = EvaluationBatchSampler(dataset.lengths(), self.eval_batch_size, rank=rank, world_size=world_size)
        return self.loader(dataset, sampler)

    def loader(self, dataset: Any, batch_sampler: Any, *, persistent: bool = True) -> DataLoader[Any]:
        """The batches of a sampler. Workers stay for the next epoch, or, if not `persistent`, are started for each."""
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


RAM, DEVICE = "ram", "device"  # where `data.cache` keeps features
STAGES = ("train", "val", "test", "predict")
STAGES_OF = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class RegionDataModule(pl.LightningDataModule):
    """Records of splits over a RegionStore → length-bucketed batches; arguments: see `RegionDataArguments`.

    A dataset file adds `read_split` and `make_dataset`.

    Attributes:
        datasets: stage (train, val, test, predict) → dataset, filled by `setup`.
        commonest: what the training split says most often, once it has been read.
        skipped: split → how many of its records on_missing=skip has left out, once it has been read.
        left_out: of the split that is predicted, the records that on_missing=skip has left out; None if there are none.
    """

    def __init__(
        self,
        *,
        splits: Mapping[str, Any],
        regions: str | Sequence[str],
        tokenizer: str,
        tags: str | None,
        train_split: str,
        val_split: str,
        test_split: str,
        predict_split: str,
        max_tokens: int,
        max_regions: int,
        use_tags: bool,
        use_regions: bool,
        on_missing: str,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        pin_memory: bool,
        seed: int,
        prepare: Callable[[], object] | None,
        cache: str | None = None,
        token_cache: str | None = None,
        verify_regions: bool = False,
    ) -> None:
        super().__init__()
        if cache not in (None, RAM, DEVICE):
            raise UserError(f"data.cache={cache!r} is unknown: give {RAM}, {DEVICE} or null.")
        self.cache = cache
        self.verify_regions = verify_regions
        self.token_cache = None if token_cache is None else Path(token_cache)
        self.splits = splits
        self.split_of = {"train": train_split, "val": val_split, "test": test_split, "predict": predict_split}
        self.regions = regions
        self.tokenizer_name = tokenizer
        self.tags = tags
        self.limits = InputLimits(max_tokens, max_regions, use_tags, use_regions)
        self.on_missing = on_missing
        self.loaders = Loaders(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            seed=seed,
        )
        self.seed = seed
        self.prepare = prepare
        self.datasets: dict[str, RegionDataset] = {}
        self.commonest: Commonest = {}
        self.skipped: dict[str, int] = {}
        self.left_out: LeftOut | None = None
        self._copies: SharedCopies | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._store: RegionStore | None = None
        self._region_text: RegionText | None = None

    @abstractmethod
    def read_split(self, split: str) -> Records:
        """The records of one split; `split_files` gives what the configuration says of it."""

    @abstractmethod
    def make_dataset(self, records: Any, images: np.ndarray, stage: str) -> RegionDataset:
        """A dataset for a stage over records whose images are all in the store.

        `images` (N,) int64, or (N, 2): their places there, as `records.image_ids` has them.
        """

    def prepare_data(self) -> None:
        """Generates what can be generated."""
        if self.prepare is not None:
            self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Reads tokenizer, store and the splits of a stage (any other word: none); what is read stays."""
        if self._tokenizer is None:
            tokenizer = load_tokenizer(self.tokenizer_name)
            store = self._store = self._open_store()
            tags = tag_source(self.tags, store, tokenizer)
            self._region_text = RegionText(store, tags, self.limits, SpecialTokens.of(tokenizer))
            self._tokenizer = tokenizer
            self.loaders.store = store
            self.loaders.on_device = DeviceFeatures(store) if self.cache == DEVICE else None
        for name in STAGES_OF.get(stage or "fit", ()):
            if name not in self.datasets:
                self.datasets[name] = self._dataset_of(name)
                if name != "predict":  # said now, not after the run has begun; what can be scored can be trained on
                    self.check_scorable(name)

    def _open_store(self) -> RegionStore:
        store = RegionStore(self.regions)
        store.require_sound(contents=self.verify_regions)
        if self.cache != RAM:
            return store
        self._copies = SharedCopies([header.path for header in store.headers])
        return RegionStore(self._copies.paths)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """From page-locked memory the copy continues while the host prepares the step; Lightning would wait for it."""
        if isinstance(batch, Batch):
            return batch.to(device, non_blocking=self.loaders.pin_memory)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Looks features up that are on the device already."""
        if not isinstance(batch, Batch) or batch.regions.store_rows is None:
            return batch
        assert self.loaders.on_device is not None
        features = self.loaders.on_device.features(batch.regions.store_rows)
        return replace(batch, regions=replace(batch.regions, features=features))

    def _dataset_of(self, stage: str) -> RegionDataset:
        same_split = [other for other in self.datasets if self.split_of[other] == self.split_of[stage]]
        if same_split and {stage, same_split[0]} == {"val", "test"}:
            return self.datasets[same_split[0]]
        whole = self.read_split(self.split_of[stage])
        records = self.records_in_store(whole)
        self.skipped[self.split_of[stage]] = len(whole) - len(records)
        if stage == "train":
            self.commonest = self.commonest_of(records)
        if stage == "predict" and len(records) < len(whole):
            self.left_out = LeftOut.of(whole, self._present(whole))
        lookup = self.store.index_of
        images = np.array([lookup(str(image_id)) for image_id in records.image_ids.flat], dtype=np.int64)
        return self.make_dataset(records, images.reshape(records.image_ids.shape), stage)

    def commonest_of(self, records: Any) -> Commonest:
        """What the records of the training split say most often, where a dataset knows of such; see `Commonest`."""
        return {}

    def known_commonest(self) -> Commonest:
        """`commonest`, for which the training split is read where it has not been; {} where that cannot be."""
        if not self.commonest:
            with suppress(UserError, OSError):
                self.commonest = self.commonest_of(self.read_split(self.split_of["train"]))
        return self.commonest

    def split_files(self, split: str) -> Any:
        """What `data.splits` says of a split.

        Raises:
            UserError: there is no such split.
        """
        return split_entry(self.splits, split)

    def records_in_store(self, records: Any) -> Any:
        """The records whose images are in the store; others are left out with a warning, or refused.

        Raises:
            UserError: an image is missing; the sentence names the first record that asks for one.
        """
        store, present = self.store, self._present(records)
        if present.all():
            return records
        first = int(np.flatnonzero(~present)[0])
        missing = next(str(image_id) for image_id in np.ravel(records.image_ids[first]) if str(image_id) not in store)
        if self.on_missing != "skip" or not present.any():
            raise UserError(
                f"{store!r} has no image {missing} (asked for by {records.describe(first)}; "
                f"{int((~present).sum())} records in all lack theirs). It holds {len(store):,} images, ids like "
                f"'{store.at(0).image_id}'. Extract the missing ones or pass data.on_missing=skip."
            )
        rank_zero_warn(
            f"data.on_missing=skip: left out {int((~present).sum())} records whose images are not in "
            f"{store!r}, the first being {records.describe(first)}."
        )
        return records.select(present)

    def _present(self, records: Records) -> np.ndarray:
        """(N,) bool: whether the store has all images of each record."""
        image_ids = records.image_ids
        found = np.array([str(image_id) in self.store for image_id in image_ids.flat], dtype=bool)
        return np.asarray(found.reshape(len(image_ids), -1).all(axis=1))

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, once `setup` has read it."""
        assert self._tokenizer is not None, "setup() comes first"
        return self._tokenizer

    def tokens_of(self, texts: Texts) -> RaggedTokens:
        """Token ids of each text, without special tokens; those of many texts come from the token cache."""
        return cached_tokens(self.tokenizer, texts, self.token_cache)

    @property
    def region_text(self) -> RegionText:
        """What puts texts and images together, once `setup` has made it."""
        assert self._region_text is not None, "setup() comes first"
        return self._region_text

    @property
    def store(self) -> RegionStore:
        """The regions, once `setup` has opened them."""
        assert self._store is not None, "setup() comes first"
        return self._store

    @property
    def batch_size(self) -> int:
        """Items of a training batch of one device."""
        return self.loaders.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self.loaders.batch_size = size

    def train_dataloader(self) -> DataLoader[Example]:
        """Shuffled, bucketed batches of this rank."""
        return self.loaders.training(self.datasets["train"], self.trainer)

    def val_dataloader(self) -> DataLoader[Example]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Example]:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Example]:
        return self._evaluation_loader("predict")

    def _evaluation_loader(self, stage: str) -> DataLoader[Example]:
        """Every example of a stage once over all ranks."""
        return self.loaders.evaluation(self.datasets[stage], self.trainer)

    def check_scorable(self, stage: str) -> None:
        """Refuses a split without the annotations that scoring needs.

        Raises:
            UserError: it has none.
        """

    def example_text(self, stage: str, index: int = 0) -> str:
        """One example as the model sees it, decoded: for a person to read before a run starts."""
        decode = self.tokenizer.convert_ids_to_tokens
        return example_text(self.datasets[stage], self.split_of[stage], index, lambda ids: decode(ids.tolist()))


def example_text(dataset: Any, split: str, index: int, *decoding: Callable[[Tensor], Any]) -> str:
    """One example of a dataset as the model sees it; `decoding` is what its `show` takes besides."""
    lines = dataset.show(dataset[Draw(0, index)], *decoding)
    return "\n".join(map(printable, [f"One example of '{split}' (of {len(dataset):,}):", *lines]))


def no_annotations(split: str) -> UserError:
    """What `check_scorable` raises for a split that nobody annotated."""
    return UserError(
        f"Split '{split}' has no annotations, so it can be neither trained on nor scored: "
        "use python -m vinvl.predict for it, or name the annotations in data.splits."
    )
