"""The commands of vinvl as the demos call them: each in a process of its own, shown before it starts."""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def call(door: str, overrides: Sequence[str]) -> None:
    """`python -m vinvl.DOOR OVERRIDES`; what calls it ends with its exit code where it fails."""
    command = [sys.executable, "-m", f"vinvl.{door}", *overrides]
    print("\n$ python " + " ".join(command[1:]), flush=True)
    if (code := subprocess.run(command, check=False).returncode) != 0:
        print(f"error: vinvl.{door} failed; its own message stands above.", file=sys.stderr)
        sys.exit(code)


def two_lists(about: str, first: str) -> tuple[list[str], list[str]]:
    """Of this command line overrides of the `first` command and, after --detector, of a detector's training."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help=f"of python -m vinvl.{first}")
    parser.add_argument("--detector", nargs="*", default=[], help="overrides of python -m vinvl.train_detector")
    given = parser.parse_args(sys.argv[1:])
    return given.overrides, given.detector


def scores_of(run: Path) -> dict[str, float]:
    """What a run with an evaluation at its end scored."""
    scores: dict[str, float] = json.loads((run / "results.json").read_text())["scores"]
    return scores
