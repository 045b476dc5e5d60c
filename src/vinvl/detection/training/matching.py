"""Which object an anchor or a region belongs to."""

import torch
from torch import Tensor

from vinvl.detection.boxes import iou

BACKGROUND, NEITHER = -1, -2  # instead of an object's index


def match(
    boxes: Tensor, objects: Tensor, *, foreground: float, background: float, best_of_each: bool = False
) -> Tensor:
    """For each box the index of the object that it overlaps most, or BACKGROUND, or NEITHER: (N,) int64.

    Overlaps count the last pixel in, as in maskrcnn-benchmark's boxlist_iou.

    Args:
        boxes: (N, 4).
        objects: (M, 4), perhaps none.
        foreground: the least IoU with an object to belong to it.
        background: boxes whose IoU with all objects is lower are BACKGROUND; those between the two are NEITHER.
        best_of_each: the boxes that overlap an object most of all boxes, be it little, belong to an object too, so that
            no object goes without. Of several that overlap it equally much all do. As published, it is the object that
            *they* overlap most, which may be another one.
    """
    if len(objects) == 0 or len(boxes) == 0:
        return torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    overlaps = iou(objects, boxes, last_pixel=True)  # (M, N)
    largest, nearest = overlaps.max(dim=0)
    matched = nearest.masked_fill(largest < foreground, NEITHER).masked_fill(largest < background, BACKGROUND)
    if best_of_each:
        best = overlaps.max(dim=1, keepdim=True).values  # (M, 1)
        # The published code takes an object that no box overlaps to be best overlapped by all of them.
        is_best = ((overlaps == best) & (best > 0)).any(dim=0)
        matched = torch.where(is_best, nearest, matched)
    return matched


def inside(anchors: Tensor, image_size: tuple[int, int], straddle: int = 0) -> Tensor:
    """Which anchors (N, 4) lie in an image of (height, width), bool (N,).

    straddle: pixels that they may reach out of it; negative: any number.
    """
    height, width = image_size
    if straddle < 0:
        return torch.ones(len(anchors), dtype=torch.bool, device=anchors.device)
    low = (anchors[:, :2] >= -straddle).all(dim=1)
    return low & (anchors[:, 2] < width + straddle) & (anchors[:, 3] < height + straddle)
