"""Sequences of a batch end to end, without their padding: where real positions lie, and attention over them.

Shapes: B sequences of L text and R region slots, S = L + R, H hidden size, d numbers a head; T real positions in all.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # before torch 2.10
    varlen_attn = None  # type: ignore[assignment]

try:
    from vinvl.models.short_attention import HEAD_SIZES, LONGEST, short_attention
except ImportError:  # no Triton, as on machines without GPUs
    HEAD_SIZES, LONGEST, short_attention = (), 0, None  # type: ignore[assignment]

PACKED = "packed"  # its name among transformers' attention implementations
SHAPELESS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
HALVES = (torch.float16, torch.bfloat16)
LEAST_FILL = 0.7  # of the longest sequence of a group, that every sequence in it has at least


@dataclass(frozen=True)
class PackedGroup:
    """Sequences of like length that attention pads to their longest, M positions."""

    rows: Tensor  # (n, M) int64, among the T packed positions; slots of padding name the sequence's first position
    real: Tensor  # (n, M) bool, False for padding; also there without any, for a compiled model has one graph for both


@dataclass(frozen=True)
class PackedLayout:
    """Where the T real positions of B padded sequences are. Made on the host, because its sizes depend on the data."""

    places: Tensor  # (T,) int64, of each among the B·S slots; sequences in turn, and in each text before regions
    text_places: Tensor  # (T_text,) int64, of the real tokens among the B·L text slots
    region_places: Tensor  # (T_regions,) int64, of the real regions among the B·R region slots
    merged: Tensor  # (T,) int64: position t is number merged[t] of all tokens followed by all regions
    offsets: Tensor  # (B + 1,) int32: sequence b has the positions offsets[b] to offsets[b + 1]
    longest: int  # positions of the longest sequence
    groups: tuple[PackedGroup, ...]  # all sequences, by length
    from_groups: Tensor  # (T,) int64: position t is number from_groups[t] of the groups' flattened rows

    @classmethod
    def of_mask(cls, mask: np.ndarray, text_slots: int) -> PackedLayout:
        """Parts of a mask (B, S) bool, True where there is a token (the first `text_slots`, L) or a region.

        A sequence without any position gets its first slot, so that it has an output.
        """
        mask = mask.copy()
        mask[:, :1] |= ~mask.any(axis=1, keepdims=True)
        flat = np.flatnonzero(mask)
        slots, regions = mask.shape[1], mask.shape[1] - text_slots
        rows, slot = np.divmod(flat, slots)
        is_text = slot < text_slots
        # Of tokens the tokens before them, of regions all tokens and the regions before them.
        merged = np.where(is_text, np.cumsum(is_text) - 1, is_text.sum() + np.cumsum(~is_text) - 1)
        lengths = mask.sum(axis=1)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        groups, from_groups = _groups(lengths, offsets)
        return cls(
            places=torch.from_numpy(flat),
            text_places=torch.from_numpy(rows[is_text] * text_slots + slot[is_text]),
            region_places=torch.from_numpy(rows[~is_text] * regions + slot[~is_text] - text_slots),
            merged=torch.from_numpy(merged),
            offsets=torch.from_numpy(offsets.astype(np.int32)),
            longest=int(lengths.max(initial=0)),
            groups=groups,
            from_groups=torch.from_numpy(from_groups),
        )

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> PackedLayout:
        """The same with every tensor changed: moved to a device, or into page-locked memory."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        groups = [PackedGroup(change(one.rows), change(one.real)) for one in self.groups]
        return replace(self, **changed, groups=tuple(groups))


def in_slots(rows: Tensor, places: Tensor, sequences: int, slots: int) -> Tensor:
    """Rows (T, H) that stand at these places (T,) of sequences · slots → (sequences, slots, H), zero elsewhere."""
    empty = rows.new_zeros(sequences * slots, rows.shape[-1])
    return empty.index_copy(0, places, rows).unflatten(0, (sequences, slots))


def _groups(lengths: np.ndarray, offsets: np.ndarray) -> tuple[tuple[PackedGroup, ...], np.ndarray]:
    """The sequences by falling length, cut where one is much shorter than its group's longest."""
    order = np.argsort(-lengths, kind="stable")
    groups: list[PackedGroup] = []
    from_groups = np.empty(int(lengths.sum()), dtype=np.int64)
    start = slots_before = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        end = start + int(np.searchsorted(-lengths[order[start:]], -LEAST_FILL * longest, side="right"))
        members = order[start:end]
        slot = np.arange(longest)
        real = slot < lengths[members, None]
        rows = offsets[members, None] + np.where(real, slot, 0)
        from_groups[rows[real]] = slots_before + np.flatnonzero(real)
        groups.append(PackedGroup(torch.from_numpy(rows), torch.from_numpy(real)))
        start, slots_before = end, slots_before + real.size
    return tuple(groups), from_groups


