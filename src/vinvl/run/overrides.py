"""What a command line gives: it takes the place of what is configured or carried, and is read by something."""

import copy
import difflib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from vinvl.run.errors import UserError
from vinvl.run.values import IMAGE_WIDTH, OF_THE_ENCODER

STAGE = r"((pretrain|finetune)\.)?"  # of vinvl.pretrain_finetune
SPLITS = re.compile(rf"{STAGE}data\.splits(\..+)?")  # dicts that name files in one of several forms
MADE = re.compile(rf"{STAGE}optim\.(optimizer|scheduler)")  # dicts that name, by `_target_`, what takes the other keys


def replacing(arguments: Sequence[str]) -> list[str]:
    """Command-line arguments, so that what is given takes the place of what is configured.

    Hydra merges a dict into the one that is there, and cannot merge it with a list: `data.splits.train={jsonl: FILE}`
    would leave another form of the split beside the one given. `KEY=null` before it makes room.
    """
    return [word for argument in arguments for word in _with_room_made(argument)]


def _with_room_made(argument: str) -> list[str]:
    override = _parsed(argument)
    if override is None or override.type == OverrideType.DEL or override.package is not None:
        return [argument]
    key, value = override.key_or_group, override.value()
    choices = value.list if isinstance(value, ChoiceSweep) else [value]
    if not any(replaces(key, one) for one in choices):
        return [argument]
    # A word begins otherwise than the next for the same key: of words that begin alike, sweeps take the last alone.
    room = f"{key}=null" if override.type == OverrideType.CHANGE else f"++{key}=null"
    partial = [f"++{key}._partial_=true"] if MADE.fullmatch(key) else []  # the task completes it
    return [room, f"+{key}={argument.split('=', 1)[1]}", *partial]


def replaces(key: str, value: object) -> bool:
    """Whether a value takes the place of all that is configured for its key, where Hydra would merge the two."""
    if SPLITS.fullmatch(key):
        return isinstance(value, dict | list)
    return MADE.fullmatch(key) is not None and isinstance(value, dict) and "_target_" in value


def command_overrides() -> list[str]:
    """The overrides of the command that Hydra is running, none without one."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def given_values(overrides: Sequence[str]) -> dict[str, Any]:
    """What overrides give, by key, in their order; the last word counts, and what is taken away has the key `~KEY`."""
    read = filter(None, map(_parsed, overrides))
    return {f"~{one.key_or_group}" if one.type == OverrideType.DEL else one.key_or_group: one.value() for one in read}


def leave_sizes_open(config: DictConfig, given: Mapping[str, Any]) -> None:
    """Makes room for what the data, and weights to start from, say of a model's size where the command does not.

    The width of features is the store's, and where the command names `model.init` all else is as in those weights;
    what is left open is null.

    Args:
        given: `given_values`.
    """
    if "model" not in config:
        return
    names = OF_THE_ENCODER if given.get("model.init") is not None else (IMAGE_WIDTH,)
    for name in names:
        if name in config.model.config and not {f"model.config.{name}", "model.config"} & given.keys():
            config.model.config[name] = None


def refuse_unread_splits(given: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raises UserError for a split that a command gives and that no stage reads: it would be ignored.

    Args:
        given: `given_values`.
        data: the section that is read, with `train_split` and the like.
    """
    stages = {key: str(data[key]) for key in data if key.endswith("_split")}
    read = {*stages.values(), *map(str, data.get("answer_splits") or ())}
    for name in given_splits(given):
        if name not in read:
            close = difflib.get_close_matches(name, sorted(read), n=1)
            meant = f"did you mean data.splits.{close[0]}? Else pass" if close else "pass"
            raise UserError(
                f"data.splits.{name} is given, and nothing reads it "
                f"({', '.join(f'data.{key} is {value}' for key, value in stages.items())}): "
                f"{meant} data.train_split={name}, data.val_split={name} or data.test_split={name}."
            )


def given_splits(given: Mapping[str, Any]) -> list[str]:
    """The names of the splits that are given one by one."""
    return [key.split(".")[2] for key in given if key.startswith("data.splits.")]


def _parsed(argument: str) -> Override | None:
    """An argument as Hydra reads it; None for an option, and for what Hydra will refuse by itself."""
    if argument.startswith("-"):
        return None
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


# A configuration as the command line of another process.

RESERVED_WORDS = ("true", "false", "null", "nan", "inf")  # of the grammar of overrides


