"""On what device and in what precision a model computes, and how much at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from vinvl.detection.opening import device_of
from vinvl.errors import UserError

FLOAT32, BFLOAT16 = "float32", "bfloat16"
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Computing:
    """Device, precision, and examples in one forward pass.

    Args:
        device: that the model is on.
        dtype: float32, or bfloat16 for mixed precision: weights stay in float32.
        batch_size: examples at a time.
    """

    device: torch.device
    dtype: str
    batch_size: int

    @classmethod
    def of(cls, device: str | None, dtype: str, batch_size: int) -> Computing:
        """From what a person gives; device None is the GPU if there is one. Raises UserError for what cannot be."""
        if dtype not in (FLOAT32, BFLOAT16):
            raise UserError(f"dtype={dtype!r} is unknown: give {FLOAT32} or {BFLOAT16}.")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise UserError(f"batch_size={batch_size!r} must be a whole number of at least 1.")
        return cls(device_of(device), dtype, batch_size)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """No gradients, and mixed precision where it is wanted."""
        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == BFLOAT16):
            yield

    def in_batches(
        self, items: Sequence[Item], cost: Callable[[Item], int], work: Callable[[list[Item]], Sequence[Result]]
    ) -> list[Result]:
        """What `work` makes of the items, in their order; those of like cost are worked on together, to pad little."""
        order = sorted(range(len(items)), key=lambda index: -cost(items[index]))
        results: dict[int, Result] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            with self.precision():
                found = work([items[index] for index in chosen])
            results |= dict(zip(chosen, found, strict=True))
        return [results[index] for index in range(len(items))]
