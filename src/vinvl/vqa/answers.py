"""The answers a model can give, and the soft targets it is trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any, Self

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.table import Column
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes, read_json, write_text_atomically
from vinvl.run.restricted_pickle import load_restricted
from vinvl.run.values import shown
from vinvl.vqa.accuracy import leave_one_out_points, normalise_answer

# Files of answers by number: JSON of our own, and the pickles that published VQA and GQA models were trained with.


PICKLES = (".pkl", ".pickle")
BUILT_FROM = "built_from"  # beside "answers", in files that were built here
SHAPES = "a list of texts, an object answer → number, or an object number → answer"


def read_answers(path: str | Path) -> tuple[str, ...]:
    """The answers of a file in the order of their numbers, as they are.

    Args:
        path: JSON or, with the suffix .pkl or .pickle, a pickle such as the published trainval_label2ans.pkl and
            trainval_ans2label.pkl: a list of texts, answer → number, or number → answer. No code of a pickle is run.
            One that was built here is {"built_from": …, "answers": a list of texts}.

    Raises:
        UserError: the file is missing or damaged, holds anything else, or its numbers are not 0 to A − 1, each once.
    """
    path = Path(path).expanduser()
    content = load_restricted(read_bytes(path), str(path)) if path.suffix.lower() in PICKLES else read_json(path)
    if isinstance(content, Mapping) and BUILT_FROM in content:
        content = content.get("answers")
    if isinstance(content, np.ndarray):
        content = content.tolist()
    if isinstance(content, list | tuple):
        pairs = list(enumerate(content))
    elif isinstance(content, Mapping) and all(_number(value) is not None for value in content.values()):
        pairs = [(number, answer) for answer, number in content.items()]
    elif isinstance(content, Mapping):
        pairs = list(content.items())
    else:
        raise UserError(f"{path} is no answer vocabulary: expected {SHAPES}.")
    answers: dict[int, str] = {}
    for said, answer in pairs:
        digits = isinstance(said, str) and said.isascii() and said.isdecimal() and len(said) < 10  # of a key in JSON
        number, problem = int(said) if digits else _number(said), ""
        if number is None:
            problem = f"{shown(said)} is no number; expected {SHAPES}"
        elif not isinstance(answer, str):
            problem = f"{shown(answer)} is no text; expected {SHAPES}"
        elif number in answers:
            problem = f"{shown(answers[number])} and {shown(answer)} both have the number {shown(number)}"
        if number is None or problem:
            raise UserError(f"{path} is no answer vocabulary: {problem}.")
        answers[number] = str(answer)  # of NumPy's texts too
    missing = next((number for number in range(len(answers)) if number not in answers), None)
    if missing is not None:
        raise UserError(
            f"{path} is no answer vocabulary: of its {len(answers):,} answers none has the number {missing}; they must "
            f"be 0 to {len(answers) - 1}, each once."
        )
    return tuple(answers[number] for number in range(len(answers)))


def read_head_answers(path: str | Path) -> tuple[str, ...]:
    """The answers of a file in the order of the outputs of a head that was trained with it.

    Of JSON that is the order of their numbers. Oscar takes the entries of X_ans2label.pkl in the order in which they
    stand there, whatever their numbers, also if X_label2ans.pkl beside it is named.

    Raises:
        UserError: as `read_answers`.
    """
    path = Path(path).expanduser()
    answers = read_answers(path)
    ordered = path.with_name(path.name.replace("label2ans", "ans2label"))
    if path.suffix.lower() not in PICKLES or not ordered.is_file():
        return answers
    content = load_restricted(read_bytes(ordered), str(ordered))
    numbers = [_number(value) for value in content.values()] if isinstance(content, Mapping) else []
    if set(numbers) != set(range(len(answers))) or len(numbers) != len(answers):
        return answers  # of other answers, or not by answer
    return tuple(answers[number] for number in numbers if number is not None)


def warn_of_other_splits(path: str | Path, built_from: Mapping[str, Any]) -> None:
    """Says so if the answers of a file were built from other splits, files or counts than this run would.

    Of files that do not say what they were built from, such as the published ones, nothing is known.
    """
    content = None if Path(path).suffix.lower() in PICKLES else read_json(Path(path).expanduser())
    there = content.get(BUILT_FROM) if isinstance(content, Mapping) else None
    if there is not None and there != built_from:
        rank_zero_warn(
            f"The answers of {path} were built from {json.dumps(there)}, and this run would build them from "
            f"{json.dumps(built_from)}: pass data.answers=FILE, a new one, to have them built again."
        )


def _number(value: object) -> int | None:
    """A whole number of Python's or NumPy's; None for anything else, also for truth values."""
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


@dataclass(frozen=True)
class AnswerVocabulary:
    """The A answers between which the model chooses; answer i belongs to output i.

    An empty text is a legal answer: "a" and "the" normalise to it, and the published 3,129 answers contain it. Raises
    ValueError if there are no answers or one occurs twice.
    """

    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.answers:
            raise ValueError("it holds no answers")
        answer, count = Counter(self.answers).most_common(1)[0]
        if count > 1:
            raise ValueError(f"it holds the answer {answer!r} {count} times")

    def __len__(self) -> int:
        return len(self.answers)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The output of each answer, as it is written."""
        return {answer: number for number, answer in enumerate(self.answers)}

    @cached_property
    def numbers_of_normal(self) -> dict[str, int]:
        """The same of people's answers in normal form; an entry that is in normal form comes before one that is not."""
        normal = {normalise_answer(answer): number for number, answer in reversed([*enumerate(self.answers)])}
        return normal | {
            answer: number for answer, number in self.numbers.items() if answer == normalise_answer(answer)
        }

    def find(self, answer: str) -> int | None:
        """The output of an answer as it is written or, if that is not there, in normal form; None if it is neither."""
        return self.numbers.get(answer, self.numbers_of_normal.get(normalise_answer(answer)))

    @classmethod
    def build(
        cls,
        answers_per_question: Iterable[Sequence[str]],
        min_count: int = 9,
        multiple_choice_answers: Iterable[str] | None = None,
    ) -> Self:
        """Collects the answers that are right for at least `min_count` training questions.

        A question counts for one answer, normalised: its `multiple_choice_answer` where given and not empty, else the
        most common of its people's answers after normalisation (the first one given wins a tie). Sorted by falling
        count, then by text. On the train and val questions of VQA v2 together this rule, the usual one, gives 3,129
        answers; the published models were trained on these, in another order.

        Raises UserError if no answer is frequent enough.
        """
        counts: Counter[str] = Counter()
        chosen = repeat("") if multiple_choice_answers is None else multiple_choice_answers
        for people, choice in zip(answers_per_question, chosen, strict=multiple_choice_answers is not None):
            counts[normalise_answer(choice) if choice else most_common_answer(people)] += 1
        frequent = sorted((-count, answer) for answer, count in counts.items() if count >= min_count)
        if not frequent:
            raise UserError(
                f"No answer is the most common one of at least {min_count} of the {counts.total():,} training "
                "questions, so the answer vocabulary would be empty; lower the minimum count or give more questions."
            )
        return cls(tuple(answer for _, answer in frequent))

    def save(self, path: str | Path, built_from: Mapping[str, Any] | None = None) -> None:
        """Writes the answers as a JSON list of texts, or as an object that also says what they were built from.

        Raises UserError if that is not possible, or the path is a pickle's.
        """
        if Path(path).suffix.lower() in PICKLES:  # a wrong path, and not a file to make
            raise UserError(f"The answer file {path} does not exist, and none is written as a pickle: check the path.")
        content = self.answers if built_from is None else {BUILT_FROM: built_from, "answers": self.answers}
        write_text_atomically(path, json.dumps(content, ensure_ascii=False, indent=0) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads the answers of a file (`read_head_answers`), as they are and in the order of the outputs.

        Raises UserError, naming the file, if it is missing, unreadable, of another shape, empty or repeats an answer.
        """
        try:
            return cls(read_head_answers(path))
        except ValueError as error:
            raise UserError(
                f"{path} is no answer vocabulary: {error}; build it again from the training answers."
            ) from None


def most_common_answer(answers: Sequence[str]) -> str:
    """The one that most people gave, in normal form; the first of several."""
    return Counter(map(normalise_answer, answers)).most_common(1)[0][0]


TARGET_RULES = ("leave_one_out", "count/3")


@dataclass(frozen=True)
class AnswerTargets:
    """How right each answer of a vocabulary is to Q questions: question q has places `offsets[q]` to `offsets[q + 1]`.

    Attributes:
        answers: the A answers between which the model chooses.
        ids: (ΣK,) int64: of each question the answers that are right at all, rising.
        scores: (ΣK,) float32 in (0, 1].
        offsets: (Q + 1,) int64.
    """

    answers: tuple[str, ...]
    ids: np.ndarray
    scores: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of_people(cls, answers: Column, vocabulary: AnswerVocabulary, rule: str = "leave_one_out") -> Self:
        """From the lists of several people's raw answers, which are normalised before they are compared.

        With n of ten people giving an answer, by the rules

        - "leave_one_out": the official accuracy of that answer: .3, .6, .9, 1 for n = 1, 2, 3, ≥ 4, the published
          targets. For another number of people see `leave_one_out_points`.
        - "count/3": min(n / 3, 1); with fewer than three people min(n / people, 1), so that agreement gives 1.
        """
        names, codes = answers.flat().categories()
        normal = vocabulary.numbers_of_normal
        id_of_name = np.array([normal.get(normalise_answer(name), -1) for name in names], dtype=np.int64)
        people = np.diff(answers.starts())  # (Q,)
        given = id_of_name[codes]  # (Σpeople,)
        asked = np.repeat(np.arange(len(people)), people)  # (Σpeople,) question of each given answer
        known = given >= 0
        pairs, counts = np.unique(asked[known] * len(vocabulary) + given[known], return_counts=True)
        questions, ids = np.divmod(pairs, len(vocabulary))  # (ΣK,)
        offsets = np.searchsorted(questions, np.arange(len(people) + 1)).astype(np.int64)
        most = int(people.max(initial=0)) + 1
        cases, case_of = np.unique(counts * most + people[questions], return_inverse=True)  # few differ
        scores = np.array([_score(case // most, case % most, rule) for case in cases.tolist()], dtype=np.float32)
        return cls(vocabulary.answers, ids, scores[case_of], offsets)

    @classmethod
    def of_scores(cls, answers: Column, scores: Column, vocabulary: AnswerVocabulary) -> Self:
        """From the right answers of each question and how right each is, both lists; all are in the vocabulary."""
        names, codes = answers.flat().categories()
        ids = np.array([vocabulary.numbers[name] for name in names], dtype=np.int64)[codes]
        offsets = answers.starts()
        questions = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        order = np.lexsort((ids, questions))
        return cls(vocabulary.answers, ids[order], scores.flat().numpy().astype(np.float32)[order], offsets)

    @classmethod
    def of_one_answer(cls, answers: Column, vocabulary: AnswerVocabulary) -> Self:
        """Target 1 for the one right answer; nothing for an answer that is not in the vocabulary."""
        names, codes = answers.categories()
        ids = np.array([vocabulary.numbers.get(name, -1) for name in names], dtype=np.int64)[codes]
        offsets = np.insert(np.cumsum(ids >= 0), 0, 0)
        ids = ids[ids >= 0]
        return cls(vocabulary.answers, ids, np.ones(len(ids), dtype=np.float32), offsets)

    def best(self) -> np.ndarray:
        """(Q,) int64: the number of the answer with the highest score to each question, -1 where there is none."""
        questions = np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))
        order = np.lexsort((-self.ids, self.scores))  # of equal scores the first answer is written last
        best = np.full(len(self.offsets) - 1, -1, dtype=np.int64)
        best[questions[order]] = self.ids[order]
        return best

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and scores of one question."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        return self.ids[span], self.scores[span]


def _score(count: int, people: int, rule: str) -> float:
    """Target of an answer that `count` of `people` gave."""
    if rule == "leave_one_out":
        return leave_one_out_points(count, people) / (3 * people)
    return min(count / min(3, people), 1.0)
