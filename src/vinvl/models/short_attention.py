"""Attention over many short sequences that lie end to end: Triton kernels that hold a whole sequence in one block.

FlashAttention walks over blocks of keys and keeps running sums, and its backward pass takes three kernels. A sequence
of text, tags and regions is so short that all its scores fit on the chip: here one program for each sequence and head
does everything, forward in one kernel and backward in another, and the gradient of queries, keys and values comes out
as one tensor, as the projection expects it.

Shapes: T positions of B sequences, d numbers a head. Needs Triton, which torch brings for GPUs; `packing` asks for this
file and does without if there is none.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# ruff: noqa: N803  (constants of a kernel are written large, as in Triton's own code)


LONGEST = 128  # positions; the scores of longer sequences do not fit
HEAD_SIZES = (16, 32, 64)  # larger ones would need more shared memory than many cards have


def short_attention(projected: Tensor, offsets: Tensor, longest: int, dropout: float) -> Tensor:
    """What every position reads of its own sequence; scores are divided by the root of d.

    Args:
        projected: (T, 3, heads, d) float16 or bfloat16 on a GPU, contiguous: queries, keys and values; d is one of
            HEAD_SIZES.
        offsets: (B + 1,) int32: sequence b has the positions offsets[b] to offsets[b + 1].
        longest: positions of the longest sequence, at most LONGEST.
        dropout: share of the weights that are dropped, by torch's generator of the device.

    Returns:
        (T, heads, d), of the dtype of `projected`.
    """
    seed = torch.randint(2**31 - 1, (2 if dropout else 0,), device=projected.device)
    attended, _ = _attend(projected, offsets, seed, longest, dropout)
    return attended


# Operators of torch, so that compiled models call the kernels as they are: one graph for all lengths.
@torch.library.custom_op("vinvl::short_attention", mutates_args=())
def _attend(projected: Tensor, offsets: Tensor, seed: Tensor, longest: int, dropout: float) -> tuple[Tensor, Tensor]:
    """What is read, (T, heads, d), and the logarithm of each row's sum, (heads, T) float32."""
    total, _, heads, size = projected.shape
    attended = projected.new_empty(total, heads, size)
    logsumexp = projected.new_empty(heads, total, dtype=torch.float32)
    block, warps = _block(longest)
    with torch.cuda.device_of(projected):  # Triton starts kernels on the current device
        _forward[len(offsets) - 1, heads](
            projected, offsets, seed, attended, logsumexp, total, heads, size**-0.5, dropout,
            SIZE=size, BLOCK=block, DROPS=dropout > 0, num_warps=warps,
        )  # fmt: skip
    return attended, logsumexp


