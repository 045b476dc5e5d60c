"""All features of a store on the device, for stores that fit there: batches then bring row numbers, and no features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vinvl.data.store import RegionStore
from vinvl.errors import UserError, say

CHUNK = 1 << 27  # bytes copied at once
SPARE = 0.05  # of the device's free memory that must be left at the least


class DeviceFeatures:
    """The features of a store; loaded when they are first asked for, for only then the device is known."""

    def __init__(self, store: RegionStore) -> None:
        self.store = store
        self.starts = np.concatenate([[0], np.cumsum(store.num_regions)])  # (N + 1,) int64, rows before each image
        self._table: Tensor | None = None

    def rows_of(self, stored: Tensor) -> Tensor:
        """(ΣR,) int64: the row of each region.

        Args:
            stored: (B, 2) int64, position and number of regions of each image.
        """
        positions, counts = stored.numpy().T
        before = np.cumsum(counts) - counts
        return torch.from_numpy(np.repeat(self.starts[positions] - before, counts) + np.arange(counts.sum()))

    def features(self, rows: Tensor) -> Tensor:
        """(ΣR, D) in the store's precision, of rows (ΣR,) on the device.

        Raises:
            UserError: the device has not enough memory.
        """
        if self._table is None or self._table.device != rows.device:
            self._table = self._load(rows.device)
        return self._table[rows]

    def _load(self, device: torch.device) -> Tensor:
        store = self.store
        dtype = torch.float16 if store.feature_dtype == np.float16 else torch.float32
        total, size = int(self.starts[-1]), int(self.starts[-1]) * store.feature_dim * store.feature_dtype.itemsize
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if size > free * (1 - SPARE):
                raise UserError(
                    f"data.cache=device needs {size / 1e9:.1f} GB for the features of {store!r}, and {device} has "
                    f"{free / 1e9:.1f} GB left: pass data.cache=ram or data.cache=null."
                )
        say(f"Features onto {device}: {size / 1e9:.2f} GB …", error=True)
        table = torch.empty((total, store.feature_dim), dtype=dtype, device=device)
        rows_at_once = max(1, CHUNK // (store.feature_dim * store.feature_dtype.itemsize))
        written = 0
        for source in store.sources:
            for start in range(0, source.header.num_regions, rows_at_once):
                stop = min(start + rows_at_once, source.header.num_regions)
                table[written : written + stop - start] = torch.from_numpy(source.rows("features", start, stop))
                written += stop - start
        return table
