"""Finding an image id among many."""

from __future__ import annotations

import numpy as np


class IdLookup:
    """Positions of ids in an array of UTF-8 bytes (N,): 8 bytes an image, where a dict of strings takes some 150."""

    def __init__(self, ids: np.ndarray) -> None:
        self._ids = ids
        self._order = np.argsort(ids, kind="stable")

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
