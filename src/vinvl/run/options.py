"""What a door may be told: words of a command line, compared with the configuration and what its `_target_`s take."""

from __future__ import annotations

import difflib
import inspect
import re
import types
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf

from vinvl.run.errors import UserError

OPEN = ("data.splits", "callbacks", "logger", "plan", "pretrain", "finetune")  # sections whose names a person chooses
MODEL_CONFIGS = ("model.config", "config")  # sections of fields of MODEL_CONFIG
MODEL_CONFIG = "vinvl.models.config.VinVLConfig"
OF_HYDRA = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}
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

    Raises:
        UserError: it is no KEY=VALUE, or a list or dictionary that cannot be read, or several values without a sweep.
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


def checked(override: Override, bases: Sequence[DictConfig], deleted: Collection[str] = ()) -> str:
    """KEY=VALUE of a known option with as many plus signs as Hydra wants, however many a person gave.

    Args:
        bases: the configuration without any such values; one for each choice of what a sweep chooses.
        deleted: keys that the command takes away.

    Raises:
        UserError: the option is unknown, or it does not take the value.
    """
    given, key = str(override.input_line), override.key_or_group
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
    if override.is_sweep_override() and not isinstance(override.value(), ChoiceSweep):
        return unknown(base, key)  # range(…) and the like
    whole = override.value()
    for value in whole.list if isinstance(whole, ChoiceSweep) else [whole]:
        if isinstance(value, dict) and value and "_target_" not in value and not key.startswith(OPEN):
            items = [(f"{key}.{name}", item) for name, item in leaves({str(k): v for k, v in value.items()})]
        else:
            items = [(key, value)]
        for name, item in items:
            if (problem := unknown(base, name) or unfit(base, name, _plain(item))) is not None:
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
        names = known_names(node, section, base)
        if names is not None and part not in names:
            return f"There is no {key}{_hint(base, parts, depth, names)}"
        if part not in list(node) or depth + 1 == len(parts):
            return None
        if (another := of_another(node, part)) is not None:
            place, instead = ".".join(parts[: depth + 1]), ".".join([another, *parts[depth + 1 :]])
            return f"{place} is {another}: give {instead} in place of {key}."
        node = OmegaConf.select(node, part, throw_on_missing=False)
    return None


def of_another(node: DictConfig, name: str) -> str | None:
    """The key whose value a key of a section has; None if it has a value of its own."""
    unresolved: Any = OmegaConf.to_container(node, resolve=False)
    found = re.fullmatch(r"\$\{([\w.]+)\}", str(unresolved.get(name)))
    return None if found is None else found[1]


def known_names(node: DictConfig, section: str, base: DictConfig) -> set[str] | None:
    """The keys that a section may have; None if a person chooses them."""
    names = {str(name) for name in node}
    if section in OPEN:
        return None
    if section in MODEL_CONFIGS:
        kind = get_object(MODEL_CONFIG)  # now and not before: transformers takes its time
        return names | {name for name in dir(kind()) if name[0] != "_" and not callable(getattr(kind, name, None))}
    if section == "task.options":  # of the class whose `build` makes the task
        task = getattr(_target(base.task), "__self__", None)
        own = {} if task is None else inspect.signature(task).parameters
        return names | {name for name, parameter in own.items() if parameter.default is not parameter.empty}
    target = _target(node)
    if target is None:
        return names
    parameters = _parameters(target)
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
    wanted = (_parameters(target) or {}).get(name, Any) if target is not None else Any
    before = OmegaConf.to_container(node, resolve=False).get(name)  # type: ignore[union-attr]
    told = value is None or isinstance(value, dict)  # what takes a section away, or gives one
    if isinstance(before, dict) and before and wanted is Any and section not in OPEN and not told:
        return f"{key}={_told(value)} is one value, and {key} is a section: pass {key}.{next(iter(before))}=VALUE."
    if wanted is Any and type(before) in (bool, int, float) and value is not None:
        wanted = type(before)
    if fits(value, wanted):
        return None
    return f"{key}={_told(value)} will not do: give {_kind(wanted)}."


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
    for near in difflib.get_close_matches(parts[depth], own):
        meant = [*parts[:depth], near, *parts[depth + 1 :]]
        if depth + 1 == len(parts) or found(base, meant):
            return f"; did you mean {'.'.join(meant)}?"
    everywhere = [key for key, _ in leaves(OmegaConf.to_container(base, resolve=False))]
    elsewhere = [key for key in everywhere if key.rpartition(".")[2] == parts[-1] and not key.startswith("hydra.")]
    if elsewhere:
        return f"; did you mean {min(elsewhere, key=len)}?"
    more = f" and {len(own) - NAMES_SHOWN} more" if len(own) > NAMES_SHOWN else ""
    place = ".".join(parts[:depth])
    own = [name for name in own if place or name != "hydra"]
    return f"; {f'{place} has' if place else 'there are'} {', '.join(own[:NAMES_SHOWN]) or 'no settings'}{more}."


def _target(node: DictConfig) -> Any:
    """What a section's `_target_` names; None if it names nothing that can be found."""
    name = node.get("_target_") if "_target_" in node else None
    try:
        return get_object(name) if isinstance(name, str) else None
    except Exception:  # Hydra raises ImportError, ValueError or its own; instantiating says it better
        return None


def _parameters(target: Any) -> dict[str, Any] | None:
    """The parameters of a callable with what they are annotated as; None if it takes any.

    What a constructor passes on as `**options` is what the class that it extends takes.
    """
    names: dict[str, Any] = {}
    is_class = isinstance(target, type)
    own = [vars(one)["__init__"] for one in target.__mro__ if "__init__" in vars(one)] if is_class else [target]
    for function in own:
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return None
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except Exception:  # an annotation that only a type checker can resolve
            hints = {}
        passes_on = False
        for parameter in list(signature.parameters.values())[is_class:]:
            hint = hints.get(parameter.name, Any)
            if parameter.kind is not parameter.VAR_KEYWORD:
                names.setdefault(parameter.name, hint)
            elif get_origin(hint) is typing.Unpack:
                names |= typing.get_type_hints(get_args(hint)[0])
            else:
                passes_on = True
        if not passes_on:
            return names
    return None


def _plain(value: Any) -> Any:
    """A value of the grammar of overrides as Python's own."""
    return getattr(value, "text", value) if type(value).__name__ == "QuotedString" else value


def _told(value: Any) -> str:
    if isinstance(value, list | dict):
        return "[…]" if isinstance(value, list) else "{…}"
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _kind(wanted: Any) -> str:
    """What an annotation asks for, in words."""
    words = list(dict.fromkeys(_alternatives(wanted)))
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]])) if words else "a section of settings"


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
