"""Region rows, (R, D + 6), as regions of an image, for tests that begin with rows and not with boxes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from vinvl.data.batch import ImageRegions
from vinvl.data.inputs import InputLimits, RegionText
from vinvl.data.tags import ALL_CLASSES, TagLists
from vinvl.models.config import SpecialTokens
from vinvl.regions.regions import box_geometry


@dataclass(frozen=True)
class RecordedRegions:
    """Stands in for `Regions`: its rows are those given, whatever their last six numbers are."""

    recorded: np.ndarray
    width: int = 1
    height: int = 1
    image_id: str = ""

    def __len__(self) -> int:
        return len(self.recorded)

    @property
    def features(self) -> np.ndarray:
        return self.recorded[:, :-6]

    @property
    def boxes(self) -> np.ndarray:
        return self.recorded[:, -6:-2]

    def rows(self, limit: int | None = None) -> np.ndarray:
        return self.recorded[:limit]

    @property
    def feature_layout(self) -> tuple[int, np.dtype]:
        return self.features.shape[1], self.features.dtype

    def features_into(self, out: np.ndarray) -> None:
        out[...] = self.features[: len(out)]

    def check_finite(self) -> None:
        assert np.isfinite(self.recorded).all()


def image_regions(rows: np.ndarray) -> ImageRegions:
    """All of them, of no store."""
    regions: Any = RecordedRegions(rows)
    return ImageRegions(regions, len(rows), position=-1)


def made_rows(count: int, width: int, random: np.random.Generator) -> np.ndarray:
    """(count, width) float32 rows whose last six numbers are those of boxes."""
    boxes = random.random((count, 4), dtype=np.float32)
    features = random.standard_normal((count, width - 6), dtype=np.float32)
    return np.concatenate([features, box_geometry(boxes, np.ones((1, 2), dtype=np.float32))], axis=1)


@dataclass(frozen=True)
class RecordedStore:
    """Stands in for a RegionStore of images with these rows."""

    images: list[np.ndarray]

    def at(self, index: int) -> RecordedRegions:
        return RecordedRegions(self.images[index])


def region_text(
    tokenizer: PreTrainedTokenizerBase, images: list[np.ndarray], tags: list[str], limits: InputLimits
) -> RegionText:
    """The images' regions, and their tags as a file has them."""
    store: Any = RecordedStore(images)
    lists = TagLists.of_images(len(images))
    for image, text in enumerate(tags):
        lists.add(image, [text])
    return RegionText(store, lists.tags(tokenizer, ALL_CLASSES), limits, SpecialTokens.of(tokenizer))
