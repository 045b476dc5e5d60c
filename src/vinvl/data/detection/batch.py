"""Pictures with their objects, as they flow from data to the detector."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vinvl.detection.training import Objects
from vinvl.metrics.detection_matching import TrueBoxes


@dataclass(frozen=True)
class Truth:
    """What is annotated in a picture, in pixels of the original; it stays on the host."""

    boxes: TrueBoxes
    attributes: np.ndarray  # (m, K) int64, 0 for none


@dataclass(frozen=True)
class DetectionExample:
    """One picture, resized."""

    pixels: Tensor  # (H, W, 3) uint8, red-green-blue
    objects: Objects  # those to learn from, in pixels of the network's input
    truth: Truth
    index: int  # of the picture in its split
    original_size: tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class DetectionBatch:
    """B pictures, in few tensors, for each costs a handle on its way out of a data worker."""

    padded: Tensor  # (B, H, W, 3) uint8, 0 at the bottom and right of smaller pictures
    boxes: Tensor  # (sum of objects, 4) float32
    labels: Tensor  # (sum of objects,) int64
    attributes: Tensor  # (sum of objects, K) int64
    counts: tuple[int, ...]  # (B,) objects of each picture
    sizes: tuple[tuple[int, int], ...]  # (B,) (height, width) of each picture, resized
    original_sizes: tuple[tuple[int, int], ...]  # (B,) (width, height)
    truths: tuple[Truth, ...]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_items(self) -> int:
        """Pictures: what `data.batch_size` and epochs count."""
        return len(self)

    def pictures(self) -> list[Tensor]:
        """Each picture (h, w, 3) without the padding."""
        return [one[:height, :width] for one, (height, width) in zip(self.padded.unbind(), self.sizes, strict=True)]

    def objects(self) -> list[Objects]:
        """The objects to learn from of each picture."""
        parts = (tensor.split(list(self.counts)) for tensor in (self.boxes, self.labels, self.attributes))
        return [Objects(*of_picture) for of_picture in zip(*parts, strict=True)]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "DetectionBatch":
        """The batch with every tensor on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "DetectionBatch":
        """The batch in page-locked memory (called by the DataLoader)."""
        return self._with_tensors(lambda tensor: tensor.pin_memory())

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "DetectionBatch":
        return replace(
            self,
            padded=change(self.padded),
            boxes=change(self.boxes),
            labels=change(self.labels),
            attributes=change(self.attributes),
        )


def collate(examples: Sequence[DetectionExample]) -> DetectionBatch:
    """Pads pictures to the largest of the batch, and attributes to the most."""
    sizes = tuple((example.pixels.shape[0], example.pixels.shape[1]) for example in examples)
    height, width = (max(side) for side in zip(*sizes, strict=True))
    padded = torch.zeros(len(examples), height, width, 3, dtype=torch.uint8)
    for row, example in zip(padded, examples, strict=True):
        row[: example.pixels.shape[0], : example.pixels.shape[1]] = example.pixels
    counts = tuple(len(example.objects) for example in examples)
    most = max(example.objects.attributes.shape[1] for example in examples)
    attributes = torch.zeros(sum(counts), most, dtype=torch.int64)
    for rows, example in zip(attributes.split(list(counts)), examples, strict=True):
        rows[:, : example.objects.attributes.shape[1]] = example.objects.attributes
    return DetectionBatch(
        padded=padded,
        boxes=torch.cat([example.objects.boxes for example in examples]),
        labels=torch.cat([example.objects.labels for example in examples]),
        attributes=attributes,
        counts=counts,
        sizes=sizes,
        original_sizes=tuple(example.original_size for example in examples),
        truths=tuple(example.truth for example in examples),
        indices=tuple(example.index for example in examples),
    )
