"""What the doors without Hydra share: how an error, a full disk or a signal reaches a person."""

from argparse import ArgumentParser
from collections.abc import Callable
from typing import NoReturn

from vinvl.errors import UserError, escaped_warnings, say, sentence_of
from vinvl.signals import Interrupted, signal_behind, stopping_at_once


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
