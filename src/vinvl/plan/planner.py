"""The plan of a run: reads what there is, measures some updates, and prints one table. Writes nothing."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from vinvl.errors import UserError, say
from vinvl.metrics.model_flops import StepCosts
from vinvl.plan.estimate import Memory, RunCost, run_cost
from vinvl.plan.made import BERT_WORDS, MadeData
from vinvl.plan.measurement import Pace, Stopwatch, measure
from vinvl.plan.options import PlanOptions
from vinvl.plan.run_length import RunLength, number_of_devices, run_length
from vinvl.plan.sources import resident_bytes, why_unreadable
from vinvl.plan.table import plan_rows
from vinvl.plan.workload import Workload, sampled_workload
from vinvl.report.table import print_results
from vinvl.runs import remove_empty_run
from vinvl.tasks.base import VinVLTask

STAND_IN = "vinvl.plan.made.stand_in_task"


@dataclass(frozen=True)
class Plan:
    """All that the table tells.

    Attributes:
        why_made: why made batches stand in for the data; None where the run's own were read.
        datamodule: set up where the data were read.
        workload: of some samples like those of the run.
        pace: None where `options.samples_per_second` was given.
        samples_per_second: of one device.
        host_memory: bytes of this process with the data open; None where they are not or the system does not say.
        kept_checkpoints: files at the end of the run.
        device: what was measured on.
    """

    options: PlanOptions
    why_made: str | None
    datamodule: Any
    length: RunLength
    devices: int
    samples_per_update: float  # of one device
    workload: Workload
    pace: Pace | None
    samples_per_second: float
    cost: RunCost
    memory: Memory
    host_memory: int | None
    kept_checkpoints: int
    device: str


def plan(config: DictConfig) -> dict[str, float]:
    """Prints what the run of a composed configuration would cost, and leaves no run folder behind.

    Returns:
        the main figures: samples, flops, samples_per_second of one device, hours, device_hours.

    Raises:
        UserError: a configuration that cannot be planned.
    """
    try:
        made = make_plan(config)
    finally:
        _remove_run_folder(config)
    title = f"What {config.name} will cost, without start-up, evaluation, checkpoints and talk between devices"
    print_results(title, plan_rows(made), {}, columns=("what", "estimate", "how it is known"))
    if made.why_made is not None:  # not in the table, whose columns would wrap it
        say(f"The data could not be read, so made batches stand in for them: {made.why_made}")
    cost = made.cost
    return {
        "samples": float(made.length.samples),
        "flops": cost.flops,
        "samples_per_second": made.samples_per_second,
        "hours": cost.hours,
        "device_hours": cost.device_hours,
    }


def make_plan(config: DictConfig) -> Plan:
    """The plan of a composed configuration; see `plan`."""
    options = PlanOptions.of(config.plan)
    if config.ckpt_path is not None:
        raise UserError("A plan is of a whole run: leave ckpt_path out.")
    if config.torch_threads is not None:
        torch.set_num_threads(config.torch_threads)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    pl.seed_everything(config.seed, verbose=False)
    datamodule = instantiate(config.data)
    why_made = why_unreadable(datamodule)
    stand_ins = None if why_made is None else _stand_ins(config, datamodule, why_made)
    items = options.items if why_made is not None else len(datamodule.datasets["train"])
    devices = options.devices or number_of_devices(config.trainer)
    length = run_length(config.trainer, items=items, batch_size=datamodule.batch_size, devices=devices)
    host_memory = None if why_made is not None else resident_bytes()
    if stand_ins is None:
        data, task = datamodule, instantiate(config.task, datamodule=datamodule, init=None)  # weights cost no time
        workload = sampled_workload(datamodule)
    else:
        data, task = stand_ins
        workload = data.workload()
    trainer, device = _available(config.trainer)
    if config.compile.enabled:
        device += ", without torch.compile"
    watch, pace = measure(
        task,
        data,
        trainer,
        batch_size=datamodule.batch_size,
        seconds=options.seconds,
        timed=options.samples_per_second is None,
        rows_per_sample=workload.rows / workload.samples,
    )
    costs = StepCosts.of(task.config)
    per_update = length.samples / length.updates / devices
    rate = options.samples_per_second or _rate(pace, workload, costs, per_update)
    return Plan(
        options=options,
        why_made=why_made,
        datamodule=datamodule,
        length=length,
        devices=devices,
        samples_per_update=per_update,
        workload=workload,
        pace=pace,
        samples_per_second=rate,
        cost=run_cost(length, workload, costs, samples_per_second=rate, devices=devices),
        memory=_memory(task, watch, datamodule, workload, checkpointing=config.task.gradient_checkpointing),
        host_memory=host_memory,
        kept_checkpoints=_kept_checkpoints(config.callbacks),
        device=device,
    )


def _stand_ins(config: DictConfig, datamodule: Any, why: str) -> tuple[MadeData, VinVLTask]:
    """Made batches and a task of the configured size, for data that cannot be read."""
    sizes = config.model.config
    try:
        data = MadeData(datamodule, feature_dim=sizes.img_feature_dim, vocab_size=sizes.vocab_size or BERT_WORDS)
    except UserError as error:
        raise UserError(f"{error}, and these cannot be read: {why}") from None
    settings = OmegaConf.create(OmegaConf.to_container(config.task, resolve=False), parent=config)
    with open_dict(settings):
        settings.update({"_target_": STAND_IN, "init": None, "options": {}})
    return data, instantiate(settings)


def _available(trainer: DictConfig) -> tuple[DictConfig, str]:
    """The trainer's configuration for a device that this machine has, and what that is."""
    wants = str(trainer.get("accelerator", "auto"))
    if wants in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return trainer, torch.cuda.get_device_name()
    name = f"this CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
    if wants in ("auto", "cpu"):
        return trainer, name if wants == "cpu" or not torch.accelerator.is_available() else "this machine's accelerator"
    other = OmegaConf.merge(trainer, {"accelerator": "cpu", "precision": "32-true"})
    assert isinstance(other, DictConfig)
    return other, f"{name}: there is no {wants} here"


