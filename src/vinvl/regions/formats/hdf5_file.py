"""A HDF5 file of somebody else: its arrays, each checked before it is read."""

from __future__ import annotations

import io
import os
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from vinvl.regions.formats.rows import MOST_BYTES
from vinvl.regions.layout import check_end, open_hdf5, stored_at
from vinvl.run.errors import UserError
from vinvl.run.values import checked_id

BLOCK_BYTES = 64 * 2**20  # of a compressed array, read at once


class Places:
    """Where arrays lie that were read, no two of them in one place: there are no checksums. 16 bytes an array.

    Args:
        recent: how many are kept apart from the others, so that taking in one more moves little.
    """

    def __init__(self, recent: int = 4096) -> None:
        self._most = recent
        self._sorted = np.zeros((2, 0), dtype=np.int64)  # starts and stops
        self._recent: tuple[list[int], list[int]] = [], []  # the same

    def claim(self, start: int, stop: int, name: str, path: Path) -> None:
        """Takes note of bytes. Raises UserError if some are another array's."""
        for starts, stops in (self._sorted, self._recent):
            place = int(np.searchsorted(starts, start)) if isinstance(starts, np.ndarray) else bisect(starts, start)
            if (place and stops[place - 1] > start) or (place < len(starts) and starts[place] < stop):
                raise UserError(f"{path}: {name} lies where another array lies; the file is damaged, get it again.")
        self._recent[0].insert(place, start)
        self._recent[1].insert(place, stop)
        if len(self._recent[0]) == self._most:
            both = np.concatenate([self._sorted, self._recent], axis=1)
            self._sorted, self._recent = both[:, both[0].argsort(kind="stable")], ([], [])


