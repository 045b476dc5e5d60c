"""Checks of single fields of a VQA record; `place` names the record in the UserError that a bad one raises."""

from typing import Any

from vinvl.errors import UserError

MAX_ID_LENGTH = 256  # ids are stored at the width of the longest one

Record = dict[str, Any]


def checked_record(value: Any, place: str) -> Record:
    """A record is a JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{place} is {_shown(value)}, expected an object with question and image_id.")
    return value


def checked_question_id(record: Record, place: str) -> int | str:
    """`question_id`: an integer or a text."""
    return _checked_id(record, "question_id", place)


def checked_image_id(record: Record, place: str) -> str:
    """`image_id`: an integer or a text, returned as text."""
    return str(_checked_id(record, "image_id", place))


def checked_question(record: Record, place: str) -> str:
    """`question`: a text that is not blank."""
    question = _checked_text(_required(record, "question", place), f"{place}: question")
    if not question.strip():
        raise UserError(f"{place} has an empty question; write one or leave the record out.")
    return question


def checked_answers(record: Record, place: str) -> list[str]:
    """`answers`: a list, not empty, of texts or of objects with the text under "answer" (the official form)."""
    answers = _required(record, "answers", place)
    if not isinstance(answers, list):
        raise UserError(f"{place}: answers is {_shown(answers)}, expected a list of texts.")
    if not answers:
        raise UserError(f"{place} has an empty list of answers; give at least one or leave the record out.")
    texts: list[Any] = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    if all(type(text) is str for text in texts) and "".join(texts).isascii():
        return texts  # nearly every record: VQA v2 has 4.4 million answers, checked here at once and not one by one
    return [_checked_text(text, f"{place}: answer {number}") for number, text in enumerate(texts, start=1)]


def optional_text(record: Record, key: str, place: str) -> str | None:
    """A text such as `answer_type`; None if the key is missing, null or the text empty."""
    value = record.get(key)
    return None if value is None else _checked_text(value, f"{place}: {key}") or None


def _required(record: Record, key: str, place: str) -> Any:
    if key not in record:
        present = ", ".join(sorted(record)[:8]) or "no keys"
        raise UserError(f"{place} has no {key} (it has {present}); every record needs one.")
    return record[key]


def _checked_id(record: Record, key: str, place: str) -> int | str:
    value = _required(record, key, place)
    if type(value) is int:
        return value
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: {key} is {_shown(value)}, expected an integer or a text.")
    if len(value) > MAX_ID_LENGTH or "\0" in value:
        raise UserError(f"{place}: {key} is longer than {MAX_ID_LENGTH} characters or holds a null character.")
    return _checked_text(value, f"{place}: {key}")


def _checked_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{what} is {_shown(value)}, expected a text in quotes.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{what} holds half of a surrogate pair (\\ud800 to \\udfff); write it as UTF-8.") from None
    return value


def _shown(value: Any) -> str:
    """A JSON value, short enough for a sentence."""
    if value is None:
        return "missing or null"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