@_attend.register_fake
def _(projected: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    total, _, heads, size = projected.shape
    return projected.new_empty(total, heads, size), projected.new_empty(heads, total, dtype=torch.float32)


@torch.library.custom_op("vinvl::short_attention_backward", mutates_args=())
def _attend_backward(
    projected: Tensor,
    offsets: Tensor,
    seed: Tensor,
    attended: Tensor,
    logsumexp: Tensor,
    gradient: Tensor,
    longest: int,
    dropout: float,
) -> Tensor:
    """The gradient of `projected`."""
    total, _, heads, size = projected.shape
    of_projected = torch.empty_like(projected)
    block, warps = _block(longest)
    with torch.cuda.device_of(projected):
        _backward[len(offsets) - 1, heads](
            projected, offsets, seed, attended, logsumexp, gradient.contiguous(), of_projected,
            total, heads, size**-0.5, dropout,
            SIZE=size, BLOCK=block, DROPS=dropout > 0, num_warps=warps,
        )  # fmt: skip
    return of_projected


@_attend_backward.register_fake
def _(projected: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(projected)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    projected, offsets, seed, ctx.longest, ctx.dropout = inputs
    ctx.save_for_backward(projected, offsets, seed, *output)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, None, None, None, None]:
    of_projected = None
    if gradient is not None:
        of_projected = _attend_backward(*ctx.saved_tensors, gradient, ctx.longest, ctx.dropout)
    return of_projected, None, None, None, None


_attend.register_autograd(_gradients, setup_context=_remember)


def _block(longest: int) -> tuple[int, int]:
    """Positions that a program holds, and its warps."""
    return (64, 4) if longest <= 64 else (LONGEST, 8)


@triton.jit
def _forward(
    projected, offsets, seed, attended, logsumexp, total, heads, scale, dropout,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """Program (b, h): sequence b, head h."""
    program, head, slot, row, real, column = _own_places(offsets, heads, SIZE, BLOCK)
    apart = heads * SIZE
    query, key, value = _projections(projected + row[:, None] * 3 * apart + column, apart, real)

    scores = tl.dot(query, tl.trans(key)) * scale
    scores = tl.where(real[None, :], scores, float("-inf"))
    largest = tl.max(scores, axis=1)
    weights = tl.exp(scores - largest[:, None])
    sums = tl.sum(weights, axis=1)
    weights = weights / sums[:, None]
    if DROPS:
        kept = _kept(seed, program, slot, dropout, BLOCK)
        weights = tl.where(kept, weights / (1 - dropout), 0.0)
    read = tl.dot(weights.to(value.dtype), value)
    tl.store(attended + row[:, None] * apart + column, read.to(value.dtype), mask=real[:, None])
    tl.store(logsumexp + head * total + row, largest + tl.log(sums), mask=real)


@triton.jit
def _backward(
    projected, offsets, seed, attended, logsumexp, gradient, of_projected, total, heads, scale, dropout,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, DROPS: tl.constexpr,
):  # fmt: skip
    """Program (b, h), as in `_forward`, whose weights it computes again."""
    program, head, slot, row, real, column = _own_places(offsets, heads, SIZE, BLOCK)
    apart = heads * SIZE
    place = row[:, None] * 3 * apart + column
    query, key, value = _projections(projected + place, apart, real)
    of_read = tl.load(gradient + row[:, None] * apart + column, mask=real[:, None], other=0.0)
    read = tl.load(attended + row[:, None] * apart + column, mask=real[:, None], other=0.0)
    normal = tl.load(logsumexp + head * total + row, mask=real, other=0.0)

    weights = tl.exp(tl.dot(query, tl.trans(key)) * scale - normal[:, None])
    weights = tl.where(real[:, None] & real[None, :], weights, 0.0)
    of_weights = tl.dot(of_read, tl.trans(value))
    used = weights
    if DROPS:
        kept = _kept(seed, program, slot, dropout, BLOCK)
        used = tl.where(kept, weights / (1 - dropout), 0.0)
        of_weights = tl.where(kept, of_weights / (1 - dropout), 0.0)
    of_value = tl.dot(tl.trans(used.to(query.dtype)), of_read)
    tl.store(of_projected + place + 2 * apart, of_value.to(query.dtype), mask=real[:, None])

    mean = tl.sum(of_read.to(tl.float32) * read.to(tl.float32), axis=1)
    of_scores = (weights * (of_weights - mean[:, None]) * scale).to(query.dtype)
    tl.store(of_projected + place, tl.dot(of_scores, key).to(query.dtype), mask=real[:, None])
    of_key = tl.dot(tl.trans(of_scores), query)
    tl.store(of_projected + place + apart, of_key.to(query.dtype), mask=real[:, None])


@triton.jit
def _own_places(offsets, heads, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The program's number and head; its sequence's slots, their positions among the T, which are real; its columns."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    start = tl.load(offsets + sequence)
    slot = tl.arange(0, BLOCK)
    row = (start + slot).to(tl.int64)
    real = slot < tl.load(offsets + sequence + 1) - start
    return sequence * heads + head, head, slot, row, real, head * SIZE + tl.arange(0, SIZE)[None, :]


@triton.jit
def _projections(place, apart, real):
    """(BLOCK, SIZE) each: queries at `place`, keys and values `apart` from one another; 0 where nothing is real."""
    query = tl.load(place, mask=real[:, None], other=0.0)
    key = tl.load(place + apart, mask=real[:, None], other=0.0)
    value = tl.load(place + 2 * apart, mask=real[:, None], other=0.0)
    return query, key, value


@triton.jit
def _kept(seed, program, slot, dropout, BLOCK: tl.constexpr):
    """(BLOCK, BLOCK) bool: weights that are not dropped, the same ones in both passes."""
    first = _mixed(tl.load(seed).to(tl.uint32) ^ _mixed(program.to(tl.uint32)))
    second = _mixed(tl.load(seed + 1).to(tl.uint32) + first)
    place = (slot[:, None] * BLOCK + slot[None, :]).to(tl.uint32)
    bits = _mixed(_mixed(place + first) ^ second)
    return (bits >> 8).to(tl.float32) * (1.0 / (1 << 24)) >= dropout


@triton.jit
def _mixed(bits):
    """Every bit of a uint32 depends on all of it (Wellons's lowbias32); overflow is meant."""
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)
