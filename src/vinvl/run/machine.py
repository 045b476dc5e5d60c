"""What this machine can do of what a command asks of it: processes, devices, precisions, compilers."""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from vinvl.run.errors import UserError

WORKERS = ("data.num_workers", "data.index_workers", "workers", "features.workers")
COUNTS = ("data.batch_size", "data.eval_batch_size", "batch_size", "trainer.accumulate_grad_batches", "torch_threads")
MOST_PROCESSES = 1024  # that anybody can mean
CGROUPS = Path("/sys/fs/cgroup")
LAUNCHERS = (
    "MASTER_ADDR",
    "TORCHELASTIC_RUN_ID",
    "SLURM_NTASKS",
    "LSB_JOBID",
    "KUBERNETES_PORT",
    "OMPI_COMM_WORLD_SIZE",
)
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs", "lite")
FLEX = "flex_attention"  # which torch compiles


def refuse_unsuited(config: DictConfig) -> None:
    """Raises UserError for numbers that nobody can mean, and for what this machine cannot do: before anything is read.

    Warns of what it can do, but slowly. A plan, which runs on what there is, may be of another machine.
    """
    for key in WORKERS:
        if (value := OmegaConf.select(config, key, throw_on_missing=False)) is not None:
            _refuse_workers(value, key)
    for key in COUNTS:
        value = OmegaConf.select(config, key, throw_on_missing=False)
        if type(value) is int and value < 1:
            raise UserError(f"{key}={value} cannot be: give a whole number of at least 1.")
    settings = config.get("trainer")
    if not OmegaConf.is_dict(settings) or config.get("plan"):
        return
    compiling = config.get("compile")
    compiles = compiling is True or (OmegaConf.is_dict(compiling) and compiling.enabled)
    compiles = compiles or OmegaConf.select(config, "model.attention", throw_on_missing=False) == FLEX
    _refuse_other_nodes(settings.get("num_nodes", 1))
    if not compiles and _takes_what_is_there(settings):  # without seconds of imports
        return
    device = refuse_devices(settings)
    refuse_precision("trainer.precision", str(settings.get("precision")), device)
    if OmegaConf.is_dict(compiling) and compiling.enabled:
        _refuse_unknown("compile.mode", compiling.mode or MODES[0], MODES)
        if compiling.backend == "inductor":
            refuse_uncompilable("compile.enabled=true", "compile.enabled=false", device)
        else:
            import torch

            _refuse_unknown("compile.backend", compiling.backend, torch.compiler.list_backends(exclude_tags=()))
    elif compiling is True:
        refuse_uncompilable("compile=true", "compile=false", device)
    if OmegaConf.select(config, "model.attention", throw_on_missing=False) == FLEX:
        refuse_uncompilable(f"model.attention={FLEX}", "model.attention=auto", device)


def _takes_what_is_there(settings: DictConfig) -> bool:
    """Whether a trainer's settings suit any machine: one process, in full precision, on what device there is."""
    usual = {"accelerator": "auto", "devices": 1, "strategy": "auto", "precision": "32-true"}
    return all(settings.get(name, value) == value for name, value in usual.items())


def _refuse_unknown(key: str, value: Any, known: Collection[str]) -> None:
    """Raises UserError for a word that is none of those known; what is no word is for others to judge."""
    if isinstance(value, str) and value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"give {', '.join(sorted(known))}."
        raise UserError(f"{key}={value} is unknown; {hint}")


# Processes.


def cores() -> int:
    """Cores that this process may use: those of the machine, of its affinity, and of a container's quota."""
    counts = [getattr(os, "process_cpu_count", os.cpu_count)() or 1]
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        counts.append(len(os.sched_getaffinity(0)))
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # of either version of cgroups
        with suppress(OSError, ValueError):  # "max" is no number, -1 is none either
            quota, period = " ".join((CGROUPS / file).read_text() for file in files).split()
            if int(quota) > 0:
                counts.append(math.ceil(int(quota) / int(period)))
    return max(1, min(counts))


