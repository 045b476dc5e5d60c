"""Metric states that no order of batches and no number of ranks changes."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import chain
from typing import Any, ClassVar

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


class Gathered(Metric):
    """A metric that computes its figures from all that it and the other ranks have `seen`, tensors (N,) of one type."""

    full_state_update = False
    seen_type: ClassVar[torch.dtype] = torch.uint8
    seen: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("seen", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        # A rank that sees nothing must still join the gathering with a tensor of the right type.
        self.seen = [torch.empty(0, dtype=self.seen_type, device=self.device)]


OVERALL = "overall"
Earned = tuple[str, int, int, int]
"""A category, how many points a question of it could earn, how many were earned, and by how many questions."""


class CategoryAccuracy(Gathered):
    """Mean score in percent, overall and of each category seen: a question counts in every one that it belongs to.

    Points are added up as integers, and only the result is rounded. The state does not grow with the questions: it has
    a line for each category and number of points to earn, because the ranks may have seen different categories.
    """

    def update(self, rows: Iterable[Earned]) -> None:
        """Adds questions; each has a row for every category that it belongs to, `OVERALL` among them."""
        totals = self._totals(rows)
        self.seen = [encode_lines([*key, *earned] for key, earned in totals.items()).to(self.device)]

    def compute(self) -> dict[str, Tensor]:
        """Category → percent, float64 scalars, unrounded; "overall" is nan if nothing was seen."""
        points, questions = defaultdict[str, Fraction](Fraction), Counter[str]()
        for (category, most), (earned, count) in self._totals().items():
            points[category] += Fraction(earned, most)
            questions[category] += count
        percent = {OVERALL: math.nan} | {name: float(100 * points[name] / questions[name]) for name in sorted(points)}
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in percent.items()}

    def _totals(self, more: Iterable[Earned] = ()) -> dict[tuple[str, int], list[int]]:
        totals = defaultdict[tuple[str, int], list[int]](lambda: [0, 0])
        for category, most, points, questions in chain(decode_lines(self.seen), more):
            earned = totals[category, most]
            earned[0] += points
            earned[1] += questions
        return totals


class GroupedAccuracy(Metric):
    """How many guesses were right, in percent, in each of G groups and in all.

    Counts stay on the device: `update` never waits for it. They are whole numbers, so that order, batches and ranks
    change nothing.
    """

    full_state_update = False
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


class ExactMean(Gathered):
    """Mean of single values, the same to the last bit for every order, batch size and number of ranks.

    Floating-point sums depend on their order. This metric keeps every value (8 bytes each, on the device) and adds them
    in `compute` with `math.fsum`, which rounds only once.
    """

    seen_type = torch.float64

    def update(self, values: Tensor) -> None:
        """Adds values (B,), any float type; a scalar counts as one value."""
        self.seen.append(values.detach().reshape(-1).to(device=self.device, dtype=torch.float64))

    def compute(self) -> Tensor:
        """Returns the mean as a float64 scalar; nan if nothing was seen, nan or ±inf if the values hold such."""
        values = dim_zero_cat(self.seen)  # (N,)
        if values.numel() == 0 or not bool(values.isfinite().all()):
            return values.mean()
        mean = math.fsum(values.tolist()) / values.numel()
        return torch.tensor(mean, dtype=torch.float64, device=values.device)


class AnswersSeen(Gathered):
    """Which records were answered, by which of the answers, and what that earned, whatever rank has seen them.

    24 bytes a record and 16 for each of its best answers, on the device. What else there is to say of a record is in
    its table, on every rank.
    """

    seen_type = torch.float64

    def __init__(self, best: int = 0) -> None:
        """`best`: how many of the best answers are kept too, K."""
        super().__init__()
        self.columns = 3 + 2 * best

    def update(
        self,
        records: Sequence[Mapping[str, Any]],
        answers: Sequence[int],
        scores: Sequence[float],
        best: tuple[Tensor, ...] = (),
    ) -> None:
        """Adds B records, whose "index" is their place in the split, the numbers of their answers, and their scores.

        `best`: numbers and probabilities (B, K) of the best answers (`best_choices`).
        """
        rows = list(zip((record["index"] for record in records), answers, scores, strict=True))
        columns = [torch.tensor(rows, dtype=torch.float64).reshape(-1, 3), *(one.double().cpu() for one in best)]
        self.seen.append(torch.cat(columns, dim=1).reshape(-1).to(self.device))

    def compute(self) -> np.ndarray:
        """(N, 3 + 2 K) float64, each record once, by place.

        Its place, number of the answer and score, then the numbers of the K best answers and their probabilities.
        """
        rows = dim_zero_cat(self.seen).cpu().numpy().reshape(-1, self.columns)
        return rows[np.unique(rows[:, 0], return_index=True)[1]]
