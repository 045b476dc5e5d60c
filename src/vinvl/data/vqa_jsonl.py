"""Reads questions of one's own: JSONL, one object per line."""

from collections.abc import Iterator
from pathlib import Path

from vinvl.data.json_files import parse_json
from vinvl.data.vqa_fields import (
    Record,
    checked_answers,
    checked_image_id,
    checked_question,
    checked_question_id,
    checked_record,
    optional_text,
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
    for line, record in _lines(path):
        place = f"{path} line {line}"
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


def _lines(path: str | Path) -> Iterator[tuple[int, Record]]:
    """(line number from 1, object) of every line that is not blank."""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    place = f"{path} line {number}"
                    yield number, checked_record(parse_json(line.rstrip(), place), place)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
