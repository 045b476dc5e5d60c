"""What is truly to be seen in a picture."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one picture, n of them; none is possible.

    Boxes count their last pixel in, as the box coder and the clipping do: an object 10 pixels wide at the left border
    has x1 = 0, x2 = 9.
    """

    boxes: Tensor  # (n, 4) float32 x1 y1 x2 y2, pixels of the network's input, with x1 < x2 and y1 < y2
    labels: Tensor  # (n,) int64, class from 1
    attributes: Tensor  # (n, K) int64, attributes from 1; 0 fills up the rows of objects with fewer

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Objects":
        """The same on a device."""
        return Objects(*(tensor.to(device, non_blocking=non_blocking) for tensor in self._tensors()))

    def pin_memory(self) -> "Objects":
        """The same in page-locked memory."""
        return Objects(*(tensor.pin_memory() for tensor in self._tensors()))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.boxes, self.labels, self.attributes
