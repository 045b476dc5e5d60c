"""Two-stage retrieval: cheap scores of all pairs choose those that the model scores; the others keep the cheap order.

Of each image the k captions, and of each caption the k images, with the highest cheap scores are scored by the model:
at most k · (I + C) of I · C pairs. In every order, of an image's captions or of a caption's images, these come first,
by the model's score, and then all others by the cheap one.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from vinvl.retrieval.data import Block, Fold, blocks_of
from vinvl.retrieval.recall import best_columns, best_images
from vinvl.run.errors import UserError

CheapScores = Callable[[int, int], np.ndarray]
"""(start, stop) → the cheap scores (stop - start, C), from -1 to 1, of images of a fold with all its captions."""


class Cheap(NamedTuple):
    """Cheap scores of all candidates."""

    what: str  # changes with all that they depend on
    of_fold: Callable[[Fold], CheapScores]


STEP = 2.0**-22  # of cheap scores: rounding that differs between machines seldom matters then
CHEAP_BLOCK = 256  # images whose cheap scores are looked at together
FLOOR = np.float32(-(2.0**98))  # the model's scores are above it, and what stands for cheap ones below


def stepped(cheap: np.ndarray) -> np.ndarray:
    """Cheap scores as multiples of `STEP` from -1 to 1, float32."""
    return (np.clip(np.round(cheap / STEP), -1 / STEP, 1 / STEP) * STEP).astype(np.float32)


def below_all(cheap: np.ndarray) -> np.ndarray:
    """Scores below any of the model's, float32, with the order and the ties of `stepped` cheap ones."""
    # From -3 to -1 a multiple of STEP is a float32 exactly, and a power of two times that is too.
    lowered: np.ndarray = (cheap - np.float32(2)) * (np.float32(-2) * FLOOR)
    return lowered


def is_scored(scores: np.ndarray) -> np.ndarray:
    """Which of the scores are the model's, bool."""
    return scores > FLOOR


def chosen_captions(fold: Fold, cheap: CheapScores, top: int) -> list[np.ndarray]:
    """For each image the captions (n,) int64, ascending positions in the fold, that the model scores with it."""

    def blocks() -> Iterator[tuple[Block, np.ndarray]]:
        for block in blocks_of([fold], CHEAP_BLOCK):
            yield block, cheap(block.start, block.stop)

    captions = np.concatenate([best_columns(scores, top) for _, scores in blocks()])  # (I, k)
    images, _ = best_images(fold, blocks, top)  # (C, k)
    total = len(fold.captions)
    by_image = np.arange(len(captions))[:, None] * total + captions
    by_caption = images * total + np.arange(total)[:, None]
    pairs = np.unique(np.concatenate([by_image.ravel(), by_caption.ravel()]))
    return np.split(pairs % total, np.searchsorted(pairs, np.arange(1, len(captions)) * total))


class TwoStage:
    """Which pairs of some folds the model scores, and the scores of all."""

    def __init__(self, folds: Sequence[Fold], cheap: Callable[[Fold], CheapScores], top: int) -> None:
        """
        Args:
            cheap: makes the cheap scores of a fold.
            top: k, from 1 to the images of a fold, which is all pairs.
        """
        least = min(len(fold.images) for fold in folds)
        if not 1 <= top <= least:
            raise UserError(
                f"data.rerank_top is {top}: give 1 to {least:,}, the images of a fold, or null for all pairs."
            )
        self._captions = [len(fold.captions) for fold in folds]
        self._cheap = [partial(_stepped_scores, cheap(fold)) for fold in folds]
        self._chosen = [chosen_captions(fold, scores, top) for fold, scores in zip(folds, self._cheap, strict=True)]
        self.scored = sum(len(captions) for fold in self._chosen for captions in fold)  # pairs, by the model
        self.total = sum(len(fold.images) * len(fold.captions) for fold in folds)

    @property
    def share(self) -> float:
        """Percentage of the pairs that the model scores."""
        return 100 * self.scored / self.total

    def describe(self) -> str:
        """ "38,400 pairs of 800,000 (4.80 %)"."""
        return f"{self.scored:,} pairs of {self.total:,} ({self.share:.2f} %)"

    def chosen(self, block: Block) -> list[np.ndarray]:
        """As `chosen_captions`, of a block's images."""
        return self._chosen[block.fold][block.start : block.stop]

    def pairs(self, block: Block) -> int:
        """How many pairs of a block the model scores."""
        return sum(map(len, self.chosen(block)))

    def scores(
        self, block: Block, score_all: Callable[[], np.ndarray], score: Callable[[int, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Scores (images, C) float32 of a block, see `below_all`.

        Args:
            score_all: gives the model's scores of all pairs, for where all are chosen.
            score: gives those (n,) of the block's i-th image with some captions (n,), positions in the fold.

        Raises:
            UserError: the model's scores are not finite.
        """
        if self.pairs(block) == (block.stop - block.start) * self._captions[block.fold]:
            return score_all()
        scores = below_all(self._cheap[block.fold](block.start, block.stop))
        for image, captions in enumerate(self.chosen(block)):
            found = score(image, captions)
            if not is_scored(found).all():
                raise UserError(
                    "The model gives scores that are NaN or infinite, which have no order: check its weights."
                )
            scores[image, captions] = found
        return scores


def _stepped_scores(cheap: CheapScores, start: int, stop: int) -> np.ndarray:
    return stepped(cheap(start, stop))
