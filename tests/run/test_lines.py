"""Spawned workers: Ctrl-C is not theirs to answer, an error ends them at once, and one that is killed is told of."""

import os
import signal
import time

import pytest

from vinvl.run.errors import UserError
from vinvl.run.lines import Pool


def test_workers_leave_ctrl_c_alone_and_end_with_an_error() -> None:
    with pytest.raises(KeyError), Pool(2) as pool:
        assert signal.SIGINT in pool.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()
        waiting = [pool.submit(time.sleep, 600) for _ in range(9)]
        raise KeyError
    assert not any(one.done() and one.exception() is None for one in waiting if not one.cancelled())
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_worker_that_is_killed() -> None:
    with pytest.raises(UserError, match="A worker process was ended from outside"), Pool(2) as pool:
        list(pool.map(os._exit, [1, 1]))
