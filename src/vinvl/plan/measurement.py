"""Real updates by the trainer that a run would have, on one device of this machine: how long they take."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from vinvl.data.batch import Batch
from vinvl.plan.workload import Workload
from vinvl.tasks.base import VinVLTask

PROBE_BATCH, PROBE_BATCHES = 2, 2
LEAST_BATCHES, MOST_BATCHES = 3, 100  # timed ones: batches are made so small that the least fit into the time
ENDLESS_STEPS = 10**9


@dataclass(frozen=True)
class Pace:
    """How fast one device was.

    Attributes:
        batch_size: samples of each timed batch.
        workload: what was computed.
        batch_seconds: spent on waiting for data and on forward and backward passes, in all.
        update_seconds: spent on clipping, optimiser and schedule, an update on average.
    """

    batch_size: int
    workload: Workload
    batch_seconds: float
    update_seconds: float

    def samples_per_second(self, samples_per_update: float, cost_ratio: float = 1.0) -> float:
        """Of one device in a run with so many samples of one device an update.

        Args:
            samples_per_update: of one device.
            cost_ratio: FLOPs of a sample of the run over those of a timed one.
        """
        seconds = self.batch_seconds / self.workload.samples * cost_ratio + self.update_seconds / samples_per_update
        return 1 / seconds


class Stopwatch(Callback):
    """Times batches and updates, and ends the training when the time is over.

    Each batch is an update. The first batch warms up: it is not timed, but the tensors that it keeps for its backward
    pass are counted.

    Attributes:
        saved: what the first batch kept for its backward pass.
        optimizer_bytes: of the optimiser's state.
        workload, batch_seconds, update_seconds: sums over the timed batches.
    """

    def __init__(self, *, seconds: float, batches: int, rows_per_sample: float) -> None:
        """Ends after `batches` timed batches, or as soon as `seconds` are over and one has been timed."""
        self.seconds = seconds
        self.batches = batches
        self.rows_per_sample = rows_per_sample
        self.saved = SavedBytes()
        self.optimizer_bytes = 0
        self.workload = Workload()
        self.timed = 0
        self.batch_seconds = 0.0
        self.update_seconds = 0.0
        self._warm = False
        self._started = self._since = self._update_began = time.perf_counter()
        self._hooks: saved_tensors_hooks | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        if not self._warm:
            self.saved.spare(pl_module)
            self._hooks = saved_tensors_hooks(self.saved.see, _unchanged)
            self._hooks.__enter__()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        if self._hooks is not None:
            self._hooks.__exit__(None, None, None)
            self._hooks = None

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any) -> None:
        self._update_began = _now(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        end = _now(pl_module.device)
        workload = Workload.of(batch, round(len(batch) / self.rows_per_sample))
        if self._warm:
            self.timed += 1
            self.workload += workload
            self.batch_seconds += self._update_began - self._since
            self.update_seconds += end - self._update_began
        else:
            self._warm, self.saved.slots = True, workload.slots
            states = (state for optimizer in trainer.optimizers for state in optimizer.state.values())
            self.optimizer_bytes = sum(t.nbytes for state in states for t in state.values() if isinstance(t, Tensor))
        self._since = end
        over = end - self._started > self.seconds
        trainer.should_stop = self.timed >= self.batches or (self.timed > 0 and over)

    def pace(self, batch_size: int) -> Pace:
        return Pace(batch_size, self.workload, self.batch_seconds, self.update_seconds / max(self.timed, 1))


class SavedBytes:
    """Bytes that a forward pass keeps for the backward pass, parameters left out; a storage counts once.

    Attributes:
        scaled: bytes that grow with the batch.
        fixed: bytes of copies of weights, as autocast makes them.
        slots: positions of the batch.
    """

    def __init__(self) -> None:
        self.scaled = 0
        self.fixed = 0
        self.slots = 0
        self._seen: set[int] = set()
        self._weight_sizes: set[int] = set()

    def spare(self, module: torch.nn.Module) -> None:
        """Leaves out the module's parameters."""
        parameters = list(module.parameters())
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._weight_sizes = {parameter.numel() for parameter in parameters if parameter.dim() > 1}

    def see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            if storage.nbytes() // tensor.element_size() in self._weight_sizes:
                self.fixed += storage.nbytes()
            else:
                self.scaled += storage.nbytes()
        return tensor

    def at(self, slots: int) -> int:
        """Bytes that a batch of so many positions would keep."""
        return self.fixed + round(self.scaled / self.slots * slots)


def measure(
    task: VinVLTask,
    data: Any,
    trainer: DictConfig,
    *,
    batch_size: int,
    seconds: float,
    timed: bool,
    rows_per_sample: float,
) -> tuple[Stopwatch, Pace | None]:
    """What an update keeps in memory, and the pace; on real batches, or made ones.

    A probe of tiny batches tells how large a batch can be timed; the batches of the run, if they fit.

    Args:
        task: real or stand-in.
        data: a datamodule that has been set up, or a `MadeData`; their `batch_size` is changed and put back.
        trainer: the trainer's configuration.
        batch_size: of the run.
        seconds: about how long it may take, the start not counted.
        timed: False leaves the pace out.
        rows_per_sample: rows that an item of the dataset becomes.
    """
    configured = data.batch_size
    train = partial(_train, task, data, trainer, seconds=seconds, rows_per_sample=rows_per_sample)
    try:
        probe = train(PROBE_BATCH, PROBE_BATCHES - 1)
        if not timed:
            return probe, None
        a_sample = probe.batch_seconds / probe.workload.samples
        share = max(seconds / (LEAST_BATCHES + 1) - probe.update_seconds, 0) / a_sample
        size = min(batch_size, 2 ** (int(max(share, 1)).bit_length() - 1))  # the power of two that fits
        return probe, train(size, MOST_BATCHES).pace(size)
    finally:
        data.batch_size = configured


def _train(
    task: VinVLTask,
    data: Any,
    trainer: DictConfig,
    batch_size: int,
    batches: int,
    *,
    seconds: float,
    rows_per_sample: float,
) -> Stopwatch:
    data.batch_size = batch_size
    watch = Stopwatch(seconds=seconds, batches=batches, rows_per_sample=rows_per_sample)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: pl.Trainer = instantiate(
            trainer,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            devices=1,
            num_nodes=1,
            strategy="auto",
            accumulate_grad_batches=1,
            max_epochs=-1,
            max_steps=ENDLESS_STEPS,
            limit_train_batches=1.0,
            limit_val_batches=0,
            profiler=None,
            default_root_dir=None,
        )
        # Loaders, not the datamodule: Lightning would let that prepare its data, which may write files.
        made.fit(task, train_dataloaders=data.train_dataloader())
    return watch


def _now(device: torch.device) -> float:
    """The time once the device has done what it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter()


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor
