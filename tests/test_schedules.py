"""Schedules and parameter groups against the published order."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from vinvl.schedules import cosine_schedule, linear_schedule, multistep_schedule
from vinvl.task import detector_parameter_groups, parameter_groups


def rates(make, steps: int, **settings: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **settings)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_linear_without_offset_starts_at_zero_and_ends_above_it() -> None:
    assert rates(linear_schedule, 6, total_steps=6, warmup_steps=2, first_step=0) == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]


def test_published_fine_tuning_order_uses_the_next_factor_and_ends_at_zero() -> None:
    assert rates(linear_schedule, 6, total_steps=6, warmup_steps=2, first_step=1) == [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_recorded_rates_of_the_published_code() -> None:
    recorded = json.loads((Path(__file__).parent / "data/golden/oscar/fine_tuning_rates.json").read_text())
    ours = rates(linear_schedule, 6, total_steps=recorded["t_total"], warmup_steps=recorded["warmup"], first_step=1)
    assert [rate * recorded["lr"] for rate in ours] == pytest.approx(recorded["lrs"], rel=1e-12)


def test_cosine_goes_from_one_to_zero() -> None:
    seen = rates(cosine_schedule, 11, total_steps=10, warmup_steps=2, first_step=0)
    assert seen[:3] == [0.0, 0.5, 1.0] and seen[6] == pytest.approx(0.5) and seen[10] == pytest.approx(0.0)


def test_biases_and_layer_norms_do_not_decay() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(2, 2)
            self.LayerNorm = nn.LayerNorm(2)
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

    model = Model()
    decayed, spared = parameter_groups(model, 0.05)
    assert decayed["weight_decay"] == 0.05 and spared["weight_decay"] == 0.0
    assert [id(p) for p in decayed["params"]] == [id(model.dense.weight)]
    assert {id(p) for p in spared["params"]} == {id(p) for p in (model.dense.bias, *model.LayerNorm.parameters())}


def test_multistep_warms_up_and_falls_after_shares_of_the_run() -> None:
    settings: dict = {"warmup_steps": 4, "warmup_factor": 0.5, "milestones": [0.8, 0.6], "gamma": 0.1}
    found = rates(multistep_schedule, 10, total_steps=10, **settings)
    assert found == pytest.approx([0.5, 0.625, 0.75, 0.875, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rates(multistep_schedule, 2, total_steps=2, **{**settings, "warmup_steps": 0, "milestones": []}) == [1, 1]


def test_detectors_decay_weights_alone_and_biases_may_learn_faster() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2, bias=False))
    model[2].requires_grad_(False)
    weights, scales, biases = detector_parameter_groups(model, weight_decay=0.1, bias_lr_factor=2.0)
    assert weights == {"params": [model[0].weight], "weight_decay": 0.1, "lr_factor": 1.0}
    assert scales == {"params": [model[1].weight], "weight_decay": 0.0, "lr_factor": 1.0}
    assert biases == {"params": [model[0].bias, model[1].bias], "weight_decay": 0.0, "lr_factor": 2.0}
    assert len(detector_parameter_groups(model[0], 0.1, 1.0)) == 2
