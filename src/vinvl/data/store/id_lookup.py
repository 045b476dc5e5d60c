"""Finding an image id among many."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_BLOCK = 2**20


class IdLookup:
    """Positions of ids in an array of UTF-8 bytes (N,): 8 bytes an image, where a dict of strings takes some 150."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids
        self._order = np.argsort(ids, kind="stable")

    def problems(self) -> Iterator[str]:
        """A sentence for ids that come twice, and one for an id that is empty."""
        ids, order = self._ids, self._order
        repeats, first = 0, b""
        for start in range(0, len(ids), _BLOCK):
            sorted_ids = ids[order[start : start + _BLOCK + 1]]
            found = np.flatnonzero(sorted_ids[1:] == sorted_ids[:-1])
            first = sorted_ids[found[0]] if len(found) and not repeats else first
            repeats += len(found)
        if repeats:
            yield f"image ids are repeated {repeats} times, such as {first.decode('utf-8', 'replace')!r}."
        if len(ids) and ids[order[0]] == b"":
            yield f"image number {order[0]} has an empty id."

    def find(self, image_id: str) -> int:
        """The index of an id, the first of it where it comes more than once; -1 if it is not there."""
        ids = self._ids
        try:
            key = image_id.encode()
        except UnicodeEncodeError:
            return -1
        # A longer key would make NumPy convert all ids to its length.
        if len(key) > ids.dtype.itemsize:
            return -1
        position = int(ids.searchsorted(np.array(key, dtype=ids.dtype), sorter=self._order))
        if position == len(ids):
            return -1
        index = int(self._order[position])
        return index if ids[index] == key else -1