class Hdf5File:
    """A file that nobody trusts; it is opened on first use, and again by a process that it is sent to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File | None = None
        self._blocks: dict[str, tuple[int, np.ndarray]] = {}
        self._stream: io.FileIO | None = None
        self._taken = Places()

    def __getstate__(self) -> Path:
        return self.path

    def __setstate__(self, path: Path) -> None:
        self.__init__(path)  # type: ignore[misc]

    def close(self) -> None:
        """The next reading opens it again: a process that is forked must not inherit it open."""
        for opened in (self._file, self._stream):
            if opened is not None:
                opened.close()
        self.__init__(self.path)  # type: ignore[misc]

    @contextmanager
    def _reading(self) -> Iterator[h5py.File]:
        try:
            if self._file is None:
                self._file = open_hdf5(self.path)
                check_end(self.path)
            yield self._file
        except UserError:
            raise
        except Exception as error:  # h5py raises whatever it runs into in a damaged file
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            raise UserError(f"{self.path} is a damaged HDF5 file ({reason}); get it again.") from None

    def names(self, group: str = "/", most: int | None = None) -> list[str]:
        """What lies in a group."""
        with self._reading() as file:
            names = list(islice(self._member(file, group, h5py.Group) if group != "/" else file, most))
            if not all(isinstance(name, str) and name.isprintable() for name in names):
                raise ValueError("names that are no text")
            return names

    def is_group(self, name: str) -> bool:
        with self._reading() as file:
            return isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Group)

    def _member(self, file: h5py.File, name: str, kind: type) -> Any:
        found: Any = file
        for part in name.split("/"):
            encoded = part.encode()  # h5py's own `get` takes several times as long
            is_there = isinstance(found, h5py.Group) and found.id.links.exists(encoded)
            if not is_there or found.id.links.get_info(encoded).type != h5py.h5l.TYPE_HARD:
                raise UserError(f"{self.path}: {name} is missing or a link elsewhere; get the file again.")
            opened = h5py.h5o.open(found.id, encoded)
            is_array = isinstance(opened, h5py.h5d.DatasetID)  # "readonly": one that keeps what it was asked for
            found = h5py.Dataset(opened, readonly=True) if is_array else h5py.Group(opened)
        if not isinstance(found, kind):
            raise UserError(f"{self.path}: {name} is no {kind.__name__.lower()}; get the file again.")
        return found

    def dataset(self, name: str, kinds: str = "fiu") -> h5py.Dataset:
        """An array of numbers in the file itself. Raises UserError for anything else, and for one that is not whole."""
        return self._placed(name, kinds)[0]

    def _placed(self, name: str, kinds: str = "fiu") -> tuple[h5py.Dataset, int | None]:
        """`dataset`, and the byte where it begins if it lies in one piece."""
        with self._reading() as file:
            dataset = self._member(file, name, h5py.Dataset)
            dtype, of_file = dataset.dtype, dataset.id.get_type()
            is_text = kinds != "fiu" and h5py.check_string_dtype(dtype) is not None
            plain = dtype.kind in kinds and of_file == h5py.h5t.py_create(dtype)
            if dataset.shape is None or not (plain or is_text):
                raise UserError(f"{self.path}: {name} is of {dtype}, expected plain numbers.")
            start = stored_at(self.path, dataset, name, file.id.get_filesize())
            if start is None and dataset.size and dataset.chunks:
                parts = np.prod([-(-size // part) for size, part in zip(dataset.shape, dataset.chunks, strict=True)])
                if dataset.id.get_num_chunks() != parts:
                    raise UserError(f"{self.path}: parts of {name} were never written; get the file again.")
            return dataset, start

    def claimed(self, name: str) -> int:
        """The length of an array. Raises UserError where another that was read or claimed lies in the same place."""
        dataset, start = self._placed(name)
        if start is not None:
            self._taken.claim(start, start + dataset.nbytes, name, self.path)
        return len(dataset)

    def whole(self, name: str, most: int = MOST_BYTES) -> np.ndarray:
        """All of an array. Raises UserError if it is too large, or cannot be read."""
        dataset, start = self._placed(name)
        shape, dtype, size = dataset.shape, dataset.dtype, dataset.nbytes
        if size > most:
            raise UserError(f"{self.path}: {name} has {size:,} bytes, more than the {most:,} that are read.")
        with self._reading():
            if start is None:
                return np.asarray(dataset[()])
            self._taken.claim(start, start + size, name, self.path)
            numbers = np.empty(shape, dtype)  # read past HDF5, whose own reading takes as long again
            if os.preadv(self._descriptor(), [numbers.reshape(-1).view(np.uint8).data], start) != size:
                raise ValueError("it ends before its arrays")
            return numbers

    def _descriptor(self) -> int:
        if self._stream is None:
            self._stream = self.path.open("rb", buffering=0)
        return self._stream.fileno()

    def rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Rows of an array; of a compressed one all that are compressed together are read, and kept for the next."""
        first, block = self._blocks.get(name, (0, None))
        if block is None or not first <= start <= stop <= first + len(block):
            dataset = self.dataset(name)
            step = rows_at_once(dataset)
            if (stop - start) * dataset.nbytes // max(1, len(dataset)) > MOST_BYTES:
                raise UserError(
                    f"{self.path}: rows {start:,} to {stop:,} of {name} are more than {MOST_BYTES:,} bytes."
                )
            first = start // step * step
            with self._reading():
                block = dataset[first : max(stop, first + step)]
            self._blocks[name] = first, block
        return block[start - first : stop - first]

    def ids(self, name: str) -> Iterator[str]:
        """The image ids in an array of numbers or texts, of which texts of any length are read one by one."""
        dataset = self.dataset(name, "iuSO")
        single = dataset.dtype.kind == "O"
        with self._reading():
            for start in range(0, len(dataset), 1 if single else 65536):
                part = dataset[start : start + (1 if single else 65536)]
                for value in np.asarray(part).reshape(len(part), -1)[:, 0].tolist():
                    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
                    yield str(checked_id(text, f"{self.path}: an id in {name}"))


def rows_at_once(dataset: h5py.Dataset) -> int:
    """How many rows are worth reading at once: those of a block that is compressed, if they are not too many."""
    row_bytes = max(1, dataset.nbytes // max(1, len(dataset)))
    return max(1, min(dataset.chunks[0], BLOCK_BYTES // row_bytes)) if dataset.chunks else 1
