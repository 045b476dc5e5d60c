"""What a door may be told: words of a command line, compared with the configuration and what its `_target_`s take."""

from __future__ import annotations

import difflib
import importlib.util
import re
import types
from argparse import ArgumentParser
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

from vinvl.run.errors import UserError
from vinvl.run.folders import config_directory
from vinvl.run.signatures import attributes_of, optional_parameters_of_class, parameters_of

# Sections whose names a person chooses.
OF_SPLITS = ("data.splits", "data.choices", "data.scene_graphs")
HYDRAS_OPEN = ("hydra.job.env_set", "hydra.sweeper.params", "hydra.callbacks")
OPEN = (*OF_SPLITS, *HYDRAS_OPEN, "callbacks", "logger", "plan", "pretrain", "finetune", "stores")
MODEL_CONFIGS = ("model.config", "config")  # sections of fields of MODEL_CONFIG
MODEL_CONFIG = "vinvl.models.config.VinVLConfig"
OWN_FILES = ("config_path", "config_dir", "config_name", "experimental_rerun")  # Hydra's flags for other configurations
MULTIRUN = ("-m", "--multirun")
SWEEPING = r"\+?hparams_search=|hydra\.mode=MULTIRUN"  # the same without it
OF_HYDRA = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
PLUGINS = {  # of Hydra: what a command asks for, the module, the package, the extra
    r"hydra/launcher=(slurm|submitit_\w+)": ("hydra_submitit_launcher", "hydra-submitit-launcher", "slurm"),
    r"hydra/sweeper=optuna|hparams_search=.+": ("hydra_optuna_sweeper", "hydra-optuna-sweeper", "sweep"),
}
# Hydra's minimises unless it is told otherwise, and would find the worst score.
SEARCHES_FOR = "hydra.sweeper.direction"
THE_BEST = f"{SEARCHES_FOR}='${{oc.select:callbacks.best.mode,max}}imize'"
PLAIN = re.compile(r"[\w./\-]*")  # means to Hydra what it means to a person
IN_QUOTES = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
NAMES_SHOWN = 20
KINDS: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list"}


