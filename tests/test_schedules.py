"""Schedules and parameter groups against the published order."""

from typing import Any

import pytest
import torch
from torch import nn

from tests import golden
from vinvl.detector.task import parameter_groups as detector_parameter_groups
from vinvl.schedules import constant_schedule, cosine_schedule, linear_schedule, multistep_schedule
from vinvl.task import parameter_groups


def rates(make, steps: int, **settings: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer, **settings)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize(
    ("make", "first_step", "expected"),
    [
        (linear_schedule, 0, [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        (linear_schedule, 1, [0.5, 1.0, 0.75, 0.5, 0.25, 0.0]),  # the published fine-tuning order
        (cosine_schedule, 0, [0.0, 0.5, 1.0, 0.8535533906, 0.5, 0.1464466094]),
        (constant_schedule, 1, [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_warm_up_and_decay(make: Any, first_step: int, expected: list[float]) -> None:
    assert rates(make, 6, total_steps=6, warmup_steps=2, first_step=first_step) == pytest.approx(expected)


RECORDED = golden.facts("oscar/optimizer_schedule")


class PublishedAdamW(torch.optim.Optimizer):
    """The published update: epsilon is added before the bias correction, and decay comes after the step."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, eps: float = 1e-8) -> None:
        super().__init__(groups, {"lr": lr, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                count = state["count"] = state.get("count", 0) + 1
                first = state.setdefault("first", torch.zeros_like(parameter))
                second = state.setdefault("second", torch.zeros_like(parameter))
                first.lerp_(parameter.grad, 0.1)
                second.lerp_(parameter.grad.square(), 0.001)
                size = group["lr"] * (1 - 0.999**count) ** 0.5 / (1 - 0.9**count)
                parameter.addcdiv_(first, second.sqrt() + group["eps"], value=-size)
                parameter.mul_(1 - group["lr"] * group["weight_decay"])


# torch's AdamW differs by design (epsilon after the bias correction, decay before the step): at a rate of 0.01 and a
# decay of 0.05, over these steps, by less than 5e-5.
@pytest.mark.parametrize(("optimiser_class", "difference"), [(PublishedAdamW, 1e-6), (torch.optim.AdamW, 5e-5)])
@pytest.mark.parametrize("run", RECORDED, ids=lambda run: f"{run['schedule']}-{run['warmup']}-{run['order']}")
def test_recorded_runs_of_the_published_code(run: dict[str, Any], optimiser_class: Any, difference: float) -> None:
    """Rates, clipped norms and parameters of every step, given the recorded gradients."""
    names = {name.replace(".", "/"): name for name in run["init"]}
    model = nn.Module()
    for ours, name in names.items():
        model.register_parameter(ours, nn.Parameter(torch.tensor(run["init"][name])))
    parameters = {name: model.get_parameter(ours) for ours, name in names.items()}
    parameters["frozen"].requires_grad_(False)
    # `parameter_groups` goes by names.
    model.named_parameters = lambda: parameters.items()  # type: ignore[method-assign,assignment,return-value]
    optimiser = optimiser_class(parameter_groups(model, run["weight_decay"]), lr=run["lr"], eps=run["eps"])
    make = {"linear": linear_schedule, "constant": constant_schedule}[run["schedule"]]
    first_step = {"scheduler_first": 1, "optimizer_first": 0}[run["order"]]
    schedule = make(optimiser, total_steps=run["t_total"], warmup_steps=run["warmup"], first_step=first_step)
    for step in run["steps"]:
        assert optimiser.param_groups[0]["lr"] == pytest.approx(step["lr_used"], rel=1e-12)
        for name, gradient in step["grads"].items():
            parameters[name].grad = torch.tensor(gradient)
        norm = nn.utils.clip_grad_norm_(parameters.values(), run["clip"])
        assert norm.item() == pytest.approx(step["grad_norm"], rel=1e-6)
        optimiser.step()
        schedule.step()
        for name, recorded in step["params"].items():
            torch.testing.assert_close(parameters[name].detach(), torch.tensor(recorded), rtol=0, atol=difference)


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
    everything, nothing = parameter_groups(model, 0.05, [])  # as in MMF
    assert len(everything["params"]) == 4 and everything["weight_decay"] == 0.05 and not nothing["params"]


def test_multistep_warms_up_and_falls_after_shares_of_the_run() -> None:
    settings: dict = {"warmup_steps": 4, "warmup_factor": 0.5, "milestones": [0.8, 0.6], "gamma": 0.1}
    found = rates(multistep_schedule, 10, total_steps=10, **settings)
    assert found == pytest.approx([0.5, 0.625, 0.75, 0.875, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rates(multistep_schedule, 2, total_steps=2, **{**settings, "warmup_steps": 0, "milestones": []}) == [1, 1]


def test_detectors_decay_weights_alone_and_biases_may_learn_faster() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2, bias=False))
    model[2].requires_grad_(False)
    weights, scales, biases = detector_parameter_groups(model, weight_decay=0.1, bias_lr_factor=2.0)
    assert weights == {"params": [model[0].weight], "weight_decay": 0.1, "lr_factor": 1.0, "name": "weights"}
    assert scales == {"params": [model[1].weight], "weight_decay": 0.0, "lr_factor": 1.0, "name": "norms"}
    both = [model[0].bias, model[1].bias]
    assert biases == {"params": both, "weight_decay": 0.0, "lr_factor": 2.0, "name": "biases"}
    assert len(detector_parameter_groups(model[0], 0.1, 1.0)) == 2
