"""VQA questions, with or without people's answers: the files of VQA v2, those of VizWiz, or JSONL of your own."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.json import Decoder

from vinvl.data.table import TEXT, TEXTS, Form, RecordTable
from vinvl.regions.formats.rows import at, id_by_pattern
from vinvl.run.errors import UserError
from vinvl.run.files import no_cycle_collection
from vinvl.run.values import FilledText, Id, decoded_file, decoded_items, decoded_records
from vinvl.vqa.answers import most_common_answer

UNKNOWN_QUESTION_TYPE = "none of the above"
"""Question type of records that state none, while others do; VQA v2 uses the same words for "no known beginning"."""

_SAID = {
    "answers": TEXTS,  # as people gave them, at least one
    "answer_type": TEXT,  # "yes/no", "number", "other" or what the file says
    "question_type": TEXT,
    "multiple_choice_answer": TEXT,  # the commonest answer as the file states it, empty where it does not
}
_FILLED = {"question_type": UNKNOWN_QUESTION_TYPE, "multiple_choice_answer": ""}
VQA = Form(
    noun="questions",
    called="question_id",
    columns={"question_id": pa.int64(), "image_id": TEXT, "image_file": TEXT, "question": TEXT, **_SAID},
    annotation="answers",
    filled=_FILLED,
)
_ANNOTATIONS = Form(
    noun="annotations",
    called="question_id",
    columns={"question_id": pa.int64(), "stated_image": TEXT, **_SAID},
    images=(),
    filled=_FILLED,
)


class Answer(Struct, gc=False):
    answer: str


Answers = Annotated[list[str | Answer], Meta(min_length=1)]


class Said(Struct, gc=False):
    answer_type: str | None = None
    question_type: str | None = None
    multiple_choice_answer: str | None = None


class Question(Struct, gc=False):
    question_id: Id
    image_id: Id
    question: FilledText


class Annotation(Said, kw_only=True, gc=False):
    question_id: Id
    answers: Answers
    image_id: Id | UnsetType = UNSET


class OwnQuestion(Said, kw_only=True, gc=False):
    question: FilledText
    image_id: Id | UnsetType = UNSET
    image: FilledText | UnsetType = UNSET  # of VizWiz: the name of the picture's file
    question_id: Id | UnsetType = UNSET
    answers: Answers | None = None

    def __post_init__(self) -> None:
        if self.image_id is UNSET and self.image is UNSET:
            raise ValueError("Object missing required field `image_id`")


class Questions(Struct):
    questions: list[Raw]


class Annotations(Struct):
    annotations: list[Raw]


_NUMBER = re.compile(r"\d+([.:]\d+)?")
_NOTHING_SAID = (None, None, None, None)


def guess_answer_type(answers: Sequence[str]) -> str:
    """Answer type of a question that states none, from its most common normalised answer.

    "yes/no" for yes and no, "number" for digits ("2", "3.5", "10:30"), "other" for the rest.
    """
    answer = most_common_answer(answers)
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if _NUMBER.fullmatch(answer) else "other"


def read_own(path: str | Path, id_pattern: str | None = None, before: int = 0) -> RecordTable:
    """Reads one split from JSONL, UTF-8, one object per line, blank lines skipped; or from one JSON list of them.

    Keys: "image_id" (integer or text) or, as in VizWiz, "image", the name of the picture's file; "question"; and for
    training and evaluation "answers", a list of one or more texts (or of the official {"answer": …} objects).
    Optional: "question_id" (default: the number of the line or record), "answer_type" (default: guessed, see
    `guess_answer_type`), "question_type", "multiple_choice_answer". Either every record has answers or none has.

    Args:
        id_pattern: whose first group is the image id in the name of a picture's file without its suffix, which
            otherwise is the id.
        before: added to numbers that become ids: records of files that are read before this one.

    Raises UserError, naming file and line, for anything else.
    """

    def rows() -> Iterator[tuple[Any, ...]]:
        for place, number, one in decoded_records(path, Decoder(OwnQuestion)):
            own_id = before + number if isinstance(one.question_id, UnsetType) else one.question_id
            said = _NOTHING_SAID if one.answers is None else _said(one.answers, one)
            image, file = one.image_id, None if isinstance(one.image, UnsetType) else one.image
            if isinstance(image, UnsetType):
                assert file is not None
                with at(f"{place} {number}"):
                    image = id_by_pattern(PurePosixPath(file).stem, id_pattern, "id_pattern")
            yield place, number, own_id, image, file, one.question, *said

    return RecordTable.of(VQA, rows(), path)


def read_official(questions_path: str | Path, annotations_path: str | Path | None = None) -> RecordTable:
    """Reads one split from the official JSON files, questions and, unless it is a test split, annotations.

    The questions file is an object whose "questions" list holds {"question_id", "image_id", "question"}; the
    annotations file one whose "annotations" list holds {"question_id", "answers"} and, optionally, "image_id",
    "question_type", "answer_type" and "multiple_choice_answer". Every question must have exactly one annotation and
    the other way round. Order follows the questions file.

    Raises UserError, naming file and record, for anything else.
    """
    with no_cycle_collection():
        questions = RecordTable.of(VQA, _question_rows(questions_path), questions_path)
        if annotations_path is None:
            return questions
        annotations = RecordTable.of(_ANNOTATIONS, _annotation_rows(annotations_path), annotations_path)
        return _joined(questions, annotations, f"{questions_path}", f"{annotations_path}")


def _question_rows(path: str | Path) -> Iterator[tuple[Any, ...]]:
    listed = decoded_file(path, Questions, "VQA questions file").questions
    for number, one in enumerate(decoded_items(listed, Decoder(Question), path, "$.questions"), start=1):
        yield f"{path} record", number, one.question_id, one.image_id, None, one.question, *_NOTHING_SAID


def _annotation_rows(path: str | Path) -> Iterator[tuple[Any, ...]]:
    listed = decoded_file(path, Annotations, "VQA annotations file").annotations
    for number, one in enumerate(decoded_items(listed, Decoder(Annotation), path, "$.annotations"), start=1):
        image = None if isinstance(one.image_id, UnsetType) else str(one.image_id)
        yield f"{path} record", number, one.question_id, image, *_said(one.answers, one)


def _said(answers: Sequence[str | Answer], one: Said) -> tuple[Any, ...]:
    texts = [answer if isinstance(answer, str) else answer.answer for answer in answers]
    choice = one.multiple_choice_answer or None
    return texts, one.answer_type or guess_answer_type(texts), one.question_type or None, choice


def _joined(questions: RecordTable, annotations: RecordTable, asked: str, said: str) -> RecordTable:
    """Each question with its annotation; `asked` and `said` name their files."""
    ids, given = questions.table["question_id"], annotations.table["question_id"]
    where = pc.index_in(ids, value_set=given) if ids.type == given.type else pa.chunked_array([pa.nulls(len(ids))])
    bare = where.is_null().to_numpy()
    if bare.any():
        raise UserError(
            f"{said} lacks the annotations of {np.count_nonzero(bare):,} of the {len(bare):,} questions of {asked}, "
            f"the first being question {ids[int(bare.argmax())].as_py()!r}; take both of one split."
        )
    unknown = np.setdiff1d(np.arange(len(given)), where.to_numpy())
    if len(unknown):
        raise UserError(
            f"{said} annotates {len(unknown):,} questions that {asked} does not hold, the first being question "
            f"{given[int(unknown[0])].as_py()!r}; take both of one split."
        )
    ordered, table = annotations.table.take(where), questions.table
    if "stated_image" in annotations:
        other = pc.not_equal(ordered["stated_image"], table["image_id"]).fill_null(False).to_numpy()
        if other.any():
            first = int(other.argmax())
            raise UserError(
                f"{annotations.place(where[first].as_py())} is about image {ordered['stated_image'][first]}, but its "
                f"question {ids[first]} in {asked} is about image {table['image_id'][first]}; the two files do not "
                "belong together."
            )
    for name in _SAID:
        if name in annotations:
            table = table.append_column(name, ordered[name])
    return RecordTable(table, VQA)
