"""All commands under one name: `vinvl train …` is `python -m vinvl.train …`; `vinvl --help` lists them."""

from __future__ import annotations

import difflib
import runpy
import sys
from collections.abc import Sequence

from vinvl.run.errors import UserError, say

DOORS = {  # name → whether Hydra composes its configuration
    "train": True,
    "evaluate": True,
    "predict": True,
    "compare": False,
    "report": True,
    "extract": True,
    "convert": True,
    "download": False,
    "regions": False,
    "pretraining.corpus": False,
    "pretrain_finetune": True,
    "train_detector": True,
    "evaluate_detector": True,
    "app": True,
    "info": False,
}
COMPLETION = "completion"
HELP = ("-h", "--help", "help")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command `vinvl`: runs a door as Python runs its module, in this process."""
    from vinvl.run.door import run_command
    from vinvl.run.signals import end_at_once

    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] and words[0] in DOORS:
        end_at_once()
        sys.argv = [f"vinvl {words[0]}", *words[1:]]
        runpy.run_module(f"vinvl.{words[0]}", run_name="__main__", alter_sys=True)
        return
    sys.exit(run_command(lambda: _without_door(words)))


def _without_door(words: list[str]) -> int:
    """Help, version, completion. Raises UserError for a name that no door has."""
    if not words or words[0] in HELP:
        from vinvl.run.console import all_doors

        say(*all_doors(), "", f"Commands: {', '.join(DOORS)}; of each, vinvl NAME --help.")
        say('Completion in bash: eval "$(vinvl completion)"')
    elif words[0] in ("-V", "--version"):
        from vinvl import __version__

        say(f"vinvl {__version__}")
    elif words[0] == COMPLETION:
        from vinvl.run.console import BASH, completions

        found = completions(words[2], DOORS) if words[1:2] == ["--line"] and len(words) == 3 else BASH.split("\n")
        if found:
            say(*found)
    else:
        near = difflib.get_close_matches(words[0], DOORS, n=1)
        told = f"did you mean vinvl {near[0]}?" if near else f"choose one of {', '.join(DOORS)}."
        raise UserError(f"There is no vinvl {words[0]}; {told}")
    return 0


if __name__ == "__main__":
    main()
