"""The Triton kernels against attention written out: on a GPU, or by Triton's interpreter (TRITON_INTERPRET=1)."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.samples import attention_written_out

pytest.importorskip("triton", reason="Triton comes with torch for GPUs")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not torch.cuda.is_available() and not INTERPRETED:
    pytest.skip("the kernels are for GPUs; TRITON_INTERPRET=1 runs them without one", allow_module_level=True)

DEVICE = "cpu" if INTERPRETED else "cuda"
HEADS, SIZE = 2, 32


def of_lengths(lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Projected states, and offsets."""
    torch.manual_seed(0)
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    return torch.randn(int(offsets[-1]), 3, HEADS, SIZE, dtype=torch.float16).to(DEVICE), offsets.to(DEVICE)


def assert_alike(read: Tensor, expected: Tensor, projected: Tensor, tolerance: float) -> None:
    """Outputs and the gradients of what they are of."""
    torch.testing.assert_close(read.float(), expected, rtol=tolerance, atol=tolerance)
    along = torch.randn_like(expected)
    (found,), (wanted,) = (
        torch.autograd.grad(out, projected, to) for out, to in ((read, along.half()), (expected, along))
    )
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("lengths", [[1], [5, 1, 32, 17], [64, 3], [65, 2, 128]])
def test_outputs_and_gradients(lengths: list[int]) -> None:
    from vinvl.models.short_attention import short_attention

    projected, offsets = of_lengths(lengths)
    projected.requires_grad_()
    read = short_attention(projected, offsets, max(lengths), 0.0)
    assert_alike(read, attention_written_out(projected, offsets), projected, 5e-3)


@pytest.mark.parametrize("longest", [SIZE, 100])  # by the smaller and by the larger block
def test_dropout_is_the_same_draw_forward_and_backward(longest: int) -> None:
    from vinvl.models.short_attention import short_attention

    dropout = 0.3
    projected, offsets = of_lengths([5, 1, 32, 17, 30])
    slot = torch.cat([torch.arange(length) for length in offsets.diff().tolist()])
    one_hot = projected.clone()
    one_hot[:, 2] = torch.eye(SIZE, dtype=torch.float16, device=DEVICE)[slot][:, None]

    def draw(of: Tensor, seed: int) -> Any:
        torch.manual_seed(seed)
        return short_attention(of, offsets, longest, dropout)

    weights = short_attention(one_hot, offsets, longest, 0.0)  # with one-hot values these are read
    kept = draw(one_hot, 1) > 0
    assert abs(float(kept.sum() / (weights > 0).sum()) - (1 - dropout)) < 0.03
    assert not torch.equal(kept, draw(one_hot, 2) > 0)
    assert not torch.equal(kept[6:38, 0], kept[6:38, 1])  # heads draw for themselves

    projected.requires_grad_()
    assert_alike(draw(projected, 1), attention_written_out(projected, offsets, kept, dropout), projected, 1e-2)
