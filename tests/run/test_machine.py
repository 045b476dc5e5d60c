"""What a machine cannot do of what a command asks: a sentence and a way on, at every door, before anything is read."""

import errno
import importlib.util
import os
import shutil
import sysconfig
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import vinvl
from tests.door_in_process import refused_in_process
from vinvl.run import machine
from vinvl.run.door import sentence_of_fault
from vinvl.run.errors import UserError
from vinvl.run.machine import LAUNCHERS, cores, refuse_precision, refuse_unsuited, workers_here

ASKED = [  # door, option, words of the sentence
    ("train", "data.num_workers=-1", "data.num_workers=-1 cannot be: give a number from 0 to"),
    ("evaluate", "data.num_workers=10000", "data.num_workers=10000 cannot be"),
    ("extract", "workers=-1", "workers=-1 cannot be"),
    ("train", "data.batch_size=0", "data.batch_size=0 cannot be: give a whole number of at least 1"),
    ("train", "torch_threads=0", "torch_threads=0 cannot be"),
    ("train", "trainer.accumulate_grad_batches=0", "trainer.accumulate_grad_batches=0 cannot be"),
    ("predict", "trainer.accelerator=gpuu", "trainer.accelerator=gpuu is unknown; did you mean gpu?"),
    ("train_detector", "trainer.strategy=dpp", "trainer.strategy=dpp is unknown; did you mean ddp?"),
    ("train", "trainer.devices=0", "trainer.devices=0 on a CPU is a number of processes: give one from 1 to"),
    ("train", "trainer.devices=abc", "trainer.devices=abc cannot be: give a number, a list of GPUs, or auto"),
    ("train", "trainer.num_nodes=0", "trainer.num_nodes=0 cannot be"),
    ("evaluate", "trainer.num_nodes=2", "scripts/launch_torchrun.sh or launch_slurm.sh, or pass trainer.num_nodes=1"),
    ("train", "compile={enabled: true, mode: max}", "compile.mode=max is unknown; give default, "),
    (
        "train",
        "compile={enabled: true, backend: inducto}",
        "compile.backend=inducto is unknown; did you mean inductor?",
    ),
]
COMPILING = [  # door, option, what to do without it
    ("train", "compile.enabled=true", "compile.enabled=false"),
    ("train", "model.attention=flex_attention", "model.attention=auto"),
    ("extract", "compile=true", "compile=false"),
]


@pytest.fixture
def refused(demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    weights = tmp_path / "weights.pth"
    weights.touch()
    needed = {"extract": [f"images={tmp_path}", f"weights={weights}", f"output={tmp_path / 'f.h5'}"]}

    def run(door: str, *options: str) -> str:
        given = [f"++{option}" for option in options]  # which a checkpoint's data would be compared with
        return refused_in_process(door, demo_data, tmp_path / "run", *needed.get(door, ()), *given)

    return run


@pytest.mark.parametrize(("door", "option", "words"), ASKED)
def test_what_no_machine_can_do(refused: Any, door: str, option: str, words: str) -> None:
    assert words in refused(door, option)


def test_the_same_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="did you mean ddp"):
        vinvl.train(vinvl.compose("trainer.strategy=dpp", f"paths.data_dir={tmp_path}"))
    assert not list(tmp_path.rglob("*.yaml"))


