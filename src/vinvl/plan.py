"""What a run will cost, told instead of running it: `python -m vinvl.train experiment=NAME +plan=true`.

Some updates and some batches of an evaluation are done for real, on the run's own data and on one device of this
machine, and multiplied by how many of them the run has.
"""

import math
import resource
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vinvl.data.module import RegionDataModule
from vinvl.run.door import made, remove_empty_run
from vinvl.run.errors import UserError
from vinvl.run.machine import devices_of_a_node
from vinvl.run.progress import duration, print_results
from vinvl.schedules import refuse_unfit
from vinvl.task import VinVLTask
from vinvl.zoo import zoo

WARM_UP, UPDATES, EVALUATION_BATCHES = 2, 20, 10
SECONDS = 20.0  # no more updates after so long
ENDLESS_STEPS, LIGHTNINGS_EPOCHS = 10**9, 1000


def wants_plan(config: DictConfig) -> bool:
    """Whether the command asks for a plan instead of a run; UserError if in another way, or of the rest of a run."""
    asked = config.get("plan") or False
    if not isinstance(asked, bool):
        raise UserError(f"plan is {asked!r}: pass +plan=true.")
    if asked and config.ckpt_path is not None:
        raise UserError("A plan is of a whole run: leave ckpt_path out.")
    cut = next((flag for flag in ("fast_dev_run", "overfit_batches") if config.trainer.get(flag)), None)
    if asked and cut is not None:
        raise UserError(f"A plan is of a whole run: leave trainer.{cut} out.")
    return asked


class Stopwatch(Callback):
    """Times batches after some updates to warm up, and the batches of evaluations; ends the training.

    Attributes:
        batches, samples, slots, seconds: of what was timed; slots are positions of sequences, padding included.
        evaluated, evaluation_seconds: batches of evaluations, and how long they took.
        flops_per_slot: forward and backward, as torch counts them in the first batch.
    """

    def __init__(self) -> None:
        self.batches = self.samples = self.slots = self.evaluated = 0
        self.seconds = self.evaluation_seconds = self.flops_per_slot = 0.0
        self._counter: FlopCounterMode | None = FlopCounterMode(display=False)
        self._began = self._since = time.perf_counter()
        self._warm = False

    def on_train_batch_start(self, *_: Any) -> None:
        if self._counter is not None:
            self._counter.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        slots = math.prod(batch.attention_mask.shape[:2])
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self.flops_per_slot, self._counter = self._counter.get_total_flops() / slots, None
        now = _now()
        over = now - self._began > SECONDS
        if self._warm:
            self.batches += 1
            self.samples += batch.num_items
            self.slots += slots
            self.seconds += now - self._since
        self._warm = self._warm or over or trainer.global_step >= WARM_UP
        self._since = now
        if self.batches >= UPDATES * trainer.accumulate_grad_batches or (over and self.batches):
            trainer.should_stop = True

    def on_validation_batch_start(self, *_: Any) -> None:
        self._since = _now()

    def on_validation_batch_end(self, *_: Any) -> None:
        self.evaluated += 1
        self.evaluation_seconds += _now() - self._since

    def on_validation_end(self, *_: Any) -> None:
        self._since = _now()


def plan(config: DictConfig, task: VinVLTask, datamodule: RegionDataModule) -> dict[str, float]:
    """Prints what the run of a composed configuration will cost, and takes its folder away.

    Args:
        task, datamodule: those of the run, set up for training.

    Returns:
        what is to be known, by name; times are seconds, sizes bytes.

    Raises:
        UserError: a run without an end, or one that could not begin.
    """
    settings, watch, items = config.trainer, Stopwatch(), len(datamodule.datasets["train"])
    devices = number_of_devices(settings)
    of_a_pass = math.ceil(len(datamodule.train_dataloader()) / devices)
    updates, batches, evaluations = run_length(settings, of_a_pass)
    trainer = _one_device(settings, watch)
    refuse_unfit(task, trainer)
    trainer.fit(task, datamodule=datamodule)
    of_split = _limited(math.ceil(len(datamodule.val_dataloader()) / devices), settings.get("limit_val_batches"))
    states = [state for optimizer in trainer.optimizers for state in optimizer.state.values()]
    tensors = [*task.parameters(), *(one for state in states for one in state.values() if isinstance(one, Tensor))]
    saving = [one for one in config.callbacks.values() if one and str(one.get("_target_")).endswith("Checkpoint")]
    epochs, rate = batches / of_a_pass, watch.samples / watch.seconds
    found = {
        "devices": devices,
        "batch": int(config.data.batch_size),
        "accumulated": int(settings.get("accumulate_grad_batches") or 1),
        "updates": updates,
        "epochs": epochs,
        "samples": items * epochs,
        "rate": rate,
        "flops": watch.flops_per_slot * watch.slots / watch.samples * items * epochs,
        "training": items * epochs / rate / devices,
        "evaluation": watch.evaluation_seconds / max(watch.evaluated, 1) * of_split * evaluations,
        "host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "checkpoint": sum(tensor.nbytes for tensor in tensors),
        "checkpoints": sum(abs(int(one.get("save_top_k", 1))) for one in saving),
        "store": sum(header.path.stat().st_size for header in datamodule.store.headers),
    }
    where = trainer.strategy.root_device.type
    if where == "cuda":
        where, found["device"] = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated()
    if config.compile.enabled:
        where += ", without torch.compile"
    measured = (f"measured: {watch.batches} batches, {where}", f"measured: {watch.evaluated} batches")
    rows = _rows(found, *measured, zoo()["recipes"].get(config.name, {}))
    print_results(f"What {config.name} will cost", rows, {}, ("what", "estimate", "how it is known"))
    remove_empty_run(Path(config.paths.output_dir), Path(config.paths.runs_dir))
    return found


