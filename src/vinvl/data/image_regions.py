"""The regions of a batch, end to end, in the precision of the store.

Data workers send no features: memory that two processes share is slow to get, and what the training process reads is in
memory already, for the worker has read it. So a batch from a worker says which images it has, and the training process
reads their features from the store straight into the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from vinvl.data.store import RegionStore
from vinvl.data.store.regions import BOX_NUMBERS, Regions, box_geometry


@dataclass(frozen=True, eq=False)
class ImageRegions:
    """The first `count` regions of an image.

    Attributes:
        position: of the image in its store.
    """

    regions: Regions
    count: int
    position: int

    def __len__(self) -> int:
        return self.count

    @property
    def width(self) -> int:
        """Numbers of a region row, D + 6."""
        return self.regions.feature_layout[0] + BOX_NUMBERS

    def rows(self) -> np.ndarray:
        """(count, D + 6) float32 region rows: the feature followed by the six box numbers."""
        return self.regions.rows(self.count)


@dataclass(frozen=True)
class BatchRegions:
    """The ΣR regions of B images end to end, in the store's precision: half the bytes on every way to the device.

    features: (ΣR, D) float16 or float32; None in a batch that comes from a data worker, until they are `filled` in.
    geometry: (ΣR, 6) float32, see `Regions.box_geometry`.
    places: (ΣR,) int64, of each among the B·R slots that it has in a padded batch.
    stored: (B, 2) int64, position in the store and number of regions of each image.
    slots: R, of the image with the most.
    store_rows: (ΣR,) int64, where features that are on the device already lie there (`DeviceFeatures`).
    """

    features: Tensor | None
    geometry: Tensor
    places: Tensor
    stored: Tensor
    slots: int
    store_rows: Tensor | None = None

    @classmethod
    def of_padded(cls, rows: Tensor) -> BatchRegions:
        """Of region rows (B, R, D + 6) without padding, of no store."""
        flat = rows.flatten(0, 1)
        stored = torch.tensor([[-1, rows.shape[1]]] * len(rows)).view(-1, 2)
        features, geometry = flat[:, :-BOX_NUMBERS], flat[:, -BOX_NUMBERS:].float()
        return cls(features, geometry, torch.arange(len(flat)), stored, rows.shape[1])

    def filled(self, store: RegionStore, pin_memory: bool = False) -> BatchRegions:
        """With the features that the store has, in page-locked memory if so asked."""
        dtype = _tensor_type(store.feature_dtype)
        features = torch.empty((len(self.places), store.feature_dim), dtype=dtype, pin_memory=pin_memory)
        rows, start = features.numpy(), 0
        for position, count in self.stored.tolist():
            store.features_into(position, rows[start : start + count])
            start += count
        return replace(self, features=features)

    def rows(self) -> Tensor:
        """(ΣR, D + 6) float32 region rows, made on the device where they are."""
        assert self.features is not None, "a batch of a data worker is filled in by its loader"
        return torch.cat([self.features.float(), self.geometry], dim=1)

    def padded(self) -> Tensor:
        """(B, R, D + 6) float32 region rows, zero where an image has no region."""
        rows = self.rows()
        empty = rows.new_zeros(len(self.stored) * self.slots, rows.shape[1])
        return empty.index_copy(0, self.places, rows).unflatten(0, (len(self.stored), self.slots))

    def with_tensors(self, change: Callable[[Tensor], Tensor]) -> BatchRegions:
        """The same with every tensor changed, but for `stored`, which stays on the host."""

        def changed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return replace(
            self,
            features=changed(self.features),
            geometry=change(self.geometry),
            places=change(self.places),
            store_rows=changed(self.store_rows),
        )


def gather_regions(parts: Sequence[ImageRegions]) -> BatchRegions:
    """The regions of B images, at least one, of one store; in a data worker without their features."""
    counts = np.array([part.count for part in parts], dtype=np.int64)
    slots, total = int(counts.max()), int(counts.sum())
    boxes = np.concatenate([part.regions.boxes[: part.count] for part in parts])
    sizes = np.array([(part.regions.width, part.regions.height) for part in parts], dtype=np.float32)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    within = np.arange(total) - np.repeat(starts, counts)
    stored = np.stack([np.array([part.position for part in parts], dtype=np.int64), counts], axis=1)
    features = None
    if get_worker_info() is None:
        features = _features(parts, starts, total)
    else:
        _read_ahead(parts, slots)
    return BatchRegions(
        features=features,
        geometry=torch.from_numpy(box_geometry(boxes, np.repeat(sizes, counts, axis=0))),
        places=torch.from_numpy(np.repeat(np.arange(len(parts)) * slots, counts) + within),
        stored=torch.from_numpy(stored),
        slots=slots,
    )


def _features(parts: Sequence[ImageRegions], starts: np.ndarray, total: int) -> Tensor:
    """(ΣR, D) in the store's precision."""
    dim, dtype = parts[0].regions.feature_layout
    features = torch.empty((total, dim), dtype=_tensor_type(dtype))
    rows = features.numpy()
    for part, start in zip(parts, starts.tolist(), strict=True):
        part.regions.features_into(rows[start : start + part.count])
    return features


def _read_ahead(parts: Sequence[ImageRegions], slots: int) -> None:
    """Reads features and drops them, so that the training process finds them in memory."""
    dim, dtype = parts[0].regions.feature_layout
    dropped = np.empty((slots, dim), dtype=dtype)
    for part in parts:
        part.regions.features_into(dropped[: part.count])


def _tensor_type(dtype: np.dtype) -> torch.dtype:
    return torch.float16 if dtype == np.float16 else torch.float32