def test_a_gpu_where_there_is_none(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for door in ("train", "evaluate", "extract"):
        sentence = refused(door, "trainer.accelerator=gpu")
        assert "torch finds no GPU here" in sentence and "trainer.accelerator=cpu" in sentence
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES is empty" in refused("train", "trainer.accelerator=gpu")


def test_more_gpus_than_there_are_and_half_precision_on_old_ones(refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    sentence = refused("train", "trainer.accelerator=gpu", "trainer.devices=4")
    assert "the GPUs that are here, which are 2: pass trainer.devices=2;" in sentence
    sentence = refused("extract", "trainer.accelerator=auto", "trainer.precision=bf16-mixed")
    assert "Tesla T4 cannot compute in bfloat16" in sentence and "trainer.precision=16-mixed, or 32-true" in sentence
    with pytest.raises(UserError, match="pass dtype=float32"):
        refuse_precision("dtype", "bfloat16", "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    refuse_precision("dtype", "bfloat16", "cuda")


def test_a_plan_may_be_of_another_machine() -> None:
    settings = {"accelerator": "gpu", "devices": 8, "num_nodes": 4, "precision": "bf16-mixed"}
    refuse_unsuited(OmegaConf.create({"plan": True, "trainer": settings}))


@pytest.mark.parametrize("can", [True, False])
def test_half_precision_on_a_cpu(can: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: can)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        refuse_precision("trainer.precision", "bf16-mixed", "cpu")
        assert [str(one.message).endswith("trainer.precision=32-true.") for one in told] == ([] if can else [True])
        refuse_precision("trainer.precision", "16-mixed", "cpu")
        assert "is for GPUs" in str(told[-1].message) and "trainer.precision=32-true" in str(told[-1].message)
        refuse_precision("trainer.precision", "32-true", "cpu")
        assert len(told) == (1 if can else 2)


@pytest.mark.parametrize(("door", "option", "instead"), COMPILING)
def test_compiling_without_a_compiler(
    refused: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, door: str, option: str, instead: str
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    sentence = refused(door, option)
    assert option in sentence and "apt-get install g++" in sentence and instead in sentence


def test_what_else_a_compiler_needs(refused: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "CXX=no-such-compiler is no program here" in refused("train", "compile.enabled=true")
    (tmp_path / "cc").touch(mode=0o755)
    monkeypatch.setenv("CXX", str(tmp_path / "cc"))
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert "Python.h" in refused("train", "compile.enabled=true")
    (tmp_path / "Python.h").touch()
    machine.refuse_uncompilable("compile.enabled=true", "", "cpu")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="Triton, which is not installed"):
        machine.refuse_uncompilable("compile.enabled=true", "", "cuda")


def test_cores_of_a_machine_an_affinity_and_a_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    for name in ("cpu_count", "process_cpu_count"):
        monkeypatch.setattr(os, name, lambda: 16, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    assert cores() == 12
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert cores() == 12
    (tmp_path / "cpu.max").write_text("250000 100000\n")
    assert cores() == 3
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores() == 1
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cores() == 3


def test_workers_beyond_the_cores_are_as_many_as_these(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert [workers_here(asked, "workers") for asked in (0, 1, 2)] == [0, 1, 2]
    with pytest.warns(UserWarning, match="workers=8 is beyond the cores.*: 2 are started; pass workers=2"):
        assert workers_here(8, "workers") == 2
    for asked in (-1, 10_000, 1.5, True):
        with pytest.raises(UserError, match="give a number from 0 to 2"):
            workers_here(asked, "workers")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("unable to write to file </torch_7_1_0>: No space left on device (28)", "--shm-size=8g"),
        ("unable to allocate shared memory(shm) for file </torch_7_1_0>: Success (0)", "pass data.num_workers=0"),
        ("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
         "allocate 8000 bytes. Error", "Memory does not suffice for 8000 bytes more: pass a smaller data.batch_size"),
        ("Caught RuntimeError in DataLoader worker process 0: not enough memory", "or fewer data.num_workers"),
    ],
)  # fmt: skip
def test_faults_of_memory(told: str, words: str) -> None:
    paths = {"output_dir": "runs/none"}
    config = OmegaConf.create({"data": {}, "trainer": {}, "test_after_fit": True, "paths": paths})
    sentence = sentence_of_fault(RuntimeError(told), config)
    assert sentence is not None and words in sentence and "give the same command again" in sentence


def test_shared_memory_that_is_full_is_not_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    config, error = (
        OmegaConf.create({"data": {}, "paths": {"output_dir": "runs/none"}}),
        OSError(errno.ENOSPC, "No space"),
    )
    for free, words in ((0, "/dev/shm, has room for 0.1 MB in all"), (2e9, "runs/none cannot be written")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(total=65536, free=free))
        sentence = sentence_of_fault(error, config)
        assert sentence is not None and words in sentence


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import CppCompileError

    error = RuntimeError("while compiling")
    error.__cause__ = CppCompileError(["g++"], "fatal error: omp.h: No such file")
    config = OmegaConf.create({"paths": {"output_dir": "x"}, "model": {"attention": "auto"}})
    sentence = sentence_of_fault(error, config)
    assert sentence is not None and "torch's compiler failed" in sentence and "compile.enabled=false" in sentence