def as_overrides(section: DictConfig, whole: Collection[str] = ()) -> list[str]:
    """A section as the words of a command line: {trainer: {max_epochs: 3}} → ["trainer.max_epochs=3"].

    The dicts of the keys in `whole` stay dicts.
    """

    def leaves(node: dict[str, Any], prefix: str) -> Iterator[str]:
        for name, value in node.items():
            key = f"{prefix}{name}"
            if isinstance(value, dict) and key not in whole:
                yield from leaves(value, f"{key}.")
            else:
                yield f"{key}={as_value(value)}"

    plain = OmegaConf.to_container(section, resolve=True)
    assert isinstance(plain, dict)
    return list(leaves({str(key): value for key, value in plain.items()}, ""))


def as_value(value: object) -> str:
    """A value in Hydra's grammar of overrides; texts are quoted where they could be taken for something else."""
    if isinstance(value, list):
        return f"[{','.join(map(as_value, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{as_value(item)}' for key, item in value.items())}}}"
    if not isinstance(value, str):
        return json.dumps(value)
    plain = re.fullmatch(r"[A-Za-z_/][A-Za-z0-9_/.]*", value) and value.lower() not in RESERVED_WORDS
    return value if plain else QuotedString(value, Quote.double).with_quotes()


# The settings that a file carries, with those of this command on top.

FILES = "data.splits"  # what is given there is one value, also where it is a dict
# Dicts whose keys need not be carried; whoever reads them knows them.
GROWING = ("splits", "constraints", "choices", "scene_graphs")


def with_given(
    carried: dict[str, Any] | None, name: str, config: DictConfig, given: Mapping[str, Any], owner: str
) -> dict[str, Any]:
    """A section that a file carries, in plain types, with what the command gives for it.

    What is given replaces what is there; of a dict of settings, such as `data.prepare`, the settings that are given.
    Where the command chooses the section itself (NAME=CHOICE), or nothing is carried, its own stands. Raises UserError
    if the section has no such key, or something is to be taken away from it.

    Args:
        config: what Hydra composed for the command, in which what is given is resolved.
        given: `given_values` of the command.
        owner: names what carries the section, for messages.
    """
    if carried is None or name in given:
        return _plain(config[name])
    changed = copy.deepcopy(carried)
    for key, value in given.items():
        if key.startswith(f"~{name}."):
            raise UserError(f"{key}: nothing can be taken away from {owner}; pass {key[1:]}=null, or {name}=NAME.")
        if key.startswith(f"{name}.") and (key, value) != (FILES, None):  # which makes room for splits that follow
            for inner in _settings(key, value):
                _put(changed, inner.split("."), _plain(OmegaConf.select(config, inner)), owner)
    return changed


def given_keys(name: str, config: DictConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Of a section what the command gives; all of it where it has chosen the section."""
    keys = {key.split(".")[1] for key in given if key.startswith(f"{name}.")}
    return _plain(config[name]) if name in given else {key: _plain(config[name][key]) for key in keys}


def section(config: DictConfig, name: str) -> dict[str, Any]:
    """A section in plain types."""
    value = _plain(config[name])
    assert isinstance(value, Mapping)
    return {str(key): item for key, item in value.items()}


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _settings(key: str, value: object) -> Iterator[str]:
    """The key of each setting in a dict of settings; a dict that says where files lie is one value."""
    if isinstance(value, dict) and value and not key.startswith(FILES):
        for name, item in value.items():
            yield from _settings(f"{key}.{name}", item)
    else:
        yield key


def _put(section: Any, names: Sequence[str], value: object, owner: str) -> None:
    """Sets a value within nested dicts and lists; below a key of `GROWING` it may be new.

    `names` are the parts of a key, the section's own first. Raises UserError if there is no such place; `owner` names
    the section in it.
    """
    _, *parents, last = names
    grows = names[1] in GROWING
    node = section
    for depth, name in enumerate(parents, 1):
        if grows and isinstance(node, dict) and (node is not section or name in node) and node.get(name) is None:
            node[name] = {}
        node = _child(node, depth, names, owner)
    if not (isinstance(node, dict) and grows and parents):
        _child(node, len(names) - 1, names, owner)
    node[int(last) if isinstance(node, list) else last] = value


def _child(node: Any, depth: int, names: Sequence[str], owner: str) -> Any:
    name = names[depth]
    if isinstance(node, list) and name.isdecimal() and int(name) < len(node):
        return node[int(name)]
    if isinstance(node, dict) and name in node:
        return node[name]
    known = sorted(map(str, node)) if isinstance(node, dict) else []
    close = difflib.get_close_matches(name, known, n=1)
    meant = ".".join([*names[:depth], *close, *names[depth + 1 :]])
    hint = f"; did you mean {meant}?" if close else f"; it has {', '.join(known)}." if known else "."
    raise UserError(f"{owner} has no '{'.'.join(names[1:])}'{hint}")
