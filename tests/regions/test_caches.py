"""data.cache: copies of store files in shared memory, and features on the device."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.door_in_process import TINY, assert_same_weights, refused_in_process, run_in_process
from tests.regions.samples import make_regions, write
from vinvl.regions import RegionStore
from vinvl.regions.caches import DeviceFeatures, SharedCopies
from vinvl.run.errors import UserError

USER = f"vinvl-{os.getuid()}"
ENDING = """
import sys
from pathlib import Path
from vinvl.regions.caches import SharedCopies
copies = SharedCopies([Path(sys.argv[1])], memory=Path(sys.argv[2]))
assert copies.paths[0].exists()
"""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(tmp_path / "store.h5", [make_regions(f"image {n}", 2 + n % 3, seed=n) for n in range(5)])


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    folder = tmp_path / "memory"
    folder.mkdir()
    return folder


def files(memory: Path) -> list[str]:
    return sorted(path.suffix for path in (memory / USER).iterdir())


@contextmanager
def holding(store: Path, memory: Path) -> Iterator[str]:
    """Another process that uses the copy, whose name is given, and is killed at the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            copies = SharedCopies([store], memory)
            os.write(writing, str(copies.paths[0]).encode() + b"\n")
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(writing)
    try:
        with os.fdopen(reading) as file:
            yield file.readline().strip()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_copy_is_the_file_and_goes_when_nobody_uses_it(store: Path, memory: Path) -> None:
    first, again = SharedCopies([store], memory), SharedCopies([store], memory)
    assert first.paths[0].read_bytes() == store.read_bytes() and first.paths[0].parent == memory / USER
    assert again.paths == first.paths
    first.release()
    assert files(memory) == [".h5"]
    again.release()
    again.release()  # once is enough, and twice does no harm
    assert files(memory) == []


def test_a_file_that_was_changed_is_another(store: Path, memory: Path) -> None:
    first = SharedCopies([store], memory)
    os.replace(write(store.with_name("other.h5"), [make_regions("x", 3)]), store)
    second = SharedCopies([store], memory)
    assert first.paths != second.paths and second.paths[0].read_bytes() == store.read_bytes()
    first.release()
    assert second.paths[0].exists()


def test_another_process_shares_it_and_killed_it_is_taken_away_by_the_next(store: Path, memory: Path) -> None:
    with holding(store, memory) as one, holding(store, memory) as other:  # two at once make one
        mine = SharedCopies([store], memory)
        assert one == other == str(mine.paths[0]) and Path(one).read_bytes() == store.read_bytes()
        mine.release()
        assert files(memory) == [".h5"]  # the others use it still
    Path(one).with_suffix(".partial").write_bytes(b"half")  # of one that was killed while it copied
    copies = SharedCopies([write(store.with_name("other.h5"), [make_regions("x", 3)])], memory)
    assert files(memory) == [".h5"] and str(copies.paths[0]) != one


def test_a_process_that_ends_takes_it_away(store: Path, memory: Path) -> None:
    subprocess.run([sys.executable, "-c", ENDING, str(store), str(memory)], check=True, capture_output=True)
    assert files(memory) == []


def test_too_little_memory_and_none(store: Path, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, 1))
    with pytest.raises(UserError, match=r"store\.h5 has 0\.0 GB and .*memory has 0\.0 GB left.*data\.cache=null"):
        SharedCopies([store], memory)
    assert files(memory) == []
    with pytest.raises(UserError, match="which cannot be used"):
        SharedCopies([store], memory / "nowhere")


def test_rows_on_the_device_are_those_of_the_images(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write(tmp_path / "other.h5", [make_regions(f"more {n}", 3, seed=n + 9) for n in range(3)])
    monkeypatch.setattr("vinvl.regions.caches.CHUNK", 12)  # two rows at once
    for files, stored in (([store], [[3, 2], [0, 1], [4, 0], [3, 1]]), ([store, other], [[7, 3], [4, 2], [5, 3]])):
        regions = RegionStore(files)
        table = DeviceFeatures(regions)
        expected = torch.cat([torch.tensor(regions.at(i).features[:count]) for i, count in stored])
        assert torch.equal(table.features(table.rows_of(np.array(stored))), expected)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10, 10))
    with pytest.raises(UserError, match=r"needs 0\.0 GB for the features of .* and cuda:0 has 0\.0 GB left"):
        DeviceFeatures(RegionStore(store))._load(torch.device("cuda:0"))


@pytest.mark.slow
def test_a_run_is_the_same_wherever_features_are_kept(demo_data: Path, tmp_path: Path) -> None:
    first = tmp_path / "null"
    for cache, workers in (("null", 0), ("ram", 1), ("device", 1)):
        run = tmp_path / cache
        run_in_process("train", demo_data, run, *TINY, f"data.cache={cache}", f"data.num_workers={workers}")
        assert_same_weights(first, run)
        scores = [(one / "results.json").read_text().split('"scores"')[1] for one in (first, run)]
        assert scores[0] == scores[1]
    shared = Path("/dev/shm") / USER
    deadline = time.monotonic() + 5
    while shared.exists() and any(shared.glob("*.h5")) and time.monotonic() < deadline:
        gc.collect()  # the run's data module is gone, but for what a cycle holds
    assert not shared.exists() or not any(shared.glob("*.h5"))
    sentence = refused_in_process("train", demo_data, tmp_path / "run", *TINY, "data.cache=disk")
    assert "data.cache='disk' is unknown: give ram, device or null." in sentence
