"""The base LightningDataModule: what it is told, splits, store, tokenizer and loaders; what every dataset shares."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec
import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from vinvl.data.batch import Batch, Example
from vinvl.data.inputs import InputLimits, RegionText
from vinvl.data.sampling import Draw, evaluation_loader, training_loader
from vinvl.data.stores import DEVICE, RAM, OpenStore, StoreFile, found_by_name, image_id_table
from vinvl.data.tags import (
    RECORDS,
    GivenTags,
    StoreTags,
    TagChoice,
    TagSource,
    positions_in,
    tag_source,
    tags_of_records,
)
from vinvl.data.text import RaggedTokens, Texts, cached_tokens, load_tokenizer
from vinvl.data.words import Commonest
from vinvl.models.config import SpecialTokens
from vinvl.regions.layout import View
from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError, printable
from vinvl.run.values import paths_as_text

# What a data module and the file of a dataset expect of each other.


class Records(Protocol):
    """The records of one split as a reader gives them: questions, statements or captioned images."""

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) text: the image of each record; (N, 2) where a record has two."""

    def __len__(self) -> int: ...

    def describe(self, index: int) -> str:
        """Names a record for a message: file and number."""

    def select(self, keep: np.ndarray) -> Self:
        """The records where `keep` (N,) bool is True, in their order."""


@dataclass(frozen=True)
class LeftOut:
    """Records of a split whose images are not in the store: they stood at `places` (M,), the others at `kept`."""

    records: Any
    places: np.ndarray
    kept: np.ndarray


class RegionDataset(Protocol):
    """One split as items. A dataset file implements this."""

    def __len__(self) -> int: ...

    def __getitem__(self, draw: Draw) -> Any:
        """An Example, or several that belong together. What is random in it comes from `draw.generator` alone."""

    def lengths(self) -> np.ndarray:
        """(N,) int64: the cost of each item, its tokens and regions together."""

    def collate(self, items: Sequence[Any]) -> Batch:
        """Items → Batch; runs in the data workers."""

    def show(self, item: Any, words: Callable[[np.ndarray], Sequence[str]]) -> list[str]:
        """Lines that show a person one item; `words` decodes token ids."""


STAGES_OF = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


