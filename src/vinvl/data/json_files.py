"""JSON that is read, with every failure told as one sentence."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vinvl.errors import UserError


def read_json(path: str | Path) -> Any:
    """The content of a JSON file in UTF-8, with or without a byte-order mark.

    Raises UserError, naming the file and where possible line and column, if it is missing, unreadable, empty, not UTF-8
    or not JSON.
    """
    return parse_json(read_bytes(path), str(path))


def json_object(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file consists of; raises UserError as `read_json` does, and if it is anything else."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; get the file again.")
    return content


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a file; UserError if it is missing or unreadable."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error


def parse_json(content: bytes, place: str) -> Any:
    """Parses UTF-8 bytes; `place` names them ("train.jsonl line 3") in the UserError that bad ones raise."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        newlines = content.count(b"\n", 0, error.start)
        line = f" on line {newlines + 1}" if b"\n" in content else ""
        raise UserError(f"{place} is not UTF-8 text (byte {error.start}{line}); save it as UTF-8.") from error
    if not text.strip():
        raise UserError(f"{place} is empty; it should hold JSON.")
    try:
        value = json.loads(text)
        if "\\u" in text:
            refuse_half_characters(value)
        return value
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        spot = f"{line}column {error.colno}: {error.msg}"
        raise UserError(f"{place} is not valid JSON ({spot}); it may be cut off or edited by hand.") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not usable JSON ({error}).") from error


def refuse_half_characters(value: Any) -> None:
    """Raises ValueError where a text holds half of a surrogate pair, which no tokenizer, file or terminal takes."""
    open_values = [("$", value)]
    while open_values:
        where, one = open_values.pop()
        if isinstance(one, dict):
            open_values += [(f"a name in {where}", name) for name in one]
            open_values += [(f"{where}.{name}", item) for name, item in one.items()]
        elif isinstance(one, list):
            open_values += [(f"{where}[{index}]", item) for index, item in enumerate(one)]
        elif isinstance(one, str) and not one.isascii():
            try:
                one.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{where} holds half of a surrogate pair, \\ud800 to \\udfff") from None


def json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line number from 1, value) of every line of a JSON Lines file that is not blank; UTF-8, one line at a time.

    Raises UserError, naming file and line, as `read_json` does.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, parse_json(line.rstrip(), f"{path} line {number}")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error


def json_records(path: str | Path) -> Iterator[tuple[str, int, Any]]:
    """(place, number from 1, value) of every record of a file that is either JSON Lines or one JSON list.

    `place` is the kind of place to name in messages: "train.jsonl line" or "train.json record". A file that begins with
    "[" is taken as a list. Raises UserError as `read_json` and `json_lines` do.
    """
    if _begins_a_list(path):
        yield from ((f"{path} record", number, value) for number, value in enumerate(read_json(path), start=1))
    else:
        yield from ((f"{path} line", number, value) for number, value in json_lines(path))


def _begins_a_list(path: str | Path) -> bool:
    try:
        with open(path, "rb") as file:
            start = file.read(1024).removeprefix(b"\xef\xbb\xbf")
    except OSError:
        return False  # the reader that follows says why
    return start.lstrip().startswith(b"[")


@contextmanager
def no_cycle_collection() -> Iterator[None]:
    """Parsing makes millions of objects and no cycles; looking for cycles among them takes as long as the parsing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
