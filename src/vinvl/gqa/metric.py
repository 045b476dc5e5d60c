"""GQA's official metrics (Hudson and Manning 2019, section 4), of questions, predictions and what comes with them.

Beside accuracy: consistency, validity, plausibility, distribution, grounding, and accuracy by type, length and steps.
As in the official `eval.py`, answers are compared as they stand, and all but consistency counts balanced questions
alone. Where that script divides by zero or would call a figure 0 for want of a file, there is no such figure here.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from vinvl.run.errors import UserError

OPEN_STRUCTURE = "query"  # all other structures are answered by choosing, mostly yes or no
COMMON, COMMON_ANSWERS = "Common", ("color", "material", "shape")  # "what do both have in common?" has these answers
NO_STEPS = ("exist", "query: name", "choose name")  # operations that do not count as a step of reasoning


class OfficialQuestion(NamedTuple):
    """What the metrics need of a balanced question."""

    answer: str
    image_id: str = ""
    structural: str = ""
    semantic: str = ""
    detailed: str = ""
    group: str | None = None  # the global one: questions that have the same answers to choose from
    words: int = 0
    steps: int = 0
    entailed: tuple[str, ...] = ()  # questions whose answers follow from this one's
    objects: tuple[str, ...] = ()  # that question and full answer speak of, as often as they do


@dataclass(frozen=True)
class OfficialQuestions:
    """The questions of a split.

    Attributes:
        balanced: question id → question, those that count.
        others: question id → answer, those that only consistency asks about.
    """

    balanced: Mapping[str, OfficialQuestion]
    others: Mapping[str, str] = field(default_factory=dict)

    def answer(self, question_id: str) -> str | None:
        """The right answer to any question; None of one that is not there."""
        one = self.balanced.get(question_id)
        return one.answer if one is not None else self.others.get(question_id)


class Choices(NamedTuple):
    """Answers to a question that are possible at all, and those that make sense in the real world."""

    valid: frozenset[str]
    plausible: frozenset[str]


class PartScore(NamedTuple):
    """A breakdown's entry."""

    percent: float
    questions: int


@dataclass(frozen=True)
class OfficialScores:
    """The figures, in percent but for the distribution, and the breakdowns by the kind of key.

    Attributes:
        figures: "binary", "open", "accuracy" and, where they can be had, "consistency", "validity", "plausibility",
            "grounding" and "distribution" (a χ² divided by 100, as it is printed; lower is better).
        breakdowns: "structural", "semantic", "steps" and "words" → key → figure.
    """

    figures: dict[str, float]
    breakdowns: dict[str, dict[str, PartScore]]

    def printed(self) -> str:
        """The text that the official script prints."""
        lines = [
            f"{name.title()}: {value:.2f}{' (lower is better)' if name == 'distribution' else '%'}"
            for name, value in self.figures.items()
        ]
        for kind, title in BREAKDOWNS.items():
            lines += ["", f"Accuracy / {title}:"]
            entries = sorted(self.breakdowns[kind].items(), key=lambda entry: (len(entry[0]), entry[0]))
            if kind in ("structural", "semantic"):
                entries = sorted(entries)
            lines += [f"  {key}: {one.percent:.2f}% ({one.questions} questions)" for key, one in entries]
        return "\n".join(lines) + "\n"

    def flat(self) -> dict[str, float]:
        """All figures by name, such as "validity" and "steps/3"."""
        entries = ((f"{kind}/{key}", one.percent) for kind, of in self.breakdowns.items() for key, one in of.items())
        return {**self.figures, **dict(entries)}


BREAKDOWNS = {
    "structural": "structural type",
    "semantic": "semantic type",
    "steps": "steps number",
    "words": "words number",
}
PRINTED = ("binary", "open", "accuracy", "consistency", "validity", "plausibility", "grounding", "distribution")


def count_steps(operations: Iterable[tuple[str, str]]) -> int:
    """Steps of reasoning of a question's program, (operation, argument) each."""
    return sum(not any(no in f"{operation}: {argument}" for no in NO_STEPS) for operation, argument in operations)


def official_scores(
    questions: OfficialQuestions,
    predictions: Mapping[str, str],
    *,
    choices: Mapping[str, Choices] | None = None,
    grounding: Mapping[str, float] | None = None,
    consistency: bool = False,
) -> OfficialScores:
    """Scores predictions, question id → answer, of all balanced questions.

    Args:
        choices: of all balanced questions, for validity and plausibility.
        grounding: `grounding_of` each balanced question's attention, 0 to 1 and more.
        consistency: needs predictions of all questions that others entail.

    Raises:
        UserError: predictions, choices or attention of a question are missing.
    """
    refuse_missing(predictions, questions.balanced, "predictions", "predict the whole split")
    right = {key: predictions[key] == one.answer for key, one in questions.balanced.items()}
    kinds = {
        name: [right[key] for key, one in questions.balanced.items() if (one.structural == OPEN_STRUCTURE) == is_open]
        for name, is_open in (("binary", False), ("open", True))
    }
    found = {name: 100 * float(np.mean(of)) for name, of in kinds.items() if of}
    found["accuracy"] = 100 * float(np.mean(list(right.values())))
    if consistency:
        found |= _consistency(questions, predictions, right)
    if choices is not None:
        found |= _valid_and_plausible(questions.balanced, predictions, choices)
    if grounding is not None:
        refuse_missing(grounding, questions.balanced, "attention maps or boxes", "write them for the whole split")
        found["grounding"] = 100 * float(np.mean([grounding[key] for key in questions.balanced]))
    found |= _distribution(questions.balanced, predictions)
    figures = {name: found[name] for name in PRINTED if name in found}
    return OfficialScores(figures, _breakdowns(questions.balanced, right))


