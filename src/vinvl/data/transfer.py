"""How batches travel from data workers: large tensors through shared memory, small ones within the message.

A tensor in shared memory costs a file and its mapping on both sides, some 100 µs: more than to copy what is small, and
a batch has a dozen small ones.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL = 1 << 17  # bytes


def packed(value: Any) -> Any:
    """A dataclass with its dataclasses, tuples and dicts, small CPU tensors as arrays; for `unpacked`."""
    if isinstance(value, Tensor):
        small = value.device.type == "cpu" and value.numel() * value.element_size() <= SMALL and not value.requires_grad
        return _Array(value.numpy()) if small else value
    if is_dataclass(value) and not isinstance(value, type):
        return _Parts(type(value), {field.name: packed(getattr(value, field.name)) for field in fields(value)})
    if type(value) is tuple:
        return tuple(map(packed, value)) if any(map(_has_parts, value)) else value
    return value


def unpacked(value: Any) -> Any:
    """What `packed` was given."""
    if isinstance(value, _Array):
        return torch.from_numpy(value.values)
    if isinstance(value, _Parts):
        return value.kind(**{name: unpacked(part) for name, part in value.parts.items()})
    if type(value) is tuple and any(isinstance(part, _Array | _Parts) for part in value):
        return tuple(map(unpacked, value))
    return value


class _Array:
    """Stands for a tensor."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


class _Parts:
    """Stands for a dataclass."""

    def __init__(self, kind: type, parts: Mapping[str, Any]) -> None:
        self.kind = kind
        self.parts = parts


def _has_parts(value: Any) -> bool:
    return isinstance(value, Tensor) or is_dataclass(value)