def leaves(value: object, key: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested dicts and lists that is neither."""
    if isinstance(value, Mapping | list | tuple):
        for name, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from leaves(item, f"{key}.{name}" if key else str(name))
    else:
        yield key, value


# A command line before Hydra sees it.


def open_sections(arguments: list[str]) -> list[str]:
    """Command-line arguments of a door that takes data and decoding from a checkpoint, `data.KEY=…` as `++data.KEY=…`.

    Hydra would compare such keys with the default dataset, and every dataset has other keys; `vinvl.restore` compares
    them with the checkpoint's. Where the command names a section itself (data=NAME), Hydra knows better.
    """
    named = {argument.split("=", 1)[0] for argument in arguments}
    prefixes = tuple(f"{section}." for section in ("data", "decoding") if section not in named)
    opened = [f"++{argument}" if argument.startswith(prefixes) else argument for argument in arguments]
    # Parts of a split may be given, and the default dataset's splits may be of another form.
    splits = "data" not in named and any(name.lstrip("+").startswith("data.splits.") for name in named)
    return ["++data.splits=null", *opened] if splits else opened


def task_as_a_value(arguments: list[str]) -> list[str]:
    """Command-line arguments, `task=NAME` as `task_name=NAME`: Hydra takes `task` for the group of files conf/task."""
    return [re.sub("^task=", "task_name=", argument) for argument in arguments]


def checked_arguments(name: str, arguments: Sequence[str], restored: Sequence[str] = ()) -> list[str]:
    """The arguments of a door as Hydra can read them; see `vinvl.run.door.enter`.

    Raises UserError if one cannot be read, chooses what does not exist, is an unknown option, or of the wrong type.
    """
    require_plugins(arguments)
    arguments = sorted(arguments, key=lambda word: word not in MULTIRUN)  # argparse wants flags first, or last
    parser = get_args_parser()
    parser.error = partial(_refuse_flags, parser)  # type: ignore[method-assign]
    flags = parser.parse_args(arguments)
    sweeping = bool(flags.multirun) or any(re.match(SWEEPING, word) for word in arguments)
    words = {word: readable(word, sweeping) for word in flags.overrides}
    if not words or any(getattr(flags, flag, None) for flag in OWN_FILES):
        return [words.get(word, word) for word in arguments]
    with initialize_config_dir(config_dir=config_directory(), version_base="1.3", job_name=name):
        loader = GlobalHydra.instance().config_loader()
        for word, now in words.items():  # +experiment=NAME: the configuration leaves the place for one
            key = now.lstrip("+").partition("=")[0]
            words[word] = now.lstrip("+") if loader.get_group_options(key) else now
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(words.values()))
        choosing = [one for one in parsed if loader.get_group_options(one.key_or_group)]
        for one in choosing:
            _refuse_other_choices(one, loader)
        bases = _bases(name, choosing)
    chosen = {one.key_or_group for one in choosing}
    deleted = {one.key_or_group for one in parsed if one.is_delete()}
    elsewhere = tuple(f"{section}." for section in restored if section not in chosen)
    for word, one in zip(words, parsed, strict=True):
        if name == "train" and one.key_or_group.partition(".")[0] == "plan":  # which no configuration has
            words[word] = f"+{words[word].lstrip('+')}"
        elif one not in choosing and not one.key_or_group.startswith(elsewhere):
            words[word] = checked(one, bases, deleted)
    searching = any("direction" in base.hydra.sweeper for base in bases)
    directed = any(one.key_or_group == SEARCHES_FOR for one in parsed)
    return [*(words.get(word, word) for word in arguments), *([THE_BEST] if searching and not directed else [])]


def require_plugins(arguments: Sequence[str]) -> None:
    """Raises UserError for a command that asks for a plugin of Hydra's whose package is not installed."""
    plugins = importlib.util.find_spec("hydra_plugins")
    for asked, (module, package, extra) in PLUGINS.items():
        word = next((one for one in arguments if re.fullmatch(asked, one.lstrip("+"))), None)
        if word and (plugins is None or importlib.util.find_spec(f"hydra_plugins.{module}") is None):
            raise UserError(f"{word} needs {package}, which is not installed: pip install 'vinvl[{extra}]'.")


def _refuse_flags(parser: ArgumentParser, message: str) -> NoReturn:
    raise UserError(f"{parser_told(message, parser)} Options are given as KEY=VALUE, and --help shows them.")


def parser_told(message: str, parser: ArgumentParser) -> str:
    """What argparse has against a command line, in a sentence with the name that may have been meant."""
    wrong = re.search(r"(?:unrecognized arguments: |invalid choice: ')([\w-]+)", message)
    actions = list(parser._actions)
    for action in actions:  # what is left over is told by the parser above the one that it was meant for
        if isinstance(action.choices, Mapping):
            actions += [own for one in action.choices.values() for own in getattr(one, "_actions", ())]
    known = sorted({str(name) for action in actions for name in (*action.option_strings, *(action.choices or ()))})
    near = difflib.get_close_matches(wrong[1], known, n=1) if wrong else []
    return f"{message}; did you mean {near[0]}?" if near else f"{message}."


def as_text(value: str) -> str:
    """A text in quotes of Hydra's, if it is not in quotes already.

    To Hydra a backslash is one, but before a quote; to OmegaConf, which reads on, also before "${".
    """
    if IN_QUOTES.fullmatch(value):
        return value
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    escaped = re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), literal)
    return f"'{escaped}'"


