"""Retrieval: ranks in blocks, and recall at k."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vinvl.retrieval.candidates import Block, Fold

RECALL_AT = (1, 5, 10)


class RecallAtK(Metric):
    """Retrieval figures of all queries seen, as float64 scalars.

    - "R@1", "R@5", "R@10": percentage of queries whose first match is among the top k (rank < k);
    - "median_rank", "mean_rank": of ranks counted from 1, as tables print them (1 is perfect).

    All are nan if nothing was seen. Every rank is kept (8 bytes, on the device), so the figures do not depend on order,
    batches or ranks. Say beside the numbers whether they are of 1K (one fold, or the mean of five) or 5K images.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    ranks: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("ranks", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        # A process that sees no query must still join the gathering with a tensor of the right type.
        self.ranks = [torch.empty(0, dtype=torch.int64, device=self.device)]

    def update(self, ranks: Tensor) -> None:
        """Adds the ranks (N,) int64 of N queries, counted from 0, as `vinvl.retrieval.recall` makes them."""
        if ranks.dtype != torch.int64 or ranks.ndim != 1:
            raise ValueError(f"Expected ranks (N,) int64, got {tuple(ranks.shape)} {ranks.dtype}.")
        self.ranks.append(ranks.detach().to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Returns the figures; see the class."""
        ranks = dim_zero_cat(self.ranks).sort().values  # (N,)
        total = ranks.numel()
        figures = {f"R@{k}": 100 * (ranks < k).sum(dtype=torch.float64) / total for k in RECALL_AT}
        if total == 0:
            nan = torch.full((), float("nan"), dtype=torch.float64, device=ranks.device)
            return figures | {"median_rank": nan, "mean_rank": nan.clone()}
        middle = ranks[(total - 1) // 2] + ranks[total // 2]
        return figures | {"median_rank": middle.double() / 2 + 1, "mean_rank": ranks.sum().double() / total + 1}


# Ranks and best matches from scores that come block by block: memory for the captions, never for all pairs.
#
# Items are ordered by falling score, of equal ones the later first. That is what the published code's ascending sort,
# reversed, gives where the sort is stable. (It sorts with NumPy's default, which beyond 16 items leaves the order of
# ties open: there, the rule is ours.)


Blocks = Callable[[], Iterable[tuple[Block, np.ndarray]]]
"""Gives the blocks of a fold with their scores (images, C), in order of their images; may be called again."""


class FoldRanks(NamedTuple):
    """Ranks of the first match, from 0."""

    image_to_text: np.ndarray  # (I,) int64: of the best of each image's own captions among all
    text_to_image: np.ndarray  # (C,) int64: of each caption's own image among all


def fold_ranks(fold: Fold, blocks: Blocks) -> FoldRanks:
    """Ranks within a fold, in two passes over its blocks: own scores first, then what exceeds them."""
    positions = np.arange(len(fold.captions))
    image_to_text = np.zeros(len(fold.images), dtype=np.int64)
    own_scores = np.zeros(len(fold.captions), dtype=np.float32)
    for block, scores in blocks():
        rows = np.arange(block.start, block.stop)
        own = np.flatnonzero((fold.owner >= block.start) & (fold.owner < block.stop))
        own_scores[own] = scores[fold.owner[own] - block.start, own]
        for row, image in zip(scores, rows.tolist(), strict=True):
            mine = own[fold.owner[own] == image]
            best = mine[row[mine] == row[mine].max()][-1]
            image_to_text[image] = np.count_nonzero((row > row[best]) | ((row == row[best]) & (positions > best)))
    text_to_image = np.zeros(len(fold.captions), dtype=np.int64)
    for block, scores in blocks():
        later = np.arange(block.start, block.stop)[:, None] > fold.owner
        text_to_image += ((scores > own_scores) | ((scores == own_scores) & later)).sum(axis=0)
    return FoldRanks(image_to_text, text_to_image)


def best_columns(scores: np.ndarray, count: int) -> np.ndarray:
    """(rows, min(count, columns)) int64: the best columns of each row, best first; of equal ones the later first."""
    order = np.argsort(scores, axis=1, kind="stable")[:, ::-1]
    return order[:, :count]


def best_images(fold: Fold, blocks: Blocks, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The best images of each caption in one pass.

    Returns:
        images (C, k) int64 as positions in the fold and their scores (C, k) float32, best first; k is `count` or the
        number of images, whichever is less.
    """
    images = np.zeros((len(fold.captions), 0), dtype=np.int64)
    found = np.zeros((len(fold.captions), 0), dtype=np.float32)
    for block, scores in blocks():
        new = np.broadcast_to(np.arange(block.start, block.stop), (len(fold.captions), len(scores)))
        # What is kept is best first; a reversed stable sort needs the earlier image before the later one.
        images = np.concatenate([images[:, ::-1], new], axis=1)
        found = np.concatenate([found[:, ::-1], scores.T], axis=1)
        best = best_columns(found, count)
        images, found = np.take_along_axis(images, best, axis=1), np.take_along_axis(found, best, axis=1)
    return images, found
