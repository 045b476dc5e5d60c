"""Where the regions of images come from: a store, or what a detector has just found."""

from typing import Protocol

import numpy as np

from vinvl.data.store import LabelMap, Regions


class RegionSource(Protocol):
    """Images named by their position, 0 ≤ index < N, with their regions."""

    @property
    def num_regions(self) -> np.ndarray:
        """(N,) int64, regions of each image."""

    @property
    def feature_dim(self) -> int:
        """D"""

    @property
    def label_map(self) -> LabelMap:
        """The names of classes and attributes."""

    def at(self, index: int, /) -> Regions:
        """The regions of an image."""

    def classes_at(self, index: int, /) -> np.ndarray:
        """(R,) int32, `at(index).classes`."""
