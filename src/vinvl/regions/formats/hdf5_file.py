"""A HDF5 file of somebody else: its arrays, each checked before it is read."""

from __future__ import annotations

import io
import math
import os
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
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


class Headers:
    """What was checked of arrays, by their headers: 270 bytes that HDF5 takes 0.1 ms to open, three times an image.

    Headers of arrays of one type, shape and storage differ by the byte where the array begins and the time of writing
    alone, so that what HDF5 says of one holds for all. Known are those of version 1, as h5py writes them: later ones
    have a checksum, which HDF5 is to look at. (HDF5 File Format Specification, IV.A.1.a and IV.A.2.i.)

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._checked: dict[tuple[int, int], dict[bytes, tuple[np.dtype, tuple[int, ...]]]] = {}

    def find(self, header: bytes) -> tuple[np.dtype, tuple[int, ...], int] | None:
        """Type, shape and first byte of an array with a header as another's that was added."""
        for (place, time), checked in self._checked.items():
            if (found := checked.get(header[:place] + header[place + 8 : time] + header[time + 4 :])) is not None:
                return *found, int.from_bytes(header[place : place + 8], "little")
        return None

    def add(self, header: bytes, dtype: np.dtype, shape: tuple[int, ...], start: int) -> None:
        """Takes note of an array that was checked and lies in one piece from a byte on."""
        place, time, message = 0, len(header), 16
        while message + 8 <= len(header):
            kind, size = (int.from_bytes(header[at : at + 2], "little") for at in (message, message + 2))
            content, is_shared = message + 8, header[message + 4] & 2
            if kind == 0x10 or (kind == 0x08 and (place or is_shared)):  # what holds is told elsewhere, or twice
                return
            if kind == 0x08 and size >= 18 and header[content : content + 2] == b"\3\1":  # contiguous
                place = content + 2
            elif kind == 0x12 and size >= 8 and place and not is_shared:
                time = content + 4
            message = content + size
        if place and header[place : place + 8] == start.to_bytes(8, "little"):
            if sum(map(len, self._checked.values())) >= self._most:
                self._checked.clear()
            without = header[:place] + header[place + 8 : time] + header[time + 4 :]
            self._checked.setdefault((place, time), {})[without] = dtype, shape