def _rows(
    found: dict[str, float], training: str, evaluation: str, recipe: dict[str, Any]
) -> list[tuple[str, str, str]]:
    """(what, estimate, how it is known), of which the last are given for training and evaluation.

    `recipe`: what conf/_zoo.yaml says of it, {} of one's own.
    """
    unstated = recipe.get("here", {}).get(
        "trainer.devices", {"because": "assumed to be as much faster as they are more"}
    )
    batch, published = found["batch"], recipe.get("published", {})
    product = f"{batch:,} a device × {found['devices']:,} × {found['accumulated']:,} accumulated"
    if "data.batch_size" in published:
        gpus = published.get("trainer.devices", "how many is not stated")
        product += f"; published: {published['data.batch_size']:,} a GPU, GPUs: {gpus}"
    total, kept = found["training"] + found["evaluation"], f"the run keeps {found['checkpoints']}, and one in writing"
    return [
        ("updates", f"{found['updates']:,}", "configured"),
        ("epochs", f"{found['epochs']:,.2f}", "computed from the training split"),
        ("samples", f"{found['samples']:,.0f}", "computed"),
        ("FLOPs", f"{found['flops']:.3g}", "counted in one batch, forward and backward"),
        ("samples/s of a device", f"{found['rate']:,.4g}", training),
        ("devices", f"{found['devices']:,}", f"configured; {unstated['because']}"),
        ("batch of an update", f"{batch * found['devices'] * found['accumulated']:,}", f"configured: {product}"),
        ("an epoch", duration(found["training"] / found["epochs"]), "computed"),
        ("training", duration(found["training"]), "computed"),
        ("evaluation", duration(found["evaluation"]), evaluation),
        ("time", duration(total), "computed, without start-up, checkpoints and talk between devices"),
        ("  times devices", duration(total * found["devices"]), "computed"),
        ("device memory", size(found["device"]) if "device" in found else "none", "measured: peak of these batches"),
        ("host memory", size(found["host"]), "measured: peak of a rank"),
        ("a checkpoint", size(found["checkpoint"]), f"computed; {kept}"),
        ("region store", size(found["store"]), "measured; what data.cache would keep"),
    ]


def _one_device(settings: DictConfig, watch: Stopwatch) -> pl.Trainer:
    """The run's trainer, on one device that this machine has, without an end."""
    on_cpu = settings.get("accelerator") == "cpu" or not torch.accelerator.is_available()
    given = {"precision": "32-true"} if on_cpu and settings.get("precision") == "16-mixed" else {}
    trainer: pl.Trainer = made(
        pl.Trainer,
        settings,
        "trainer",
        **given,
        accelerator="cpu" if on_cpu else "auto",
        devices=1,
        num_nodes=1,
        strategy="auto",
        max_epochs=-1,
        max_steps=ENDLESS_STEPS,
        limit_train_batches=1.0,
        check_val_every_n_epoch=1,
        val_check_interval=1.0,
        limit_val_batches=EVALUATION_BATCHES if settings.get("limit_val_batches") != 0 else 0,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        profiler=None,
    )
    return trainer


def number_of_devices(settings: Any) -> int:
    """Devices on all nodes as the trainer's settings have it."""
    return int(settings.get("num_nodes", 1)) * devices_of_a_node(settings)


def run_length(settings: Any, of_a_pass: int) -> tuple[int, int, int]:
    """Updates, batches of a device and evaluations of a run that nothing stops early.

    Args:
        settings: of the trainer.
        of_a_pass: batches of a device in a pass over the training split.

    Raises:
        UserError: the settings name no end.
    """
    accumulated = int(settings.get("accumulate_grad_batches") or 1)
    max_steps, max_epochs = settings.get("max_steps", -1), settings.get("max_epochs")
    if max_epochs is None:
        max_epochs = -1 if max_steps >= 0 else LIGHTNINGS_EPOCHS
    if max_steps < 0 and max_epochs < 0:
        raise UserError("The run has no end: pass trainer.max_steps=N or trainer.max_epochs=N.")
    of_an_epoch = max(_limited(of_a_pass, settings.get("limit_train_batches")), 1)
    updates_of_it = math.ceil(of_an_epoch / accumulated)
    updates = min(end for end in (max_steps, max_epochs * updates_of_it) if end >= 0)
    whole, rest = divmod(updates, updates_of_it)
    batches = whole * of_an_epoch + rest * accumulated  # an epoch's last update takes what is left of its batches
    every, interval = settings.get("check_val_every_n_epoch", 1), settings.get("val_check_interval", 1.0)
    interval = interval if isinstance(interval, int) else max(int(of_an_epoch * float(interval)), 1)
    if every is None:
        return updates, batches, batches // interval
    return updates, batches, (of_an_epoch // interval) * (whole // every) + rest * accumulated // interval


def _limited(batches: int, limit: float | None) -> int:
    """What Lightning's limit, a number of batches or a share of them, leaves."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * (1.0 if limit is None else limit))


def size(number: float) -> str:
    """Bytes in a unit of which there are not too many."""
    for name, unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= unit:
            return f"{number / unit:,.3g} {name}"
    return f"{number / 1e3:,.3g} kB"


def _now() -> float:
    """The time once the device has done what it was told."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
