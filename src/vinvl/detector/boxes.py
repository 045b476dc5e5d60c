"""Boxes (x1, y1, x2, y2) in pixels, with the published conventions: coding, matching, sampling, anchors, NMS, RoIAlign.

Two conventions meet here, as in the published code: clipping, the box coder and the matching of training count a box's
last pixel in (width x2 - x1 + 1), non-maximum suppression does not (width x2 - x1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
BOX_HEAD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
LARGEST_LOG_SCALE = math.log(1000 / 16)  # of a width or height, against overflow

CoderWeights = tuple[float, float, float, float]


def full_precision(like: Tensor) -> torch.autocast:
    """A context in which a surrounding autocast, if there is one, does not lower anything on the tensor's device."""
    return torch.autocast(like.device.type, enabled=False)


def beside(like: Tensor, values: Sequence[float]) -> Tensor:
    """Numbers (n,) in the type and on the device of a tensor, which `new_tensor` would wait for."""
    return torch.tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def clip(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) moved into an image of (height, width): x in [0, width - 1], y in [0, height - 1]."""
    height, width = image_size
    largest = beside(boxes, [width - 1, height - 1, width - 1, height - 1])
    return torch.minimum(boxes.clamp(min=0), largest)


def iou(first: Tensor, second: Tensor, *, last_pixel: bool = False) -> Tensor:
    """Intersection over union of boxes (..., N, 4) with boxes (..., M, 4): (..., N, M); NaN between empty boxes."""
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
    return torch.cat([shift, scale], dim=-1) * beside(targets, weights)


def decode(deltas: Tensor, references: Tensor, weights: CoderWeights) -> Tensor:
    """Reference boxes (..., 4) moved by deltas (..., 4), which broadcast: `encode` undone, with a largest scale."""
    centre, size = _centre_and_size(references)
    shift, log_scale = (deltas / beside(deltas, weights)).split(2, dim=-1)
    centre = shift * size + centre
    half = 0.5 * torch.exp(log_scale.clamp(max=LARGEST_LOG_SCALE)) * size
    return torch.cat([centre - half, centre + half - 1], dim=-1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2] + 1
    return boxes[..., :2] + 0.5 * size, size


# Which anchors and regions are learnt from: the object that each belongs to, and a draw of bounded size.

BACKGROUND, NEITHER = -1, -2  # instead of an object's index


def match(
    boxes: Tensor, objects: Tensor, *, foreground: float, background: float, best_of_each: bool = False
) -> Tensor:
    """For each box (N, 4) the index of the object (M, 4) that it overlaps most, or BACKGROUND or NEITHER: (N,) int64.

    Overlaps count the last pixel in, as in maskrcnn-benchmark's boxlist_iou.

    Args:
        foreground: the least IoU with an object to belong to it.
        background: boxes whose IoU with all objects is lower are BACKGROUND; those between the two are NEITHER.
        best_of_each: the boxes that overlap an object most of all boxes, be it little, belong to an object too: as
            published, to that which *they* overlap most.
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


