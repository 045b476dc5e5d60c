"""A batch: the one thing that flows from data to model; its regions, and how it travels from data workers.

Letters used for shapes everywhere: B batch, L text and tag tokens, R regions, D feature dimension with geometry
(2054), H hidden size, A answers. The joint sequence is (B, L + R, H): the tokens first, padded to the batch's longest
text, then the regions, padded to the batch's largest number of regions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from vinvl.models.packing import PackedLayout
from vinvl.regions.regions import BOX_NUMBERS, Regions, box_geometry
from vinvl.regions.store import RegionStore

# How batches travel from data workers: large tensors through shared memory, small ones within the message. A tensor in
# shared memory costs a file and its mapping on both sides, some 100 µs: more than to copy what is small, and a batch
# has a dozen small ones.

SMALL = 1 << 17  # bytes


class Packed(NamedTuple):
    """Stands for a small tensor on its way."""

    values: np.ndarray


def changed(value: Any, change: Callable[[Any], Any]) -> Any:
    """A dataclass with every tensor, or what stands for one, changed; those of its dataclasses and their tuples too."""
    if isinstance(value, Tensor | Packed):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: changed(getattr(value, one.name), change) for one in fields(value)})
    if type(value) is tuple and value and is_dataclass(value[0]):
        return tuple(changed(one, change) for one in value)
    return value


def packed(tensor: Tensor) -> Tensor | Packed:
    """Small CPU tensors as arrays."""
    small = tensor.device.type == "cpu" and tensor.nbytes <= SMALL and not tensor.requires_grad
    return Packed(tensor.numpy()) if small else tensor


def arrived(parts: dict[str, Any]) -> Batch:
    """The batch that was sent in parts."""
    batch: Batch = changed(Batch(**parts), lambda one: torch.from_numpy(one.values) if isinstance(one, Packed) else one)
    return batch


# The regions of a batch, end to end, in the precision of the store.
#
# Data workers send no features: memory that two processes share is slow to get, and what the training process reads
# is in memory already, for the worker has read it. So a batch from a worker says which images it has, and the
# training process reads their features from the store straight into the batch.


@dataclass(frozen=True, eq=False)
class ImageRegions:
    """The first `count` regions of an image, which is at `position` in its store."""

    regions: Regions
    count: int
    position: int

    def __len__(self) -> int:
        return self.count

    @property
    def width(self) -> int:
        """Numbers of a region row, D + 6."""
        return self.regions.feature_layout[0] + BOX_NUMBERS

    def rows(self) -> np.ndarray:
        """(count, D + 6) float32 region rows: the feature followed by the six box numbers."""
        return self.regions.rows(self.count)


@dataclass(frozen=True)
class BatchRegions:
    """The ΣR regions of B rows end to end, in the store's precision: half the bytes on every way to the device.

    features: (ΣR, D) float16 or float32; None in a batch that comes from a data worker, until they are `filled` in.
    geometry: (ΣR, 6) float32, see `Regions.box_geometry`.
    places: (ΣR,) int64, of each among the B·R slots that it has in a padded batch.
    stored: (B · images, 2) int64, position in the store and number of regions of each image; stays on the host.
    slots: R, of the row with the most.
    store_rows: (ΣR,) int64, the places of features that are on the device already.
    table: that has these features (`DeviceFeatures`).
    images: of each row.
    """

    features: Tensor | None
    geometry: Tensor
    places: Tensor
    stored: np.ndarray
    slots: int
    store_rows: Tensor | None = None
    table: Any = None
    images: int = 1

    @classmethod
    def of_padded(cls, rows: Tensor) -> BatchRegions:
        """Of region rows (B, R, D + 6) without padding, of no store."""
        flat = rows.flatten(0, 1)
        stored = np.tile([-1, rows.shape[1]], (len(rows), 1))
        features, geometry = flat[:, :-BOX_NUMBERS], flat[:, -BOX_NUMBERS:].float()
        return cls(features, geometry, torch.arange(len(flat), device=flat.device), stored, rows.shape[1])

    @property
    def counts(self) -> np.ndarray:
        """(B,) int64, regions of each row."""
        counts: np.ndarray = self.stored[:, 1].reshape(-1, self.images).sum(axis=1)
        return counts

    def filled(self, store: RegionStore, pin_memory: bool = False) -> BatchRegions:
        """With the features that the store has, in page-locked memory if so asked."""
        dtype = _tensor_type(store.feature_dtype)
        features = torch.empty((len(self.places), store.feature_dim), dtype=dtype, pin_memory=pin_memory)
        rows, start = features.numpy(), 0
        for position, count in self.stored.tolist():
            store.features_into(position, rows[start : start + count])
            start += count
        return replace(self, features=features)

    def rows(self) -> Tensor:
        """(ΣR, D + 6) float32 region rows, made on the device where they are."""
        assert self.features is not None, "a batch of a data worker is filled in by its loader"
        return torch.cat([self.features.float(), self.geometry], dim=1)

    def padded(self) -> Tensor:
        """(B, R, D + 6) float32 region rows, zero where a row has no region."""
        rows, size = self.rows(), len(self.stored) // self.images
        empty = rows.new_zeros(size * self.slots, rows.shape[1])
        return empty.index_copy(0, self.places, rows).unflatten(0, (size, self.slots))


def gather_regions(parts: Sequence[ImageRegions], images: int = 1) -> BatchRegions:
    """The regions of B rows of so many images, at least one, of one store; in a data worker without their features."""
    counts = np.array([part.count for part in parts], dtype=np.int64)
    of_rows = counts.reshape(-1, images).sum(axis=1)
    slots, total = int(of_rows.max()), int(counts.sum())
    boxes = np.concatenate([part.regions.boxes[: part.count] for part in parts])
    sizes = np.array([(part.regions.width, part.regions.height) for part in parts], dtype=np.float32)
    starts = np.cumsum(counts) - counts
    in_worker = get_worker_info() is not None
    dim, dtype = parts[0].regions.feature_layout
    features = torch.empty((slots if in_worker else total, dim), dtype=_tensor_type(dtype))
    rows = features.numpy()
    for part, start in zip(parts, starts.tolist(), strict=True):
        start = 0 if in_worker else start  # a worker reads, and drops what it has read: it is in memory then
        part.regions.features_into(rows[start : start + part.count])
    row_places = np.arange(len(of_rows)) * slots - starts[::images]
    return BatchRegions(
        features=None if in_worker else features,
        geometry=torch.from_numpy(box_geometry(boxes, np.repeat(sizes, counts, axis=0))),
        places=torch.from_numpy(np.repeat(row_places, of_rows) + np.arange(total)),
        stored=np.stack([np.array([part.position for part in parts], dtype=np.int64), counts], axis=1),
        slots=slots,
        images=images,
    )


def _tensor_type(dtype: np.dtype) -> torch.dtype:
    return torch.float16 if dtype == np.float16 else torch.float32


@dataclass(frozen=True)
class Example:
    """One text with one image, or several, without padding."""

    input_ids: np.ndarray  # (L,) int64
    token_type_ids: np.ndarray  # (L,) int64: 0 text, 1 tags
    regions: ImageRegions  # R may be 0
    label_ids: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # (k,) int64: classes or answers
    label_scores: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # (k,) targets of these answers
    record: dict[str, Any] = field(default_factory=dict)  # what metrics and reports need on the host: question_id …
    position_ids: np.ndarray | None = None  # (L,) int64 where the positions are not 0, 1, 2 …
    caption_length: int = 0  # tokens at the front that are seen from left to right only, with [CLS] and [SEP]
    more_regions: tuple[ImageRegions, ...] = ()  # of further images, as many in each example of a batch


@dataclass(frozen=True)
class Batch:
    """Padded examples. Moves to a device as a whole; `records` stay on the host."""

    input_ids: Tensor  # (B, L) int64
    token_type_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L + R) bool: True where there is a token or a region
    regions: BatchRegions  # of all rows, without padding
    labels: Tensor | None  # (B, A) float32 soft targets, (B,) int64 classes or (Σk,) masked tokens; None if unknown
    records: tuple[dict[str, Any], ...]
    position_ids: Tensor | None = None  # (B, L) int64; None means 0, 1, 2 …
    caption_lengths: Tensor | None = None  # (B,) int64
    masked_positions: Tensor | None = None  # (B, L) bool, True Σk times in the order of `labels`
    pair_labels: Tensor | None = None  # (B,) int64: class of each triplet in pre-training; -1 where it has none
    loss_weights: Tensor | None = None  # (B,) or (B, 2) float32: factor of each row's losses, or of each; None means 1
    layout: PackedLayout | None = None  # of the positions that exist; None: made where it is needed
    items: int | None = None  # of the dataset, where several rows were made of each; None means B

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def region_features(self) -> Tensor:
        """(B, R, D) float32; R is 0 where the batch has no regions at all. Made whenever it is asked for."""
        return self.regions.padded()

    def inputs(self) -> dict[str, Any]:
        """What every model takes, by name; region rows without padding if there is a layout."""
        return {
            "input_ids": self.input_ids,
            "token_type_ids": self.token_type_ids,
            "attention_mask": self.attention_mask,
            "region_features": self.region_features if self.layout is None else self.regions.rows(),
            "layout": self.layout,
        }

    @property
    def num_items(self) -> int:
        """Items of the dataset that the rows were made of: what `data.batch_size` and epochs count."""
        return len(self) if self.items is None else self.items

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The batch with every tensor on `device`."""
        moved: Batch = changed(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))
        return moved

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by the DataLoader)."""
        pinned: Batch = changed(self, lambda tensor: tensor.pin_memory())
        return pinned

    def __reduce__(self) -> tuple[Any, ...]:
        return arrived, (vars(changed(self, packed)),)


def collate(examples: Sequence[Example], *, pad_token_id: int, labels: Tensor | None = None) -> Batch:
    """Pads examples to the longest text and the largest number of regions of this batch.

    Args:
        examples: B examples.
        pad_token_id: fills text positions beyond an example's end.
        labels: what the loss sees: `soft_targets` or `class_labels` of the examples, or None.
    """
    tokens = np.array([len(example.input_ids) for example in examples])
    longest_text = int(tokens.max())
    images = [image for example in examples for image in (example.regions, *example.more_regions)]
    regions = gather_regions(images, images=1 + len(examples[0].more_regions))
    is_text = np.arange(longest_text) < tokens[:, None]
    is_region = np.arange(regions.slots) < regions.counts[:, None]
    attention_mask = np.concatenate([is_text, is_region], axis=1)
    placed = examples[0].position_ids is not None
    return Batch(
        input_ids=_padded([example.input_ids for example in examples], is_text, pad_token_id),
        token_type_ids=_padded([example.token_type_ids for example in examples], is_text, 0),
        attention_mask=torch.from_numpy(attention_mask),
        regions=regions,
        labels=labels,
        records=tuple(example.record for example in examples),
        position_ids=_padded([example.position_ids for example in examples], is_text, 0) if placed else None,
        caption_lengths=torch.tensor([example.caption_length for example in examples]) if placed else None,
        layout=PackedLayout.of_mask(attention_mask, longest_text),
    )


def _padded(rows: Sequence[Any], real: np.ndarray, padding: int) -> Tensor:
    """Rows of numbers at the places (B, L) that are real, int64."""
    padded = np.full(real.shape, padding, dtype=np.int64)
    padded[real] = np.concatenate(rows)
    return torch.from_numpy(padded)


def soft_targets(examples: Sequence[Example], num_answers: int) -> Tensor:
    """(B, A) float32: the score of every answer, 0 for those that nobody gave."""
    targets = np.zeros((len(examples), num_answers), dtype=np.float32)
    rows = np.repeat(np.arange(len(examples)), [len(example.label_ids) for example in examples])
    answers = np.concatenate([example.label_ids for example in examples])
    targets[rows, answers] = np.concatenate([example.label_scores for example in examples])
    return torch.from_numpy(targets)


def class_labels(examples: Sequence[Example]) -> Tensor:
    """(B,) int64: the one class of each example."""
    return torch.tensor([int(example.label_ids[0]) for example in examples])
