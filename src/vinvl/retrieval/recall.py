"""Retrieval: ranks and best matches in blocks, and recall at k."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from vinvl.exact import Gathered
from vinvl.retrieval.data import Block, Fold

RECALL_AT = (1, 5, 10)


class RanksSeen(Gathered):
    """The ranks of all queries, of which figures do not depend on order, batches or processes (8 bytes each)."""

    seen_type = torch.int64

    def update(self, ranks: np.ndarray) -> None:
        """Adds the ranks (N,) int64 of N queries, counted from 0, as `fold_ranks` makes them."""
        self.seen.append(torch.from_numpy(ranks).to(self.device))

    def compute(self) -> Tensor:
        """(N,) int64: those of all processes."""
        return dim_zero_cat(self.seen)


def recall(ranks: np.ndarray) -> dict[str, float]:
    """The figures of queries whose first matches have these ranks (N,), counted from 0; all nan if there are none.

    - "R@1", "R@5", "R@10": percentage of queries whose first match is among the top k (rank < k);
    - "median_rank", "mean_rank": of ranks counted from 1, as tables print them (1 is perfect).

    Say beside the numbers whether they are of 1K (one fold, or the mean of five) or 5K images.
    """
    total = len(ranks) or math.nan
    figures = {f"R@{k}": 100 * int((ranks < k).sum()) / total for k in RECALL_AT}
    median = float(np.median(ranks)) if len(ranks) else math.nan
    return figures | {"median_rank": median + 1, "mean_rank": int(ranks.sum()) / total + 1}


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
    own_scores = np.zeros(len(fold.captions))  # float64, which no score is rounded in
    for block, scores in blocks():
        for image, row in enumerate(scores, start=block.start):
            own = slice(*np.searchsorted(fold.owner, [image, image + 1]))  # the image's own captions
            own_scores[own] = row[own]
            best = positions[own][row[own] == row[own].max()][-1]
            image_to_text[image] = np.count_nonzero((row > row[best]) | ((row == row[best]) & (positions > best)))
    text_to_image = np.zeros(len(fold.captions), dtype=np.int64)
    for block, scores in blocks():
        later = np.arange(block.start, block.stop)[:, None] > fold.owner
        text_to_image += ((scores > own_scores) | ((scores == own_scores) & later)).sum(axis=0)
    return FoldRanks(image_to_text, text_to_image)


def hard_rank(fold: Fold, scores: np.ndarray) -> int:
    """Rank from 0 of the best own caption of the one image of a `hard_fold`, by its `scores` (C,); C if it has none."""
    own = fold.owner[best_columns(scores[None], len(scores))[0]] == 0
    return int(own.argmax()) if own.any() else len(own)


def chance(fold: Fold, k: int) -> tuple[float, float]:
    """Recall at k, in percent, of an order drawn at random: image to text, text to image."""
    own = np.bincount(fold.owner[fold.owner >= 0], minlength=len(fold.images))  # captions of each image
    total = len(fold.captions)
    missed = np.ones(len(own))
    for drawn in range(min(k, total)):
        missed *= np.maximum(total - own - drawn, 0) / (total - drawn)
    return 100 * float(1 - missed.mean()), 100 * min(k / len(fold.images), 1.0)


def best_columns(scores: np.ndarray, count: int) -> np.ndarray:
    """(rows, min(count, columns)) int64: the best columns of each row, best first; of equal ones the later first."""
    return np.argsort(scores, axis=1, kind="stable")[:, ::-1][:, :count]


class FirstMatches(NamedTuple):
    """The K best matches within a fold, best first, as positions in it, int64, with their scores, float."""

    captions: np.ndarray  # (I, K) of each image
    caption_scores: np.ndarray
    images: np.ndarray  # (C, K) of each caption
    image_scores: np.ndarray


def first_matches(fold: Fold, blocks: Blocks, count: int = 5) -> FirstMatches:
    """The `count` best captions of each image, and as many images of each caption, or all."""
    best = [(one := best_columns(scores, count), np.take_along_axis(scores, one, axis=1)) for _, scores in blocks()]
    captions, scores = (np.concatenate(part) for part in zip(*best, strict=True))
    return FirstMatches(captions, scores, *best_images(fold, blocks, count))


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
