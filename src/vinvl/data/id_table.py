"""Numbers by image id, for millions of images, in arrays on the disk that worker processes share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from vinvl.errors import UserError

IdBlock = tuple[np.ndarray, np.ndarray]


class IdTable:
    """Whole numbers (K,) by id: a sorted (N,) array of UTF-8 ids and an (N, K) int64 array, both memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.ids = np.load(folder / "ids.npy", mmap_mode="r")
        self.values = np.load(folder / "values.npy", mmap_mode="r")

    @classmethod
    def write(
        cls,
        folder: Path,
        blocks: Iterable[IdBlock],
        source: str | Path,
        on_repeat: Callable[[UserError], None] | None = None,
    ) -> IdTable:
        """Makes a table in a new folder of blocks of (n,) ids and (n, K) int64.

        Args:
            folder: to make.
            blocks: of the table, in any order.
            source: what the sentences name.
            on_repeat: told of each id that came before, whose first numbers stay; None refuses it.

        Raises:
            UserError: there is no id, or one comes twice.
        """
        parts = list(blocks)
        if not parts:
            raise UserError(f"{source} names no images.")
        ids = np.concatenate([part for part, _ in parts])
        order = np.argsort(ids, kind="stable")
        ids = ids[order]
        first = np.concatenate([[True], ids[1:] != ids[:-1]])
        for image_id in ids[~first]:
            error = UserError(f"{source} has image {image_id.decode('utf-8', 'replace')!r} more than once.")
            if on_repeat is None:
                raise error
            on_repeat(error)
        folder.mkdir(parents=True)
        np.save(folder / "ids.npy", ids[first])
        np.save(folder / "values.npy", np.concatenate([values for _, values in parts])[order[first]])
        return cls(folder)

    def __len__(self) -> int:
        return len(self.ids)

    def position(self, image_id: str) -> int | None:
        """Where an id is in the table."""
        key = image_id.encode("utf-8", "surrogatepass")
        if len(key) > self.ids.dtype.itemsize:
            return None  # NumPy would convert all ids to its length
        position = int(self.ids.searchsorted(np.array(key, dtype=self.ids.dtype)))
        return position if position < len(self.ids) and self.ids[position] == key else None

    def find(self, image_id: str) -> np.ndarray | None:
        """(K,) numbers of an id."""
        position = self.position(image_id)
        return None if position is None else self.values[position]
