"""The questions of one split, with or without people's answers, whatever file they came from."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vinvl.data.column_parts import joined_categories, joined_texts, select_categories, select_texts
from vinvl.data.columns import CategoricalColumn, RaggedTextColumn, TextColumn
from vinvl.data.record_sources import RecordSources, id_array, joined_ids, refuse_repeated_ids
from vinvl.errors import UserError
from vinvl.metrics.answer_text import normalise_answer

UNKNOWN_QUESTION_TYPE = "none of the above"
"""Question type of records that state none, while others do; VQA v2 uses the same words for "no known beginning"."""

_OWN_ID = "give every question an id of its own"
_NUMBER = re.compile(r"\d+([.:]\d+)?")


@dataclass(frozen=True, eq=False)
class VQARecords:
    """Q questions of one split, in the order of the file, held in NumPy arrays only (see `vinvl.data.columns`).

    - question_ids (Q,): int64 where every id is an integer, otherwise text; all different.
    - image_ids (Q,): text of fixed width, the decimal digits for integer ids.
    - questions: never blank.
    - answers: raw texts of the people asked, at least one per question; None if the split has no annotations.
    - answer_types: "yes/no", "number", "other" or what the file says; None exactly if `answers` is.
    - question_types: None if no record states one.
    - multiple_choice_answers: the most common answer as the file states it, empty where it does not; None if no record
      states one.
    - sources: file and record number, for messages.
    """

    question_ids: np.ndarray
    image_ids: np.ndarray
    questions: TextColumn
    answers: RaggedTextColumn | None
    answer_types: CategoricalColumn | None
    question_types: CategoricalColumn | None
    multiple_choice_answers: TextColumn | None
    sources: RecordSources

    def __len__(self) -> int:
        return len(self.question_ids)

    def describe(self, index: int) -> str:
        """Names a record for a message: "v2_…_questions.json record 17 (question_id 4)"."""
        return f"{self.sources[index]} (question_id {self.question_ids[index]})"

    def select(self, keep: np.ndarray) -> "VQARecords":
        """The records where `keep` (Q,) bool is True, in their order."""
        kept = np.flatnonzero(keep).tolist()

        def categories(column: CategoricalColumn | None) -> CategoricalColumn | None:
            return None if column is None else select_categories(column, keep)

        choices, answers = self.multiple_choice_answers, self.answers
        return VQARecords(
            question_ids=self.question_ids[keep],
            image_ids=self.image_ids[keep],
            questions=select_texts(self.questions, keep),
            answers=None if answers is None else RaggedTextColumn.from_lists([answers[index] for index in kept]),
            answer_types=categories(self.answer_types),
            question_types=categories(self.question_types),
            multiple_choice_answers=None if choices is None else select_texts(choices, keep),
            sources=self.sources.select(keep),
        )


@dataclass
class RecordLists:
    """The columns of `VQARecords` while a reader fills them, one entry per question in each list.

    A reader of a split without annotations leaves the last four empty.
    """

    question_ids: list[int | str] = field(default_factory=list)
    image_ids: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    answers: list[list[str]] = field(default_factory=list)
    answer_types: list[str | None] = field(default_factory=list)
    question_types: list[str | None] = field(default_factory=list)
    multiple_choice_answers: list[str | None] = field(default_factory=list)

    def freeze(self, source: str) -> VQARecords:
        """Checks that question ids are different and packs the lists; `source` as in `RecordSources.files`."""
        choices = self.multiple_choice_answers
        records = VQARecords(
            question_ids=id_array(self.question_ids),
            image_ids=np.array(self.image_ids, dtype=np.str_),
            questions=TextColumn.from_texts(self.questions),
            answers=RaggedTextColumn.from_lists(self.answers) if self.answers else None,
            answer_types=_answer_type_column(self.answer_types, self.answers),
            question_types=_question_type_column(self.question_types),
            multiple_choice_answers=TextColumn.from_texts(c or "" for c in choices) if any(choices) else None,
            sources=RecordSources.of_file(source, self.places),
        )
        refuse_repeated_ids(records.question_ids, records.sources, "question_id", _OWN_ID)
        return records


def concatenate(parts: Sequence[VQARecords]) -> VQARecords:
    """Joins splits, as train and val are joined to trainval; order is kept.

    Raises UserError if a question id occurs twice or only some parts have answers; ValueError if there are no parts.
    """
    if not parts:
        raise ValueError("There are no records to join.")
    answered = [part for part in parts if part.answers is not None]
    if answered and len(answered) < len(parts):
        bare = next(part for part in parts if part.answers is None)
        raise UserError(
            f"{answered[0].sources[0]} has answers and {bare.sources[0]} has none; "
            "give the annotations of every file that is joined, or of none."
        )
    lengths = [len(part) for part in parts]
    records = VQARecords(
        question_ids=joined_ids([part.question_ids for part in parts]),
        image_ids=np.concatenate([part.image_ids for part in parts]),
        questions=TextColumn.concatenate([part.questions for part in parts]),
        answers=_joined_answers(parts),
        answer_types=joined_categories([part.answer_types for part in parts], lengths, UNKNOWN_QUESTION_TYPE),
        question_types=joined_categories([part.question_types for part in parts], lengths, UNKNOWN_QUESTION_TYPE),
        multiple_choice_answers=joined_texts([part.multiple_choice_answers for part in parts], lengths),
        sources=RecordSources.concatenate([part.sources for part in parts]),
    )
    refuse_repeated_ids(records.question_ids, records.sources, "question_id", _OWN_ID)
    return records


def guess_answer_type(answers: Sequence[str]) -> str:
    """Answer type of a question that states none, from its most common normalised answer.

    "yes/no" for yes and no, "number" for digits ("2", "3.5", "10:30"), "other" for the rest.
    """
    answer = Counter(map(normalise_answer, answers)).most_common(1)[0][0]
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if _NUMBER.fullmatch(answer) else "other"


def _answer_type_column(stated: list[str | None], answers: list[list[str]]) -> CategoricalColumn | None:
    if not answers:
        return None
    return CategoricalColumn.from_texts(
        guess_answer_type(people) if kind is None else kind for kind, people in zip(stated, answers, strict=True)
    )


def _question_type_column(stated: list[str | None]) -> CategoricalColumn | None:
    if not any(stated):
        return None
    return CategoricalColumn.from_texts(kind or UNKNOWN_QUESTION_TYPE for kind in stated)


def _joined_answers(parts: Sequence[VQARecords]) -> RaggedTextColumn | None:
    columns = [part.answers for part in parts if part.answers is not None]
    return RaggedTextColumn.concatenate(columns) if columns else None
