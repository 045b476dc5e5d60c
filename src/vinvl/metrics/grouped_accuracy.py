"""Accuracy by group: hidden tokens of text and of tags, triplets by class."""

import torch
from torch import Tensor
from torchmetrics import Metric


class GroupedAccuracy(Metric):
    """How many guesses were right, in percent, in each of G groups and in all.

    Counts stay on the device: `update` never waits for it. They are whole numbers, so that order, batches and ranks
    change nothing.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    right: Tensor
    seen: Tensor

    def __init__(self, num_groups: int) -> None:
        super().__init__()
        self.add_state("right", default=torch.zeros(num_groups, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seen", default=torch.zeros(num_groups, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, correct: Tensor, groups: Tensor) -> None:
        """Adds N guesses: whether they were right (N,) bool, and their groups (N,) int64; negative ones do not count.

        Raises ValueError if the shapes differ.
        """
        if correct.shape != groups.shape or correct.ndim != 1:
            raise ValueError(f"Expected (N,) twice, got {tuple(correct.shape)} and {tuple(groups.shape)}.")
        counted = groups >= 0
        places = groups.clamp(min=0)
        self.seen.scatter_add_(0, places, counted.long())
        self.right.scatter_add_(0, places, (counted & correct).long())

    def compute(self) -> tuple[Tensor, Tensor]:
        """Returns the accuracy of all guesses and of each group (G,), float64 percent; nan where nothing was seen."""
        return 100 * self.right.sum().double() / self.seen.sum(), 100 * self.right.double() / self.seen