def refuse_missing(there: Mapping[str, object], needed: Iterable[str], what: str, remedy: str) -> None:
    """Raises UserError if something is not there for each of the questions `needed`."""
    missing = [key for key in needed if key not in there]
    if missing:
        raise UserError(f"There are no {what} for {len(missing):,} questions, the first {missing[0]!r}: {remedy}.")


def _breakdowns(balanced: Mapping[str, OfficialQuestion], right: Mapping[str, bool]) -> dict[str, dict[str, PartScore]]:
    counted: dict[str, dict[str, list[bool]]] = {kind: defaultdict(list) for kind in BREAKDOWNS}
    for key, one in balanced.items():
        keys = (one.structural, one.semantic, str(one.steps), str(one.words))
        for kind, value in zip(BREAKDOWNS, keys, strict=True):
            counted[kind][value].append(right[key])
    return {
        kind: {value: PartScore(100 * float(np.mean(seen)), len(seen)) for value, seen in of.items()}
        for kind, of in counted.items()
    }


def _consistency(
    questions: OfficialQuestions, predictions: Mapping[str, str], right: Mapping[str, bool]
) -> dict[str, float]:
    """Of each question that is answered rightly, the share of right answers to what it entails; the mean of these."""
    shares = []
    for key, one in questions.balanced.items():
        entailed = [other for other in one.entailed if other != key]
        if not right[key] or not entailed:
            continue
        for other in entailed:
            if questions.answer(other) is None or other not in predictions:
                what = "questions" if questions.answer(other) is None else "predictions"
                raise UserError(
                    f"Question {key!r} entails {other!r}, which is not among the {what}: consistency needs all "
                    "questions of a split, balanced or not, and predictions of them."
                )
        shares.append(float(np.mean([predictions[other] == questions.answer(other) for other in entailed])))
    return {"consistency": 100 * float(np.mean(shares))} if shares else {}


def _valid_and_plausible(
    balanced: Mapping[str, OfficialQuestion], predictions: Mapping[str, str], choices: Mapping[str, Choices]
) -> dict[str, float]:
    own = {key for key, one in balanced.items() if COMMON in one.detailed}
    refuse_missing(choices, (key for key in balanced if key not in own), "choices", "give those of this split")
    common = Choices(frozenset(COMMON_ANSWERS), frozenset(COMMON_ANSWERS))
    of = {key: common if key in own else choices[key] for key in balanced}
    return {
        "validity": 100 * float(np.mean([predictions[key] in one.valid for key, one in of.items()])),
        "plausibility": 100 * float(np.mean([predictions[key] in one.plausible for key, one in of.items()])),
    }


def _distribution(balanced: Mapping[str, OfficialQuestion], predictions: Mapping[str, str]) -> dict[str, float]:
    """χ² of given against true answers within each global group, by questions; an answer that is never true adds 0."""
    true, given = defaultdict[str, Counter[str]](Counter), defaultdict[str, Counter[str]](Counter)
    for key, one in balanced.items():
        if one.group is not None:
            true[one.group][one.answer] += 1
            given[one.group][predictions[key]] += 1
    weighted, questions = 0.0, 0
    for group, counts in true.items():
        chi_square = sum((given[group][answer] - count) ** 2 / count for answer, count in counts.items())
        weighted += chi_square * counts.total()
        questions += counts.total()
    return {"distribution": weighted / questions / 100} if questions else {}


# Grounding: how much of the attention lies on the objects that a question and its answer speak of.


def map_cells(attention: np.ndarray) -> np.ndarray:
    """(m², 5): the cells of an attention map (m, m) as boxes in shares of the image and their attention.

    The first index of the map is x.
    """
    size = len(attention)
    x, y = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    corners = np.stack([x, y, x + 1, y + 1], axis=-1).reshape(-1, 4) / size
    return np.concatenate([corners, attention.reshape(-1, 1)], axis=1)


def grounding_of(cells: np.ndarray, objects: np.ndarray) -> float:
    """Attention times the share of its cell that lies within an object, summed over cells and objects.

    Args:
        cells: (C, 5) float, x1, y1, x2, y2 in shares of the image, and attention; a cell without area counts nothing.
        objects: (K, 4) float, boxes in shares of the image; the same one may come several times.
    """
    if not len(cells) or not len(objects):
        return 0.0
    near = np.maximum(cells[:, None, :2], objects[None, :, :2])
    far = np.minimum(cells[:, None, 2:4], objects[None, :, 2:])
    within = np.prod(np.clip(far - near, 0, None), axis=2)  # (C, K)
    area = np.prod(np.clip(cells[:, 2:4] - cells[:, :2], 0, None), axis=1)  # (C,)
    share = np.divide(within, area[:, None], out=np.zeros_like(within), where=area[:, None] > 0)
    return float((cells[:, 4:] * share).sum())