@dataclass(kw_only=True, eq=False, repr=False)
class RegionDataModule(pl.LightningDataModule):
    """Records of splits over a RegionStore → length-bucketed batches.

    A dataset file adds `read_split` and `make_dataset`, and as fields what it is told besides. Defaults here and there
    are those of the configuration, `conf/data`.

    Args:
        splits: split name → where its records lie; each datamodule says in which form.
        regions: RegionStore file, folder or list of them; in place of a file also `{from: FEATURES, to: FILE, …}`,
            which is made on first use; None if all splits have stores of their own.
        stores: split → the store of its images, where that is another one: ids may be the same in several.
        image_ids: a file of image ids of records with those of the store, where they differ (`image_id_table`).
        tokenizer: transformers tokenizer folder or hub name; after `setup` what texts become, the tokenizer itself.
        tags: None for the classes in the store; another RegionStore or files for tags from elsewhere (`tag_source`);
            "records" for what the records carry; or split → one of these.
        tag_vocabulary, tag_form: which names become tags, see `TagChoice`.
        train_split, val_split, test_split, predict_split: which of `splits` each stage reads.
        max_tokens, max_regions, use_tags, use_regions: what the model sees of an example, see `InputLimits`.
        on_missing: `error` or `skip` records whose image is not in the store.
        batch_size, eval_batch_size: per device.
        num_workers, pin_memory: of the loaders; page-locked batches travel to a GPU without the host waiting.
        seed: of the order of the batches and of all that is drawn in an item.
        cache: keeps the features in the machine's shared memory ("ram") or on the device ("device"); None: in their
            files.
        verify_regions: whether the store is read through at the start, to hold it against its checksums.
        token_cache: a folder that keeps token ids of large splits, records of large files; None: made at every start.
        prepare: called before anything is read; the demo generates its world here.

    Attributes:
        datasets: stage (train, val, test, predict) → dataset, filled by `setup`.
        store: the regions of the split that is being read; after `setup`, of the first that was.
        region_text: what puts texts and regions together, of the split that was read last.
        commonest: what the training split says most often, once it has been read.
        skipped: split → how many of its records on_missing=skip has left out, once it has been read.
        left_out: of the split that is predicted, the records that on_missing=skip has left out; None if there are none.
    """

    splits: Mapping[str, Any]
    regions: Any
    stores: Mapping[str, Any] | None = None
    image_ids: str | None = None
    tokenizer: Any = "bert-base-uncased"
    tags: Any = None
    tag_vocabulary: str | None = None
    tag_form: str = "class"
    train_split: str = "train"
    val_split: str = "val"
    test_split: str = "val"
    predict_split: str = "val"
    max_tokens: int
    max_regions: int
    use_tags: bool = True
    use_regions: bool = True
    on_missing: str = "error"
    batch_size: int = 32
    eval_batch_size: int = 256
    num_workers: int = 4
    pin_memory: bool = True
    seed: int = 88
    cache: str | None = None
    verify_regions: bool = False
    token_cache: str | Path | None = None
    prepare: Callable[[], object] | None = None

    store: RegionStore = field(init=False)
    region_text: RegionText = field(init=False)

    def __post_init__(self) -> None:
        super().__init__()
        if self.cache not in (None, RAM, DEVICE):
            raise UserError(f"data.cache={self.cache!r} is unknown: give {RAM}, {DEVICE} or null.")
        self.split_of = {
            "train": self.train_split, "val": self.val_split, "test": self.test_split, "predict": self.predict_split,
        }  # fmt: skip
        for name in ("splits", "regions", "stores", "tokenizer", "tags"):
            setattr(self, name, paths_as_text(getattr(self, name)))
        self.regions, self.tags = plain(self.regions), plain(self.tags)
        self.own_stores: dict[str, Any] = plain(self.stores) or {}
        self.tag_choice = TagChoice.of(self.tag_vocabulary, self.tag_form)
        self.tokenizer_name = self.tokenizer
        self.limits = InputLimits(self.max_tokens, self.max_regions, self.use_tags, self.use_regions)
        self.pin_memory = self.pin_memory and torch.cuda.is_available()
        self.first_stage = "train"
        self.datasets: dict[str, RegionDataset] = {}
        self.commonest: Commonest = {}
        self.skipped: dict[str, int] = {}
        self.left_out: LeftOut | None = None
        self._opened: dict[tuple[tuple[str, View], ...], OpenStore] = {}  # by the files of the store
        self._read: dict[str, tuple[Any, np.ndarray]] = {}  # split → see `_records_of`

    def settings(self) -> dict[str, Any]:
        """What it was told, but for `prepare`, in plain types: a configuration's data section, for checkpoints."""
        kind = type(self)
        told = {one.name: plain(getattr(self, one.name)) for one in fields(self) if one.init}
        told |= {
            "_target_": f"{kind.__module__}.{kind.__qualname__}",
            "tokenizer": self.tokenizer_name,
            "prepare": None,
        }
        settings: dict[str, Any] = msgspec.to_builtins(told, enc_hook=str)
        return settings

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
        """Reads tokenizer, store and the splits of a stage (any other word: none); what is read stays.

        Stores that are made on first use are made now. Without a stage the store is that of `first_stage`.
        """
        stages = STAGES_OF.get(stage or "fit", ())
        if self.tokenizer is self.tokenizer_name:
            self.tokenizer = load_tokenizer(self.tokenizer_name)
            self.store = self.opened(self.split_of[stages[0] if stages else self.first_stage]).store
        first = self.store
        for name in stages:
            if name not in self.datasets:
                self.datasets[name] = self._dataset_of(name)
                if name != "predict":  # said now, not after the run has begun; what can be scored can be trained on
                    self.check_scorable(name)
        self.store = first

    def store_files(self, split: str) -> list[StoreFile]:
        """The files of the store that a split's images are in. Raises UserError if none is named."""
        own = f"data.stores.{split}"
        if split in self.own_stores:
            return StoreFile.listed(self.own_stores[split], own)
        if self.regions is None:
            raise UserError(f"Neither {own} nor data.regions names a store for the images of split '{split}'.")
        return StoreFile.listed(self.regions, "data.regions")

    def opened(self, split: str) -> OpenStore:
        """The store that a split's images are in, made if need be; splits with the same files share it."""
        files = self.store_files(split)
        key = tuple((file.path, file.view) for file in files)
        if key not in self._opened:
            for file in files:
                file.make()
            self._opened[key] = OpenStore.of(files, self.cache, self.verify_regions)
        return self._opened[key]

    def _tags_of(self, split: str, records: Any, images: np.ndarray) -> TagSource:
        """The tags of the images of a split; a warning says how many have none."""
        given = self.tags if self.limits.use_tags else None
        if isinstance(given, Mapping):
            if split not in given:
                raise UserError(f"data.tags names none for split '{split}'; it does for {', '.join(sorted(given))}.")
            given = given[split]
        if given == RECORDS:
            return tags_of_records(records, self.tokenizer, self.tag_choice)
        tags = tag_source(given, self.store, self.tokenizer, self.tag_choice)
        if self.limits.use_tags and isinstance(tags, StoreTags) and not tags.store.label_map.classes:
            remedy = "pass data.use_tags=false, or data.tags=FILE for tags from elsewhere"
            self.warn_of_no_tags(f"{tags.store!r} has no names of classes, so its images have no tags: {remedy}.")
        if isinstance(tags, GivenTags) and (missing := tags.without(images)):
            rank_zero_warn(
                f"{given} gives no tags to {missing:,} of the images of split '{split}': add them, or pass "
                "data.use_tags=false to train and score all without."
            )
        return tags

    def warn_of_no_tags(self, sentence: str) -> None:
        """Overridden where records carry tags besides those of the store."""
        rank_zero_warn(sentence)

    def _dataset_of(self, stage: str) -> RegionDataset:
        split, twin = self.split_of[stage], {"val": "test", "test": "val"}.get(stage)
        if twin in self.datasets and self.split_of[twin] == split:
            return self.datasets[twin]
        self.store = self.opened(split).store
        if stage == "predict" or split not in self._read:
            self._read[split] = self._records_of(split, stage)
        records, images = self._read[split]
        if stage != "predict" and not getattr(records, "annotated", True):
            raise UserError(
                f"Split '{split}' has no annotations, so it can be neither trained on nor scored: "
                "use python -m vinvl.predict for it, or name the annotations in data.splits."
            )
        tags = self._tags_of(split, records, images)
        self.region_text = RegionText(self.store, tags, self.limits, SpecialTokens.of(self.tokenizer))
        if stage == "train":
            self.commonest = self.commonest_of(records)
        return self.make_dataset(records, images, stage)

    def _records_of(self, split: str, stage: str) -> tuple[Any, np.ndarray]:
        """The records whose images are in the store, and their places there; others are left out, or refused.

        Raises:
            UserError: an image is missing; the sentence names the first record that asks for one.
        """
        records = self.read_split(split)
        images = self.places_of(records)
        present = np.all((images >= 0).reshape(len(images), -1), axis=1)
        self.skipped[split] = missing = int((~present).sum())
        if not missing:
            return records, images
        first, store = int(present.argmin()), self.store
        if self.on_missing != "skip" or not present.any():
            image = np.ravel(records.image_ids[first])[np.ravel(images[first]).argmin()]
            holds = (
                f"It holds {len(store):,} images, ids like '{store.at(0).image_id}'" if len(store) else "It is empty"
            )
            remedy = "Extract the missing ones or pass data.on_missing=skip."
            raise UserError(
                f"{store!r} has no image {image} (asked for by {records.describe(first)}; {missing:,} of "
                f"{len(records):,} records in all lack theirs). {holds}. "
                f"{remedy if present.any() else 'Is it the store of these records?'}"
            )
        rank_zero_warn(
            f"data.on_missing=skip: left out {missing:,} of {len(records):,} records whose images are not in "
            f"{store!r}, the first being {records.describe(first)}; extract these images to have them."
        )
        if stage == "predict":
            self.left_out = LeftOut(records.select(~present), np.flatnonzero(~present), np.flatnonzero(present))
        return records.select(present), images[present]

    def places_of(self, records: Any) -> np.ndarray:
        """Where the images of records are in the store, integers in the shape of `image_ids`; -1 for none."""
        if self.image_ids is None:
            return found_by_name(self.store, records, positions_in(self.store, records.image_ids))
        table = image_id_table(self.image_ids)
        own = [table.get(one, "") for one in map(str, np.ravel(records.image_ids))]
        if "" in own:
            width = np.size(records.image_ids) // len(records)
            first = own.index("") // width
            wrong = f"{self.image_ids} has no image {np.ravel(records.image_ids)[own.index('')]}, asked for by "
            if self.on_missing != "skip":
                raise UserError(f"{wrong}{records.describe(first)}; add it, or pass data.on_missing=skip.")
        return positions_in(self.store, np.array(own)).reshape(np.shape(records.image_ids))

    def named_stores(self, split: str) -> tuple[tuple[str, View], ...]:
        """The paths of the files of a split's store, with how each is read; () if none is named."""
        if split not in self.own_stores and self.regions is None:
            return ()
        return tuple((str(Path(one.path).expanduser().resolve()), one.view) for one in self.store_files(split))

    def renamed_images(self, split: str) -> dict[str, str]:
        """Image ids of a split that was read → those of the store, where they are others."""
        records, images = self._read[split]
        own, stored = np.ravel(records.image_ids), self.opened(split).store.image_ids[np.ravel(images)]
        differ = own != stored
        return dict(zip(own[differ].tolist(), stored[differ].tolist(), strict=True))

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
        """What `data.splits` says of a split. Raises UserError if there is no such split."""
        return split_entry(self.splits, split)

    def tokens_of(self, texts: Texts) -> RaggedTokens:
        """Token ids of each text, without special tokens; those of many texts come from the token cache."""
        return cached_tokens(self.tokenizer, texts, None if self.token_cache is None else Path(self.token_cache))

    def finish(self, stage: str) -> Callable[[Any], Any]:
        """What completes a batch of a stage: see `completed`."""
        return partial(self.completed, opened=self.opened(self.split_of[stage]))

    def completed(self, batch: Any, opened: OpenStore) -> Any:
        """A batch of a worker, which has read no features into it, with them; or with their rows on the device."""
        if not isinstance(batch, Batch):
            return batch
        regions = batch.regions
        if (table := opened.on_device) is not None:
            regions = replace(regions, features=None, store_rows=table.rows_of(regions.stored), table=table)
        elif regions.features is None:
            regions = regions.filled(opened.store, self.pin_memory)
        return batch if regions is batch.regions else replace(batch, regions=regions)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """From page-locked memory the copy continues while the host prepares the step; Lightning would wait for it."""
        if isinstance(batch, Batch):
            return batch.to(device, non_blocking=self.pin_memory)
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Looks features up that are on the device already."""
        if not isinstance(batch, Batch) or batch.regions.store_rows is None:
            return batch
        assert batch.regions.table is not None
        features = batch.regions.table.features(batch.regions.store_rows)
        return replace(batch, regions=replace(batch.regions, features=features))

    def train_dataloader(self) -> DataLoader[Example]:
        """Shuffled, bucketed batches of this rank."""
        return training_loader(self, self.datasets["train"], self.finish("train"))

    def val_dataloader(self) -> DataLoader[Example]:
        return self._evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Example]:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Example]:
        return self._evaluation_loader("predict")

    def _evaluation_loader(self, stage: str) -> DataLoader[Example]:
        """Every example of a stage once over all ranks."""
        return evaluation_loader(self, self.datasets[stage], self.finish(stage))

    def check_scorable(self, stage: str) -> None:
        """Raises UserError if what `setup` has read for a stage, which is annotated, cannot be scored."""

    def example_text(self, stage: str, index: int = 0) -> str:
        """One example as the model sees it, decoded: for a person to read before a run starts."""
        decode = self.tokenizer.convert_ids_to_tokens
        return example_text(self.datasets[stage], self.split_of[stage], index, lambda ids: decode(ids.tolist()))


def example_text(dataset: Any, split: str, index: int, *decoding: Callable[[Tensor], Any]) -> str:
    """One example of a dataset as the model sees it; `decoding` is what its `show` takes besides."""
    lines = dataset.show(dataset[Draw(0, index)], *decoding)
    return "\n".join(map(printable, [f"One example of '{split}' (of {len(dataset):,}):", *lines]))


# What the configuration says of a split's files, compared with the known forms.

NULL_REMOVES = "where configurations build upon each other, null takes a key away"


def plain(files: Any) -> Any:
    """What the configuration says in plain dicts and lists, without keys that are null."""
    if OmegaConf.is_config(files):
        files = OmegaConf.to_container(files, resolve=True, throw_on_missing=True)
    if isinstance(files, Mapping):
        return {str(key): value for key, value in files.items() if value is not None}
    return files


def file_names(entry: Any) -> list[str]:
    """Names, without folders, of the files that an entry of data.splits names, in order."""
    if isinstance(entry, Mapping):
        return [name for part in entry.values() for name in file_names(part)]
    if isinstance(entry, list):
        return [name for part in entry for name in file_names(part)]
    return [Path(entry).name] if isinstance(entry, str) else []


def checked_entry(entry: Any, place: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """An entry that names files by keys, of which each must be known; `place` is "data.splits.train".

    Raises UserError if it is no mapping, lacks a key, or has another.
    """
    form = f"{{{', '.join(f'{key}: …' for key in (*needed, *optional))}}}"
    given = plain(entry)
    if not isinstance(given, dict):
        raise UserError(f"{place} is {given!r}: give {form}.")
    for key in needed:
        if not isinstance(given.get(key), str):
            raise UserError(f"{place} has {'no' if key not in given else 'no file as'} {key}: give {form}.")
    unknown = [key for key in given if key not in needed and key not in optional]
    if unknown:
        raise UserError(f"{place} has the key {unknown[0]}, which nothing reads: give {form} ({NULL_REMOVES}).")
    return given


def split_entry(splits: object, split: str) -> Any:
    """What `data.splits` says of a split. Raises UserError if there is no such split."""
    if not isinstance(splits, Mapping):
        raise UserError(f"data.splits is {splits!r}: give {{NAME: what its records are in, …}}.")
    if split not in splits:
        raise UserError(f"There is no split '{split}' in data.splits; it has {', '.join(sorted(splits))}.")
    return splits[split]
