"""Reads questions of one's own: JSONL, one object per line."""

from pathlib import Path

from vinvl.data.json_files import json_lines
from vinvl.data.record_fields import checked_record, optional_text
from vinvl.data.vqa_fields import (
    RECORD_KEYS,
    checked_answers,
    checked_image_id,
    checked_question,
    checked_question_id,
)
from vinvl.data.vqa_records import RecordLists, VQARecords
from vinvl.errors import UserError


def read_jsonl(path: str | Path) -> VQARecords:
    """Reads one split from JSONL, UTF-8, one object per line; blank lines are skipped.

    Keys: "image_id" (integer or text), "question", and for training and evaluation "answers", a list of one or more
    texts (or of the official {"answer": …} objects). Optional: "question_id" (default: the line number), "answer_type"
    (default: guessed, see `guess_answer_type`), "question_type", "multiple_choice_answer". Either every line has
    answers or none has.

    Raises UserError, naming file and line, for anything else: see `vinvl.data.vqa_fields`.
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
