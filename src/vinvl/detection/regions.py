"""What the detector says of one image."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DetectedRegions:
    """The regions of one image by descending score; n of them."""

    boxes: Tensor  # (n, 4) float32, pixels of the original image; where regressed, at most a pixel outside it
    network_boxes: Tensor  # (n, 4) float32, pixels of the network's input
    labels: Tensor  # (n,) int64, class from 1
    scores: Tensor  # (n,) float32, probability of the class
    features: Tensor  # (n, 2048) float32, of the proposals that the boxes were refined from
    attribute_labels: Tensor  # (n, 16) int64, by descending probability; where that is 0 the index means nothing
    attribute_scores: Tensor  # (n, 16) float32
    image_size: tuple[int, int]  # (width, height) of the original image

    def __len__(self) -> int:
        return len(self.labels)

    def geometry(self) -> Tensor:
        """(n, 6) float32: x1/W, y1/H, x2/W, y2/H, (x2 - x1)/W, (y2 - y1)/H."""
        size = self.boxes.new_tensor(self.image_size).repeat(2)
        corners = self.boxes / size
        return torch.cat([corners, corners[:, 2:] - corners[:, :2]], dim=1)

    def region_rows(self) -> Tensor:
        """(n, 2054) float32, as VinVL's models take regions: the feature vector, then the geometry."""
        return torch.cat([self.features, self.geometry()], dim=1)