@dataclass(frozen=True)
class PackedSequences:
    """What attention needs to know of a batch."""

    layout: PackedLayout
    masks: tuple[Tensor, ...] | None  # of each group, (n, 1, M, M) bool; None if every position sees its whole sequence
    flash: bool = False  # FlashAttention's kernel for any lengths is available, for half precision
    short: bool = False  # our kernel for short sequences is, likewise

    @classmethod
    def of(cls, layout: PackedLayout, attention_mask: Tensor) -> PackedSequences:
        """`attention_mask` is (B, S), or (B, S, S), [query, key], of the padded sequences."""
        if attention_mask.dim() == 3:
            slots = attention_mask.shape[-1]
            return cls(layout, tuple(_who_sees_whom(layout, one, attention_mask, slots) for one in layout.groups))
        device = layout.places.device
        flash = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)  # it needs Ampere or later
        return cls(layout, None, flash, flash and has_short_attention(device))

    def attend(self, projected: Tensor, dropout: float = 0.0) -> Tensor:
        """(T, heads, d) from (T, 3, heads, d): queries, keys and values; scores are divided by the root of d."""
        size, is_half = projected.shape[-1], projected.dtype in HALVES
        if self.short and is_half and self.layout.longest <= LONGEST and size in HEAD_SIZES:
            assert short_attention is not None
            return short_attention(projected, self.layout.offsets, self.layout.longest, dropout)
        query, key, value = projected.unbind(1)
        # The groups are not looked at on the kernel's way: a compiled model then has one graph for any number of them.
        if self.flash and is_half and size % 8 == 0 and size <= 256:
            return _attend_by_flash(query, key, value, self.layout, dropout)
        return self._attend_in_groups(query, key, value, dropout)

    @torch.compiler.disable  # else a compiled model would have a graph for every number of groups
    def _attend_in_groups(self, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        masks = [one.real[:, None, None] for one in self.layout.groups] if self.masks is None else self.masks
        parts = []
        with for_any_shape(query):
            for group, mask in zip(self.layout.groups, masks, strict=True):
                q, k, v = (_rows(part, group.rows).transpose(1, 2) for part in (query, key, value))  # (n, heads, M, d)
                attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
                parts.append(attended.transpose(1, 2).flatten(0, 1))
        return _rows(parts[0] if len(parts) == 1 else torch.cat(parts), self.layout.from_groups)


def _rows(table: Tensor, rows: Tensor) -> Tensor:
    """table[rows], whose gradient needs no sorting: rows that are named twice are padding, whose gradient is 0."""
    return table.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def for_any_shape(query: Tensor) -> AbstractContextManager[None]:
    """SDPA without cuDNN on GPUs: that makes a plan for every new shape, which takes it 0.07 to 3 seconds (H200)."""
    backends: AbstractContextManager[None] = sdpa_kernel(SHAPELESS) if query.is_cuda else nullcontext()
    return backends


@functools.cache
def has_short_attention(device: torch.device) -> bool:
    """Whether Triton is installed and works, for which it needs a C compiler; both passes are tried once."""
    if short_attention is None:
        return False
    try:
        offsets = torch.tensor([0, 3], dtype=torch.int32, device=device)
        with torch.inference_mode(False), torch.enable_grad():
            projected = torch.zeros(3, 3, 1, 64, dtype=torch.bfloat16, device=device, requires_grad=True)
            short_attention(projected, offsets, 3, 0.0).sum().backward()
    except Exception as error:
        told = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"Triton cannot compile here ({told}); attention uses FlashAttention instead.", stacklevel=2)
        return False
    return True


def _attend_by_flash(query: Tensor, key: Tensor, value: Tensor, layout: PackedLayout, dropout: float) -> Tensor:
    """`PackedSequences.attend` in half precision on a GPU, every position seeing its whole sequence."""
    around = (layout.offsets, layout.offsets, layout.longest, layout.longest)
    if dropout == 0 and varlen_attn is not None:
        attended: Any = varlen_attn(query, key, value, *around)
        return attended
    # What varlen_attn calls, and nested tensors too; the former does not hand dropout on.
    causal = return_debug_mask = False
    by_flash: Any = torch.ops.aten._flash_attention_forward(
        query, key, value, *around, dropout, causal, return_debug_mask
    )
    return by_flash[0]


def _who_sees_whom(layout: PackedLayout, group: PackedGroup, attention_mask: Tensor, slots: int) -> Tensor:
    """(n, 1, M, M) bool of a group, from (B, S, S)."""
    places = layout.places[group.rows]
    rows, slot = places // slots, places % slots
    allowed = attention_mask.bool()[rows[:, :, None], slot[:, :, None], slot[:, None, :]] & group.real[:, None, :]
    return (allowed | ~allowed.any(dim=-1, keepdim=True))[:, None]  # a softmax over nothing would be NaN


def padded_attention(module: nn.Module, query: Tensor, *arguments: Any, **others: Any) -> tuple[Tensor, None]:
    """What transformers calls where nothing is packed: its "sdpa"."""
    with for_any_shape(query):
        return sdpa_attention_forward(module, query, *arguments, **others)


AttentionInterface.register(PACKED, padded_attention)
AttentionMaskInterface.register(PACKED, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
