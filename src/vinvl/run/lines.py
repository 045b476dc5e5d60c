"""Files in parts of whole lines; work on all cores, with results in order and a bounded number of them waiting."""

from __future__ import annotations

import hashlib
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from vinvl.run.errors import UserError

# A file of lines in pieces that workers read, each on its own.


CHUNK_BYTES = 16 * 2**20


class Chunk(NamedTuple):
    """Whole lines of a file: bytes start to stop, the first of them being line `first_line`, counted from 1."""

    path: str
    start: int
    stop: int
    first_line: int

    def content(self) -> bytes:
        """The lines, read again."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.stop - self.start)


def split_file(path: Path, chunk_bytes: int = CHUNK_BYTES) -> tuple[list[Chunk], str]:
    """The chunks of a file, and the hexadecimal digest of its content; one pass over it.

    Raises:
        UserError: the file is missing or unreadable.
    """
    digest = hashlib.blake2b(digest_size=16)
    chunks: list[Chunk] = []
    position, line = 0, 1
    try:
        with path.open("rb") as file:
            while block := file.read(chunk_bytes):
                block += file.readline()  # up to the end of the line that the block ends in
                digest.update(block)
                chunks.append(Chunk(str(path), position, position + len(block), line))
                position += len(block)
                line += block.count(b"\n")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    return chunks, digest.hexdigest()


Job = TypeVar("Job")
Result = TypeVar("Result")
ENDED_FROM_OUTSIDE = "A worker process was ended from outside, perhaps for lack of memory; pass a smaller {}."


class SpawnedPool(ProcessPoolExecutor):
    """Fresh processes; an error in this process, or what stops it, ends them at once.

    Ctrl-C reaches them as well, and is for this process to answer: they have it blocked from their first moment.

    Raises:
        UserError: at its end, where a process ended before its job.
    """

    def __init__(self, workers: int) -> None:
        super().__init__(workers, mp_context=get_context("spawn"))

    def submit(self, *call: Any, **named: Any) -> Future[Any]:
        """As it is inherited; it may start a process, which has the same signals blocked."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(*call, **named)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            for process in list((self._processes or {}).values()):
                process.terminate()
        self.shutdown(wait=True, cancel_futures=error is not None)
        if isinstance(error, BrokenProcessPool):
            raise UserError(ENDED_FROM_OUTSIDE.format("workers")) from None


def pool_map(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, stack: ExitStack) -> Iterator[Result]:
    """`work` of each job, in order: in fresh processes that end with `stack`, or in this one.

    Spawned, not forked: the caller may hold threads and locks of torch or HDF5.
    """
    if workers < 2 or len(jobs) < 2:
        return map(work, jobs)
    return stack.enter_context(SpawnedPool(workers)).map(work, jobs)


def in_order(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """`work` of each job, at most 2 jobs a worker ahead of the reader; 1 worker does it in this process.

    Raises:
        UserError: a worker process ended before its job; and whatever `work` raises.
    """
    if workers < 2:
        yield from map(work, jobs)
        return
    # Spawned workers would import the program that was started, torch and all, for decoding text. They are all forked
    # at the first job, and do nothing with threads or HDF5; macOS does not allow it.
    context = get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context)
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forking beside BLAS's threads
                waiting.append(pool.submit(work, job))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(ENDED_FROM_OUTSIDE.format("features.workers")) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
