"""RoIAlign as one weighted sum of map cells for each bin.

A bin's value is the mean of bilinear samples on a grid inside it. Both the grid and bilinear weights are products of
one factor in y and one in x, so the cells that count in a bin, and how much, are an outer product of few numbers: exact
for any number of samples a bin. Summing cells is what `embedding_bag` does, in one call for all boxes of all images.
"""

import torch
from torch import Tensor
from torch.nn import functional


def roi_align(features: Tensor, boxes: list[Tensor], bins: int = 14, scale: float = 1 / 16, step: int = 1) -> Tensor:
    """Pooled features (sum of boxes, C, bins, bins) in channels-last memory, images in turn.

    As the published code pools: ceil(box / bins) samples a bin in each direction, no half-pixel shift, boxes at least
    one cell wide and high, samples more than a cell outside the map count as zero.

    Args:
        features: (B, C, H, W).
        boxes: for each image (n, 4) in pixels.
        bins: of the result, in each direction.
        scale: cells of the map per pixel.
        step: 2 gives every second bin alone, in both directions; "bins" of the result is then half, rounded up.
    """
    _, channels, height, width = features.shape
    wanted = -(-bins // step)
    counts = [len(of_image) for of_image in boxes]
    if sum(counts) == 0:
        return features.new_zeros(0, channels, wanted, wanted)
    all_boxes = torch.cat(boxes)
    rows, row_weights = _cells(all_boxes[:, 1], all_boxes[:, 3], height, bins, scale, step)
    columns, column_weights = _cells(all_boxes[:, 0], all_boxes[:, 2], width, bins, scale, step)
    first_cell = torch.arange(len(boxes), device=features.device) * (height * width)
    first_cell = first_cell.repeat_interleave(torch.tensor(counts, device=features.device))  # of each box's image
    rows = rows * width + first_cell[:, None, None]
    cells = rows[:, :, None, :, None] + columns[:, None, :, None, :]  # (n, bins, bins, most rows, most columns)
    weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    counting = weights > 0
    in_bin = counting.flatten(3).sum(dim=3).flatten()
    pooled = functional.embedding_bag(
        cells[counting],
        features.permute(0, 2, 3, 1).reshape(-1, channels),
        in_bin.cumsum(0) - in_bin,
        mode="sum",
        per_sample_weights=weights[counting].to(features.dtype),
    )
    return pooled.view(len(all_boxes), wanted, wanted, channels).permute(0, 3, 1, 2)


def _cells(start: Tensor, end: Tensor, cells: int, bins: int, scale: float, step: int) -> tuple[Tensor, Tensor]:
    """Which cells of one axis count in each bin of a box, and how much: (n, wanted bins, most) int64 and float32.

    Cells that count are neighbours; where there are fewer than the most, the weights of the others are 0.
    """
    weights = _bin_weights(start, end, cells, bins, scale)[:, ::step]  # (n, wanted bins, cells)
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