def sample(
    positive: Tensor, negative: Tensor, number: int, positive_fraction: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Indices, int64, of the drawn positives and of the drawn negatives, each in random order.

    Args:
        positive, negative: bool (N,), never both True.
        number: how many are drawn of both together; of positives at most `positive_fraction` of it. Negatives take the
            places that positives leave; if they are too few, fewer are drawn.
        generator: on the device of the tensors.
    """

    def shuffled(chosen: Tensor) -> Tensor:
        indices = chosen.nonzero().squeeze(1)
        return indices[torch.randperm(len(indices), generator=generator, device=chosen.device)]

    positives = shuffled(positive)[: int(number * positive_fraction)]
    return positives, shuffled(negative)[: number - len(positives)]


def inside(anchors: Tensor, image_size: tuple[int, int], straddle: int = 0) -> Tensor:
    """Which anchors (N, 4) are in an image of (height, width), bool (N,).

    straddle: pixels that they may reach out of it; negative: any number.
    """
    height, width = image_size
    low = (anchors[:, :2] >= -straddle).all(dim=1)
    within = low & (anchors[:, 2] < width + straddle) & (anchors[:, 3] < height + straddle)
    return within if straddle >= 0 else torch.ones_like(within)


# The boxes that the region proposal network starts from.

STRIDE = 16  # pixels of the image per cell of the C4 map


class AnchorGenerator(nn.Module):
    """Holds the anchors of a cell, (A, 4), where published checkpoints have them: `cell_anchors.0`."""

    def __init__(self, sizes: Sequence[int], ratios: Sequence[float]) -> None:
        super().__init__()
        self.cell_anchors = nn.Module()
        self.cell_anchors.register_buffer("0", cell_anchors(sizes, ratios))

    def forward(self, height: int, width: int) -> Tensor:
        """Anchors of every cell of a map: (height · width · A, 4), in the order (y, x, anchor)."""
        of_a_cell = self.cell_anchors.get_buffer("0")
        y, x = (torch.arange(side, device=of_a_cell.device, dtype=of_a_cell.dtype) * STRIDE for side in (height, width))
        shift_y, shift_x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack([shift_x, shift_y, shift_x, shift_y], dim=-1)  # (height, width, 4)
        return (shifts[:, :, None, :] + of_a_cell).reshape(-1, 4)


def cell_anchors(sizes: Sequence[int], ratios: Sequence[float]) -> Tensor:
    """Anchors of the cell at the origin: (ratios · sizes, 4) float32, the sizes of the first ratio first.

    Widths and heights are rounded at the scale of one cell before they are enlarged, as published Faster R-CNN does.
    """
    boxes, centre = [], (STRIDE - 1) / 2
    for ratio in ratios:
        width = round(math.sqrt(STRIDE * STRIDE / ratio))
        height = round(width * ratio)
        for size in sizes:
            half_width, half_height = ((side * size / STRIDE - 1) / 2 for side in (width, height))
            boxes.append((centre - half_width, centre - half_height, centre + half_width, centre + half_height))
    return torch.tensor(boxes, dtype=torch.float32, device="cpu")


# Non-maximum suppression in plain torch: exactly the greedy result, without a loop over boxes or classes.
#
# Greedy suppression keeps a box unless an earlier *kept* box overlaps it. Asking that of all boxes at once, again and
# again until the answer stays, ends in the greedy answer: after n rounds the first n boxes are right.
#
# The host may look for that, or stay ahead of the device: then there are so many rounds as nearly always suffice, and
# all shapes are those of the most that may be kept. Whether they did suffice is told beside the result, for later.

BLOCK = 1024  # boxes compared at once by `nms`
ROUNDS = 24  # where nobody looks whether they suffice; crowds of made boxes took 10 at most
PAIRS_AT_ONCE = 2**23  # overlaps held at once by `nms_within_classes`


class Kept(NamedTuple):
    """What suppression keeps of each of B lists of N boxes."""

    places: Tensor  # (B, limit or N if that is less) int64, in the list; N behind the last one
    counts: Tensor  # (B,) int64
    settled: Tensor  # (B,) bool, False if there were too few rounds: then the others are wrong


def nms(boxes: Tensor, scores: Tensor, threshold: float, limit: int | None = None) -> Tensor:
    """Indices, int64, of the boxes (N, 4) that greedy suppression keeps, by descending score (N,); equal ones by index.

    Args:
        threshold: a box whose IoU with a kept one is larger is dropped.
        limit: how many to keep at most; boxes beyond are not looked at.
    """
    order = scores.argsort(descending=True, stable=True)
    kept = nms_of_sorted(boxes[order][None], threshold, len(order) if limit is None else limit)
    return order[kept.places[0, : int(kept.counts)]]


def nms_of_sorted(boxes: Tensor, threshold: float, limit: int, waiting: bool = True) -> Kept:
    """The same of boxes (B, N, 4) that are sorted; see `nms`.

    waiting: whether the host may wait for the device, and so look at no more boxes than it must.
    """
    batch, number = boxes.shape[:2]
    kept = torch.zeros(batch, 0, dtype=torch.int64, device=boxes.device)
    keep, counts = kept.bool(), kept.sum(dim=1)
    settled = counts == 0
    for own in boxes.split(BLOCK, dim=1):
        suppressed = (iou(at_places(boxes, kept), own) > threshold) & (kept < number)[..., None]
        chosen, done = greedy(iou(own, own) > threshold, ~suppressed.any(dim=1), waiting)
        settled &= done | (counts >= limit)
        keep = torch.cat([keep, chosen], dim=1)
        counts = keep.sum(dim=1)
        places = torch.arange(keep.shape[1], device=boxes.device)
        kept = torch.where(keep, places, number).sort(dim=1).values[:, :limit]
        if waiting and bool((counts >= limit).all()):
            break
    return Kept(kept, counts.clamp(max=limit), settled)


def at_places(rows: Tensor, places: Tensor) -> Tensor:
    """(B, K, D) of rows (B, N, D) and places (B, K); some row, where a place is behind the last one."""
    return rows.gather(1, places.clamp(max=rows.shape[1] - 1)[..., None].expand(-1, -1, rows.shape[2]))


def nms_within_classes(boxes: Tensor, scores: Tensor, threshold: float, floor: float = 0.0) -> Tensor:
    """Which boxes survive suppression among the boxes of their class: bool (N, C).

    Args:
        boxes: (N, C, 4), a box for every class, or (N, 1, 4), the same for all.
        scores: (N, C), not negative.
        threshold: a box whose IoU with a kept one of its class is larger is dropped.
        floor: boxes of a lower score are left out, marked False, which decides nothing about better ones and is faster.
    """
    counts = (scores >= floor).sum(dim=0)  # (C,)
    classes = counts.nonzero().squeeze(1)
    survives = torch.zeros_like(scores, dtype=torch.bool)
    if len(classes) == 0:
        return survives
    most = int(counts.max())
    for part in classes.split(max(1, PAIRS_AT_ONCE // most**2)):
        order = scores[:, part].argsort(dim=0, descending=True, stable=True)[:most].T  # (c, K)
        own = boxes[order, part[:, None] if boxes.shape[1] > 1 else 0]  # (c, K, 4)
        ranked = torch.arange(most, device=scores.device) < counts[part][:, None]  # (c, K), padding False
        survives[order, part[:, None]] = greedy(iou(own, own) > threshold, ranked)[0]
    return survives


def greedy(overlapping: Tensor, candidates: Tensor, waiting: bool = True) -> tuple[Tensor, Tensor]:
    """The greedy choice, bool (..., K), from candidates (..., K) by descending score and their overlaps (..., K, K).

    And bool (...), whether it is that: always where the host is `waiting` for it.
    """
    suppresses = overlapping.triu(diagonal=1)  # [i, j]: i comes before j and overlaps it
    before = keep = candidates
    for _ in count() if waiting else range(ROUNDS):
        before, keep = keep, candidates & ~(suppresses & keep.unsqueeze(-1)).any(dim=-2)
        if waiting and torch.equal(before, keep):
            break
    return keep, (before == keep).all(dim=-1)


# RoIAlign as one weighted sum of map cells for each bin.
#
# A bin's value is the mean of bilinear samples on a grid inside it. Grid and weights are products of one factor in y
# and one in x, so the cells that count in a bin, and how much, are an outer product of few numbers; `embedding_bag`
# sums them, in one call for all boxes of all images. As published: ceil(box / bins) samples a bin in each direction, no
# half-pixel shift, boxes at least one cell wide and high, samples more than a cell outside the map count as zero.

BINS = 14  # of a region, in each direction


@dataclass(frozen=True)
class BoxBins:
    """Which cells of a batch of maps count in the bins of n boxes, and how much; `pool` takes their weighted sums."""

    rows: Tensor  # (n, bins, most) int64, of the bins of one direction
    row_weights: Tensor  # (n, bins, most) float32
    columns: Tensor  # likewise, of the other
    column_weights: Tensor
    first_cell: Tensor  # (n,) int64, where the map of each box's image begins among the cells of all maps
    width: int  # of a map
    waiting: bool = True  # whether cells of no weight are left out, for which the host waits until they are known

    def every_second(self) -> BoxBins:
        """Every second bin in both directions, from the first on."""
        names = ("rows", "row_weights", "columns", "column_weights")
        return replace(self, **{name: getattr(self, name)[:, ::2] for name in names})

    def pool(self, features: Tensor) -> Tensor:
        """(n, C, bins, bins) in channels-last memory, of maps (B, C, H, W)."""
        channels, count, bins = features.shape[1], len(self.rows), self.rows.shape[1]
        if count == 0:
            return features.new_zeros(0, channels, bins, bins)
        rows = self.rows * self.width + self.first_cell[:, None, None]
        cells = rows[:, :, None, :, None] + self.columns[:, None, :, None, :]  # (n, bins, bins, rows, columns)
        weights = self.row_weights[:, :, None, :, None] * self.column_weights[:, None, :, None, :]
        starts = None
        if self.waiting:
            counting = weights > 0
            in_bin = counting.flatten(3).sum(dim=3).flatten()
            cells, weights, starts = cells[counting], weights[counting], in_bin.cumsum(0) - in_bin
        else:
            cells, weights = (one.flatten(3).flatten(0, 2) for one in (cells, weights))
        table, weights = features.permute(0, 2, 3, 1).reshape(-1, channels), weights.to(features.dtype)
        pooled = functional.embedding_bag(cells, table, starts, mode="sum", per_sample_weights=weights)
        return pooled.view(count, bins, bins, channels).permute(0, 3, 1, 2)


def box_bins(
    boxes: Tensor, images: Tensor, features: Tensor, bins: int = BINS, scale: float = 1 / STRIDE, waiting: bool = True
) -> BoxBins:
    """The bins, so many in each direction, of boxes (n, 4) in pixels on maps of the size of `features` (B, C, H, W).

    Args:
        images: (n,) int64, which map of the batch each box is on.
        scale: cells of the map per pixel.
        waiting: whether the host may wait for the device; if not, boxes must not be larger than a map.
    """
    height, width = features.shape[2:]
    rows, columns = (
        _cells(boxes[:, i], boxes[:, i + 2], side, bins, scale, waiting) for i, side in ((1, height), (0, width))
    )
    return BoxBins(*rows, *columns, images * (height * width), width, waiting)


def _cells(start: Tensor, end: Tensor, cells: int, bins: int, scale: float, waiting: bool) -> tuple[Tensor, Tensor]:
    """Which cells of one axis count in each bin of a box, and how much: (n, bins, most) int64 and float32.

    Cells that count are neighbours; if there are fewer than the most, the weights of the others are 0.
    """
    most = math.ceil(cells / bins)  # samples in a bin of a box as large as the map, at most a cell from each other
    weights = _bin_weights(start, end, cells, bins, scale, None if waiting else most)
    if len(weights) == 0:
        return torch.zeros(weights.shape, dtype=torch.int64, device=weights.device), weights
    counts = weights > 0
    most = max(1, int(counts.sum(dim=2).max())) if waiting else min(cells, most + 2)
    first = counts.to(torch.uint8).argmax(dim=2).clamp(max=cells - most)
    index = first[..., None] + torch.arange(most, device=start.device)
    return index, weights.gather(2, index)


def _bin_weights(start: Tensor, end: Tensor, cells: int, bins: int, scale: float, most: int | None = None) -> Tensor:
    """How much each cell of one axis counts in each bin of a box, (n, bins, cells); `start`, `end`: (n,) pixels.

    most: samples that a bin may have; None asks the device for it.
    """
    start, end = start.float() * scale, end.float() * scale
    size = ((end - start).clamp(min=1) / bins)[:, None, None]  # of a bin, in cells
    samples = size.ceil()  # in a bin
    if most is None:
        most = int(samples.max()) if len(start) else 0
    sample = torch.arange(most, device=start.device)
    bin_index = torch.arange(bins, device=start.device)[:, None]
    place = start[:, None, None] + bin_index * size + (sample + 0.5) * size / samples  # (n, bins, samples)
    counts = (sample < samples) & (place >= -1) & (place <= cells)
    place = place.clamp(0, cells - 1)
    distance = (place[..., None] - torch.arange(cells, device=start.device)).abs()
    bilinear = (1 - distance).clamp(min=0)  # (n, bins, samples, cells)
    return (bilinear * counts[..., None]).sum(dim=2) / samples