def readable(argument: str, sweeping: bool) -> str:
    """KEY=VALUE as Hydra can read it: names of files that are there, and what its grammar has no use for, in quotes.

    Raises UserError if it is no KEY=VALUE, an unreadable list or dictionary, or several values without a sweep.
    """
    key, equals, value = argument.partition("=")
    parser = OverridesParser.create()
    if equals and not PLAIN.fullmatch(value) and not (sweeping and "," in value) and Path(value).expanduser().exists():
        argument = f"{key}={as_text(value)}"
    try:
        override = parser.parse_override(argument)
    except HydraException:
        if not equals or value[:1] in ("[", "{", "'", '"'):
            raise UserError(
                f"{argument} cannot be read: give KEY=VALUE; a list is [a,b], a dictionary {{key: value}}, and a text "
                "in either that holds one of = , : [ ] { } ( ) is put into quotes, all of it in quotes for the shell."
            ) from None
        argument = f"{key}={as_text(value)}"
        try:
            override = parser.parse_override(argument)
        except HydraException:
            raise UserError(f"{argument} cannot be read: its KEY holds what no key does; give KEY=VALUE.") from None
    if override.is_sweep_override() and not sweeping:
        raise UserError(
            f"{argument} gives several values: for a list pass {key}=[…], for one text with a comma put it into quotes "
            f"twice, \"{key}='…'\", for a run of each add --multirun."
        )
    return argument


def _bases(name: str, choosing: Sequence[Override]) -> list[DictConfig]:
    """The configuration with what the command chooses, and without its values; several where it chooses several.

    Raises UserError if this door has nothing of the kind to choose.
    """
    ways = []
    for one in choosing:
        group, equals, _ = str(one.input_line).partition("=")
        choices = _choices(one) if one.is_sweep_override() else None
        ways.append([str(one.input_line)] if choices is None else [f"{group}{equals}{choice}" for choice in choices])
    ways = [way for way in ways if way]
    first = [way[0] for way in ways]
    others = [[*first[:place], choice, *first[place + 1 :]] for place, way in enumerate(ways) for choice in way[1:]]
    try:
        return [compose(name, overrides=given, return_hydra_config=True) for given in [first, *others]]
    except ConfigCompositionException as error:
        if "No match in the defaults list" not in str(error):
            raise
        raise UserError(f"vinvl.{name} leaves nothing of that kind to choose: {str(error).splitlines()[0]}") from None


def _choices(override: Override) -> list[Any]:
    """The values that an override names; of a sweep that names none, such as range(…), none."""
    value = override.value()
    if override.is_sweep_override():
        return list(value.list) if isinstance(value, ChoiceSweep) else []
    return [value]


def _refuse_other_choices(override: Override, loader: ConfigLoader) -> None:
    """Refuses GROUP=CHOICE where there is no such file."""
    group = override.key_or_group
    options = loader.get_group_options(group)
    shown = [option for option in options if not option.startswith("_")]
    for choice in () if override.is_delete() else _choices(override):
        if isinstance(choice, list) or str(choice) in options:
            continue
        if choice is None:  # which Hydra takes for some, and would not merge with what lies in others
            raise UserError(f"{group}=null is no choice: choose one of {', '.join(shown)}, or leave it out.")
        if isinstance(choice, dict):
            raise UserError(f"{group} is chosen by name, {group}=NAME; single values of it are {group}.KEY=VALUE.")
        near = difflib.get_close_matches(str(choice), shown, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(shown)}."
        raise UserError(f"There is no {group}={choice}; {hint}")


# One option, compared with the configuration.


def checked(override: Override, bases: Sequence[DictConfig], deleted: Collection[str] = ()) -> str:
    """KEY=VALUE of a known option with as many plus signs as Hydra wants, however many a person gave.

    Args:
        bases: the configuration without any such values; one for each choice of what a sweep chooses.
        deleted: keys that the command takes away.

    Raises:
        UserError: the option is unknown, or it does not take the value.
    """
    given, key = str(override.input_line), override.key_or_group
    if override.is_interval_sweep() and all("BasicSweeper" in str(base.hydra.sweeper._target_) for base in bases):
        raise UserError(f"{given} is to be searched: add hydra/sweeper=optuna, or give single values, {key}=A,B.")
    problems = [problem_of(override, base) for base in bases]
    if None not in problems:
        raise UserError(str(problems[0]))
    if override.is_delete() or given.startswith("++"):
        return given
    gone = any(f"{key}.".startswith(f"{one}.") for one in deleted)
    there = not gone and all(found(base, key.split(".")) for base in bases)
    return given.lstrip("+") if there else f"+{given.lstrip('+')}"


