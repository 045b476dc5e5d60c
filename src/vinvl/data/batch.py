"""The one thing that flows from data to model.

Letters used for shapes everywhere: B batch, L text and tag tokens, R regions, D feature dimension with geometry
(2054), H hidden size, A answers. The joint sequence is (B, L + R, H): the tokens first, padded to the batch's longest
text, then the regions, padded to the batch's largest number of regions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """One dataset item, without padding."""

    input_ids: np.ndarray  # (L,) int64
    token_type_ids: np.ndarray  # (L,) int64: 0 text, 1 tags
    region_rows: np.ndarray  # (R, D) float32: feature followed by the six box numbers; R may be 0
    label_ids: np.ndarray  # (k,) int64: answers with a target above 0
    label_scores: np.ndarray  # (k,) float32: their soft targets
    record: dict[str, Any]  # what metrics and reports need on the host: question_id, question, answers …


@dataclass(frozen=True)
class Batch:
    """Padded examples. Moves to a device as a whole; `records` stay on the host."""

    input_ids: Tensor  # (B, L) int64
    token_type_ids: Tensor  # (B, L) int64
    attention_mask: Tensor  # (B, L + R) bool: True where there is a token or a region
    region_features: Tensor  # (B, R, D) float32; R is 0 where the batch has no regions at all
    labels: Tensor | None  # (B, A) float32 soft targets; None where the split has no answers
    records: tuple[dict[str, Any], ...]

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The batch with every tensor on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory (called by the DataLoader)."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Any) -> "Batch":
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in tensors.items() if isinstance(value, Tensor)})


def collate(examples: Sequence[Example], *, pad_token_id: int, num_answers: int | None) -> Batch:
    """Pads examples to the longest text and the largest number of regions of this batch.

    Args:
        examples: B examples.
        pad_token_id: fills text positions beyond an example's end.
        num_answers: width A of the dense soft targets; None leaves `labels` out.
    """
    longest_text = max(len(example.input_ids) for example in examples)
    most_regions = max(len(example.region_rows) for example in examples)
    size, row_width = len(examples), examples[0].region_rows.shape[1]
    input_ids = np.full((size, longest_text), pad_token_id, dtype=np.int64)
    token_type_ids = np.zeros((size, longest_text), dtype=np.int64)
    attention_mask = np.zeros((size, longest_text + most_regions), dtype=bool)
    region_features = np.zeros((size, most_regions, row_width), dtype=np.float32)
    labels = None if num_answers is None else np.zeros((size, num_answers), dtype=np.float32)
    for row, example in enumerate(examples):
        num_tokens, num_regions = len(example.input_ids), len(example.region_rows)
        input_ids[row, :num_tokens] = example.input_ids
        token_type_ids[row, :num_tokens] = example.token_type_ids
        attention_mask[row, :num_tokens] = True
        attention_mask[row, longest_text : longest_text + num_regions] = True
        region_features[row, :num_regions] = example.region_rows
        if labels is not None:
            labels[row, example.label_ids] = example.label_scores
    return Batch(
        input_ids=torch.from_numpy(input_ids),
        token_type_ids=torch.from_numpy(token_type_ids),
        attention_mask=torch.from_numpy(attention_mask),
        region_features=torch.from_numpy(region_features),
        labels=None if labels is None else torch.from_numpy(labels),
        records=tuple(example.record for example in examples),
    )
