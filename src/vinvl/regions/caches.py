"""Stores in fast memory: copies shared by all processes of a machine, or all features on the device.

A copy lives as long as a process uses it, which holds a lock on it. Whoever uses a copy last takes it away; what killed
processes left, the next one takes away.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError, say
from vinvl.run.files import is_open_file, lock, put_in_place

CHUNK = 1 << 27  # bytes copied at once
SPARE = 0.05  # of the device's free memory that must be left at the least


class DeviceFeatures:
    """All features of a store on the device, for stores that fit there: batches then bring row numbers alone.

    They are loaded when they are first asked for, for only then the device is known.
    """

    def __init__(self, store: RegionStore) -> None:
        self.store = store
        self.starts = np.concatenate([[0], np.cumsum(store.num_regions)])  # (N + 1,) int64, rows before each image
        self._table: Tensor | None = None

    def rows_of(self, stored: Tensor) -> Tensor:
        """(ΣR,) int64: the row of each region, of (B, 2) int64 position and number of regions of each image."""
        positions, counts = stored.numpy().T
        before = np.cumsum(counts) - counts
        return torch.from_numpy(np.repeat(self.starts[positions] - before, counts) + np.arange(counts.sum()))

    def features(self, rows: Tensor) -> Tensor:
        """(ΣR, D) in the store's precision, of rows (ΣR,) on the device. Raises UserError for too little memory."""
        if self._table is None or self._table.device != rows.device:
            self._table = self._load(rows.device)
        return self._table[rows]

    def _load(self, device: torch.device) -> Tensor:
        store = self.store
        dtype, row_bytes = getattr(torch, store.feature_dtype.name), store.feature_dim * store.feature_dtype.itemsize
        total = int(self.starts[-1])
        size = total * row_bytes
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if size > free * (1 - SPARE):
                raise UserError(
                    f"data.cache=device needs {size / 1e9:.1f} GB for the features of {store!r}, and {device} has "
                    f"{free / 1e9:.1f} GB left: pass data.cache=ram or data.cache=null."
                )
        say(f"Features onto {device}: {size / 1e9:.2f} GB …", error=True)
        table = torch.empty((total, store.feature_dim), dtype=dtype, device=device)
        rows_at_once = max(1, CHUNK // row_bytes)
        written = 0
        for source in store.sources:
            for start in range(0, source.header.num_regions, rows_at_once):
                stop = min(start + rows_at_once, source.header.num_regions)
                table[written : written + stop - start] = torch.from_numpy(source.rows("features", start, stop))
                written += stop - start
        return table


MEMORY = Path("/dev/shm")
WORTH_TELLING = 10**8  # bytes


class SharedCopies:
    """Files in shared memory, at `paths` in their order, in use until `release` or the end of the process."""

    def __init__(self, files: Sequence[Path], memory: Path = MEMORY) -> None:
        """Waits where another process copies the same file. Raises UserError if there is not enough such memory."""
        folder = memory / f"vinvl-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            reason = f"which cannot be used ({error.strerror})"
            raise UserError(f"data.cache=ram keeps files in {memory}, {reason}: pass data.cache=null.") from error
        if folder.stat().st_uid != os.getuid() or folder.is_symlink():
            raise UserError(f"{folder} is not yours: data.cache=ram keeps files there; pass data.cache=null.")
        _take_away_unused(folder)
        self._locks: list[int] = []
        self.paths: list[Path] = []
        self._finalizer: Callable[[], object] = weakref.finalize(self, _release, os.getpid(), self._locks, self.paths)
        for file in files:
            copy = folder / f"{_identity(file)}.h5"
            self._locks.append(_copied(file, copy))
            self.paths.append(copy)

    def release(self) -> None:
        """Takes away what no other process uses."""
        self._finalizer()


def _identity(file: Path) -> str:
    """A name that a file has as long as it is not changed."""
    facts = file.stat()
    text = f"{file.resolve()} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _copied(file: Path, copy: Path) -> int:
    """Makes the copy if there is none; a shared lock on it, as an open file."""
    while True:
        descriptor = os.open(_lock_of(copy), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            lock(descriptor, wait=True, shared=True)  # waits for who is copying
            if not copy.exists() and is_open_file(_lock_of(copy), descriptor):
                lock(descriptor, wait=True)
                if not copy.exists() and is_open_file(_lock_of(copy), descriptor):
                    _copy(file, copy)
                lock(descriptor, wait=True, shared=True)
            # Between one lock and the other there is none, and who took the copy away took the lock's file with it.
            if copy.exists() and is_open_file(_lock_of(copy), descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _copy(file: Path, copy: Path) -> None:
    size, free = file.stat().st_size, shutil.disk_usage(copy.parent).free
    if size > free:
        raise UserError(
            f"{file} has {size / 1e9:.1f} GB and {copy.parent.parent} has {free / 1e9:.1f} GB left for data.cache=ram: "
            "pass data.cache=null."
        )
    if size > WORTH_TELLING:
        say(f"Copying {file} into memory ({size / 1e9:.1f} GB) …", error=True)
    partial = copy.with_suffix(".partial")
    try:
        shutil.copyfile(file, partial)
        put_in_place(partial, copy)
    except OSError as error:
        raise UserError(f"{file} cannot be copied into memory for data.cache=ram ({error.strerror}).") from error
    finally:
        partial.unlink(missing_ok=True)


def _release(owner: int, locks: list[int], copies: list[Path]) -> None:
    if os.getpid() == owner:  # and not a forked data worker
        for descriptor, copy in zip(locks, copies, strict=True):
            _take_away_if_unused(descriptor, copy)
            os.close(descriptor)
        locks.clear()
        copies.clear()


def _take_away_unused(folder: Path) -> None:
    """What killed processes have left."""
    for path in folder.glob("*.lock"):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        _take_away_if_unused(descriptor, path.with_suffix(".h5"))
        os.close(descriptor)


def _take_away_if_unused(descriptor: int, copy: Path) -> None:
    if not lock(descriptor):
        return
    for path in (copy, copy.with_suffix(".partial"), _lock_of(copy)):
        path.unlink(missing_ok=True)


def _lock_of(copy: Path) -> Path:
    return copy.with_suffix(".lock")
