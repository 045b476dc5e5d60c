"""Reads the question and annotation files of VQA v2."""

from pathlib import Path
from typing import Any

from vinvl.data.json_files import no_cycle_collection, read_json
from vinvl.data.record_fields import Record, checked_record, optional_text, record_list
from vinvl.data.vqa_fields import (
    RECORD_KEYS,
    checked_answers,
    checked_image_id,
    checked_question,
    checked_question_id,
)
from vinvl.data.vqa_records import RecordLists, VQARecords
from vinvl.errors import UserError


def read_official(questions_path: str | Path, annotations_path: str | Path | None = None) -> VQARecords:
    """Reads one split from the official JSON files, questions and, unless it is a test split, annotations.

    The questions file is an object whose "questions" list holds {"question_id", "image_id", "question"}; the
    annotations file one whose "annotations" list holds {"question_id", "answers"} and, optionally, "image_id",
    "question_type", "answer_type" and "multiple_choice_answer". Every question must have exactly one annotation and
    the other way round. Order follows the questions file.

    Raises UserError, naming file and record (counted from 1), for anything else: see `vinvl.data.vqa_fields`.
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
