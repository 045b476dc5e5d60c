"""What a terminal asks of the doors besides their work: help of one door alone, and what completes a word."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.plugins.completion_plugin import DefaultCompletionPlugin
from omegaconf import OmegaConf

from vinvl.run.folders import config_directory

FLAGS = ("--help", "--cfg", "--resolve", "--multirun", "--info", "--hydra-help")
BASH = """\
_vinvl() {
    local IFS=$'\\n' word
    word="${COMP_LINE:0:COMP_POINT}"; word="${word##*[[:space:]]}"
    COMPREPLY=($(vinvl completion --line "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
    # Readline puts what follows the last "=" in place of what follows it.
    [[ $COMP_WORDBREAKS == *=* && $word == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
    [[ ${COMPREPLY[*]} == *[=.] ]] && compopt -o nospace
}
complete -o default -F _vinvl vinvl
"""


def door_header(header: str) -> str:
    """`${vinvl.door_header:…}`: of the lines about all doors those of the one that is asked for help."""
    name = HydraConfig.get().job.name
    lines = header.splitlines()
    own = [line for line in lines if f"vinvl.{name} " in f"{line} "]
    return "\n".join([*own, "", "The other commands: vinvl --help"]) + "\n"


def door_choices() -> str:
    """`${vinvl.door_choices:}`: the groups that the door leaves to choose, and their choices."""
    loader = GlobalHydra.instance().config_loader()
    groups = {name for name in HydraConfig.get().runtime.choices if "/" not in name and name not in ("hydra", "paths")}
    found = {group: public(loader.get_group_options(group)) for group in sorted(groups)}
    return "\n".join(f"{group}: {', '.join(names)}" for group, names in found.items() if names) + "\n"


def public(names: list[str]) -> list[str]:
    """Choices without those that only hold what others share."""
    return sorted(name for name in names if not name.startswith("_"))


def all_doors() -> list[str]:
    """The lines about all doors, in conf/hydra/help.yaml, as `vinvl NAME …`."""
    text = OmegaConf.load(Path(config_directory()) / "hydra" / "help.yaml").help.header
    return [line.replace("python -m vinvl.", "vinvl ") for line in str(text).rstrip().split("\n")]


def completions(line: str, doors: Mapping[str, bool]) -> list[str]:
    """What may stand in place of the last word of a command line `vinvl DOOR WORD …`.

    Args:
        line: up to the cursor.
        doors: name → whether Hydra composes its configuration.
    """
    words = line.split()[1:] + ([""] if line.endswith(" ") or len(line.split()) < 2 else [])
    if len(words) < 2:
        return [name for name in doors if name.startswith(words[0] if words else "")]
    name, word = words[0], words[-1]
    if not doors.get(name, False):
        return sorted(one for one in _options(name, words[1:-1]) if one.startswith(word)) if name in doors else []
    if word.startswith("-"):
        return [flag for flag in FLAGS if flag.startswith(word)]
    with initialize_config_dir(config_dir=config_directory(), version_base="1.3", job_name=name):
        loader = GlobalHydra.instance().config_loader()
        found = DefaultCompletionPlugin(loader)._query(name, " ".join(words[1:]))
        chosen = set(compose(name, return_hydra_config=True).hydra.runtime.choices)
        groups = {group for group in loader.list_groups("") if group not in chosen or group in ("hydra", "paths")}
    shown = [one for one in found if not re.search(r"[=./]_[^=./]*=?$", one)]  # what holds what others share
    return [one for one in shown if one.rstrip("=/.") not in groups or word.startswith("hydra")]


def _options(name: str, before: list[str]) -> Iterator[str]:
    """Options and commands of a door without Hydra."""
    module = import_module({"regions": "vinvl.regions.__main__"}.get(name, f"vinvl.{name}"))
    parser = module.command_line()
    for word in ["", *before]:
        commands = [one.choices for one in parser._actions if isinstance(one.choices, dict)]
        if word and commands and word in commands[0]:
            parser = commands[0][word]
    for action in parser._actions:
        yield from action.option_strings
        yield from action.choices if isinstance(action.choices, dict) else ()
