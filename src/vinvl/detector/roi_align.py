"""RoIAlign as one weighted sum of map cells for each bin.

A bin's value is the mean of bilinear samples on a grid inside it. Both the grid and bilinear weights are products of
one factor in y and one in x, so the cells that count in a bin, and how much, are an outer product of few numbers: exact
for any number of samples a bin. Summing cells is what `embedding_bag` does, in one call for all boxes of all images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

BINS = 14  # of a region, in each direction
SCALE = 1 / 16  # cells of the C4 map per pixel


def roi_align(features: Tensor, boxes: list[Tensor], bins: int = BINS, scale: float = SCALE) -> Tensor:
    """Pooled features (sum of boxes, C, bins, bins) in channels-last memory, images in turn.

    As the published code pools: ceil(box / bins) samples a bin in each direction, no half-pixel shift, boxes at least
    one cell wide and high, samples more than a cell outside the map count as zero.

    Args:
        features: (B, C, H, W).
        boxes: for each image (n, 4) in pixels.
        bins: of the result, in each direction.
        scale: cells of the map per pixel.
    """
    counts = torch.tensor([len(of_image) for of_image in boxes], device=features.device)
    images = torch.arange(len(boxes), device=features.device).repeat_interleave(counts)
    all_boxes = torch.cat(boxes) if boxes else features.new_zeros(0, 4)
    return box_bins(all_boxes, images, features, bins, scale).pool(features)


@dataclass(frozen=True)
class BoxBins:
    """Which cells of a batch of maps count in the bins of n boxes, and how much; `pool` takes their weighted sums.

    rows, row_weights: (n, bins, most) int64 and float32, of the bins of one direction.
    columns, column_weights: likewise, of the other.
    first_cell: (n,) int64, where the map of each box's image begins among the cells of all maps.
    width: of a map.
    """

    rows: Tensor
    row_weights: Tensor
    columns: Tensor
    column_weights: Tensor
    first_cell: Tensor
    width: int

    def every_second(self) -> BoxBins:
        """Every second bin in both directions, from the first on."""
        return replace(
            self,
            rows=self.rows[:, ::2],
            row_weights=self.row_weights[:, ::2],
            columns=self.columns[:, ::2],
            column_weights=self.column_weights[:, ::2],
        )

    def pool(self, features: Tensor) -> Tensor:
        """(n, C, bins, bins) in channels-last memory, of maps (B, C, H, W)."""
        channels, count, bins = features.shape[1], len(self.rows), self.rows.shape[1]
        if count == 0:
            return features.new_zeros(0, channels, bins, bins)
        rows = self.rows * self.width + self.first_cell[:, None, None]
        cells = rows[:, :, None, :, None] + self.columns[:, None, :, None, :]  # (n, bins, bins, rows, columns)
        weights = self.row_weights[:, :, None, :, None] * self.column_weights[:, None, :, None, :]
        counting = weights > 0
        in_bin = counting.flatten(3).sum(dim=3).flatten()
        pooled = functional.embedding_bag(
            cells[counting],
            features.permute(0, 2, 3, 1).reshape(-1, channels),
            in_bin.cumsum(0) - in_bin,
            mode="sum",
            per_sample_weights=weights[counting].to(features.dtype),
        )
        return pooled.view(count, bins, bins, channels).permute(0, 3, 1, 2)


def box_bins(boxes: Tensor, images: Tensor, features: Tensor, bins: int = BINS, scale: float = SCALE) -> BoxBins:
    """The bins of boxes on maps of the size of `features`.

    Args:
        boxes: (n, 4) in pixels.
        images: (n,) int64, which map of the batch each box is on.
        features: (B, C, H, W).
    """
    height, width = features.shape[2:]
    rows, row_weights = _cells(boxes[:, 1], boxes[:, 3], height, bins, scale)
    columns, column_weights = _cells(boxes[:, 0], boxes[:, 2], width, bins, scale)
    return BoxBins(rows, row_weights, columns, column_weights, images * (height * width), width)


def _cells(start: Tensor, end: Tensor, cells: int, bins: int, scale: float) -> tuple[Tensor, Tensor]:
    """Which cells of one axis count in each bin of a box, and how much: (n, bins, most) int64 and float32.

    Cells that count are neighbours; if there are fewer than the most, the weights of the others are 0.
    """
    weights = _bin_weights(start, end, cells, bins, scale)
    if len(weights) == 0:
        return torch.zeros(weights.shape, dtype=torch.int64, device=weights.device), weights
    counts = weights > 0
    most = max(1, int(counts.sum(dim=2).max()))
    first = counts.to(torch.uint8).argmax(dim=2).clamp(max=cells - most)
    index = first[..., None] + torch.arange(most, device=start.device)
    return index, weights.gather(2, index)


def _bin_weights(start: Tensor, end: Tensor, cells: int, bins: int, scale: float) -> Tensor:
    """How much each cell of one axis counts in each bin of a box: (n, bins, cells).

    Args:
        start, end: (n,) pixels.
    """
    start, end = start.float() * scale, end.float() * scale
    size = ((end - start).clamp(min=1) / bins)[:, None, None]  # of a bin, in cells
    samples = size.ceil()  # in a bin
    sample = torch.arange(int(samples.max()) if len(start) else 0, device=start.device)
    bin_index = torch.arange(bins, device=start.device)[:, None]
    place = start[:, None, None] + bin_index * size + (sample + 0.5) * size / samples  # (n, bins, samples)
    counts = (sample < samples) & (place >= -1) & (place <= cells)
    place = place.clamp(0, cells - 1)
    distance = (place[..., None] - torch.arange(cells, device=start.device)).abs()
    bilinear = (1 - distance).clamp(min=0)  # (n, bins, samples, cells)
    return (bilinear * counts[..., None]).sum(dim=2) / samples
