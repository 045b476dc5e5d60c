"""The n-best lists of ended captions that beam search fills, one list per image."""

import math

import torch
from torch import Tensor

from vinvl.models.generation.options import SpecialTokens
from vinvl.models.generation.result import GeneratedCaptions, finish


class NBestLists:
    """For each of B images the `size` best captions so far, ranked by Σ log p / length^length_penalty.

    The rules are the published ones: an image is done once its list is full and the best open caption, if it went on
    to the greatest length at no cost, could not beat the worst in the list. The order of adding does not matter,
    except among equal scores.
    """

    def __init__(
        self,
        images: int,
        size: int,
        max_length: int,
        length_penalty: float,
        device: torch.device,
        pad_token_id: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._best_length = max_length - 1  # the begin token is counted, the end token is not
        self._length_penalty = length_penalty
        self.scores = torch.full((images, size), -math.inf, dtype=dtype, device=device)  # descending; −∞ is empty
        self.ids = torch.full((images, size, max_length), pad_token_id, device=device)
        self.lengths = torch.zeros(images, size, dtype=torch.long, device=device)

    def add(self, images: Tensor, ids: Tensor, sums: Tensor, is_ended: Tensor, length: int) -> None:
        """Offer captions to the lists of some images.

        Args:
            images: (b,) int64, the numbers of the images.
            ids: (b, n, max_length) int64, captions with their end token (or the word that it will replace).
            sums: (b, n) float, summed log-probabilities.
            is_ended: (b, n) bool; the others are not offered.
            length: of all n captions, the begin token counted, the end token not.
        """
        offered = (sums.to(self.scores.dtype) / length**self._length_penalty).masked_fill(~is_ended, -math.inf)
        scores = torch.cat([self.scores[images], offered], dim=1)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, : self.scores.shape[1]]
        lengths = torch.cat([self.lengths[images], torch.full_like(sums, length + 1, dtype=torch.long)], dim=1)
        rows = torch.arange(len(images), device=images.device)[:, None]
        self.scores[images] = scores[rows, best]
        self.ids[images] = torch.cat([self.ids[images], ids], dim=1)[rows, best]
        self.lengths[images] = lengths[rows, best]

    def is_done(self, images: Tensor, best_sums: Tensor) -> Tensor:
        """(b,) bool: whether no open caption of these images can enter the list any more.

        Args:
            images: (b,) int64.
            best_sums: (b,) float, the greatest summed log-probability of an open caption.
        """
        worst = self.scores[images, -1]
        bound = best_sums.to(worst.dtype) / self._best_length**self._length_penalty
        return (worst > -math.inf) & (worst >= bound)

    def result(self, special: SpecialTokens) -> GeneratedCaptions:
        """The captions of all lists, the best first."""
        is_empty = self.scores == -math.inf
        return finish(
            self.ids.masked_fill(is_empty[..., None], special.pad),
            self.lengths.masked_fill(is_empty, 0),
            self.scores.float(),
            special,
        )
