"""The answers a model can give, and the soft targets it is trained on."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Self

import numpy as np

from vinvl.data.answer_files import read_answers, refuse_to_write_pickles
from vinvl.data.columns import RaggedTextColumn
from vinvl.errors import UserError
from vinvl.files import write_text_atomically
from vinvl.metrics.answer_text import normalise_answer
from vinvl.metrics.vqa_accuracy import leave_one_out_points

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
        """Position of an answer written exactly as in the vocabulary; None if it is not there."""
        return self._index.get(answer)

    def find(self, answer: str) -> int | None:
        """Position of an answer as it is written or, where it is not there, in normal form; None if it is neither."""
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
        self, answers: RaggedTextColumn, rule: str = "leave_one_out"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Soft targets of Q questions at once, each as `soft_targets` gives them.

        Returns ids (ΣK,) int64, scores (ΣK,) float32 and offsets (Q+1,) int64: question q has `offsets[q]` to
        `offsets[q + 1]`. Raises UserError for a rule that is not known.
        """
        _check_rule(rule)
        index = self._index_of_normalised
        id_of_name = np.array([index.get(normalise_answer(name), -1) for name in answers.texts.names], dtype=np.int64)
        people = np.diff(answers.offsets)  # (Q,)
        given = id_of_name[answers.texts.codes]  # (Σpeople,)
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