def problem_of(override: Override, base: DictConfig) -> str | None:
    """What is wrong with an override, None if nothing is."""
    key = override.key_or_group
    if override.is_delete():
        return unknown(base, key) if not found(base, key.split(".")) else None
    values = _choices(override)
    if not values:
        return unknown(base, key)
    for value in values:
        items = [(key, value)]
        if isinstance(value, dict) and value and "_target_" not in value and not key.startswith(OPEN):
            items = [(f"{key}.{name}", item) for name, item in leaves({str(k): v for k, v in value.items()})]
        for name, item in items:
            plain = getattr(item, "text", item) if type(item).__name__ == "QuotedString" else item
            if (problem := unknown(base, name) or unfit(base, name, plain)) is not None:
                return problem
    return None


def unknown(base: DictConfig, key: str) -> str | None:
    """The sentence about an unknown key, None if it is known or may be chosen freely."""
    node: Any = base
    parts = key.split(".")
    for depth, part in enumerate(parts):
        section = ".".join(parts[:depth])
        if node is None or (isinstance(node, ListConfig) and part.isdigit()):
            return None
        if not isinstance(node, DictConfig):
            return f"There is no {key}: {section} is {'a list' if isinstance(node, ListConfig) else repr(node)}."
        names = known_names(node, section, base) if section else {*map(str, node), *_groups(base)}
        if names is not None and part not in names:
            return f"There is no {key}{_hint(base, parts, depth, names)}"
        if part not in list(node) or depth + 1 == len(parts):
            return None
        unresolved: Any = OmegaConf.to_container(node, resolve=False)
        another = re.fullmatch(r"\$\{([\w.]+)\}", str(unresolved.get(part)))
        if another is not None:
            place, instead = ".".join(parts[: depth + 1]), ".".join([another[1], *parts[depth + 1 :]])
            return f"{place} is {another[1]}: give {instead} in place of {key}."
        node = OmegaConf.select(node, part, throw_on_missing=False)
    return None


def known_names(node: DictConfig, section: str, base: DictConfig) -> set[str] | None:
    """The keys that a section may have; None if a person chooses them."""
    names = {str(name) for name in node}
    if section in OPEN:
        return None
    if section in MODEL_CONFIGS:
        return names | attributes_of(MODEL_CONFIG)
    if section == "task.options":  # of the class whose `build` makes the task
        return names | optional_parameters_of_class(str(_target(base.task)))
    target = _target(node)
    if target is None:
        return names
    parameters = parameters_of(target)
    return None if parameters is None else names | set(parameters) | OF_HYDRA


def unfit(base: DictConfig, key: str, value: Any) -> str | None:
    """The sentence about a value of another type than the option takes, None if it fits or nobody can tell."""
    if isinstance(value, str) and "${" in value:
        return None
    section, _, name = key.rpartition(".")
    node = OmegaConf.select(base, section, throw_on_missing=False) if section else base
    if not isinstance(node, DictConfig):
        return None
    target = _target(node)
    wanted = (parameters_of(target) or {}).get(name, Any) if target is not None else Any
    before = OmegaConf.to_container(node, resolve=False).get(name)  # type: ignore[union-attr]
    of_section = value is None or isinstance(value, dict)  # what takes a section away, or gives one
    brackets = "{…}" if isinstance(value, dict) else "[…]" if isinstance(value, list) else None
    told = brackets or {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))
    if isinstance(before, dict) and before and wanted is Any and section not in OPEN and not of_section:
        return f"{key}={told} is one value, and {key} is a section: pass {key}.{next(iter(before))}=VALUE."
    if wanted is Any and value is not None and (type(before) in (bool, int, float) or before == []):
        wanted = type(before)
    if fits(value, wanted):
        return None
    words = list(dict.fromkeys(_alternatives(wanted)))
    kind = " or ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "a section of settings"
    near = difflib.get_close_matches(told, words, n=1)
    return f"{key}={told} does not fit: {f'did you mean {near[0]}? Give' if near else 'give'} {kind}."


