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

from vinvl.data.table import Column
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes, read_json, write_text_atomically
from vinvl.run.restricted_pickle import load_restricted
from vinvl.vqa.accuracy import leave_one_out_points, normalise_answer

# Files of answers by number: JSON of our own, and the pickles that published VQA and GQA models were trained with.


PICKLES = (".pkl", ".pickle")
SHAPES = "a list of texts, an object answer → number, or an object number → answer"


def read_answers(path: str | Path) -> tuple[str, ...]:
    """The answers of a file in the order of their numbers, as they are.

    Args:
        path: JSON or, with the suffix .pkl or .pickle, a pickle such as the published trainval_label2ans.pkl and
            trainval_ans2label.pkl: a list of texts, answer → number, or number → answer. No code of a pickle is run.

    Raises:
        UserError: the file is missing or damaged, holds anything else, or its numbers are not 0 to A − 1, each once.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() in PICKLES:
        return _answers_in(load_restricted(read_bytes(path), str(path)), path)
    return _answers_in(read_json(path), path)


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


def refuse_to_write_pickles(path: str | Path) -> None:
    """Vocabularies are written as JSON: a pickle that does not exist is a wrong path, and not a file to make.

    Raises:
        UserError: the path is a pickle's.
    """
    if Path(path).suffix.lower() in PICKLES:
        raise UserError(f"The answer file {path} does not exist, and none is written as a pickle: check the path.")


def _answers_in(content: Any, path: Path) -> tuple[str, ...]:
    if isinstance(content, list | tuple | np.ndarray):
        return tuple(_text(answer, path) for answer in content)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} is no answer vocabulary: expected {SHAPES}.")
    by_answer = all(_number(value) is not None for value in content.values())
    pairs = content.items() if by_answer else ((answer, number) for number, answer in content.items())
    by_number: dict[int, str] = {}
    for answer, found in pairs:
        number = _number(found) if by_answer else _number_of_key(found)
        if number is None:
            raise UserError(f"{path} is no answer vocabulary: {_shown(found)} is no number; expected {SHAPES}.")
        if number in by_number:
            raise UserError(
                f"{path} is no answer vocabulary: {_shown(by_number[number])} and {_shown(answer)} both have the "
                f"number {_shown(number)}."
            )
        by_number[number] = _text(answer, path)
    missing = next((number for number in range(len(by_number)) if number not in by_number), None)
    if missing is not None:
        raise UserError(
            f"{path} is no answer vocabulary: of its {len(by_number):,} answers none has the number {missing}; they "
            f"must be 0 to {len(by_number) - 1}, each once."
        )
    return tuple(by_number[number] for number in range(len(by_number)))


def _number(value: object) -> int | None:
    """A whole number of Python's or NumPy's; None for anything else, also for truth values."""
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _number_of_key(key: object) -> int | None:
    """The same of a key, which JSON knows only as text."""
    if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10:
        return int(key)
    return _number(key)


def _text(answer: object, path: Path) -> str:
    if not isinstance(answer, str):
        raise UserError(f"{path} is no answer vocabulary: {_shown(answer)} is no text; expected {SHAPES}.")
    return str(answer)  # of NumPy's texts too


def _shown(value: object) -> str:
    """A value of a file that may hold anything, short enough for a sentence."""
    if isinstance(value, str | float | bool | None) or (isinstance(value, int) and abs(value) < 10**40):
        return ascii(value)[:40]
    return f"a {type(value).__name__}"


TARGET_RULES = ("leave_one_out", "count/3")


@dataclass(frozen=True)
class AnswerVocabulary:
    """The A answers between which the model chooses; answer i belongs to output i.

    An empty text is a legal answer: "a" and "the" normalise to it, and the published 3,129 answers contain it. Raises
    ValueError if there are no answers or one occurs twice.
    """

    answers: tuple[str, ...]

    def __post_init__(self) -> None:
        problem = _problem(self.answers)
        if problem is not None:
            raise ValueError(f"The answer vocabulary {problem}.")

    def __len__(self) -> int:
        return len(self.answers)

    def __contains__(self, answer: object) -> bool:
        return answer in self._index

    def __getitem__(self, index: int) -> str:
        return self.answers[index]

    def index_of(self, answer: str) -> int | None:
        """Position of an answer written exactly as in the vocabulary; None if it is not in it."""
        return self._index.get(answer)

    def find(self, answer: str) -> int | None:
        """Position of an answer as it is written or, if that is not in it, in normal form; None if it is neither."""
        found = self._index.get(answer)
        return self._index_of_normalised.get(normalise_answer(answer)) if found is None else found

    @cached_property
    def _index(self) -> dict[str, int]:
        return {answer: index for index, answer in enumerate(self.answers)}

    @cached_property
    def _index_of_normalised(self) -> dict[str, int]:
        """For matching people's answers: also finds entries of a hand-made vocabulary that are not in normal form."""
        index: dict[str, int] = {}
        for position, answer in enumerate(self.answers):
            normalised = normalise_answer(answer)
            if answer == normalised:
                index[answer] = position
            else:
                index.setdefault(normalised, position)
        return index

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
            counts[normalise_answer(choice) if choice else _most_common(people)] += 1
        frequent = sorted((-count, answer) for answer, count in counts.items() if count >= min_count)
        if not frequent:
            raise UserError(
                f"No answer is the most common one of at least {min_count} of the {counts.total():,} training "
                "questions, so the answer vocabulary would be empty; lower the minimum count or give more questions."
            )
        return cls(tuple(answer for _, answer in frequent))

    def save(self, path: str | Path) -> None:
        """Writes the answers as a JSON list of texts; raises UserError if that is not possible."""
        refuse_to_write_pickles(path)
        write_text_atomically(path, json.dumps(self.answers, ensure_ascii=False, indent=0) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads the answers of a file (`read_answers`), as they are and in their order.

        Raises UserError, naming the file, if it is missing, unreadable, of another shape, empty or repeats an answer.
        """
        answers = read_answers(path)
        problem = _problem(answers)
        if problem is not None:
            raise UserError(f"{path} is no answer vocabulary: it {problem}; build it again from the training answers.")
        return cls(answers)

    def soft_targets(self, answers: Sequence[str], rule: str = "leave_one_out") -> tuple[np.ndarray, np.ndarray]:
        """How right each answer of the vocabulary is for one question, given its people's raw answers.

        Texts are normalised before they are compared. Returns ids (K,) int64, rising, and scores (K,) float32 in
        (0, 1] of the answers that somebody gave; everything else is 0. With n of ten people giving an answer:

        - "leave_one_out": the official accuracy of that answer: .3, .6, .9, 1 for n = 1, 2, 3, ≥ 4, the published
          targets. For another number of people see `leave_one_out_points`.
        - "count/3": min(n / 3, 1); with fewer than three people min(n / people, 1), so that agreement gives 1.

        Raises UserError for another rule.
        """
        _check_rule(rule)
        matched = (self._index_of_normalised.get(normalise_answer(answer)) for answer in answers)
        counts = sorted(Counter(index for index in matched if index is not None).items())
        scores = [_score(count, len(answers), rule) for _, count in counts]
        return np.array([index for index, _ in counts], dtype=np.int64), np.array(scores, dtype=np.float32)

    def soft_targets_of_all(
        self, answers: Column, rule: str = "leave_one_out"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Soft targets of Q questions at once, given the lists of their people's answers, each as `soft_targets` does.

        Returns ids (ΣK,) int64, scores (ΣK,) float32 and offsets (Q+1,) int64: question q has `offsets[q]` to
        `offsets[q + 1]`. Raises UserError for a rule that is not known.
        """
        _check_rule(rule)
        index = self._index_of_normalised
        names, codes = answers.flat().categories()
        id_of_name = np.array([index.get(normalise_answer(name), -1) for name in names], dtype=np.int64)
        people = np.diff(answers.starts())  # (Q,)
        given = id_of_name[codes]  # (Σpeople,)
        asked = np.repeat(np.arange(len(people)), people)  # (Σpeople,) question of each given answer
        known = given >= 0
        pairs, counts = np.unique(asked[known] * len(self) + given[known], return_counts=True)
        questions, ids = np.divmod(pairs, len(self))  # (ΣK,)
        offsets = np.searchsorted(questions, np.arange(len(people) + 1)).astype(np.int64)
        cases, case_of = np.unique(np.stack([counts, people[questions]]), axis=1, return_inverse=True)  # few differ
        scores = np.array([_score(count, asked, rule) for count, asked in cases.T.tolist()], dtype=np.float32)
        return ids, scores[case_of.reshape(-1)], offsets


def _check_rule(rule: str) -> None:
    if rule not in TARGET_RULES:
        raise UserError(f"{rule!r} is no rule for soft targets; use {' or '.join(TARGET_RULES)}.")


def _score(count: int, people: int, rule: str) -> float:
    """Target of an answer that `count` of `people` gave."""
    if rule == "leave_one_out":
        return leave_one_out_points(count, people) / (3 * people)
    return min(count / min(3, people), 1.0)


def _most_common(answers: Sequence[str]) -> str:
    return Counter(map(normalise_answer, answers)).most_common(1)[0][0]


def _problem(answers: Sequence[str]) -> str | None:
    """What keeps these answers from being a vocabulary, as the end of a sentence."""
    if not answers:
        return "holds no answers"
    answer, count = Counter(answers).most_common(1)[0]
    return f"holds the answer {answer!r} {count} times" if count > 1 else None