def _rate(pace: Pace | None, workload: Workload, costs: StepCosts, samples_per_update: float) -> float:
    """Samples a second of one device in the run, whose samples may be longer than those that were timed."""
    assert pace is not None
    ratio = workload.flops_per_sample(costs) / pace.workload.flops_per_sample(costs)
    return pace.samples_per_second(samples_per_update, ratio)


def _memory(task: VinVLTask, watch: Stopwatch, datamodule: Any, workload: Workload, *, checkpointing: bool) -> Memory:
    limits = datamodule.limits
    longest = limits.max_tokens + (limits.max_regions if limits.use_regions else 0)
    rows = datamodule.batch_size * workload.rows / workload.samples
    parameters = list(task.parameters())
    return Memory(
        weights=sum(parameter.nbytes for parameter in parameters),
        gradients=sum(parameter.nbytes for parameter in parameters if parameter.requires_grad),
        optimizer_state=watch.optimizer_bytes,
        activations=None if checkpointing else watch.saved.at(round(rows * longest)),
    )


def _kept_checkpoints(callbacks: DictConfig) -> int:
    """Files that the checkpoint callbacks of a configuration keep; those that keep all count as one."""
    return sum(
        abs(int(callback.save_top_k)) for callback in callbacks.values() if callback and "save_top_k" in callback
    )


def _remove_run_folder(config: DictConfig) -> None:
    """Removes what Hydra has made for the run: its folder, and those above it up to `paths.runs_dir` if empty."""
    folder, runs = Path(config.paths.output_dir).absolute(), Path(config.paths.runs_dir).absolute()
    remove_empty_run(folder)
    if folder.exists() or runs not in folder.parents:
        return
    with suppress(OSError):  # as soon as one is not empty
        for parent in folder.parents:
            parent.rmdir()
            if parent == runs:
                break
