"""Metric states that no order of batches and no number of ranks changes."""

import json
import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

# Metric states that hold texts: lines of JSON as bytes, because ranks can gather only tensors.


def encode_lines(rows: Iterable[Sequence[object]]) -> Tensor:
    """One line of JSON per row, as uint8 (bytes,); no rows give an empty tensor."""
    lines = "".join(json.dumps(list(row)) + "\n" for row in rows)
    return torch.from_numpy(np.frombuffer(lines.encode("ascii"), dtype=np.uint8).copy())


def decode_lines(states: Tensor | Iterable[Tensor]) -> Iterator[list]:
    """The rows of encoded tensors, be they a list or already concatenated."""
    for state in [states] if isinstance(states, Tensor) else states:
        for line in state.cpu().numpy().tobytes().splitlines():
            yield json.loads(line)


# Accuracy by group: hidden tokens of text and of tags, triplets by class.


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
        """Returns the accuracy of all guesses and of each group (G,), float64 percent; nan if nothing was seen."""
        return 100 * self.right.sum().double() / self.seen.sum(), 100 * self.right.double() / self.seen


class ExactMean(Metric):
    """Mean of single values, the same to the last bit for every order, batch size and number of ranks.

    Floating-point sums depend on their order. This metric keeps every value (8 bytes each, on the device) and adds them
    in `compute` with `math.fsum`, which rounds only once.
    """

    full_state_update = False
    is_differentiable = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        # A rank that sees no value must still join the gathering with a tensor of the right type.
        self.values = [torch.empty(0, dtype=torch.float64, device=self.device)]

    def update(self, values: Tensor) -> None:
        """Adds values (B,), any float type; a scalar counts as one value."""
        self.values.append(values.detach().reshape(-1).to(device=self.device, dtype=torch.float64))

    def compute(self) -> Tensor:
        """Returns the mean as a float64 scalar; nan if nothing was seen, nan or ±inf if the values hold such."""
        values = dim_zero_cat(self.values)  # (N,)
        if values.numel() == 0 or not bool(values.isfinite().all()):
            return values.mean()
        mean = math.fsum(values.tolist()) / values.numel()
        return torch.tensor(mean, dtype=torch.float64, device=values.device)
