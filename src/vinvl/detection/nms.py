"""Non-maximum suppression in plain torch: exactly the greedy result, without a loop over boxes or classes.

Greedy suppression keeps a box unless an earlier *kept* box overlaps it. Asking that of all boxes at once, again and
again until the answer stays, ends in the greedy answer: after n rounds the first n boxes are right, since nothing but
earlier boxes decides about them. Real boxes need a handful of rounds.
"""

import torch
from torch import Tensor

from vinvl.detection.boxes import iou

BLOCK = 1024  # boxes compared at once by `nms`
PAIRS_AT_ONCE = 2**23  # overlaps held at once by `nms_within_classes`


def nms(boxes: Tensor, scores: Tensor, threshold: float, limit: int | None = None) -> Tensor:
    """Indices, int64, of the boxes that greedy suppression keeps, by descending score; equal scores by index.

    Args:
        boxes: (N, 4).
        scores: (N,).
        threshold: a box whose IoU with a kept one is larger is dropped.
        limit: how many to keep at most; boxes beyond are not looked at.
    """
    order = scores.argsort(descending=True, stable=True)
    limit = len(order) if limit is None else limit
    kept = order[:0]
    for block in order.split(BLOCK):
        free = block[~(iou(boxes[kept], boxes[block]) > threshold).any(dim=0)]
        overlapping = iou(boxes[free], boxes[free]) > threshold
        kept = torch.cat([kept, free[_greedy(overlapping, torch.ones_like(free, dtype=torch.bool))]])
        if len(kept) >= limit:
            break
    return kept[:limit]


def nms_within_classes(boxes: Tensor, scores: Tensor, threshold: float, floor: float = 0.0) -> Tensor:
    """Which boxes survive suppression among the boxes of their class: bool (N, C).

    Args:
        boxes: (N, C, 4), a box for every class, or (N, 1, 4), the same for all.
        scores: (N, C), not negative.
        threshold: a box whose IoU with a kept one of its class is larger is dropped.
        floor: boxes of a lower score are left out, marked False. They cannot decide about better ones, so what is said
            of the others is exact; a high floor makes this many times faster.
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
        keep = _greedy(iou(own, own) > threshold, ranked)
        survives[order, part[:, None]] = keep
    return survives


def _greedy(overlapping: Tensor, candidates: Tensor) -> Tensor:
    """The greedy choice, bool (..., K), from candidates (..., K) by descending score and their overlaps (..., K, K)."""
    suppresses = overlapping.triu(diagonal=1)  # [i, j]: i comes before j and overlaps it
    keep = candidates
    while True:
        suppressed = (suppresses & keep.unsqueeze(-1)).any(dim=-2)
        remaining = candidates & ~suppressed
        if torch.equal(remaining, keep):
            return keep
        keep = remaining
