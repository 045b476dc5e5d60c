"""The launch scripts: what they call, when a job is requeued, and torchrun itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.door_runs import door_environment
from tests.run.survival_runs import PRETRAINING, wait_for, write_corpora
from vinvl.run.folders import repository_root

SCRIPTS = (repository_root() or Path()) / "scripts"


def write_program(folder: Path, name: str, body: str = "") -> None:
    """A program that notes what it was called with, and does what `body` says."""
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{folder}/calls.txt"\n{body}\n')
    path.chmod(0o755)


def call(folder: Path, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Calls a launch script with the programs of a folder before all others."""
    return subprocess.run(
        [str(SCRIPTS / script), *arguments],
        env={"PATH": f"{folder}:/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def calls(folder: Path) -> list[str]:
    path = folder / "calls.txt"
    return path.read_text().splitlines() if path.exists() else []


def slurm(folder: Path, code: int) -> subprocess.CompletedProcess[str]:
    write_program(folder, "srun", f"exit {code}")
    write_program(folder, "scontrol")
    job = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": "4", "SLURM_NTASKS_PER_NODE": "8", "PYTHON": "python"}
    return call(folder, "launch_slurm.sh", "experiment=oscarplus_base", "name=a b", **job)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True), (137, False), (138, True)])
def test_slurm_requeues_a_job_that_was_asked_to_stop_and_no_other(tmp_path: Path, code: int, requeued: bool) -> None:
    """It starts a process for every GPU, which goes on if there is something to go on from."""
    assert slurm(tmp_path, code).returncode == (0 if requeued else code)
    line, *others = calls(tmp_path)
    command = "python -m vinvl.train trainer=ddp trainer.num_nodes=4 trainer.devices=8 ckpt_path=auto"
    assert line == f"srun --kill-on-bad-exit=0 --wait=60 {command} experiment=oscarplus_base name=a b"
    assert others == (["scontrol requeue 4711"] if requeued else [])


def test_slurm_tells_every_process_that_the_time_is_nearly_up() -> None:
    options = [line.split()[1] for line in (SCRIPTS / "launch_slurm.sh").read_text().splitlines() if "#SBATCH" in line]
    assert {"--signal=USR1@300", "--requeue", "--open-mode=append"} <= set(options)


def test_torchrun_on_several_machines(tmp_path: Path) -> None:
    write_program(tmp_path, "torchrun")
    machines = {"NNODES": "4", "MASTER_ADDR": "first", "NODE_RANK": "2", "NPROC_PER_NODE": "8", "RUN_DIR": "/all/run"}
    assert call(tmp_path, "launch_torchrun.sh", "experiment=oscarplus_base", **machines).returncode == 0
    (line,) = calls(tmp_path)
    meeting = "--rdzv-backend c10d --rdzv-endpoint first:29500 --rdzv-id vinvl --rdzv-conf is_host=0"
    assert line == (
        f"torchrun --nnodes 4 --nproc-per-node 8 --max-restarts 3 {meeting} -m vinvl.train trainer=ddp "
        "trainer.num_nodes=4 trainer.devices=8 hydra.run.dir=/all/run ckpt_path=auto experiment=oscarplus_base"
    )


@pytest.mark.parametrize(("given", "asked"), [({}, "RUN_DIR"), ({"RUN_DIR": "r", "NNODES": "2"}, "MASTER_ADDR")])
def test_torchrun_says_what_it_needs(tmp_path: Path, given: dict[str, str], asked: str) -> None:
    write_program(tmp_path, "torchrun")
    result = call(tmp_path, "launch_torchrun.sh", **given)
    assert result.returncode != 0 and asked in result.stderr and calls(tmp_path) == []


@pytest.mark.slow
def test_torchrun_passes_a_signal_on_and_waits_for_the_checkpoint(demo_data: Path, tmp_path: Path) -> None:
    write_corpora(tmp_path.parent, demo_data)
    environment = door_environment(demo_data) | {"RUN_DIR": str(tmp_path / "run"), "NPROC_PER_NODE": "1"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CUDA_VISIBLE_DEVICES": ""}
    script, log = [str(SCRIPTS / "launch_torchrun.sh"), *PRETRAINING], tmp_path / "log.txt"
    overrides = ["trainer.max_steps=100000", f"hydra.run.dir={tmp_path / 'run'}"]
    with log.open("w") as output:
        process = subprocess.Popen([*script, *overrides], env=environment, stdout=output, stderr=output, cwd=tmp_path)
    try:
        wait_for(tmp_path / "run/checkpoints/last.ckpt")
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) != 0
    finally:
        process.kill()
    assert "Stopped as asked to, and saved in" in log.read_text(), log.read_text()
