"""What people are meant to read: the one exception of that kind, and the one place that writes to the terminal."""

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

Cause = TypeVar("Cause", bound=BaseException)
PACKAGE = Path(__file__).resolve().parents[1]
LOG = "vinvl_said"  # the logger of what the terminal shows

# What a terminal obeys or a reader is deceived by: control characters (the C1 block too), marks that turn the direction
# of writing, separators of lines, and halves of surrogate pairs, which cannot be written at all.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb\ud800-\udfff]")


class UserError(Exception):
    """Bad input, told in one sentence: which file, which record, what is wrong and what to do.

    The doors (`vinvl.train`, `vinvl.evaluate`, …) print the sentence without a traceback and exit with code 1. It may
    quote what a file says, so it is always on one line, and escaped.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    r"""A text on one line, without anything that a terminal obeys: "\x1b[31m" becomes the letters \x1b[31m.

    Ordinary text of any script stays as it is, and what has been escaped already too.
    """
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def say(*lines: object, error: bool = False) -> None:
    """Prints lines at once, also into a pipe, and escaped, whatever a file or a model has put into them.

    `error`: to the standard error, not to the standard output.
    """
    told = [printable(str(line)) for line in lines]
    print("\n".join(told), file=sys.stderr if error else sys.stdout, flush=True)
    note(*told)


def note(*lines: str) -> None:
    """Adds lines to the log file of the run, if there is one (conf/hydra/_log.yaml), and not to the terminal."""
    logger = logging.getLogger(LOG)
    logger.propagate = False  # what is said is said already
    for line in lines:
        logger.info(line)


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception, and what it was raised from or while handling, down to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def cause_of_kind(error: BaseException | None, kind: type[Cause]) -> Cause | None:
    """The nearest of the `causes` that is of a kind, None if there is none."""
    return next((cause for cause in causes(error) if isinstance(cause, kind)), None)


OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|_ALLOC_FAILED|bad_alloc", re.I)
OF_WORKERS = "DataLoader worker"  # in what PyTorch says of an error that one of them has raised


def out_of_memory(error: BaseException) -> bool:
    """Whether there was no room for a tensor or an array, as torch, NumPy and Python tell it."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(OF_MEMORY.search(str(error))))


def sentence_of(error: BaseException) -> str | None:
    """The sentence of the `UserError` at the root of an exception, None if there is none.

    Hydra wraps what a constructor raises; a data worker's exception arrives as text with the worker's traceback.
    """
    cause = cause_of_kind(error, UserError)
    if cause is None:
        return None
    text, marker = str(cause), f"{UserError.__module__}.{UserError.__name__}: "
    return text.rsplit(marker, 1)[-1].removesuffix(r"\n") if marker in text else text


@contextmanager
def escaped_warnings() -> Iterator[None]:
    """Within it warnings are said on one line, as all else that a door prints; ours without their place in the code."""

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        place = "warning" if PACKAGE in Path(filename).parents else f"{filename}:{lineno}"
        say(f"{place}: {message}", error=True)

    shown, warnings.showwarning = warnings.showwarning, show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = shown
