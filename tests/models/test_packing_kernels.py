"""Packed attention by kernels: which one is asked for what, and, on a GPU, what they give."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.models.samples import attention_written_out
from tests.models.test_packing import HEADS, batch_of, model_of
from vinvl.models import VinVLForAnswering, packing
from vinvl.models.packing import PackedLayout, PackedSequences, has_short_attention


def test_without_a_compiler_triton_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> Tensor:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    cpu = torch.device("cpu")
    monkeypatch.setattr(packing, "short_attention", failing)
    has_short_attention.cache_clear()
    with pytest.warns(UserWarning, match=r"RuntimeError: Failed to find C compiler\.\); attention uses Flash") as told:
        assert [has_short_attention(cpu) for _ in range(2)] == [False, False]
    assert len(told) == 1
    monkeypatch.setattr(packing, "short_attention", None)
    has_short_attention.cache_clear()
    assert not has_short_attention(cpu)
    has_short_attention.cache_clear()


def test_only_short_sequences_in_half_precision_go_to_the_kernel_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def recording(projected: Tensor, offsets: Tensor, longest: int, dropout: float) -> Tensor:
        asked.append((longest, dropout))
        return projected[:, 2]

    monkeypatch.setattr(packing, "short_attention", recording)
    monkeypatch.setattr(packing, "LONGEST", 10)
    monkeypatch.setattr(packing, "HEAD_SIZES", (16,))

    def attend(longest: int, size: int = 16, dtype: torch.dtype = torch.bfloat16, whole: bool = True) -> None:
        exists = np.arange(longest) < np.array([longest, 3])[:, None]
        layout = PackedLayout.of_mask(exists, longest)
        seen = torch.from_numpy(exists)
        sequences = PackedSequences.of(layout, seen if whole else seen[:, None].expand(-1, longest, -1))
        sequences = replace(sequences, short=sequences.masks is None)
        read = sequences.attend(torch.randn(len(layout.places), 3, HEADS, size).to(dtype), 0.5)
        assert read.shape == (len(layout.places), HEADS, size)

    attend(10)
    assert asked == [(10, 0.5)]
    attend(11)
    attend(10, size=8)
    attend(10, dtype=torch.float32)
    attend(10, whole=False)
    assert asked == [(10, 0.5)]


def by_kernel(way: str, whole: PackedSequences, *, compiled: bool) -> Any:
    """Attention of (T, 3, heads, d) by one of the two kernels."""
    torch.compiler.reset()
    assert whole.flash and whole.short
    attend = replace(whole, short=way == "short").attend
    return torch.compile(attend, backend="aot_eager", fullgraph=True) if compiled else attend


BY_KERNEL = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels are for GPUs"),
    pytest.mark.parametrize("compiled", [False, True]),
    pytest.mark.parametrize("way", ["flash", "short"]),
]


def with_marks(test: Any) -> Any:
    for mark in BY_KERNEL:
        test = mark(test)
    return test


@with_marks
@pytest.mark.parametrize("most", [12, 100])
def test_kernels_give_what_padding_gives(way: str, compiled: bool, most: int) -> None:
    layout = PackedLayout.of_mask(batch_of([(5, 3), (2, 9), (most, 0)])["attention_mask"].numpy(), most)
    layout = layout.with_tensors(lambda tensor: tensor.cuda())
    whole = PackedSequences.of(layout, torch.ones(3, 1))
    half = torch.randn(len(layout.places), 3, HEADS, 64, device="cuda", dtype=torch.bfloat16).requires_grad_()
    single = half.detach().float().requires_grad_()
    read, expected = by_kernel(way, whole, compiled=compiled)(half), whole.attend(single)
    torch.testing.assert_close(read.float(), expected, rtol=2e-2, atol=2e-2)
    along = torch.randn_like(expected)
    read.backward(along.bfloat16())
    expected.backward(along)
    assert half.grad is not None
    torch.testing.assert_close(half.grad.float(), single.grad, rtol=4e-2, atol=4e-2)


@with_marks
@pytest.mark.parametrize("size", [64, 128])
def test_kernels_drop_weights_and_scale_the_others(way: str, compiled: bool, size: int) -> None:
    count, dropout = 60, 0.25
    lengths = np.linspace(5, size, count).astype(int)
    layout = PackedLayout.of_mask(np.arange(size) < lengths[:, None], size)
    layout = layout.with_tensors(lambda tensor: tensor.cuda())
    whole = PackedSequences.of(layout, torch.ones(count, 1))
    attend = by_kernel(way, whole, compiled=compiled)
    projected = torch.randn(len(layout.places), 3, HEADS, size, device="cuda", dtype=torch.bfloat16)
    slot = layout.places % size
    # With one-hot values what is read are the weights themselves.
    projected[:, 2] = torch.eye(size, device="cuda", dtype=torch.bfloat16)[slot][:, None]
    weights = attend(projected).float()
    torch.manual_seed(1)
    dropped = attend(projected, dropout).float()
    there = weights > 1e-3
    kept = there & (dropped > 0)
    assert abs(float(kept.sum() / there.sum()) - (1 - dropout)) < 0.01
    torch.testing.assert_close(dropped[kept], weights[kept] / (1 - dropout), rtol=2e-2, atol=2e-2)
    by_head = (kept.sum(dim=(0, 2)) / there.sum(dim=(0, 2))).cpu()
    assert torch.allclose(by_head, torch.full((HEADS,), 1 - dropout), atol=0.02) and len(by_head.unique()) > 1

    # The gradients are those of the same draw.
    along = torch.randn(len(slot), HEADS, size, device="cuda", dtype=torch.bfloat16)
    projected = projected.requires_grad_()
    torch.manual_seed(1)
    (gradient,) = torch.autograd.grad(attend(projected, dropout), projected, along)
    single = projected.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(
        attention_written_out(single, layout.offsets, dropped > 0, dropout), single, along.float()
    )
    torch.testing.assert_close(gradient.float(), expected, rtol=5e-2, atol=5e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="without a GPU everything is in groups")
def test_on_a_gpu_any_lengths_and_numbers_of_groups_have_one_graph() -> None:
    torch.compiler.reset()
    counters.clear()
    changes = {"hidden_size": 128, "num_attention_heads": 2, "attention_probs_dropout_prob": 0.1}
    model = model_of(VinVLForAnswering, "packed", **changes).cuda().train()
    model.bert.compile_layers(backend="eager")
    compiled, groups = 0, set()
    for number in range(6):
        given_ = batch_of([(4 + number, 3), (3, 2 + number % 2), (2, 1), (1, 0)][: 2 + number % 3], seed=number)
        layout = PackedLayout.of_mask(given_["attention_mask"].numpy(), given_["input_ids"].shape[1])
        groups.add(len(layout.groups))
        layout = layout.with_tensors(lambda tensor: tensor.cuda())
        with torch.autocast("cuda", torch.bfloat16):
            logits = model(**{name: value.cuda() for name, value in given_.items()}, layout=layout).logits
        logits.sum().backward()
        if number == 1:
            compiled = counters["stats"]["unique_graphs"]
    assert len(groups) > 1
    assert compiled > 0 and counters["stats"]["unique_graphs"] == compiled, counters
    torch.compiler.reset()
