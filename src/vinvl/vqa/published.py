"""Questions of the published folders, VQA's and GQA's: text, tags of the image and answers by number, in one JSON list.

People's answers are not in them, nor types of questions: what VQA is scored with is the target of the chosen answer.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from msgspec import UNSET, Struct, UnsetType
from msgspec.json import Decoder
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.table import TEXT, TEXTS, Form, RecordTable
from vinvl.run.errors import UserError
from vinvl.run.files import no_cycle_collection
from vinvl.run.values import FilledText, Id, decoded_records
from vinvl.vqa.answers import AnswerTargets, AnswerVocabulary

PUBLISHED_VQA = Form(
    noun="questions",
    called="question_id",
    columns={
        "question_id": pa.int64(),
        "image_id": TEXT,
        "question": TEXT,
        "tags": TEXTS,
        "target_answers": TEXTS,  # those that are right at all
        "target_scores": pa.list_(pa.float32()),  # of each
    },
    annotation="target_answers",
)


class Question(Struct, gc=False):
    """`o`: tags joined by ";"; `an`: numbers of answers; `s`: of each its target, in VQA."""

    q: FilledText
    o: str
    img_id: Id
    q_id: Id | UnsetType = UNSET
    an: list[int] | None = None
    s: list[float] | None = None


def read_published_questions(path: str | Path, answers: Sequence[str], again: int = 0) -> RecordTable:
    """Reads VQA's `*_qla_mrcnn.json` or `*_qla.json`.

    Questions without an answer are left out, as published, where others have some. A question without an id, or with 0,
    is called by file and number. `again` > 0 makes the ids those of another pass over the same file.

    Args:
        answers: by number.

    Raises:
        UserError: naming file and record, for what is not as described, and for numbers of no answer.
    """

    def rows() -> Iterator[tuple[Any, ...]]:
        for file, number, one in published_questions(path, answers):
            place, own_id = f"{file} {number}", own_id_of(one, path, number)
            if (one.an is not None) != (one.s is not None) or len(one.an or ()) != len(one.s or ()):
                raise UserError(
                    f"{place} has {len(one.an or ())} answers (an) and {len(one.s or ())} scores (s): VQA's questions "
                    "have one for each; GQA's have no scores."
                )
            if not all(0 < score <= 1 for score in one.s or ()):
                raise UserError(f"{place}: a score (s) is not above 0 and at most 1: {one.s}.")
            texts = None if not one.an else [answers[label] for label in one.an]
            if isinstance(own_id, str) and own_id.isascii() and own_id.isdecimal():
                own_id = int(own_id)  # the server wants numbers
            own_id = f"{own_id}~{again + 1}" if again else own_id
            yield file, number, own_id, one.img_id, one.q, tags_of(one.o), texts, one.s if texts else None

    return RecordTable.of(PUBLISHED_VQA, answered(rows(), path), path)


def with_targets(records: RecordTable, vocabulary: AnswerVocabulary, rule: str) -> RecordTable:
    """Questions with people's answers as those of the published folder are, whose targets are stated: to mix both."""
    if records.form is PUBLISHED_VQA:
        return records
    table = records.table.select([name for name in ("file", "number", *PUBLISHED_VQA.columns) if name in records])
    if records.annotated:
        targets = AnswerTargets.of_people(records["answers"], vocabulary, rule)
        starts, texts = pa.array(targets.offsets, pa.int32()), pa.array(vocabulary.answers, TEXT)
        table = table.append_column(
            "target_answers", pa.ListArray.from_arrays(starts, texts.take(pa.array(targets.ids)))
        )
        table = table.append_column("target_scores", pa.ListArray.from_arrays(starts, pa.array(targets.scores)))
    return RecordTable(table, PUBLISHED_VQA)


def published_questions(path: str | Path, answers: Sequence[str]) -> Iterator[tuple[str, int, Question]]:
    """(file and kind of place, number from 1, question) of each, with answers that `answers` has."""
    with no_cycle_collection():
        for file, number, one in decoded_records(path, Decoder(Question)):
            for label in one.an or ():
                if not 0 <= label < len(answers):
                    raise UserError(
                        f"{file} {number} has the answer number {label}, and the answer vocabulary ends at "
                        f"{len(answers) - 1}: pass data.answers=FILE, the one that these questions were made with."
                    )
            if len(set(one.an or ())) < len(one.an or ()):
                raise UserError(f"{file} {number} has an answer twice in an: {one.an}; correct the record.")
            yield file, number, one


def own_id_of(one: Question, path: str | Path, number: int) -> int | str:
    """The id of a question; training files have none, or 0."""
    return f"{Path(path).stem}#{number}" if isinstance(one.q_id, UnsetType) or str(one.q_id) == "0" else one.q_id


def tags_of(joined: str) -> list[str]:
    return [name.strip() for name in joined.split(";") if name.strip()]


def answered(rows: Iterator[tuple[Any, ...]], path: str | Path, column: int = 6) -> Iterator[tuple[Any, ...]]:
    """Rows without those that lack an answer, unless all do."""
    listed = list(rows)
    bare = sum(row[column] is None for row in listed)
    if not 0 < bare < len(listed):
        return iter(listed)
    rank_zero_warn(
        f"{path}: {bare:,} of {len(listed):,} questions have no answer in the vocabulary and are left out; "
        "a data.answers=FILE with more answers has more of them."
    )
    return (row for row in listed if row[column] is not None)
