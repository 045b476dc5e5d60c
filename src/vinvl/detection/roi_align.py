"""RoIAlign as two matrix products.

A bin's value is the mean of bilinear samples on a grid inside it. Both the grid and bilinear weights are products of
one factor in y and one in x, so pooling a box is `rows @ map @ columnsᵀ` with a (bins × map height) and a (bins × map
width) matrix of its own: exact for any number of samples a bin, and made of what every device does fastest.
"""

import torch
from torch import Tensor

VALUES_AT_ONCE = 2**25  # bounds memory: the product of the rows is (boxes, bins, map width, channels)


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
    wanted = -(-bins // step)
    at_once = max(1, VALUES_AT_ONCE // (wanted * features.shape[1] * features.shape[3]))
    pooled = [
        _pool(image, part, bins, scale, step)
        for image, of_image in zip(features.permute(0, 2, 3, 1), boxes, strict=True)
        for part in of_image.split(at_once)
    ]
    if not pooled:
        return features.new_zeros(0, features.shape[1], wanted, wanted)
    return torch.cat(pooled).permute(0, 3, 1, 2)


def _pool(image: Tensor, boxes: Tensor, bins: int, scale: float, step: int) -> Tensor:
    """(n, bins, bins, C) of one image's map (H, W, C)."""
    height, width, channels = image.shape
    rows = _bin_weights(boxes[:, 1], boxes[:, 3], height, bins, scale)[:, ::step].to(image.dtype)
    columns = _bin_weights(boxes[:, 0], boxes[:, 2], width, bins, scale)[:, ::step].to(image.dtype)
    by_row = rows.reshape(-1, height) @ image.reshape(height, width * channels)
    by_row = by_row.view(len(boxes), rows.shape[1], width, channels)
    return columns.unsqueeze(1) @ by_row  # (n, 1, bins, W) @ (n, bins, W, C)


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
