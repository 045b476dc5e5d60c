"""How long a run is: updates, samples and epochs, as Lightning counts them from the trainer's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vinvl.errors import UserError

LIGHTNINGS_EPOCHS = 1000  # where neither max_epochs nor max_steps is given


@dataclass(frozen=True)
class RunLength:
    """Attributes:
    updates: optimiser steps.
    batches: of one device, over the run.
    samples: over the run and all devices; those repeated at the end of an epoch are counted.
    epochs: passes over the training split; None where its size is not known.
    """

    updates: int
    batches: int
    samples: int
    epochs: float | None


def run_length(trainer: Mapping[str, Any], *, items: int | None, batch_size: int, devices: int) -> RunLength:
    """The length of a run that nothing stops early.

    Args:
        trainer: settings of `pytorch_lightning.Trainer`.
        items: size of the training split; None where it is not known.
        batch_size: of a device.
        devices: on all nodes.

    Raises:
        UserError: the settings name no end, or count epochs and the split's size is not known.
    """
    accumulated = int(trainer.get("accumulate_grad_batches") or 1)
    max_steps, max_epochs = trainer.get("max_steps", -1), trainer.get("max_epochs")
    if max_epochs is None:
        max_epochs = -1 if max_steps >= 0 else LIGHTNINGS_EPOCHS
    if max_steps < 0 and max_epochs < 0:
        raise UserError("The run has no end: pass trainer.max_steps=N or trainer.max_epochs=N.")
    if items is None and max_epochs >= 0:
        raise UserError(
            "The run is counted in epochs, and the size of the training split is not known because it cannot be read: "
            "pass +plan.items=N, or trainer.max_steps=N."
        )
    batches_per_epoch = None if items is None else epoch_batches(trainer, items, batch_size, devices)
    updates_per_epoch = None if batches_per_epoch is None else math.ceil(batches_per_epoch / accumulated)
    ends = [] if max_steps < 0 else [max_steps]
    if max_epochs >= 0 and updates_per_epoch is not None:
        ends.append(max_epochs * updates_per_epoch)
    updates = min(ends)
    if batches_per_epoch is None or updates_per_epoch is None:
        batches = updates * accumulated
    else:  # an epoch's last update takes what is left of its batches
        whole, rest = divmod(updates, updates_per_epoch)
        batches = whole * batches_per_epoch + rest * accumulated
    if items is None:
        return RunLength(updates, batches, batches * batch_size * devices, None)
    mean_batch = items / math.ceil(items / batch_size)  # the last one of an epoch may be smaller
    samples = round(batches * devices * mean_batch)
    return RunLength(updates, batches, samples, samples / items)


def epoch_batches(trainer: Mapping[str, Any], items: int, batch_size: int, devices: int) -> int:
    """Batches of one device in what Lightning calls an epoch."""
    batches = math.ceil(math.ceil(items / batch_size) / devices)
    limit = trainer.get("limit_train_batches", 1.0)
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def number_of_devices(trainer: Mapping[str, Any]) -> int:
    """Devices on all nodes as the trainer's settings have it; "auto" is all of this machine's accelerators, or 1.

    Raises:
        UserError: they cannot be counted.
    """
    devices, nodes = trainer.get("devices", 1), int(trainer.get("num_nodes", 1))
    if isinstance(devices, list):
        return len(devices) * nodes
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if devices in ("auto", -1, "-1"):
        return max(torch.accelerator.device_count(), 1) * nodes
    if not isinstance(devices, int) or devices < 1:
        raise UserError(f"trainer.devices is {devices!r}: pass +plan.devices=N for the number of devices on all nodes.")
    return devices * nodes
