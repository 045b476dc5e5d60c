"""The regions of pictures: from a store, or by the detector, which looks at each picture of a call once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vinvl.data.region_source import RegionSource
from vinvl.data.store import LabelMap, Regions, RegionStore
from vinvl.detection.opening import OpenedDetector
from vinvl.detection.preprocessing import padded_size
from vinvl.extraction.feed import alike
from vinvl.extraction.module import store_regions
from vinvl.predictor.computing import Computing
from vinvl.predictor.taking import Taken, Taking

KEPT = 512  # pictures whose regions a call keeps: 200 MB at 100 regions of 2,048 halves


@dataclass(frozen=True, eq=False)
class FoundRegions:
    """What a detector has found in N pictures, like a store in memory."""

    found: tuple[Regions, ...]
    label_map: LabelMap
    feature_dim: int

    @property
    def num_regions(self) -> np.ndarray:
        """(N,) int64"""
        return np.array([len(regions) for regions in self.found], dtype=np.int64)

    def at(self, index: int) -> Regions:
        return self.found[index]

    def classes_at(self, index: int) -> np.ndarray:
        return self.found[index].classes


Place = tuple[RegionSource, int]
"""Where the regions of a picture are: a store or a detector's finds, and the position there."""


@dataclass(frozen=True)
class Looking:
    """What regions come from, and how.

    Attributes:
        taking: reads pictures.
        store: of the image ids; None for none.
        detector: on its device; None for none.
        feature_dtype: that features are rounded to, as in the store that the model was trained on.
        batch_size: pictures that go through the detector together, at most.
    """

    taking: Taking
    store: RegionStore | None
    detector: OpenedDetector | None
    computing: Computing
    feature_dtype: torch.dtype
    batch_size: int

    def regions(self, pictures: Sequence[Taken]) -> list[Regions]:
        """The detector's regions of pictures that are not from the store, each as if it was alone."""
        assert self.detector is not None
        detector = self.detector.detector
        pictures = [self.taking.measured(one) for one in pictures]
        originals = [one.size for one in pictures if one.size is not None]
        sizes = [padded_size(*size, detector.config) for size in originals]
        found: dict[int, Regions] = {}
        for batch in alike(range(len(pictures)), sizes, self.batch_size, mixed_sizes=False):
            pixels = [self.taking.pixels(pictures[index]) for index in batch]
            with self.computing.precision():
                regions = detector.detect_pixels(pixels, [originals[index] for index in batch])
            for index, one in zip(batch, regions, strict=True):
                found[index] = store_regions(pictures[index].name, one, self.feature_dtype)
        return [found[index] for index in range(len(pictures))]


class Finder:
    """Finds the regions of the pictures of one call, and remembers those of the last `KEPT`."""

    def __init__(self, looking: Looking) -> None:
        self._looking = looking
        self._kept: OrderedDict[Hashable, Regions] = OrderedDict()

    def find(self, pictures: Sequence[Taken]) -> list[Place]:
        """Where the regions of each picture are.

        Raises:
            UserError: a picture is broken.
        """
        wanted = {one.key: one for one in pictures if one.stored is None}
        new = [one for key, one in wanted.items() if key not in self._kept]
        self._kept.update(zip([one.key for one in new], self._looking.regions(new) if new else [], strict=True))
        for key in wanted:
            self._kept.move_to_end(key)
        numbers = {key: number for number, key in enumerate(wanted)}
        found = self._found([self._kept[key] for key in wanted]) if wanted else None
        places: list[Place] = []
        for one in pictures:
            source = found if one.stored is None else self._looking.store
            assert source is not None
            places.append((source, numbers[one.key] if one.stored is None else one.stored))
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return places

    def _found(self, regions: list[Regions]) -> FoundRegions:
        detector = self._looking.detector
        assert detector is not None
        dim = detector.detector.config.architecture.c5_channels
        return FoundRegions(tuple(regions), detector.label_map, dim)
