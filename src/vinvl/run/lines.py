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
from vinvl.run.files import reading

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

    Raises UserError if the file is missing or unreadable.
    """
    digest = hashlib.blake2b(digest_size=16)
    chunks: list[Chunk] = []
    position, line = 0, 1
    with reading(path), path.open("rb") as file:
        while block := file.read(chunk_bytes):
            block += file.readline()  # up to the end of the line that the block ends in
            digest.update(block)
            chunks.append(Chunk(str(path), position, position + len(block), line))
            position += len(block)
            line += block.count(b"\n")
    return chunks, digest.hexdigest()


Job = TypeVar("Job")
Result = TypeVar("Result")


class Pool(ProcessPoolExecutor):
    """Processes that end at once with an error in this process, or with what stops it.

    Ctrl-C reaches fresh ones as well, and is for this process to answer: they have it blocked from their first moment.

    Args:
        forked: copies of this process, where the system can make them, in place of fresh ones, which would import
            torch and all. The caller must not hold threads and locks of torch or HDF5 that its jobs need.
        fewer: the option that asks for fewer of them, for a person.

    Raises:
        UserError: at its end, where a process ended before its job.
    """

    def __init__(self, workers: int, *, forked: bool = False, fewer: str = "workers") -> None:
        self._fewer = fewer  # macOS does not allow forks
        super().__init__(workers, mp_context=get_context("fork" if forked and sys.platform == "linux" else "spawn"))

    def submit(self, *call: Any, **named: Any) -> Future[Any]:
        """As it is inherited; it may start a process, which has the same signals blocked."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forking beside BLAS's threads
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
            told = "A worker process was ended from outside, perhaps for lack of memory; pass a smaller"
            raise UserError(f"{told} {self._fewer}.") from None


def pool_map(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int, stack: ExitStack) -> Iterator[Result]:
    """`work` of each job, in order: in fresh processes that end with `stack`, or in this one."""
    if workers < 2 or len(jobs) < 2:
        return map(work, jobs)
    return stack.enter_context(Pool(workers)).map(work, jobs)


def in_order(
    work: Callable[[Job], Result], jobs: Iterable[Job], workers: int, fewer: str = "features.workers"
) -> Iterator[Result]:
    """`work` of each job, in forked processes at most 2 jobs a worker ahead of the reader; 1 worker: in this process.

    Raises UserError if a worker process ended before its job, naming the option `fewer`; and whatever `work` raises.
    """
    if workers < 2:
        yield from map(work, jobs)
        return
    waiting: deque[Future[Result]] = deque()
    with Pool(workers, forked=True, fewer=fewer) as pool:
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