def workers_here(asked: int, key: str) -> int:
    """As many worker processes as a person asked for by `key`, or as this process has cores: results are the same.

    Warns where that is fewer; raises UserError for a number that cannot be.
    """
    _refuse_workers(asked, key)
    if asked <= (most := cores()):
        return asked
    warnings.warn(
        f"{key}={asked} is beyond the cores that this process may use: {most} {'is' if most == 1 else 'are'} started; "
        f"pass {key}={most} to hear no more of it.",
        stacklevel=3,
    )
    return most


def _refuse_workers(asked: Any, key: str) -> None:
    if type(asked) is not int or not 0 <= asked <= MOST_PROCESSES:
        raise UserError(f"{key}={asked} cannot be: give a number from 0 to {cores()}, the cores that are here to use.")


# Devices.


def refuse_devices(settings: DictConfig) -> str:
    """The kind of device ("cpu", "cuda", …) that a trainer's settings ask for.

    Raises UserError if this machine has none, or too few, or other machines are asked for that nothing starts.
    """
    accelerator, strategy = settings.get("accelerator", "auto"), settings.get("strategy", "auto")
    if strategy not in ("auto", "ddp"):
        from pytorch_lightning.strategies import StrategyRegistry

        _refuse_unknown("trainer.strategy", strategy, ["auto", *StrategyRegistry.available_strategies()])
    count = devices_of_a_node(settings)
    if accelerator == "cpu":
        return _refuse_devices_on_cpu(settings, count)
    import torch

    if accelerator not in ("auto", "gpu", "cuda", "mps"):
        from pytorch_lightning.accelerators import AcceleratorRegistry

        _refuse_unknown(
            "trainer.accelerator", accelerator, ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
        )
        return str(accelerator)
    if not torch.accelerator.is_available():
        if accelerator == "auto":
            return _refuse_devices_on_cpu(settings, count)
        cpu_build = torch.version.cuda is None and getattr(torch.version, "hip", None) is None
        hidden = "CUDA_VISIBLE_DEVICES" in os.environ and not os.environ["CUDA_VISIBLE_DEVICES"]
        why = "CUDA_VISIBLE_DEVICES is empty: unset it" if hidden else "see what nvidia-smi says"
        why = "this torch is built for CPUs alone: install torch for your CUDA" if cpu_build else why
        raise UserError(
            f"trainer.accelerator={accelerator}, and torch finds no GPU here; {why}, or pass trainer.accelerator=cpu "
            "trainer.precision=32-true."
        )
    here = torch.accelerator.device_count()
    if count > here:
        raise UserError(
            f"trainer.devices={settings.devices} is more than the GPUs that are here, which are {here}: pass "
            f"trainer.devices={here}; with so many times the trainer.accumulate_grad_batches updates stay as large."
        )
    return str(torch.accelerator.current_accelerator().type)  # type: ignore[union-attr]


def devices_of_a_node(settings: Any) -> int:
    """Devices of each machine as a trainer's settings have it; "auto" is all of this machine's accelerators, or 1."""
    devices = settings.get("devices", 1)
    if devices in ("auto", -1, "-1"):
        import torch

        return max(torch.accelerator.device_count(), 1)
    if isinstance(devices, str) and "," in devices:
        devices = devices.strip(",").split(",")
    try:
        return int(devices) if isinstance(devices, int | str) else len(devices)
    except (ValueError, TypeError):
        raise UserError(f"trainer.devices={devices} cannot be: give a number, a list of GPUs, or auto.") from None


def _refuse_devices_on_cpu(settings: DictConfig, count: int) -> str:
    asked = settings.get("devices", 1)
    if asked != "auto" and (
        not isinstance(asked, int | str) or not str(asked).isdigit() or not 0 < count <= MOST_PROCESSES
    ):
        raise UserError(
            f"trainer.devices={asked} on a CPU is a number of processes: give one from 1 to {cores()}, the cores that "
            "are here to use."
        )
    return "cpu"


