"""GQA: accuracy overall and by question type, and the distance of the answers' distribution."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from vinvl.exact import decode_lines, encode_lines

OVERALL = "overall"
OPEN_STRUCTURE = "query"  # all other structures are answered by choosing, mostly yes or no


class TypedAccuracy(Metric):
    """GQA accuracy in percent, as float64 scalars.

    - "overall" (nan if nothing was seen);
    - "open" and "binary", where seen: questions of structural type "query", and all others, as GQA's evaluation says;
    - "structural/<name>" and "semantic/<name>" for each type seen.

    Sums are integers, so order, batches and ranks change no digit; the state is a line of JSON per category. Questions
    are counted as often as they are given.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    tally: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("tally", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        # A rank that sees no question must still join the gathering with a tensor of the right type.
        self.tally = [encode_lines([]).to(self.device)]

    def update(self, correct: Tensor, structural_types: Sequence[str], semantic_types: Sequence[str]) -> None:
        """Adds B questions: correct (B,) bool and the two types of each.

        Raises ValueError if lengths or types differ.
        """
        if correct.dtype != torch.bool or not (len(correct),) == (len(structural_types),) == (len(semantic_types),):
            raise ValueError(
                f"Expected correct (B,) bool and B types of both kinds, got {tuple(correct.shape)} {correct.dtype}, "
                f"{len(structural_types)} structural and {len(semantic_types)} semantic types."
            )
        right, seen = self._totals()
        for is_right, structural, semantic in zip(correct.tolist(), structural_types, semantic_types, strict=True):
            answer_kind = "open" if structural == OPEN_STRUCTURE else "binary"
            for category in (OVERALL, answer_kind, f"structural/{structural}", f"semantic/{semantic}"):
                right[category] += int(is_right)
                seen[category] += 1
        self.tally = [encode_lines([name, right[name], seen[name]] for name in seen).to(self.device)]

    def compute(self) -> dict[str, Tensor]:
        """Returns the accuracies; see the class."""
        right, seen = self._totals()
        percent = {OVERALL: float("nan")} | {name: 100 * right[name] / seen[name] for name in sorted(seen)}
        return {name: torch.tensor(value, dtype=torch.float64, device=self.device) for name, value in percent.items()}

    def _totals(self) -> tuple[Counter[str], Counter[str]]:
        right: Counter[str] = Counter()
        seen: Counter[str] = Counter()
        for name, right_here, seen_here in decode_lines(self.tally):
            right[name] += right_here
            seen[name] += seen_here
        return right, seen


def answer_distribution_distance(
    groups: Sequence[str | None], answers: Sequence[str], predictions: Sequence[str]
) -> float:
    """GQA's "distribution" score: how far predicted answers are distributed otherwise than true ones (0 is best).

    Within each group (`groups.global` of a question record; questions whose group is null do not count) the χ² of the
    numbers of predicted against true answers, over the answers that are true somewhere in the group; averaged over the
    groups, weighted by their questions. nan if no question has a group. This is the number the official script prints.

    Raises ValueError if the lengths differ.
    """
    true: dict[str, Counter[str]] = {}
    predicted: dict[str, Counter[str]] = {}
    for group, answer, prediction in zip(groups, answers, predictions, strict=True):
        if group is not None:
            true.setdefault(group, Counter())[answer] += 1
            predicted.setdefault(group, Counter())[prediction] += 1
    total = sum(counts.total() for counts in true.values())
    if total == 0:
        return float("nan")
    weighted = sum(
        counts.total() * sum((predicted[group][answer] - count) ** 2 / count for answer, count in counts.items())
        for group, counts in sorted(true.items())
    )
    return weighted / total
