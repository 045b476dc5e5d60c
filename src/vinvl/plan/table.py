"""The rows of the table that a plan prints: what, how much, and how that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vinvl.data.pretraining import PretrainingDataModule
from vinvl.plan.sources import corpus_bytes, store_bytes

if TYPE_CHECKING:
    from vinvl.plan.planner import Plan

Row = tuple[str, str, str]


def plan_rows(plan: Plan) -> list[Row]:
    """(what, estimate, how it is known: configured, measured, computed, given or assumed)."""
    return [*_length_rows(plan), *_work_rows(plan), *_time_rows(plan), *_memory_rows(plan), *_disk_rows(plan)]


def _length_rows(plan: Plan) -> list[Row]:
    length, options = plan.length, plan.options
    read = plan.why_made is None
    data = "the run's own" if read else "made"
    how = (
        f"read: {len(plan.datamodule.datasets['train']):,} samples to train on"
        if read
        else "as long as the limits permit"
    )
    epochs = "unknown" if length.epochs is None else f"{length.epochs:,.2f}"
    known = "computed from the training split" if read else "computed from plan.items" if options.items else "no data"
    per_update = plan.samples_per_update * plan.devices
    return [
        ("data", data, how),
        ("updates", f"{length.updates:,}", "configured"),
        ("samples", f"{length.samples:,}", f"computed: {per_update:,.6g} an update"),
        ("epochs", epochs, known),
    ]


def _work_rows(plan: Plan) -> list[Row]:
    cost, workload = plan.cost, plan.workload
    source = "limits" if plan.why_made else f"{workload.samples:,} samples"
    share = f"{100 * workload.padding_share:.1f} %"
    rows = [
        ("text tokens", count(cost.text_tokens), f"computed from {source}"),
        ("regions", count(cost.regions), f"computed from {source}"),
        ("padding", count(cost.padding), f"computed: {share} of all positions"),
        ("FLOPs", f"{cost.flops:.3g}", "computed: forward and backward passes, padding included"),
    ]
    if workload.masked_tokens:
        rows.insert(3, ("hidden tokens", count(cost.masked_tokens), f"computed from {source}"))
    return rows


def _time_rows(plan: Plan) -> list[Row]:
    cost, pace = plan.cost, plan.pace
    if pace is None:
        how = "given"
    else:
        how = f"measured: {pace.workload.samples:,} samples in batches of {pace.batch_size}, on {plan.device}"
    devices = "given" if plan.options.devices else "configured"
    return [
        ("samples/s of a device", f"{plan.samples_per_second:,.4g}", how),
        ("FLOP/s of a device", f"{cost.flops / (cost.device_hours * 3600):.3g}", "computed"),
        ("devices", f"{plan.devices:,}", f"{devices}; assumed to be as much faster as they are more"),
        ("time", hours(cost.hours), "computed"),
        ("  times devices", hours(cost.device_hours), "computed"),
    ]


def _memory_rows(plan: Plan) -> list[Row]:
    memory = plan.memory
    activations = "unknown" if memory.activations is None else size(memory.activations)
    seen = "not known with gradient checkpointing"
    if memory.activations is not None:
        seen = f"measured on 2 samples, for {plan.datamodule.batch_size:,} as long as the limits permit"
    host = "unknown" if plan.host_memory is None else size(plan.host_memory)
    return [
        ("device memory", size(memory.total), "computed: the sum of the next four"),
        ("  weights", size(memory.weights), "computed"),
        ("  gradients", size(memory.gradients), "computed"),
        ("  optimiser", size(memory.optimizer_state), "measured"),
        ("  activations", activations, seen),
        ("host memory of a rank", host, "measured: this process, data open" if plan.host_memory else "no data"),
    ]


def _disk_rows(plan: Plan) -> list[Row]:
    checkpoint, kept = plan.memory.checkpoint, plan.kept_checkpoints
    rows = [
        (
            "checkpoints on disk",
            size(checkpoint * (kept + 1)),
            f"computed: {kept} of {size(checkpoint)}, one in writing",
        )
    ]
    if plan.why_made is not None:
        return rows
    rows.append(("region store", size(store_bytes(plan.datamodule)), "measured"))
    if isinstance(plan.datamodule, PretrainingDataModule):
        files, index = corpus_bytes(plan.datamodule)
        rows += [("corpus", size(files), "measured"), ("its index", size(index), "measured")]
    return rows


def count(number: float) -> str:
    """1234.5 → "1,234"; millions and more with a word."""
    for name, unit in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6)):
        if number >= unit:
            return f"{number / unit:,.4g} {name}"
    return f"{number:,.0f}"


def size(number: float) -> str:
    """Bytes in a unit of which there are not too many."""
    for name, unit in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if number >= unit:
            return f"{number / unit:,.3g} {name}"
    return f"{number / 1e3:,.3g} kB"


def hours(number: float) -> str:
    """To a whole number where that is exact enough; in minutes and seconds where it is short."""
    for name, unit in (("h", 1.0), ("min", 60.0)):
        if number * unit >= 1:
            return f"{number * unit:,.0f} {name}" if number * unit >= 100 else f"{number * unit:.3g} {name}"
    return f"{number * 3600:.3g} s"