def _refuse_other_nodes(nodes: Any) -> None:
    if type(nodes) is not int or nodes < 1:
        raise UserError(f"trainer.num_nodes={nodes} cannot be: give a number of machines from 1.")
    if nodes > 1 and not any(name in os.environ for name in LAUNCHERS):
        raise UserError(
            f"trainer.num_nodes={nodes}, and nothing has started this command on other machines, for which it would "
            "wait: start it with scripts/launch_torchrun.sh or launch_slurm.sh, or pass trainer.num_nodes=1."
        )


# Precisions.


def refuse_precision(key: str, precision: str, device: str) -> None:
    """Raises UserError for a half precision that a kind of device cannot compute; warns where a CPU is slow at it.

    Args:
        key: the option, for a person: "trainer.precision".
        precision: as Lightning names it ("bf16-mixed") or torch ("bfloat16").
        device: "cpu", "cuda", …
    """
    if precision.startswith(("bf16", "bfloat16")):
        if device == "cuda":
            import torch

            if not torch.cuda.is_bf16_supported(including_emulation=False):
                name, sixteen = torch.cuda.get_device_name(), "16-mixed, or " if precision.startswith("bf16") else ""
                whole = "32-true" if sixteen else "float32"
                raise UserError(
                    f"{key}={precision}, and {name} cannot compute in bfloat16, as GPUs can from compute capability "
                    f"8.0 (Ampere) on: pass {key}={sixteen}{whole}."
                )
        elif device == "cpu" and not cpu_has_bfloat16():
            warnings.warn(
                f"{key}={precision}: this CPU has no instructions for bfloat16 (AVX512-BF16, AMX), and may take many "
                f"times as long as with {key}={'float32' if precision == 'bfloat16' else '32-true'}.",
                stacklevel=3,
            )
    elif precision in ("16", "16-mixed") and device == "cpu":
        warnings.filterwarnings("ignore", ".*AMP with fp16 is not supported on CPU.*")  # Lightning's words for it
        warnings.warn(
            f"{key}={precision} is for GPUs: on this CPU bf16-mixed is taken in its place; pass {key}=32-true for full "
            "precision.",
            stacklevel=3,
        )


def cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies in bfloat16; of kinds that torch cannot tell it is taken to."""
    import torch

    asked = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    on_intel = torch.backends.cpu.get_cpu_capability().startswith(("AVX", "DEFAULT", "NO AVX"))
    return not on_intel or None in asked or any(one() for one in asked if one is not None)


# Compilers.


def refuse_uncompilable(asked: str, instead: str, device: str) -> None:
    """Raises UserError if what torch's compiler calls for a kind of device is not installed.

    Args:
        asked, instead: the option that compiles and the one that does without it, for a person.
    """
    on_gpu, headers = device == "cuda", Path(sysconfig.get_path("include"))
    variable, names = ("CC", ("clang", "gcc", "cc")) if on_gpu else ("CXX", ("g++",))
    if sys.platform == "darwin":
        names = ("clang++",)
    missing, named = None, os.environ.get(variable)
    if not any(map(shutil.which, [named] if named else names)):
        what = (
            f"and {variable}={named} is no program here"
            if named
            else f"and there is no {' or '.join(names)} on the PATH"
        )
        missing = f"a compiler, {what}: install one (apt-get install g++)"
    elif on_gpu and importlib.util.find_spec("triton") is None:
        missing = "Triton, which is not installed: pip install triton"
    elif not (headers / "Python.h").is_file():
        missing = f"Python.h, and {headers} has none: apt-get install python3-dev"
    if missing is not None:
        raise UserError(f"{asked} needs {missing}, or pass {instead}.")
