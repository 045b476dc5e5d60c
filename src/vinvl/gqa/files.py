"""Reads the question files of GQA (Hudson and Manning 2019)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from vinvl.data.table import TEXT, TEXTS, Form, RecordTable
from vinvl.run.errors import UserError
from vinvl.run.files import begins_a_list, json_parts
from vinvl.run.values import FilledText, Id, checked_id, json_members, wrong_value
from vinvl.vqa.published import answered, own_id_of, published_questions, tags_of

UNSTATED_TYPE = "unstated"
"""Type of the questions that state none, while others do."""

GQA = Form(
    "questions",
    "question",
    {
        "question_id": TEXT,
        "image_id": TEXT,  # "n578564" or "2386621"
        "question": TEXT,
        "answer": TEXT,
        "structural": TEXT,  # verify, query, choose, logical, compare
        "semantic": TEXT,  # obj, attr, rel, cat, global
        "tags": TEXTS,  # of the published folder
    },
    annotation="answer",
    filled={"structural": UNSTATED_TYPE, "semantic": UNSTATED_TYPE},
)


class Types(msgspec.Struct, gc=False):
    structural: str | None = None
    semantic: str | None = None


class Question(msgspec.Struct, gc=False):
    imageId: Id  # noqa: N815
    question: FilledText
    answer: FilledText | None = None
    types: Types | None = None
    isBalanced: bool = True  # noqa: N815, not used


def read_gqa(
    paths: str | Path | Sequence[str | Path], answers: Callable[[], Sequence[str]] | None = None
) -> RecordTable:
    """Reads one split from one or more official JSON files, joined in the given order.

    A path that is a folder stands for its *.json files in name order: `train_all_questions` comes as a folder of ten.
    Each file is one object, question id -> record. Of a record these keys are used: "question", "imageId", "answer"
    (missing in test splits: then in every record) and "types" with "structural" and "semantic" (optional).

    A file that is a list is one of the published folder (`gqa_all_qla_train.json`), whose answers are numbers, of which
    the first counts; `answers` gives the texts of these.

    Memory: a file is read in pieces and never held whole. A question takes about 150 bytes once read, twice that while
    the parts are joined: some 2 and 4 GB for the 14 million questions of train_all.

    Raises UserError, naming file and record (counted from 1), for files and records that are not as described, for
    question ids that occur twice and for a split of which only some questions have answers.
    """
    files = json_parts(paths)
    parts = []
    for file in files:
        if begins_a_list(file) and answers is not None:
            parts.append(RecordTable.of(GQA, answered(_published_rows(file, answers()), file, 5), file))
        else:
            parts.append(RecordTable.of(GQA, _rows(file), file))
    return RecordTable.join(parts)


def _published_rows(path: Path, answers: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    for file, number, one in published_questions(path, answers):
        if one.s is not None:
            raise UserError(f"{file} {number} has scores (s), which only VQA's questions have; give a file of GQA.")
        answer = answers[one.an[0]] if one.an else None
        yield file, number, str(own_id_of(one, path, number)), one.img_id, one.q, answer, None, None, tags_of(one.o)


def _rows(path: Path) -> Iterator[tuple[Any, ...]]:
    for number, (key, value) in enumerate(json_members(path, "question ids with their questions"), start=1):
        own_id = str(checked_id(key, f"{path} record {number}: the question id"))
        try:
            one = msgspec.convert(value, Question)
        except msgspec.ValidationError as error:
            raise wrong_value(error, f"{path} record {number} (question {own_id})") from None
        types = one.types or Types()
        kinds = (types.structural or None, types.semantic or None)
        yield f"{path} record", number, own_id, one.imageId, one.question, one.answer, *kinds, None
