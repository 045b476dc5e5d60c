"""Runs the Java programs of `pycocoevalcap`: bounded in time, every failure one sentence, none left behind."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from vinvl.errors import UserError

# Runs before Java in its process: asks Linux to end the process when ours ends, even if that is killed.
_DIE_WITH_PARENT = (
    "import ctypes,os,signal,sys\n"
    "ctypes.CDLL(None).prctl(1,signal.SIGKILL)\n"
    "os.getppid()==int(sys.argv[1]) and os.execv(sys.argv[2],sys.argv[2:])"
)


def why_unavailable() -> str | None:
    """One sentence saying what METEOR and the PTB tokenizer lack here; None if they can run."""
    if shutil.which("java") is None:
        return (
            "METEOR, SPICE and the PTB tokenizer need Java, and there is no java on the PATH; install a Java runtime."
        )
    if _package_folder() is None:
        return "METEOR, SPICE and the PTB tokenizer need pycocoevalcap; pip install 'vinvl[captions]'."
    return None


def _package_folder() -> Path | None:
    spec = importlib.util.find_spec("pycocoevalcap")
    locations = [] if spec is None else list(spec.submodule_search_locations or [])
    return Path(locations[0]) if locations else None


def java_folder() -> Path:
    """Where pycocoevalcap keeps its programs; UserError if they cannot run."""
    problem = why_unavailable()
    folder = _package_folder()
    if problem is not None or folder is None:
        raise UserError(problem or "pycocoevalcap is not installed.")
    return folder


def _command(arguments: Sequence[str]) -> list[str]:
    """The command line of a Java program that, on Linux, cannot outlive this process."""
    command = [shutil.which("java") or "java", "-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", *arguments]
    if sys.platform != "linux":
        return command
    return [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), *command]


def run_java(
    name: str, arguments: Sequence[str], text: str, timeout: float, environment: Mapping[str, str] | None = None
) -> str:
    """Standard output of a Java program given `text`; the program ends with this call, whatever happens.

    `arguments` name files inside the package's folder. Raises UserError, naming the program by `name`, if it cannot
    start, fails or takes longer than `timeout` seconds.
    """
    folder = java_folder()
    try:
        done = subprocess.run(
            _command(arguments),
            cwd=folder,
            input=text.encode(),
            capture_output=True,
            timeout=timeout,
            env={**os.environ, **(environment or {})},
        )
    except subprocess.TimeoutExpired:
        raise _too_slow(name, timeout) from None
    if done.returncode != 0:
        raise _failed(name, done.stderr)
    return done.stdout.decode(errors="replace")


@contextmanager
def conversation(name: str, arguments: Sequence[str], timeout: float) -> Iterator[Callable[[str, int], list[str]]]:
    """A Java program that answers lines with lines: yields ask(line, lines of the answer) → the answer.

    For programs that take longer to start than to answer. The program ends with the block, whatever happens; it may
    last `timeout` seconds. Raises UserError, naming the program by `name`, as `run_java` does.
    """
    folder = java_folder()
    pipe = subprocess.PIPE
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(_command(arguments), cwd=folder, stdin=pipe, stdout=pipe, stderr=complaints)
        watch = threading.Timer(timeout, process.kill)
        watch.daemon = True
        started = time.monotonic()
        watch.start()
        try:
            yield partial(_ask, process)
        except (EOFError, BrokenPipeError):
            if time.monotonic() - started >= timeout:
                raise _too_slow(name, timeout) from None
            process.wait()
            complaints.seek(0)
            raise _failed(name, complaints.read()) from None
        finally:
            watch.cancel()
            process.kill()
            with suppress(BrokenPipeError):  # closing sends what an ended program did not take
                process.communicate()


def _ask(process: subprocess.Popen[bytes], question: str, num_lines: int) -> list[str]:
    """Writes one line and reads the lines of the answer; EOFError if the process ends before them."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(question.encode() + b"\n")
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(num_lines)]
    if not all(lines):
        raise EOFError
    return [line.decode(errors="replace").strip() for line in lines]


def _too_slow(name: str, timeout: float) -> UserError:
    return UserError(f"{name} did not finish in {timeout:g} seconds and was stopped; allow it more time.")


def _failed(name: str, complaint: bytes) -> UserError:
    lines = complaint.decode(errors="replace").splitlines()
    said = [line.strip() for line in lines if line.strip() and not line.startswith("NOTE: Picked up")]
    return UserError(f"{name} stopped without a result: {said[0][:200] if said else 'it gave no reason'}.")
