"""Tokens per second, padding and FLOPs utilisation; the costs against what torch counts."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.pretraining.samples import SIZES
from vinvl.models import VinVLConfig, VinVLForPreTraining
from vinvl.pretraining.task import BACKWARD_AND_FORWARD, StepCosts, TrainingPace, peak_flops


def counted_by_torch(step: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


@pytest.mark.parametrize(("text", "regions", "masked"), [(6, 3, 5), (9, 0, 1), (1, 4, 1)])
def test_costs_are_those_that_torch_counts(text: int, regions: int, masked: int) -> None:
    config = VinVLConfig(**SIZES, num_labels=3, attn_implementation="eager")
    model, rows = VinVLForPreTraining(config).eval(), 2
    hidden = torch.zeros(rows, text, dtype=torch.bool)
    hidden.view(-1)[:masked] = True
    ids = torch.zeros(rows, text, dtype=torch.long)
    features = torch.zeros(rows, regions, 10)
    forward = counted_by_torch(lambda: model(ids, region_features=features, masked_positions=hidden))
    costs, length = StepCosts.of(config), text + regions
    step = rows * (length * costs.per_token + length**2 * costs.per_attended_pair + regions * costs.per_region)
    step += masked * costs.per_masked_token + rows * costs.per_row
    assert step == BACKWARD_AND_FORWARD * forward


def test_figures_of_a_window() -> None:
    now = iter([0.0, 2.0, 2.0, 5.0, 90.0, 92.0, 92.0])
    pace = TrainingPace(StepCosts(1000, 100, 10, 7, 3), clock=lambda: next(now))
    mask = torch.tensor([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)  # 3 and 5 of 5; text is 3 wide
    pace.add(mask, 3, 4)
    pace.add(mask[:1], 3, 0)
    found = {name: value.item() for name, value in pace.read(devices=2, peak=1e6).items()}
    flops = 11 * 1000 + (9 + 25 + 9) * 100 + (1 + 2 + 1) * 10 + 4 * 7 + 3 * 3
    assert found == pytest.approx(
        {"tokens_per_second": 11.0, "padding_share": 4 / 15, "flops_utilisation": flops / 2e6}
    )
    assert pace.read(devices=2, peak=None) == {}  # nothing since
    pace.add(mask, 3, 4)
    pace.restart()  # which forgets
    pace.add(mask[1:, :4], 3, 4)
    found = {name: value.item() for name, value in pace.read(devices=1, peak=None).items()}
    assert found == {"tokens_per_second": 2.0, "padding_share": 0.0}


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", 312e12),
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989e12),
        ("NVIDIA H200", "32-true", 67e12),
        ("NVIDIA L40S", "bf16-true", 362e12),
        ("NVIDIA GeForce RTX 4090", "bf16-mixed", 165e12),
        ("NVIDIA A100 80GB PCIe", "32-true", 19.5e12),
        ("Tesla V100-SXM2-32GB", "16-mixed", 125e12),
        ("Tesla V100-SXM2-32GB", "bf16-mixed", None),  # computes it, but not in its tensor cores
        ("NVIDIA L40", "bf16-mixed", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16-mixed", None),  # a slice of it
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16-mixed", None),
        ("NVIDIA H200 NVL", "bf16-mixed", None),
        ("NVIDIA A100-SXM4-80GB", "64-true", None),
        ("", "32-true", None),
    ],
)
def test_known_peaks_alone(device: str, precision: str, peak: float | None) -> None:
    assert peak_flops(device, precision) == peak


@pytest.mark.parametrize(
    ("device", "peak"), [("NVIDIA H200", 494e12), ("NVIDIA L40S", 183e12), ("Tesla V100-SXM2-32GB", None)]
)
def test_tensor_cores_in_float32_have_another_peak(device: str, peak: float | None) -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # as torch.set_float32_matmul_precision("high") does
        assert peak_flops(device, "32-true") == peak
        assert peak_flops(device, "16-mixed") == peak_flops(device, "16-true") != peak
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
