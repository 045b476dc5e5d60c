"""Stores in fast memory: copies shared by all processes of a machine, or all features on the device."""

from __future__ import annotations

import hashlib
import os
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vinvl.regions.store import RegionStore
from vinvl.run.errors import UserError, say
from vinvl.run.files import lock, put_in_place

if TYPE_CHECKING:
    import torch
    from torch import Tensor

CHUNK = 1 << 27  # bytes copied at once
SPARE = 0.05  # of the device's free memory that must be left at the least
MEMORY = Path("/dev/shm")
WORTH_TELLING = 10**8  # bytes


class DeviceFeatures:
    """All features of a store on the device, for stores that fit there: batches then bring row numbers alone.

    They are loaded when they are first asked for: only then the device is known.
    """

    def __init__(self, store: RegionStore) -> None:
        self.store = store
        self.starts = np.concatenate([[0], np.cumsum(store.num_regions)])  # (N + 1,) int64, rows before each image
        self._table: Tensor | None = None

    def rows_of(self, stored: np.ndarray) -> Tensor:
        """(ΣR,) int64: the row of each region, of (B, 2) int64 position and number of regions of each image."""
        import torch

        positions, counts = stored.T
        before = np.cumsum(counts) - counts
        return torch.from_numpy(np.repeat(self.starts[positions] - before, counts) + np.arange(counts.sum()))

    def features(self, rows: Tensor) -> Tensor:
        """(ΣR, D) in the store's precision, of rows (ΣR,) on the device. Raises UserError for too little memory."""
        if self._table is None or self._table.device != rows.device:
            self._table = self._load(rows.device)
        return self._table[rows]

    def _load(self, device: torch.device) -> Tensor:
        import torch

        store, total = self.store, int(self.starts[-1])
        row_bytes = store.feature_dim * store.feature_dtype.itemsize
        size = total * row_bytes
        if device.type == "cuda" and size > (free := torch.cuda.mem_get_info(device)[0]) * (1 - SPARE):
            raise UserError(
                f"data.cache=device needs {size / 1e9:.1f} GB for the features of {store!r}, and {device} has "
                f"{free / 1e9:.1f} GB left: pass data.cache=ram or data.cache=null."
            )
        say(f"Features onto {device}: {size / 1e9:.2f} GB …", error=True)
        table = torch.empty((total, store.feature_dim), dtype=getattr(torch, store.feature_dtype.name), device=device)
        step, written = max(1, CHUNK // row_bytes), 0
        for source in store.sources:
            for start in range(0, source.header.num_regions, step):
                rows = source.rows("features", start, min(start + step, source.header.num_regions))
                table[written : written + len(rows)] = torch.from_numpy(rows)
                written += len(rows)
        return table


class SharedCopies:
    """Files in shared memory, at `paths` in their order, in use until `release` or the end of the process.

    Who uses a copy holds a shared lock on it, and only who holds the lock of the folder makes or removes one. Whoever
    uses a copy last removes it, and whoever comes next what killed processes have left. Raises UserError for too little
    memory, or none.
    """

    def __init__(self, files: Sequence[Path], memory: Path = MEMORY) -> None:
        folder = memory / f"vinvl-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            reason = f"which cannot be used ({error.strerror})"
            raise UserError(f"data.cache=ram keeps files in {memory}, {reason}: pass data.cache=null.") from error
        if folder.stat().st_uid != os.getuid() or folder.is_symlink():
            raise UserError(f"{folder} is not yours: data.cache=ram keeps files there; pass data.cache=null.")
        self.paths = [folder / f"{_identity(file)}.h5" for file in files]
        used: dict[Path, int] = {}
        self._finalizer: Callable[[], object] = weakref.finalize(self, _release, os.getpid(), folder, used)
        with locked_folder(folder):
            _remove_unused(folder)
            for file, copy in zip(files, self.paths, strict=True):
                if not copy.exists():
                    _copy(file, copy)
                if copy not in used:
                    used[copy] = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
                    lock(used[copy], shared=True)

    def release(self) -> None:
        """Removes what no other process uses."""
        self._finalizer()


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """One process at a time; others wait."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        lock(descriptor, wait=True)  # for who is copying
        yield
    finally:
        os.close(descriptor)


def _identity(file: Path) -> str:
    """A name that a file has as long as it is not changed."""
    facts = file.stat()
    text = f"{file.resolve()} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


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


def _release(owner: int, folder: Path, used: dict[Path, int]) -> None:
    if os.getpid() == owner:  # and not a forked data worker
        with locked_folder(folder):
            for path, descriptor in used.items():
                if lock(descriptor):
                    path.unlink(missing_ok=True)
                os.close(descriptor)


def _remove_unused(folder: Path) -> None:
    for path in folder.iterdir():
        with suppress(OSError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if path.suffix != ".h5" or lock(descriptor):
                path.unlink()
            os.close(descriptor)