class Hdf5File:
    """A file that nobody trusts; it is opened on first use, and again by a process that it is sent to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File | None = None
        self._root: h5py.h5g.GroupID | None = None
        self._bytes = 0
        self._blocks: dict[str, tuple[int, np.ndarray]] = {}
        self._stream: io.FileIO | None = None
        self._taken = Places()
        self._headers = Headers()

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
                self._root, self._bytes = h5py.h5g.open(self._file.id, b"/"), self._file.id.get_filesize()
            yield self._file
        except UserError:
            raise
        except Exception as error:  # h5py raises whatever it runs into in a damaged file
            reason = " ".join(str(error).split())[:100] or type(error).__name__
            raise UserError(f"{self.path} is a damaged HDF5 file ({reason}); get it again.") from None

    def names(self, group: str = "/", most: int | None = None) -> list[str]:
        """What lies in a group."""
        with self._reading() as file:
            found = h5py.Group(self._member(group, h5py.h5g.GroupID)) if group != "/" else file
            names = list(islice(found, most))
            if not all(isinstance(name, str) and name.isprintable() for name in names):
                raise ValueError("names that are no text")
            return names

    def is_group(self, name: str) -> bool:
        with self._reading() as file:
            return isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Group)

    def _link(self, name: str) -> tuple[h5py.h5g.GroupID, h5py.h5l.LinkInfo]:
        """The group that a member lies in, and its link there. Raises UserError if it is missing or leads elsewhere."""
        above, _, own = name.rpartition("/")
        group: Any = self._member(above, h5py.h5g.GroupID) if above else self._root
        links = group.links
        if not links.exists(own.encode()) or (link := links.get_info(own.encode())).type != h5py.h5l.TYPE_HARD:
            raise UserError(f"{self.path}: {name} is missing or a link elsewhere; get the file again.")
        return group, link

    def _member(self, name: str, kind: type) -> Any:
        """What lies there, as HDF5 itself has it: h5py's own objects take several times as long."""
        found = h5py.h5o.open(self._link(name)[0], name.rpartition("/")[2].encode())
        if not isinstance(found, kind):
            what = "group" if kind is h5py.h5g.GroupID else "dataset"
            raise UserError(f"{self.path}: {name} is no {what}; get the file again.")
        return found

    def _header(self, name: str) -> bytes:
        """The header of a member, empty if it is not of version 1 or longer than usual."""
        with self._reading():
            header = os.pread(self._descriptor(), 512, self._link(name)[1].u)
            size = 16 + int.from_bytes(header[8:12], "little")
            return header[:size] if header[:1] == b"\1" and size <= len(header) else b""

    def dataset(self, name: str, kinds: str = "fiu") -> h5py.Dataset:
        """An array of numbers in the file itself. Raises UserError for anything else, and for one that is not whole."""
        return h5py.Dataset(self._placed(name, kinds)[0], readonly=True)

    def _placed(self, name: str, kinds: str = "fiu") -> tuple[h5py.h5d.DatasetID, int | None]:
        """`dataset`, and the byte where it begins if it lies in one piece."""
        with self._reading():
            dataset = self._member(name, h5py.h5d.DatasetID)
            dtype, shape = dataset.dtype, dataset.shape
            is_text = kinds != "fiu" and h5py.check_string_dtype(dtype) is not None
            plain = dtype.kind in kinds and dataset.get_type() == _type_of(dtype)
            has_shape = shape or dataset.get_space().get_simple_extent_type() != h5py.h5s.NULL
            if not (has_shape and (plain or is_text)):
                raise UserError(f"{self.path}: {name} is of {dtype}, expected plain numbers.")
            start = stored_at(self.path, dataset, name, self._bytes)
            if start is None and 0 not in shape and (chunks := h5py.Dataset(dataset).chunks):
                parts = np.prod([-(-size // part) for size, part in zip(shape, chunks, strict=True)])
                if dataset.get_num_chunks() != parts:
                    raise UserError(f"{self.path}: parts of {name} were never written; get the file again.")
            return dataset, start

    def claimed(self, name: str) -> int:
        """The length of an array. Raises UserError where another that was read or claimed lies in the same place."""
        found, start = self._placed(name)
        dataset = h5py.Dataset(found, readonly=True)
        if start is not None:
            self._taken.claim(start, start + dataset.nbytes, name, self.path)
        return len(dataset)

    def whole(self, name: str, most: int = MOST_BYTES) -> np.ndarray:
        """All of an array. Raises UserError if it is too large, or cannot be read."""
        start: int | None
        dataset, seen = None, self._headers.find(header := self._header(name))
        if seen is not None and seen[2] + math.prod(seen[1]) * seen[0].itemsize <= self._bytes:
            dtype, shape, start = seen
        else:
            dataset, start = self._placed(name)
            shape, dtype = dataset.shape, dataset.dtype
            if start is not None:
                self._headers.add(header, dtype, shape, start)
        size = math.prod(shape) * dtype.itemsize
        if size > most:
            raise UserError(f"{self.path}: {name} has {size:,} bytes, more than the {most:,} that are read.")
        with self._reading():
            if start is None:
                return np.asarray(h5py.Dataset(dataset)[()])
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


@cache
def _type_of(dtype: np.dtype) -> h5py.h5t.TypeID:
    """How HDF5 stores plain numbers of a type."""
    return h5py.h5t.py_create(dtype)


def rows_at_once(dataset: h5py.Dataset) -> int:
    """How many rows are worth reading at once: those of a block that is compressed, if they are not too many."""
    row_bytes = max(1, dataset.nbytes // max(1, len(dataset)))
    return max(1, min(dataset.chunks[0], BLOCK_BYTES // row_bytes)) if dataset.chunks else 1
