"""The way into a door: `python -m vinvl.NAME` looks at its command line before Hydra, and at what Hydra says."""

import difflib
import logging
import os
import sys
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NoReturn

from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import ConfigCompositionException
from omegaconf import DictConfig

from vinvl.run.errors import UserError, escaped_warnings, printable, say, sentence_of
from vinvl.run.files import system_error
from vinvl.run.folders import config_directory, require_launcher, sentence_of_fault
from vinvl.run.options import checked, readable
from vinvl.run.overrides import replacing
from vinvl.run.signals import Interrupted, signal_behind, stopping_at_once

# What the doors without Hydra share: how an error, a full disk or a signal reaches a person.


class Parser(ArgumentParser):
    """Tells what is wrong with a command line as all else is told that is wrong."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help tells what there is.")


def run_command(run: Callable[[], int]) -> int:
    """Runs a command, reading its arguments included; the exit code: its own, 1 after an error, or that of a signal."""
    with escaped_warnings(), stopping_at_once():
        try:
            return run()
        except (Exception, Interrupted) as error:
            if (stopped := signal_behind(error)) is not None:
                say(f"{stopped}; give the same command again.", error=True)
                return stopped.exit_code
            sentence = sentence_of(error)
            if sentence is None and isinstance(error, OSError):
                sentence = f"{error.filename or 'A file'} cannot be read or written ({error.strerror or error})."
            if sentence is None:
                raise
            say(f"error: {sentence}", error=True)
            return 1


OWN_FILES = ("config_path", "config_dir", "config_name", "experimental_rerun")  # Hydra's flags for other configurations
MULTIRUN = ("-m", "--multirun")
FULL_ERROR = "HYDRA_FULL_ERROR"


def enter(main: Callable[[], object], name: str, arguments: Sequence[str], restored: Sequence[str] = ()) -> None:
    """Runs a door's `main`, which Hydra has wrapped; ends the process with a code and, after an error, a sentence.

    Args:
        name: of the door's configuration.
        arguments: of the command line.
        restored: sections that a checkpoint brings, unless the command chooses one; `vinvl.restore` holds the command
            against them.
    """
    logging.raiseExceptions = False  # a log that finds no room is no reason for tracebacks between the lines
    sys.excepthook = _print_escaped
    in_full = os.environ.get(FULL_ERROR) == "1"
    os.environ[FULL_ERROR] = "1"  # so that errors come here, and not as Hydra prints them
    with escaped_warnings(), stopping_at_once():
        try:
            require_launcher(arguments)
            sys.argv[1:] = replacing(checked_arguments(name, arguments, restored))
            main()
        except (Exception, Interrupted) as error:
            if (stopped := signal_behind(error)) is not None:
                say(f"{stopped}; give the same command again.", error=True)
                sys.exit(stopped.exit_code)
            sentence = sentence_of(error)
            if sentence is None and not in_full:
                sentence = sentence_of_fault(error) or _of_unwritable_folder(error)
            if sentence is None:
                raise
            sys.exit(f"error: {printable(sentence)}")


def checked_arguments(name: str, arguments: Sequence[str], restored: Sequence[str] = ()) -> list[str]:
    """The arguments as Hydra can read them.

    Raises:
        UserError: one cannot be read, chooses what there is not, is an option that nobody knows, or of the wrong type.
    """
    arguments = sorted(arguments, key=lambda word: word not in MULTIRUN)  # argparse wants flags first, or last
    parser = get_args_parser()
    parser.error = _refuse_flags  # type: ignore[method-assign]
    flags = parser.parse_args(arguments)
    words = {word: readable(word, bool(flags.multirun)) for word in flags.overrides}
    if not words or any(getattr(flags, flag, None) for flag in OWN_FILES):
        return [words.get(word, word) for word in arguments]
    with initialize_config_dir(config_dir=config_directory(), version_base="1.3", job_name=name):
        loader = GlobalHydra.instance().config_loader()
        for word, now in words.items():  # +experiment=NAME: the configuration leaves the place for one
            key = now.lstrip("+").partition("=")[0]
            words[word] = now.lstrip("+") if loader.get_group_options(key) else now
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(words.values()))
        overrides = dict(zip(words, parsed, strict=True))
        choosing = [one for one in parsed if loader.get_group_options(one.key_or_group)]
        for one in choosing:
            _refuse_other_choices(one, loader)
        bases = _bases(name, choosing)
    chosen = {one.key_or_group for one in choosing}
    deleted = {one.key_or_group for one in parsed if one.is_delete()}
    elsewhere = ("hydra.", *(f"{section}." for section in restored if section not in chosen))
    for word, one in overrides.items():
        of_plan = name == "train" and one.key_or_group.partition(".")[0] == "plan"  # which no configuration has
        if one not in choosing and not one.key_or_group.startswith(elsewhere) and not of_plan:
            words[word] = checked(one, bases, deleted)
    return [words.get(word, word) for word in arguments]


def _refuse_flags(message: str) -> NoReturn:
    raise UserError(f"{message}; options are given as KEY=VALUE, and --help shows them.")


def _bases(name: str, choosing: Sequence[Override]) -> list[DictConfig]:
    """The configuration with what the command chooses, and without its values; several where it chooses several.

    Raises:
        UserError: this door has nothing of the kind to choose.
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
    """The values that an override names, those of a sweep too unless it names none of them."""
    value = override.value()
    if override.is_sweep_override():
        return list(value.list) if isinstance(value, ChoiceSweep) else []
    return [value]


def _refuse_other_choices(override: Override, loader: ConfigLoader) -> None:
    """Refuses GROUP=CHOICE where there is no such file."""
    group = override.key_or_group
    for choice in () if override.is_delete() else _choices(override):
        options = loader.get_group_options(group)
        shown = [option for option in options if not option.startswith("_")]
        if isinstance(choice, list) or str(choice) in options:
            continue
        if choice is None:  # which Hydra takes for some, and would not merge with what lies in others
            raise UserError(f"{group}=null will not do: choose of {', '.join(shown)}, or leave it out.")
        if isinstance(choice, dict):
            raise UserError(f"{group} is chosen by name, {group}=NAME; single values of it are {group}.KEY=VALUE.")
        near = difflib.get_close_matches(str(choice), shown, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose of {', '.join(shown)}."
        raise UserError(f"There is no {group}={choice}; {hint}")


def _of_unwritable_folder(error: BaseException) -> str | None:
    """Hydra writes the configuration and opens its log before the run begins."""
    cause = system_error(error)
    if cause is None:
        return None
    reason = f"{cause.filename or 'The run folder'} cannot be written ({cause.strerror or cause})"
    return f"{reason}: pass another place, hydra.run.dir=FOLDER or paths.runs_dir=FOLDER."


def _print_escaped(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """A traceback, for mistakes of the program's own; what it quotes may come from a file."""
    say(*"".join(traceback.format_exception(kind, error, trace)).rstrip("\n").split("\n"), error=True)