def fits(value: Any, wanted: Any) -> bool:
    """Whether a plain value may be what an annotation says; whatever is not understood may."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is Literal:
        return value in arguments
    kind = origin or wanted
    if kind is None or kind is type(None):
        return value is None
    if not isinstance(kind, type) or kind is object or getattr(kind, "_is_protocol", False):
        return True
    if kind in (int, bool):
        return type(value) is kind
    if kind is float:
        return type(value) in (int, float)
    if kind is str or issubclass(kind, Path):
        return isinstance(value, str | int | float) and not isinstance(value, bool)
    if isinstance(value, dict) and not issubclass(kind, str):
        return True
    return (isinstance(value, list) and issubclass(list, kind)) or (issubclass(kind, tuple) and isinstance(value, list))


def _alternatives(wanted: Any) -> Iterator[str]:
    """What a person can write on a command line for an annotation."""
    origin = get_origin(wanted)
    if origin is Literal:
        yield from map(str, get_args(wanted))
    elif origin in (Union, types.UnionType):
        for one in get_args(wanted):
            yield from _alternatives(one)
    elif wanted in (None, type(None)):
        yield "null"
    elif (kind := origin or wanted) in KINDS:
        yield KINDS[kind]
    elif isinstance(kind, type) and issubclass(list, kind):
        yield KINDS[list]


def found(node: Any, parts: Sequence[str]) -> bool:
    """Whether a configuration has a key, whatever its value."""
    for depth, part in enumerate(parts):
        if isinstance(node, ListConfig):
            return part.isdigit() and int(part) < len(node)
        if not isinstance(node, DictConfig) or part not in list(node):
            return False
        if depth + 1 < len(parts):
            node = OmegaConf.select(node, part, throw_on_missing=False)
    return True


def _hint(base: DictConfig, parts: list[str], depth: int, names: set[str]) -> str:
    """What may have been meant by a key whose part at `depth` is unknown."""
    own = sorted(names - OF_HYDRA)
    for near in difflib.get_close_matches(parts[depth], own) or [name for name in own if name.startswith(parts[depth])]:
        meant = [*parts[:depth], near, *parts[depth + 1 :]]
        if depth + 1 == len(parts) or found(base, meant):
            return f"; did you mean {'.'.join(meant)}?"
    everywhere = [key for key, _ in leaves(OmegaConf.to_container(base, resolve=False))]
    elsewhere = [key for key in everywhere if key.rpartition(".")[2] == parts[-1] and not key.startswith("hydra.")]
    if elsewhere:
        return f"; did you mean {min(elsewhere, key=len)}?"
    place = ".".join(parts[:depth])
    own = [name for name in own if place or not name.startswith("hydra")]
    more = f" and {len(own) - NAMES_SHOWN} more" if len(own) > NAMES_SHOWN else ""
    return f"; {f'{place} has' if place else 'there are'} {', '.join(own[:NAMES_SHOWN]) or 'no settings'}{more}."


def _groups(base: DictConfig) -> list[str]:
    """The groups of files that the configuration leaves to choose."""
    return [str(name).partition("@")[0] for name in OmegaConf.select(base, "hydra.runtime.choices") or ()]


def _target(node: DictConfig) -> str | None:
    """The `_target_` of a section, None where it has none."""
    name = node.get("_target_") if "_target_" in node else None
    return name if isinstance(name, str) else None
