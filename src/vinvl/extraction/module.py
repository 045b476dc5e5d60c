"""The detector as Lightning runs it: devices, precision and processes are its Trainer's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from vinvl.data.pictures import Unusable
from vinvl.data.store import Regions
from vinvl.detection import DetectedRegions, Detector
from vinvl.extraction.feed import PictureBatch, PictureFeed

Detected = tuple[list[Regions], list[Unusable]]


class DetectionModule(pl.LightningModule):
    """Batches of pixels → regions in memory of the host, in the data types of a store.

    Args:
        detector: with its weights.
        feature_dtype: of the features, rounded on the device.
        make_feed: makes the batches of one process: `PictureFeed` but for rank, world_size and pin_memory.
    """

    def __init__(self, detector: Detector, feature_dtype: torch.dtype, make_feed: Callable[..., PictureFeed]) -> None:
        super().__init__()
        self.detector = detector.eval()
        self.feature_dtype = feature_dtype
        self.make_feed = make_feed

    def predict_dataloader(self) -> PictureFeed:
        trainer = self.trainer
        pin_memory = self.device.type == "cuda"
        return self.make_feed(rank=trainer.global_rank, world_size=trainer.world_size, pin_memory=pin_memory)

    @torch.no_grad()
    def predict_step(self, batch: PictureBatch, batch_idx: int = 0) -> Detected:
        """The regions of each picture, and the pictures that gave none because they are broken or do not fit."""
        unusable = list(batch.unusable)
        if len(batch) == 0:
            return [], unusable
        try:
            return self._detect(batch), unusable
        except torch.OutOfMemoryError:  # one after the other takes less; what does not fit then, never will
            regions = []
            for one in batch.single():
                try:
                    regions += self._detect(one)
                except torch.OutOfMemoryError:
                    unusable.append(
                        Unusable(one.paths[0], f"{one.paths[0]} does not fit into the memory of the device.")
                    )
            return regions, unusable

    def _detect(self, batch: PictureBatch) -> list[Regions]:
        found = self.detector.detect_pixels(list(batch.pixels), list(batch.original_sizes))
        return [store_regions(name, one, self.feature_dtype) for name, one in zip(batch.ids, found, strict=True)]


def store_regions(image_id: str, found: DetectedRegions, feature_dtype: torch.dtype) -> Regions:
    """The detector's regions as a store has them; attributes of no probability are attribute 0, none."""
    attributes = torch.where(found.attribute_scores > 0, found.attribute_labels, 0)
    return Regions(
        image_id=image_id,
        features=_array(found.features, feature_dtype),
        boxes=_array(found.boxes, torch.float32),
        classes=_array(found.labels, torch.int32),
        class_scores=_array(found.scores, torch.float32),
        attributes=_array(attributes, torch.int32),
        attribute_scores=_array(found.attribute_scores, torch.float32),
        width=found.image_size[0],
        height=found.image_size[1],
    )


def _array(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    return tensor.to(dtype).cpu().numpy()
