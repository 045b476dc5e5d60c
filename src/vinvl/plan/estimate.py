"""From measured and configured numbers to what a run costs: arithmetic alone."""

from __future__ import annotations

from dataclasses import dataclass

from vinvl.metrics.model_flops import StepCosts
from vinvl.plan.run_length import RunLength
from vinvl.plan.workload import Workload


@dataclass(frozen=True)
class Memory:
    """Bytes on a device."""

    weights: int
    gradients: int
    optimizer_state: int
    activations: int | None  # kept for the backward pass of the largest batch that the limits permit; None: not known

    @property
    def total(self) -> int:
        """Without what is not known; buffers of kernels and of communication come on top."""
        return self.weights + self.gradients + self.optimizer_state + (self.activations or 0)

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint file."""
        return self.weights + self.optimizer_state


@dataclass(frozen=True)
class RunCost:
    """What a whole run costs.

    Attributes:
        text_tokens, regions, padding, masked_tokens: that go through the model, over the run.
        flops: of the forward and backward passes, padding included.
        hours: of training alone.
        device_hours: hours times devices.
    """

    text_tokens: float
    regions: float
    padding: float
    masked_tokens: float
    flops: float
    hours: float
    device_hours: float


def run_cost(
    length: RunLength, workload: Workload, costs: StepCosts, *, samples_per_second: float, devices: int
) -> RunCost:
    """What a run of this length costs.

    Args:
        length: see `run_length`.
        workload: of some samples that are like those of the run.
        costs: of the model.
        samples_per_second: of one device. More of them are taken to be as much faster as they are more.
        devices: on all nodes.
    """
    times = length.samples / workload.samples
    hours = length.samples / (samples_per_second * devices) / 3600
    return RunCost(
        text_tokens=workload.text_tokens * times,
        regions=workload.regions * times,
        padding=(workload.slots - workload.text_tokens - workload.regions) * times,
        masked_tokens=workload.masked_tokens * times,
        flops=workload.flops(costs) * times,
        hours=hours,
        device_hours=hours * devices,
    )
