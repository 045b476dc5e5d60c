"""The doors as a user calls them, `python -m vinvl.NAME …`, without waiting for torch to be imported each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}  # the same digits everywhere, also where a command asks for no accelerator

# A process that has imported what is large and done nothing with it; each door runs in a fork of it. The fork leaves
# the loop, so that it ends as every interpreter ends.
WARM = """
import json, os, runpy, sys
import h5py, hydra, pytorch_lightning, torch, torchmetrics, transformers
import pytorch_lightning.callbacks, pytorch_lightning.loggers, torch._dynamo, torch.utils.tensorboard
from transformers import BertModel, BertTokenizerFast
import vinvl.plan, vinvl.restore, vinvl.captioning.task, vinvl.pretraining.task, vinvl.retrieval.task

while line := sys.stdin.readline():
    process = os.fork()
    if process == 0:
        break
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
else:
    sys.exit()
module, arguments, folder, environment, output, errors = json.loads(line)
os.environ.clear()
os.environ.update(environment)
os.chdir(folder)
for stream, path in enumerate((os.devnull, output, errors)):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
sys.stdin = open(0)
sys.argv[1:] = arguments
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def door_environment(demo_data: Path) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return environment | {"VINVL_DATA": str(demo_data), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def call(folder: Path, module: str, *arguments: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs `python -m module arguments` in a folder."""
    server = _warm_interpreter()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as outputs:
        texts = [Path(outputs) / name for name in ("stdout", "stderr")]
        request = [module, arguments, str(folder), environment, *map(str, texts)]
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        server.stdout.readline()  # the number of the process
        code = int(server.stdout.readline())
        output, errors = (text.read_text() for text in texts)
    return subprocess.CompletedProcess([module, *arguments], code, output, errors)


def call_door(folder: Path, data: Path, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m vinvl.NAME overrides` in a folder, with the demo world of `data`."""
    return call(folder, f"vinvl.{name}", *overrides, environment=door_environment(data) | ON_CPU)


def succeed(folder: Path, data: Path, name: str, *overrides: str) -> str:
    """Runs a door that must succeed; returns what it printed."""
    result = call_door(folder, data, name, *overrides)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


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
