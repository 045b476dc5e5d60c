"""Values of other people's JSON files: checked, shown in a sentence, and read one by one from a file of any size."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from vinvl.run.errors import UserError
from vinvl.run.files import refuse_half_characters

MAX_ID_LENGTH = 256  # ids are stored at the width of the longest one


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


def shown(value: Any) -> str:
    """A value of a file, short enough for a sentence."""
    if value is None:
        return "missing or null"
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else " ".join(repr(value).split())
    except (ValueError, RecursionError):  # an integer of too many digits, or too deep
        text = f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}…"


# An object that is read member by member.

_CHUNK = 1 << 22  # characters read at a time
_LONGEST_MEMBER = 1 << 26  # characters after which a member that does not parse is called broken, not long

_NO_SPACE = re.compile(r"[^ \t\n\r]")


def json_members(path: str | Path, holds: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of each member of the object that a JSON file in UTF-8 consists of, in order, repeated keys too.

    A few million characters are held at a time, so that the memory does not depend on the file's size. `holds` tells
    people what the file should be ("question ids with their questions").

    Raises UserError, naming the file and where possible the member (counted from 1), if the file is missing,
    unreadable, empty, not UTF-8, not JSON or not an object.
    """
    number = 1
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            window = _Window(file)
            opening = window.mark()
            if opening != "{":
                found = "nothing" if opening == "" else f"{opening!r} at the start"
                raise UserError(f"{path} should be one JSON object of {holds}; found {found}.")
            closed = window.mark(peek=True) == "}"
            if closed:
                window.expect("}")
            while not closed:
                if window.mark(peek=True) != '"':
                    raise window.broken("Expecting property name enclosed in double quotes")
                key = window.value()
                window.expect(":")
                yield key, window.value()
                closed = window.expect(",}") == "}"
                number += 1
            if window.mark():
                raise UserError(f"{path} goes on after the object that it should consist of; it may be edited by hand.")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (in or after record {number}); save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        spot = f"character {window.dropped + error.pos + 1:,}: {error.msg}"
        raise UserError(
            f"{path} record {number} is not valid JSON ({spot}); it may be cut off or edited by hand."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} record {number} is not usable JSON ({error}).") from error


class _Window:
    """The part of a text file that is being parsed: `dropped` characters were before it."""

    def __init__(self, file: IO[str]) -> None:
        self.dropped = 0
        self._file = file
        self._text = ""
        self._position = 0
        self._at_end = False
        self._decode = json.JSONDecoder().raw_decode

    def mark(self, peek: bool = False) -> str:
        """The next character that is no white space, "" at the end of the file; `peek` leaves it there."""
        while (match := _NO_SPACE.search(self._text, self._position)) is None:
            self._position = len(self._text)
            if not self._read_on():
                return ""
        self._position = match.start() if peek else match.end()
        return match.group()

    def expect(self, marks: str) -> str:
        """The next character that is no white space, which must be one of `marks`."""
        mark = self.mark(peek=True)
        if not mark or mark not in marks:
            raise self.broken(f"Expecting {' or '.join(map(repr, marks))}")
        return self.mark()

    def value(self) -> Any:
        """The JSON value that follows."""
        self.mark(peek=True)
        while True:
            try:
                value, end = self._decode(self._text, self._position)
            except json.JSONDecodeError:
                # Either broken, or the text ends in the middle of the value because it was not read to there.
                if len(self._text) - self._position > _LONGEST_MEMBER or not self._read_on():
                    raise
                continue
            # The text may end inside a number: "-1" was parsed of "-1.5" where "-1." was read, or of "-1e+2" of "-1e+".
            if len(self._text) - end > len("e+") or not self._read_on():
                if self._text.find("\\u", self._position, end) >= 0:
                    refuse_half_characters(value)
                self._position = end
                return value

    def broken(self, message: str) -> json.JSONDecodeError:
        """The error for something else than expected at the present position."""
        return json.JSONDecodeError(message, self._text, self._position)

    def _read_on(self) -> bool:
        """Drops what is parsed and reads more; False at the end of the file, where nothing is changed."""
        if self._at_end:
            return False
        rest = self._text[self._position :]
        more = self._file.read(max(_CHUNK, len(rest)))
        if not more:
            self._at_end = True
            return False
        self.dropped += self._position
        self._text, self._position = rest + more, 0
        return True
