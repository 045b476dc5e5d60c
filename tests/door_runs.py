"""The doors for fixtures that outlive one test: one training run that a whole file of tests looks at."""

import subprocess
import sys
from pathlib import Path

from conftest import door_environment

ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}  # the same digits everywhere, also where a command asks for no accelerator


def call_door(folder: Path, data: Path, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m vinvl.NAME overrides` in a folder, with the demo world of `data`."""
    return subprocess.run(
        [sys.executable, "-m", f"vinvl.{name}", *overrides],
        cwd=folder,
        env=door_environment(data) | ON_CPU,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def succeed(folder: Path, data: Path, name: str, *overrides: str) -> str:
    """Runs a door that must succeed; returns what it printed."""
    result = call_door(folder, data, name, *overrides)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout
