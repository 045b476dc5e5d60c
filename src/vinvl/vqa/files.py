"""VQA questions, with or without people's answers: the files of VQA v2, or JSONL of your own."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.data.columns import (
    CategoricalColumn,
    RaggedTextColumn,
    TextColumn,
    joined_categories,
    joined_texts,
    select_categories,
    select_texts,
)
from vinvl.data.records import (
    Record,
    RecordSources,
    checked_record,
    checked_text,
    id_array,
    joined_ids,
    optional_text,
    record_list,
    refuse_repeated_ids,
    required,
    required_id,
    required_text,
    shown,
)
from vinvl.run.errors import UserError
from vinvl.run.files import json_lines, no_cycle_collection, read_json
from vinvl.vqa.accuracy import normalise_answer

# Checks of the fields of a VQA record; `place` names the record in the UserError that a bad one raises.


RECORD_KEYS = "question and image_id"


def checked_question_id(record: Record, place: str) -> int | str:
    """`question_id`: an integer or a text."""
    return required_id(record, "question_id", place)


def checked_image_id(record: Record, place: str) -> str:
    """`image_id`: an integer or a text, returned as text."""
    return str(required_id(record, "image_id", place))


def checked_question(record: Record, place: str) -> str:
    """`question`: a text that is not blank."""
    return required_text(record, "question", place)


def checked_answers(record: Record, place: str) -> list[str]:
    """`answers`: a list, not empty, of texts or of objects with the text under "answer" (the official form)."""
    answers = required(record, "answers", place)
    if not isinstance(answers, list):
        raise UserError(f"{place}: answers is {shown(answers)}, expected a list of texts.")
    if not answers:
        raise UserError(f"{place} has an empty list of answers; give at least one or leave the record out.")
    texts: list[Any] = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    if all(type(text) is str for text in texts) and "".join(texts).isascii():
        return texts  # nearly every record: VQA v2 has 4.4 million answers, checked here at once and not one by one
    return [checked_text(text, f"{place}: answer {number}") for number, text in enumerate(texts, start=1)]


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


# Reads questions of one's own: JSONL, one object per line.


def read_jsonl(path: str | Path) -> VQARecords:
    """Reads one split from JSONL, UTF-8, one object per line; blank lines are skipped.

    Keys: "image_id" (integer or text), "question", and for training and evaluation "answers", a list of one or more
    texts (or of the official {"answer": …} objects). Optional: "question_id" (default: the line number), "answer_type"
    (default: guessed, see `guess_answer_type`), "question_type", "multiple_choice_answer". Either every line has
    answers or none has.

    Raises UserError, naming file and line, for anything else: see `vinvl.vqa.files`.
    """
    records = RecordLists()
    first_line, answered = 0, False
    for line, value in json_lines(path):
        place = f"{path} line {line}"
        record = checked_record(value, place, RECORD_KEYS)
        has_answers = record.get("answers") is not None
        if not records.places:
            first_line, answered = line, has_answers
        elif has_answers != answered:
            raise UserError(
                f"{place} has {'answers' if has_answers else 'no answers'}, unlike line {first_line}; "
                "give answers on every line, or on none to predict only."
            )
        records.places.append(line)
        records.question_ids.append(checked_question_id(record, place) if "question_id" in record else line)
        records.image_ids.append(checked_image_id(record, place))
        records.questions.append(checked_question(record, place))
        if has_answers:
            records.answers.append(checked_answers(record, place))
            records.answer_types.append(optional_text(record, "answer_type", place))
            records.question_types.append(optional_text(record, "question_type", place))
            records.multiple_choice_answers.append(optional_text(record, "multiple_choice_answer", place))
    if not records.places:
        raise UserError(f"{path} holds no questions; an empty split cannot be used.")
    return records.freeze(f"{path} line")


# Reads the question and annotation files of VQA v2.


def read_official(questions_path: str | Path, annotations_path: str | Path | None = None) -> VQARecords:
    """Reads one split from the official JSON files, questions and, unless it is a test split, annotations.

    The questions file is an object whose "questions" list holds {"question_id", "image_id", "question"}; the
    annotations file one whose "annotations" list holds {"question_id", "answers"} and, optionally, "image_id",
    "question_type", "answer_type" and "multiple_choice_answer". Every question must have exactly one annotation and
    the other way round. Order follows the questions file.

    Raises UserError, naming file and record (counted from 1), for anything else: see `vinvl.vqa.files`.
    """
    with no_cycle_collection():
        return _read(questions_path, annotations_path)


def _read(questions_path: str | Path, annotations_path: str | Path | None) -> VQARecords:
    records = RecordLists()
    for number, record in enumerate(_entries(questions_path, "questions"), start=1):
        place = f"{questions_path} record {number}"
        record = checked_record(record, place, RECORD_KEYS)
        records.question_ids.append(checked_question_id(record, place))
        records.image_ids.append(checked_image_id(record, place))
        records.questions.append(checked_question(record, place))
        records.places.append(number)
    if annotations_path is not None:
        _add_annotations(records, questions_path, annotations_path)
    return records.freeze(f"{questions_path} record")


def _entries(path: str | Path, key: str) -> list[Any]:
    """The list under `key` of an official file."""
    return record_list(read_json(path), key, path, f"VQA {key} file")


def _add_annotations(records: RecordLists, questions_path: str | Path, annotations_path: str | Path) -> None:
    annotations = _annotations_by_question(annotations_path)
    _refuse_unpaired(records.question_ids, annotations, questions_path, annotations_path)
    for question_id, image_id in zip(records.question_ids, records.image_ids, strict=True):
        number, annotation = annotations[question_id]
        place = f"{annotations_path} record {number}"
        if "image_id" in annotation and checked_image_id(annotation, place) != image_id:
            raise UserError(
                f"{place} is about image {annotation['image_id']}, but its question {question_id} in {questions_path} "
                f"is about image {image_id}; the two files do not belong together."
            )
        records.answers.append(checked_answers(annotation, place))
        records.answer_types.append(optional_text(annotation, "answer_type", place))
        records.question_types.append(optional_text(annotation, "question_type", place))
        records.multiple_choice_answers.append(optional_text(annotation, "multiple_choice_answer", place))


def _annotations_by_question(path: str | Path) -> dict[int | str, tuple[int, Record]]:
    """question_id -> (record number from 1, annotation)."""
    annotations: dict[int | str, tuple[int, Record]] = {}
    for number, entry in enumerate(_entries(path, "annotations"), start=1):
        place = f"{path} record {number}"
        annotation = checked_record(entry, place, RECORD_KEYS)
        question_id = checked_question_id(annotation, place)
        if question_id in annotations:
            raise UserError(
                f"{place} annotates question {question_id!r}, which record {annotations[question_id][0]} already does; "
                "keep one of the two."
            )
        annotations[question_id] = (number, annotation)
    return annotations


def _refuse_unpaired(
    question_ids: list[int | str],
    annotations: dict[int | str, tuple[int, Record]],
    questions_path: str | Path,
    annotations_path: str | Path,
) -> None:
    bare = [question_id for question_id in question_ids if question_id not in annotations]
    if bare:
        raise UserError(
            f"{annotations_path} lacks the annotations of {len(bare):,} of the {len(question_ids):,} questions of "
            f"{questions_path}, the first being question {bare[0]!r}; check that both files are of the same split."
        )
    known = set(question_ids)
    unknown = [question_id for question_id in annotations if question_id not in known]
    if unknown:
        raise UserError(
            f"{annotations_path} annotates {len(unknown):,} questions that {questions_path} does not hold, the first "
            f"being question {unknown[0]!r}; check that both files are of the same split."
        )
