"""Annotated pictures as examples: read, resized and, for training, flipped."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from vinvl.data.detection.batch import DetectionBatch, DetectionExample, Truth, collate
from vinvl.data.detection.records import PictureRecords
from vinvl.data.pictures import ReadingOptions, read_picture
from vinvl.data.sampling import Draw
from vinvl.data.store.labels import LabelMap
from vinvl.detection.config import DetectorConfig
from vinvl.detection.preprocessing import resized_pixels, resized_size
from vinvl.detection.training import Objects
from vinvl.errors import UserError
from vinvl.metrics.detection_matching import TrueBoxes

OBJECTS_SHOWN = 8


@dataclass(frozen=True)
class Augmentation:
    """What is changed at random in a picture that is trained on.

    Args:
        flip_probability: of left and right changing places.
        min_sizes: the shorter side becomes one of these, each as likely, instead of the detector's min_size.
    """

    flip_probability: float = 0.0
    min_sizes: tuple[int, ...] = ()


class DetectionDataset:
    """One split as examples.

    Args:
        records: the pictures and their objects.
        config: min_size and max_size are read.
        labels: the names of classes and attributes.
        augmentation: None where nothing is left to chance.
        seed: of the augmentation.
        reading: how pictures are read, as for `records`.
    """

    def __init__(
        self,
        records: PictureRecords,
        config: DetectorConfig,
        labels: LabelMap,
        augmentation: Augmentation | None,
        seed: int,
        reading: ReadingOptions = ReadingOptions(),  # noqa: B008, it is immutable
    ) -> None:
        self.reading = reading
        self.records = records
        self.config = config
        self.labels = labels
        self.augmentation = augmentation
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def lengths(self) -> np.ndarray:
        """(N,) int64, by which pictures of like shape come into one batch: from the tallest to the widest."""
        sizes = (
            resized_size(width, height, self.config.min_size, self.config.max_size)
            for width, height in self.records.sizes.tolist()
        )
        return np.array([width - height for width, height in sizes], dtype=np.int64) + self.config.max_size

    def __getitem__(self, draw: Draw) -> DetectionExample:
        """
        Raises:
            UserError: the picture cannot be read, or has not the size that the annotations say.
        """
        index = draw.index
        picture = read_picture(self.records.path(index), self.reading)
        size = (int(self.records.sizes[index, 0]), int(self.records.sizes[index, 1]))
        if picture.size != size:
            raise UserError(
                f"{self.records.path(index)} is {picture.width} × {picture.height} pixels, and {self.records.source} "
                f"says {size[0]} × {size[1]}: its boxes are of another picture, or of this one resized or not turned "
                "as EXIF says (data.reading.exif_orientation=ignore)."
            )
        config, flipped = self._drawn(draw)
        pixels = resized_pixels(picture, config)
        boxes, attributes = self.records.true_boxes(index), self.records.true_attributes(index)
        learnt_from = learnable(boxes)
        objects = Objects(
            boxes=network_boxes(boxes.boxes[learnt_from], size, (pixels.shape[1], pixels.shape[0])),
            labels=torch.from_numpy(boxes.labels[learnt_from]),
            attributes=torch.from_numpy(attributes[learnt_from]),
        )
        if flipped:
            pixels, objects = pixels.flip(1), replace(objects, boxes=mirrored(objects.boxes, pixels.shape[1]))
        return DetectionExample(pixels, objects, Truth(boxes, attributes), index, size)

    def collate(self, examples: Sequence[DetectionExample]) -> DetectionBatch:
        """Runs in the data workers."""
        return collate(examples)

    def show(self, example: DetectionExample) -> list[str]:
        """Lines that show a person one example."""
        height, width = example.pixels.shape[:2]
        original = " × ".join(str(side) for side in example.original_size)
        lines = [f"  {self.records.path(example.index)}: {original}, resized to {width} × {height}"]
        boxes = example.truth.boxes
        objects = zip(boxes.boxes, boxes.labels, example.truth.attributes, strict=True)
        for box, label, attributes in islice(objects, OBJECTS_SHOWN):
            words = [self.labels.attributes[one] for one in attributes.tolist() if one > 0]
            corners = ", ".join(f"{side:.0f}" for side in box)
            lines.append(f"  {' '.join([*words, self.labels.classes[label]])} at {corners}")
        more = len(boxes.labels) - OBJECTS_SHOWN
        return [*lines, f"  and {more} more"] if more > 0 else lines

    def _drawn(self, draw: Draw) -> tuple[DetectorConfig, bool]:
        """The settings to resize with, and whether the picture is flipped."""
        if self.augmentation is None:
            return self.config, False
        generator = draw.generator(self.seed)
        flipped = bool(generator.random() < self.augmentation.flip_probability)
        if not self.augmentation.min_sizes:
            return self.config, flipped
        return replace(self.config, min_size=int(generator.choice(self.augmentation.min_sizes))), flipped


def learnable(boxes: TrueBoxes) -> np.ndarray:
    """Which objects can be learnt from, bool (n,): single ones of more than a pixel in both directions."""
    kept: np.ndarray = ~boxes.crowd & (boxes.boxes[:, 2:] - boxes.boxes[:, :2] > 1).all(axis=1)
    return kept


def network_boxes(boxes: np.ndarray, size: tuple[int, int], resized: tuple[int, int]) -> Tensor:
    """Float32 boxes (n, 4) of a resized picture; they count their last pixel in, as published, those given do not.

    Args:
        boxes: (n, 4) float64, pixels of the original picture.
        size, resized: (width, height) of the picture before and after.
    """
    scale = np.array([resized[0] / size[0], resized[1] / size[1]] * 2)
    return torch.from_numpy((boxes - np.array([0, 0, 1, 1])) * scale).float()


def mirrored(boxes: Tensor, width: int) -> Tensor:
    """Boxes (n, 4), their last pixel counted in, of a picture whose left and right have changed places."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    return torch.stack([width - 1 - x2, y1, width - 1 - x1, y2], dim=1)
