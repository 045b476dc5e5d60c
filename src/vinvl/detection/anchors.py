"""The boxes that the region proposal network starts from."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

STRIDE = 16  # pixels of the image per cell of the C4 map


def cell_anchors(sizes: Sequence[int], ratios: Sequence[float]) -> Tensor:
    """Anchors of the cell at the origin: (ratios · sizes, 4) float32, the sizes of the first ratio first.

    Widths and heights are rounded at the scale of one cell before they are enlarged, as published Faster R-CNN does.
    """
    boxes = []
    for ratio in ratios:
        width = round(math.sqrt(STRIDE * STRIDE / ratio))
        height = round(width * ratio)
        for size in sizes:
            half_width = (width * size / STRIDE - 1) / 2
            half_height = (height * size / STRIDE - 1) / 2
            centre = (STRIDE - 1) / 2
            boxes.append((centre - half_width, centre - half_height, centre + half_width, centre + half_height))
    return torch.tensor(boxes, dtype=torch.float32, device="cpu")


def grid_anchors(of_a_cell: Tensor, height: int, width: int) -> Tensor:
    """Anchors of every cell of a map: (height · width · A, 4), in the order (y, x, anchor).

    Args:
        of_a_cell: (A, 4), from `cell_anchors`.
        height, width: cells of the map.
    """
    x = torch.arange(width, device=of_a_cell.device, dtype=of_a_cell.dtype) * STRIDE
    y = torch.arange(height, device=of_a_cell.device, dtype=of_a_cell.dtype) * STRIDE
    shift_y, shift_x = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack([shift_x, shift_y, shift_x, shift_y], dim=-1)  # (height, width, 4)
    return (shifts[:, :, None, :] + of_a_cell).reshape(-1, 4)


class AnchorGenerator(nn.Module):
    """Holds the anchors of a cell where published checkpoints have them: `cell_anchors.0`."""

    def __init__(self, sizes: Sequence[int], ratios: Sequence[float]) -> None:
        super().__init__()
        self.cell_anchors = nn.Module()
        self.cell_anchors.register_buffer("0", cell_anchors(sizes, ratios))

    def forward(self, height: int, width: int) -> Tensor:
        """Anchors (height · width · A, 4) of a map."""
        return grid_anchors(self.cell_anchors.get_buffer("0"), height, width)
