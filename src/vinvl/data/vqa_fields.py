"""Checks of the fields of a VQA record; `place` names the record in the UserError that a bad one raises."""

from typing import Any

from vinvl.data.record_fields import Record, checked_text, required, required_id, required_text, shown
from vinvl.errors import UserError

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
