"""Work on all cores, with results in the order of the jobs and a bounded number of them waiting."""

from __future__ import annotations

import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from vinvl.errors import UserError

Job = TypeVar("Job")
Result = TypeVar("Result")


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
        raise UserError(
            "A worker process was ended from outside, perhaps for want of memory; pass a smaller features.workers."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
