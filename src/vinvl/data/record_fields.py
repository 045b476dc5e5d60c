"""Checks of single fields of a JSON record; `place` names the record in the UserError that a bad one raises."""

from pathlib import Path
from typing import Any

from vinvl.errors import UserError

MAX_ID_LENGTH = 256  # ids are stored at the width of the longest one

Record = dict[str, Any]


def checked_record(value: Any, place: str, keys: str) -> Record:
    """A record is a JSON object; `keys` tells people what it should have ("question and image_id")."""
    if not isinstance(value, dict):
        raise UserError(f"{place} is {shown(value)}, expected an object with {keys}.")
    return value


def record_list(content: Any, key: str, path: str | Path, kind: str) -> list[Any]:
    """The list, not empty, under `key` of what the file `path` holds; `kind` is what it should be ("VQA file")."""
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        found = f"an object with {_keys(content)}" if isinstance(content, dict) else "none"
        raise UserError(f"{path} is no {kind}: expected an object with a list under {key!r}, found {found}.")
    if not content[key]:
        raise UserError(f"{path} holds no {key}; an empty split cannot be used.")
    entries: list[Any] = content[key]
    return entries


def required(record: Record, key: str, place: str) -> Any:
    """The value of a key that every record has."""
    if key not in record:
        raise UserError(f"{place} has no {key} (it has {_keys(record)}); every record needs one.")
    return record[key]


def required_id(record: Record, key: str, place: str) -> int | str:
    """An id under a key that every record has."""
    return checked_id(required(record, key, place), f"{place}: {key}")


def required_text(record: Record, key: str, place: str) -> str:
    """A text, not blank, under a key that every record has."""
    text = checked_text(required(record, key, place), f"{place}: {key}")
    if not text.strip():
        raise UserError(f"{place} has an empty {key}; write one or leave the record out.")
    return text


def optional_text(record: Record, key: str, place: str) -> str | None:
    """A text such as `answer_type`; None if the key is missing, null or the text empty."""
    value = record.get(key)
    return None if value is None else checked_text(value, f"{place}: {key}") or None


def checked_id(value: Any, what: str) -> int | str:
    """An id is an integer or a text that is not blank; `what` names record and field."""
    if type(value) is int and len(str(value)) <= MAX_ID_LENGTH:
        return value
    if type(value) is int:
        raise UserError(f"{what} is {shown(value)}, an integer of more than {MAX_ID_LENGTH} digits; use a shorter id.")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{what} is {shown(value)}, expected an integer or a text.")
    if len(value) > MAX_ID_LENGTH or "\0" in value:
        raise UserError(f"{what} is longer than {MAX_ID_LENGTH} characters or holds a null character.")
    return checked_text(value, what)


def checked_text(value: Any, what: str) -> str:
    """A text that UTF-8 can hold; `what` names record and field."""
    if not isinstance(value, str):
        raise UserError(f"{what} is {shown(value)}, expected a text in quotes.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(f"{what} holds half of a surrogate pair (\\ud800 to \\udfff); write it as UTF-8.") from None
    return value


def _keys(record: Record) -> str:
    """The first keys of a record, on one line whatever is in them."""
    return ", ".join((key if key.isprintable() else ascii(key))[:40] for key in sorted(record)[:8]) or "no keys"


def shown(value: Any) -> str:
    """A value of a file, short enough for a sentence."""
    if value is None:
        return "missing or null"
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an integer of too many digits, or too deep
        text = f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}…"
