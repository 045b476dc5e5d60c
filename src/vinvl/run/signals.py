"""Signals that ask a process to stop: how each is answered, and with which code the process ends."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

START_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: what the launch scripts requeue for
INTERRUPTED = 130  # what shells expect after Ctrl-C
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
STOPPED = "Stopped as asked to"
STANDARD_ERROR = 2  # written to directly: a handler may interrupt a print, which does not bear a second one


class Interrupted(BaseException):
    """A signal asks the process to stop, and it leaves what it is doing; it should end with `exit_code`."""

    def __init__(self, number: int) -> None:
        super().__init__(STOPPED)
        self.exit_code = exit_code(number)


def end_at_once() -> None:
    """Until a door is imported and has set its own handlers, lets these signals end the process with a sentence.

    Nothing has been written yet that would have to be tidied up.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os.write(STANDARD_ERROR, f"{STOPPED}; give the same command again.\n".encode())
        os._exit(exit_code(number))

    for number in STOP_SIGNALS:
        signal.signal(number, end)


def exit_code(number: int | None) -> int:
    """What a process should end with that a signal has stopped."""
    return INTERRUPTED if number == signal.SIGINT else START_AGAIN


@contextmanager
def stopping_at_once() -> Iterator[None]:
    """Within it a SIGTERM, SIGUSR1 or Ctrl-C raises `Interrupted` wherever the process is, so that all is tidied up."""
    if threading.current_thread() is not threading.main_thread():  # Python gives signals to no other
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    stop_at_once()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_at_once(*numbers: int) -> None:
    """Takes the place of the handlers of these signals, or of all that ask to stop; see `stopping_at_once`."""
    process = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            raise Interrupted(number)
        answer_as_worker(number)

    for number in numbers or STOP_SIGNALS:
        signal.signal(number, leave)


def answer_as_worker(number: int) -> None:
    """In a process that was forked: Ctrl-C is the main process's to answer, which ends this one; others end it here."""
    if number != signal.SIGINT:
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def run_passing_signals_on(command: list[str]) -> int:
    """Runs a process to its end; its exit code. What asks this process to stop is the other's to answer.

    Ctrl-C reaches both by itself, what a scheduler sends this process alone.
    """
    received: list[int] = []
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in STOP_SIGNALS}
    try:
        process = subprocess.Popen(command)
        while True:
            try:
                return process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                for number in received:
                    if number != signal.SIGINT:
                        process.send_signal(number)
                received.clear()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """Notes a SIGTERM, SIGUSR1 or Ctrl-C instead of ending the process.

    Ctrl-C a second time ends the process on the spot; other signals may come repeatedly.

    Args:
        after: what is finished first, for a person who presses Ctrl-C: "this update".
    """

    def __init__(self, after: str) -> None:
        self.received: int | None = None
        self._process = os.getpid()
        self._message = f"\nStopping after {after}; Ctrl-C again stops at once.\n".encode()

    def listen(self) -> None:
        """Takes the place of the handlers that there are."""
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():  # Python gives signals to no other
            for number in STOP_SIGNALS:
                signal.signal(number, self._note)

    @property
    def exit_code(self) -> int:
        """What the process should end with."""
        return exit_code(self.received)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            answer_as_worker(number)
            return
        if number == signal.SIGINT:
            stop_at_once(signal.SIGINT)
            os.write(STANDARD_ERROR, self._message)
        self.received = number
