"""What the base data module and the file of a dataset expect of each other, and what every data module is told."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NotRequired, Protocol, Self, TypedDict

import numpy as np
from omegaconf import OmegaConf

from vinvl.data.batch import Batch
from vinvl.data.sampling import Draw
from vinvl.run.errors import UserError


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

    @classmethod
    def of(cls, records: Records, present: np.ndarray) -> Self:
        """`present` (N,) bool: which of the records are not left out."""
        return cls(records.select(~present), np.flatnonzero(~present), np.flatnonzero(present))


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


class RegionDataArguments(TypedDict):
    """What every datamodule takes; the keys of `conf/data/_regions.yaml`.

    splits: split name → where its records lie; each datamodule says in which form.
    regions: RegionStore file, folder or list of them.
    tokenizer: transformers tokenizer folder or hub name.
    tags: None for the classes in the store; another RegionStore or a JSON file for tags from elsewhere.
    train_split, val_split, test_split, predict_split: which of `splits` each stage reads.
    max_tokens, max_regions, use_tags, use_regions: what the model sees of an example, see `InputLimits`.
    on_missing: `error` or `skip` records whose image is not in the store.
    batch_size, eval_batch_size: per device.
    num_workers, pin_memory: of the loaders.
    seed: of the order of the batches and of all that is drawn in an item.
    prepare: called before anything is read; the demo generates its world here.
    cache: keeps the features in the machine's shared memory ("ram") or on the device ("device"); None in their files.
    token_cache: a folder that keeps the token ids of large splits; None: they are made at every start.
    verify_regions: whether the store is read through at the start, to hold it against its checksums.
    """

    splits: Mapping[str, Any]
    regions: str | Sequence[str]
    tokenizer: str
    tags: str | None
    train_split: str
    val_split: str
    test_split: str
    predict_split: str
    max_tokens: int
    max_regions: int
    use_tags: bool
    use_regions: bool
    on_missing: str
    batch_size: int
    eval_batch_size: int
    num_workers: int
    pin_memory: bool
    seed: int
    prepare: Callable[[], object] | None
    cache: NotRequired[str | None]
    token_cache: NotRequired[str | None]
    verify_regions: NotRequired[bool]


# What the configuration says of a split's files, compared with the known forms.


NULL_REMOVES = "where configurations build upon each other, null takes a key away"


def plain(files: Any) -> Any:
    """What the configuration says in plain dicts and lists, without keys that are null."""
    if OmegaConf.is_config(files):
        files = OmegaConf.to_container(files, resolve=True, throw_on_missing=True)
    if isinstance(files, Mapping):
        return {str(key): value for key, value in files.items() if value is not None}
    return files


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


def file_names(files: Any, place: str, forms: str) -> list[str]:
    """A file or a list of files; `forms` tells people what may be given. Raises UserError for anything else."""
    given = plain(files)
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise UserError(f"{place} is {given!r}: give {forms}.")
    return listed


def split_entry(splits: object, split: str) -> Any:
    """What `data.splits` says of a split. Raises UserError if there is no such split."""
    if not isinstance(splits, Mapping):
        raise UserError(f"data.splits is {splits!r}: give {{NAME: what its records are in, …}}.")
    if split not in splits:
        raise UserError(f"There is no split '{split}' in data.splits; it has {', '.join(sorted(splits))}.")
    return splits[split]
