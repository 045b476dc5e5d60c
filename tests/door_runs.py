"""The doors as a user calls them, `python -m vinvl.NAME …`, without waiting for torch to be imported each time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}  # the same digits everywhere, also where a command asks for no accelerator

# A process that has imported what is large and done nothing with it; each door runs in a fork of it, in a process group
# of its own, and may be killed for real. The fork leaves the loop, so that it ends as every interpreter ends.
WARM = """
import gc, json, os, runpy, select, sys
import yaml
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # what OmegaConf reads with, in less time
import h5py, hydra, pytorch_lightning, torch, torchmetrics, transformers
import pytorch_lightning.callbacks, pytorch_lightning.loggers, torch._dynamo, torch.utils.tensorboard
from transformers import BertModel, BertTokenizerFast
import vinvl.captioning.task, vinvl.extraction.run, vinvl.plan, vinvl.pretraining.task, vinvl.restore
import vinvl.retrieval.task
from vinvl.run.folders import config_directory, register_resolvers

register_resolvers()
with hydra.initialize_config_dir(config_dir=config_directory(), version_base="1.3"):
    hydra.compose("train", return_hydra_config=True)  # Hydra's plugins and grammar are found and read once
gc.collect()
gc.freeze()  # what is here already is not looked through in each fork
codes = {}
while True:
    if select.select([0], [], [], 0.01 if codes else None)[0]:
        if not (line := sys.stdin.readline()):
            sys.exit()
        module, arguments, folder, environment, outputs = json.loads(line)
        process = os.fork()
        if process == 0:
            break
        codes[process] = outputs + "/code"
        print(process, flush=True)
    for process, path in list(codes.items()):
        if (ended := os.waitpid(process, os.WNOHANG))[0]:
            with open(path + ".part", "w") as file:
                file.write(str(os.waitstatus_to_exitcode(ended[1])))
            os.replace(path + ".part", codes.pop(process))
os.setpgrp()
os.environ.clear()
os.environ.update(environment)
os.chdir(folder)
for stream, path in enumerate((os.devnull, outputs + "/stdout", outputs + "/stderr")):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), stream)
sys.stdin = open(0)
sys.argv[1:] = arguments
if module == "-c":
    exec(sys.argv.pop(1), {"__name__": "__main__"})
else:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def door_environment(demo_data: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return environment | {"VINVL_DATA": str(demo_data), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


class DoorProcess:
    """`python -m module arguments` in a folder, or a program given as `-c`, as it runs."""

    def __init__(self, folder: Path, module: str, *arguments: str, environment: dict[str, str]) -> None:
        self.outputs = Path(tempfile.mkdtemp(dir=_outputs().name))
        server = _warm_interpreter()
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps([module, arguments, str(folder), environment, str(self.outputs)]) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None as long as it runs."""
        code = self.outputs / "code"
        return int(code.read_text()) if code.exists() else None

    def wait(self, seconds: float = 300) -> int:
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.killpg(self.pid, signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s: {self.printed()}")
            time.sleep(0.005)
        return code

    def wait_until(self, reached: Callable[[], bool], seconds: float = 120) -> None:
        """Waits for something that this process does before it ends."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert self.poll() is None and time.monotonic() < deadline, f"ended or too slow: {self.printed()}"
            time.sleep(0.002)

    def signalled(self, number: int) -> int:
        """Sends it, and what it started, a signal, and waits for its end: the exit code."""
        os.killpg(self.pid, number)
        return self.wait()

    def printed(self) -> str:
        return "".join((self.outputs / name).read_text() for name in ("stdout", "stderr"))


def call(folder: Path, module: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs `python -m module arguments` in a folder."""
    process = DoorProcess(folder, module, *arguments, environment=environment)
    code = process.wait()
    output, errors = ((process.outputs / name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess([module, *arguments], code, output, errors)


# In a fork: nothing of the vinvl that is imported already is left.
OTHER_COPY = """
import runpy, sys
for name in [name for name in sys.modules if name.partition(".")[0] == "vinvl"]:
    del sys.modules[name]
sys.path.insert(0, {source!r})
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def call_copy(
    folder: Path, source: Path, module: str, *arguments: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """`call` for the copy of vinvl in another folder of packages."""
    program = OTHER_COPY.format(source=str(source), module=module)
    return call(folder, "-c", program, *arguments, environment=environment)


def call_door(folder: Path, data: Path, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m vinvl.NAME overrides` in a folder, with the demo world of `data`."""
    return call(folder, f"vinvl.{name}", *overrides, environment=door_environment(data) | ON_CPU)


def succeed(folder: Path, data: Path, name: str, *overrides: str) -> str:
    """Runs a door that must succeed; returns what it printed."""
    result = call_door(folder, data, name, *overrides)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def two_ranks(folder: Path, data: Path, name: str, *overrides: str) -> list[DoorProcess]:
    """Starts a door as two ranks, as a launcher on the outside does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    given = [*overrides, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    environment = door_environment(data) | ON_CPU | shared
    return [
        DoorProcess(folder, f"vinvl.{name}", *given, environment=environment | {"LOCAL_RANK": str(rank)})
        for rank in (0, 1)
    ]


def ranks_succeed(folder: Path, data: Path, name: str, *overrides: str) -> str:
    """Runs a door as two ranks, which must succeed; what the first printed."""
    ranks = two_ranks(folder, data, name, *overrides)
    assert [rank.wait() for rank in ranks] == [0, 0], [rank.printed() for rank in ranks]
    return ranks[0].printed()


@cache
def _outputs() -> tempfile.TemporaryDirectory[str]:
    """What doors print; it goes when this process ends."""
    return tempfile.TemporaryDirectory()


@cache
def _warm_interpreter() -> subprocess.Popen[str]:
    """One for each process that runs tests; it ends with it."""
    return subprocess.Popen(
        [sys.executable, "-c", WARM],
        env=door_environment(Path()) | ON_CPU,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
