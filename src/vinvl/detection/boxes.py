"""Arithmetic on boxes (x1, y1, x2, y2) in pixels, with the published conventions.

Two conventions meet here, as in the published code: clipping, the box coder and the matching of training count a box's
last pixel in (width x2 - x1 + 1), non-maximum suppression does not (width x2 - x1).
"""

import math

import torch
from torch import Tensor

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_HEAD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
LARGEST_LOG_SCALE = math.log(1000 / 16)  # of a width or height, against overflow

CoderWeights = tuple[float, float, float, float]


def clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) moved into an image of (height, width): x in [0, width - 1], y in [0, height - 1]."""
    height, width = image_size
    largest = boxes.new_tensor([width - 1, height - 1, width - 1, height - 1])
    return torch.minimum(boxes.clamp(min=0), largest)


def iou(first: Tensor, second: Tensor, *, last_pixel: bool = False) -> Tensor:
    """Intersection over union of boxes (..., N, 4) with boxes (..., M, 4): (..., N, M); NaN between empty boxes.

    last_pixel: whether it counts in.
    """
    extra = 1.0 if last_pixel else 0.0
    top_left = torch.maximum(first[..., :, None, :2], second[..., None, :, :2])
    bottom_right = torch.minimum(first[..., :, None, 2:], second[..., None, :, 2:])
    width, height = (bottom_right - top_left + extra).clamp_(min=0).unbind(-1)
    intersection = width * height
    return intersection / (_area(first, extra)[..., :, None] + _area(second, extra)[..., None, :] - intersection)


def _area(boxes: Tensor, extra: float) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0] + extra) * (boxes[..., 3] - boxes[..., 1] + extra)


def encode(targets: Tensor, references: Tensor, weights: CoderWeights) -> Tensor:
    """What moves reference boxes (..., 4) onto target boxes (..., 4): deltas (..., 4) as (dx, dy, dw, dh)."""
    reference_centre, reference_size = _centre_and_size(references)
    target_centre, target_size = _centre_and_size(targets)
    shift = (target_centre - reference_centre) / reference_size
    scale = torch.log(target_size / reference_size)
    return torch.cat([shift, scale], dim=-1) * targets.new_tensor(weights)


def decode(deltas: Tensor, references: Tensor, weights: CoderWeights) -> Tensor:
    """Reference boxes (..., 4) moved by deltas (..., 4): the inverse of `encode`, with a largest scale.

    The two broadcast: a reference box can have deltas for many classes.
    """
    centre, size = _centre_and_size(references)
    shift, log_scale = (deltas / deltas.new_tensor(weights)).split(2, dim=-1)
    centre = shift * size + centre
    half = 0.5 * torch.exp(log_scale.clamp(max=LARGEST_LOG_SCALE)) * size
    return torch.cat([centre - half, centre + half - 1], dim=-1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2] + 1
    return boxes[..., :2] + 0.5 * size, size
