"""The official VQA accuracy: ten people answer, each is left out once, and the prediction is held against the rest."""

import json
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from vinvl.metrics.answer_text import normalise_answer, strip_answer

OVERALL = "overall"
QUESTION_TYPE_PREFIX = "question_type/"

# (category, answers per question) -> [points, questions]; a question with n answers earns points / 3n.
Tally = dict[tuple[str, int], list[int]]


def leave_one_out_points(matches: int, num_answers: int) -> int:
    """Score of an answer that `matches` of `num_answers` people gave, as an integer number of 3·num_answers-ths.

    Leaving out each person in turn, the answer earns min(1, matches among the others / 3); the score is the mean. Ten
    people give 0, .3, .6, .9, 1 for 0, 1, 2, 3, ≥ 4 matches. By the same formula the score cannot reach 1 with two or
    three people (1/3 and 2/3 at most). One person cannot be left out: there, a match is worth 1 (the official
    evaluation does not define that case).
    """
    if num_answers == 1:
        return 3 * matches
    return matches * min(3, matches - 1) + (num_answers - matches) * min(3, matches)


def count_matches(prediction: str, answers: Sequence[str]) -> int:
    """How many of the people's answers equal the prediction, in the official way of comparing.

    Texts are normalised only if the answers, stripped, are not all the same: against ten times "yes" a prediction "Yes"
    matches nobody. A question with a single answer, which the official evaluation does not know, is normalised too.

    Raises ValueError if there are no answers.
    """
    if not answers:
        raise ValueError("A question without answers has no accuracy; leave such questions out.")
    stripped = [strip_answer(answer) for answer in answers]
    if len(stripped) == 1 or len(set(stripped)) > 1:
        normalised_prediction = normalise_answer(prediction)
        return sum(normalise_answer(answer) == normalised_prediction for answer in stripped)
    return len(stripped) if strip_answer(prediction) == stripped[0] else 0


def official_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official VQA accuracy of one prediction, 0 to 1, correctly rounded.

    `answers` are the raw texts of the people asked, ten in VQA v2; any number from one on works
    (`leave_one_out_points` says how few answers are scored). Raises ValueError if there are none.

    Source: vqaEval.py of GT-Vision-Lab/VQA, last version.

    >>> official_accuracy("net", ["net", "Net", "mesh", "netting", "web", "fence", "goal", "rope", "string", "?"])
    0.6
    """
    return leave_one_out_points(count_matches(prediction, answers), len(answers)) / (3 * len(answers))


class VQAAccuracy(Metric):
    """Official VQA accuracy in percent: overall, per answer type and per question type.

    `update` takes predictions and people's answers as texts; `compute` returns a dict of float64 scalars, 0 to 100,
    unrounded (the official code rounds to two decimals):

    - "overall" (nan if nothing was seen),
    - one entry per answer type seen, under its name: "yes/no", "number", "other", …
    - one entry per question type seen, under "question_type/<name>".

    The sums are kept as integers, so the result is the same to the last bit in whatever order and however divided over
    batches and ranks the questions come. The state does not grow with the number of questions: one line of JSON for
    each category and number of answers, as bytes, because the ranks may have seen different categories.
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
        self.tally = [_encode({}).to(self.device)]

    def update(
        self,
        predictions: Sequence[str],
        answers: Sequence[Sequence[str]],
        answer_types: Sequence[str],
        question_types: Sequence[str] | None = None,
    ) -> None:
        """Adds B questions: predicted answer, people's raw answers, answer type and, where known, question type.

        Raises ValueError if the lengths differ or a question has no answers.
        """
        columns = [answers, answer_types] if question_types is None else [answers, answer_types, question_types]
        if any(len(column) != len(predictions) for column in columns):
            lengths = ", ".join(str(len(column)) for column in [predictions, *columns])
            raise ValueError(f"VQAAccuracy was given columns of different lengths: {lengths}.")
        tally = _decode(self.tally)
        for row, (prediction, people, answer_type) in enumerate(zip(predictions, answers, answer_types, strict=True)):
            points = leave_one_out_points(count_matches(prediction, people), len(people))
            categories = [OVERALL, _answer_type_key(answer_type)]
            if question_types is not None:
                categories.append(QUESTION_TYPE_PREFIX + question_types[row])
            for category in categories:
                _add(tally, category, len(people), points, 1)
        self.tally = [_encode(tally).to(self.device)]

    def compute(self) -> dict[str, Tensor]:
        """Returns the accuracies in percent as float64 scalars; see the class."""
        tally = _decode(self.tally)
        points: dict[str, Fraction] = {}
        questions: dict[str, int] = {}
        for (category, num_answers), (earned, seen) in tally.items():
            points[category] = points.get(category, Fraction(0)) + Fraction(earned, 3 * num_answers)
            questions[category] = questions.get(category, 0) + seen
        percent = {category: float(100 * points[category] / questions[category]) for category in sorted(points)}
        return {
            category: torch.tensor(value, dtype=torch.float64, device=self.device)
            for category, value in ({OVERALL: float("nan")} | percent).items()
        }


def _answer_type_key(answer_type: str) -> str:
    """The name an answer type is reported under: itself, unless it would be taken for another entry."""
    taken = answer_type == OVERALL or answer_type.startswith(QUESTION_TYPE_PREFIX)
    return f"answer_type/{answer_type}" if taken else answer_type


def _add(tally: Tally, category: str, num_answers: int, points: int, questions: int) -> None:
    entry = tally.setdefault((category, num_answers), [0, 0])
    entry[0] += points
    entry[1] += questions


def _encode(tally: Tally) -> Tensor:
    """One JSON line per entry, [category, answers per question, points, questions], as uint8 (bytes,)."""
    lines = (json.dumps([*key, *entry]) + "\n" for key, entry in tally.items())
    return torch.from_numpy(np.frombuffer("".join(lines).encode("ascii"), dtype=np.uint8).copy())


def _decode(states: Tensor | Iterable[Tensor]) -> Tally:
    """Adds up encoded tallies, be they a list of tensors or already concatenated."""
    tally: Tally = {}
    for state in [states] if isinstance(states, Tensor) else states:
        for line in state.cpu().numpy().tobytes().splitlines():
            _add(tally, *json.loads(line))
    return tally
