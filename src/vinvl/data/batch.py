"""The one thing that flows from data to model.

Letters used for shapes everywhere: B batch, L text and tag tokens, R regions, D feature dimension with geometry
(2054), H hidden size, A answers. The joint sequence is (B, L + R, H): the tokens first, padded to the batch's longest
text, then the regions, padded to the batch's largest number of regions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vinvl.data import transfer
from vinvl.data.image_regions import BatchRegions, ImageRegions, gather_regions
from vinvl.models.packing import PackedLayout

NO_LABELS = np.zeros(0, dtype=np.int64)
NO_SCORES = np.zeros(0, dtype=np.float32)


@dataclass(frozen=True)
class Example:
    """One text with one image, without padding."""

    input_ids: np.ndarray  # (L,) int64
    token_type_ids: np.ndarray  # (L,) int64: 0 text, 1 tags
    regions: ImageRegions  # R may be 0
    label_ids: np.ndarray = field(default_factory=lambda: NO_LABELS)  # (k,) int64: classes or answers
    label_scores: np.ndarray = field(default_factory=lambda: NO_SCORES)  # (k,) float32: targets of these answers
    record: dict[str, Any] = field(default_factory=dict)  # what metrics and reports need on the host: question_id …
    position_ids: np.ndarray | None = None  # (L,) int64 where the positions are not 0, 1, 2 …
    caption_length: int = 0  # tokens at the front that are seen from left to right only, with [CLS] and [SEP]

    @property
    def region_rows(self) -> np.ndarray:
        """(R, D) float32: feature followed by the six box numbers."""
        return self.regions.rows()


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
    loss_weights: Tensor | None = None  # (B,) float32: factor of each row's losses; None means 1
    layout: PackedLayout | None = None  # of the positions that exist; None: made where it is needed
    items: int | None = None  # of the dataset, where several rows were made of each; None means B

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def region_features(self) -> Tensor:
        """(B, R, D) float32; R is 0 where the batch has no regions at all. Made whenever it is asked for."""
        return self.regions.padded()

    def inputs(self) -> dict[str, Any]:
        """What every model takes, by name; region rows without padding where there is a layout."""
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

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch with every tensor on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (called by the DataLoader)."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(v) for name, v in values.items() if isinstance(v, Tensor)}
        if self.layout is not None:
            changed["layout"] = self.layout.with_tensors(change)
        return replace(self, **changed, regions=self.regions.with_tensors(change))

    def __reduce__(self) -> tuple[Any, ...]:
        return transfer.unpacked, (transfer.packed(self),)


def collate(examples: Sequence[Example], *, pad_token_id: int, labels: Tensor | None = None) -> Batch:
    """Pads examples to the longest text and the largest number of regions of this batch.

    Args:
        examples: B examples.
        pad_token_id: fills text positions beyond an example's end.
        labels: what the loss sees: `soft_targets` or `class_labels` of the examples, or None.
    """
    tokens = np.array([len(example.input_ids) for example in examples])
    longest_text = int(tokens.max())
    regions = gather_regions([example.regions for example in examples])
    is_text = np.arange(longest_text) < tokens[:, None]
    is_region = np.arange(regions.slots) < np.array([len(example.regions) for example in examples])[:, None]
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
