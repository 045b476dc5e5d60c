"""Values of other people's JSON files: checked, shown in a sentence, and read one by one from a file of any size."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from os import PathLike, fspath
from pathlib import Path
from typing import IO, Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from vinvl.run.errors import UserError
from vinvl.run.files import begins_a_list, json_lines, parse_json, read_bytes, reading, refuse_half_characters

IMAGE_WIDTH = "img_feature_dim"
OF_THE_ENCODER = (  # fields of a model's configuration that weights to start from say of themselves
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings", "type_vocab_size", "layer_norm_eps", IMAGE_WIDTH,
)  # fmt: skip


def paths_as_text(given: Any) -> Any:
    """The names of files, in lists and dicts too, as texts where they are paths."""
    if isinstance(given, PathLike):
        return fspath(given)
    if isinstance(given, dict):
        return {key: paths_as_text(value) for key, value in given.items()}
    return [paths_as_text(one) for one in given] if isinstance(given, list | tuple) else given


MAX_ID_LENGTH = 256


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


def check_fields(settings: Any, prefix: str) -> None:
    """Refuses a dataclass with a field that is not of the type and in the range that its annotation says.

    prefix: of the field's name in the sentence: "data.", "detector ".

    Raises:
        UserError: names the first such field.
    """
    for name, kind in _kinds(settings.__class__).items():
        value = getattr(settings, name)
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            items = value if isinstance(value, list | tuple) else (value,)
            single = all(isinstance(item, str | int | float) for item in items)
            plain = shown(value) if single else f"a {type(value).__name__}"
            if get_origin(kind) is Literal:
                choices = " or ".join(map(str, get_args(kind)))
                raise UserError(f"{prefix}{name}={plain} is unknown: give {choices}.") from None
            wanted = str(error).partition(" - at ")[0].replace("`", "").replace("array", "list")
            raise UserError(f"{prefix}{name}={plain} cannot be: {wanted[0].lower()}{wanted[1:]}.") from None


@cache
def _kinds(settings: Any) -> dict[str, Any]:
    return get_type_hints(settings, include_extras=True)


# Values that msgspec decodes into what they should be; its words for what is wrong name the very place.

_ID, _FILLED = rf"(?s)\A(?=.*\S)[^\0]{{1,{MAX_ID_LENGTH}}}\Z", r"\S"
_MEANING = {
    f"matching regex {_ID!r}": f"that is not blank, without null characters, of {MAX_ID_LENGTH} characters at most",
    f"matching regex {_FILLED!r}": "that is not blank",
}
_MARK = b"\xef\xbb\xbf"  # of the byte order, which some editors write

Id = int | Annotated[str, msgspec.Meta(pattern=_ID)]
"""An integer, or a text that is not blank. Longer integers than that are refused where they become text."""

FilledText = Annotated[str, msgspec.Meta(pattern=_FILLED)]
"""A text that is not blank."""

Decoded = TypeVar("Decoded")


def decoded(
    content: bytes | msgspec.Raw, decoder: msgspec.json.Decoder[Decoded], place: str, at: str = "$", remedy: str = ""
) -> Decoded:
    """One JSON value in UTF-8, with or without a byte-order mark, as what it should be; UserError if it is not that.

    Args:
        place: names the file, or file and line, for messages.
        at: where the value stands in it.
        remedy: what a person does about a value of another type; mends the record, or leaves it out.
    """
    try:
        return decoder.decode(content.removeprefix(_MARK) if isinstance(content, bytes) else content)
    except msgspec.ValidationError as error:
        raise wrong_value(error, place, at, remedy) from None
    except (ValueError, RecursionError) as error:
        parse_json(bytes(content), place if at == "$" else f"{place} at {at}")  # which tells line and column
        raise UserError(f"{place} is not valid JSON ({error}); it may be cut off or edited by hand.") from error


def wrong_value(error: msgspec.ValidationError, place: str, at: str = "$", remedy: str = "") -> UserError:
    """The sentence for a value of the wrong type; arguments as `decoded` has them."""
    what, _, where = str(error).partition(" - at ")
    key, _, inner = where.rpartition("`$")
    for pattern, meaning in _MEANING.items():
        what = what.replace(pattern, meaning)
    place_in = f"{'a key of ' if key else ''}{at}{inner.rstrip('`')}"
    return UserError(f"{place}: {what} at {place_in}; {remedy or 'correct the record, or leave it out'}.")


def decoded_file(path: str | Path, content: type[Decoded], kind: str) -> Decoded:
    """A whole file, of which `kind` says what it should be ("VQA questions file").

    Raises UserError, naming the file, if it cannot be read or is something else.
    """
    return decoded(read_bytes(path), msgspec.json.Decoder(content), str(path), remedy=f"give a {kind}")


def decoded_items(
    items: Iterable[msgspec.Raw], decoder: msgspec.json.Decoder[Decoded], place: str | Path, at: str
) -> Iterator[Decoded]:
    """What each item of a list should be; `at` is where the list stands ("$.questions"). Raises as `decoded` does."""
    return (decoded(item, decoder, str(place), f"{at}[{number}]") for number, item in enumerate(items))


def decoded_lines(path: str | Path, decoder: msgspec.json.Decoder[Decoded]) -> Iterator[tuple[int, Decoded]]:
    """(line number from 1, value) of every line that is not blank. Raises UserError, naming file and line."""
    return json_lines(path, lambda line, place: decoded(line, decoder, place))


def decoded_records(path: str | Path, decoder: msgspec.json.Decoder[Decoded]) -> Iterator[tuple[str, int, Decoded]]:
    """(place, number from 1, value) of every record of a file that is either JSON Lines or one JSON list.

    `place` is the kind of place to name in messages: "train.jsonl line" or "train.json record". A file that begins with
    "[" is taken as a list. Raises UserError, naming the file and the record.
    """
    if begins_a_list(path):
        listed = decoded_file(path, list[msgspec.Raw], "list of records")
        for number, value in enumerate(decoded_items(listed, decoder, path, "$"), start=1):
            yield f"{path} record", number, value
    else:
        for number, value in decoded_lines(path, decoder):
            yield f"{path} line", number, value


# An object that is read member by member.

_CHUNK = 1 << 22  # characters read at a time
_MOST_SPACE = 1 << 10  # characters of white space between two items that are decoded with many others
_TRIES = 8  # places where the last of these items may end: items may hold lists of objects
_LONGEST_MEMBER = 1 << 26  # characters after which a member that does not parse is called broken, not long

_NO_SPACE = re.compile(r"[^ \t\n\r]")


def json_members(path: str | Path, holds: str) -> Iterator[tuple[str, Any]]:
    """(key, value) of each member of the object that a JSON file in UTF-8 consists of, in order, repeated keys too.

    A few million characters are held at a time, so that the memory does not depend on the file's size. `holds` tells
    people what the file should be ("question ids with their questions").

    Raises UserError, naming the file and where possible the member (counted from 1), if the file is missing,
    unreadable, empty, not UTF-8, not JSON or not an object.
    """
    return _elements(path, "{}", f"one JSON object of {holds}")


def json_items(path: str | Path, content: type[Decoded], holds: str) -> Iterator[Decoded]:
    """Each item of the list that a JSON file consists of, as what it should be; as `json_members` otherwise."""
    for number, (_, value) in enumerate(_elements(path, "[]", f"one JSON list of {holds}"), start=1):
        try:
            yield msgspec.convert(value, content)
        except msgspec.ValidationError as error:
            raise wrong_value(error, f"{path} record {number}") from None


def json_listed(
    path: str | Path,
    kinds: Mapping[str, Any],
    needed: Collection[str],
    remedy: str,
    tell: Callable[[int], object] = lambda _: None,
) -> Iterator[tuple[str, Any]]:
    """(key, item) of each item of the lists that are members of a JSON object, in the order of the file.

    Thousands of items are decoded at once; memory does not depend on the file's size, as with `json_members`.

    Args:
        kinds: key of a list → the type of its items. Other members are passed over, and null for a list is as if it
            was not there.
        needed: the keys that must be there.
        remedy: what a person does about a file that is something else.
        tell: is told now and then how many characters are read.

    Raises:
        UserError: names the file and the item ($.annotations[3]); as `json_members` otherwise.
    """
    missing = set(needed)
    with _window_of(path) as window:
        window.begin("{", "one JSON object")
        while not window.at_end("}"):
            key = window.key()
            if key not in kinds or window.next_mark() == "n":
                window.value()
                continue
            missing.discard(key)
            if window.next_mark() != "[":
                try:
                    msgspec.convert(window.value(), list)
                except msgspec.ValidationError as error:
                    raise wrong_value(error, str(path), f"$.{key}", remedy) from None
            for item in window.items(kinds[key], f"$.{key}", tell):
                yield key, item
    for key in needed:
        if key in missing:
            raise UserError(f"{path}: Object missing required field `{key}` at $; {remedy}.")


def _elements(path: str | Path, marks: str, expected: str) -> Iterator[tuple[str, Any]]:
    """(key, "" in a list, and value) of what stands between the two marks that a file begins and ends with."""
    with _window_of(path) as window:
        window.begin(marks[0], expected)
        number = 1
        while not window.at_end(marks[1]):
            window.place = f"record {number}"
            yield window.key() if marks == "{}" else "", window.value()
            number += 1


@contextmanager
def _window_of(path: str | Path) -> Iterator[_Window]:
    """The beginning of a file, of which everything must have been taken within it; what goes wrong as a UserError."""
    try:
        with reading(path), open(path, encoding="utf-8-sig", newline="") as file:
            window = _Window(file, path)
            yield window
            if window.next_mark():
                raise UserError(f"{path} does not end after its {window.whole}; it may be edited by hand.")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (in or after {window.place}); save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        spot = f"character {window.dropped + error.pos + 1:,}: {error.msg}"
        raise UserError(
            f"{path} {window.place} is not valid JSON ({spot}); it may be cut off or edited by hand."
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} {window.place} is not usable JSON ({error}).") from error


class _Window:
    """The part of a text file that is being parsed.

    Attributes:
        dropped: so many characters were before it.
        place: what is being parsed, for messages.
        whole: what the file consists of: an "object" or a "list".
    """

    def __init__(self, file: IO[str], path: str | Path) -> None:
        self.dropped = 0
        self.place = "record 1"
        self.whole = ""
        self._path = path
        self._opened = False  # whether nothing of the innermost object or list has been taken
        self._not_at_once = -1  # the end of the text of which items could not be decoded at once
        self._file = file
        self._text = ""
        self._position = 0
        self._at_end = False
        self._decode = json.JSONDecoder().raw_decode

    def begin(self, mark: str, expected: str) -> None:
        """Takes the mark that a file begins with. Raises UserError, saying what is `expected`, for another one."""
        if (opening := self.next_mark()) != mark:
            found = f"{opening!r} at the start" if opening else "nothing"
            raise UserError(f"{self._path} should be {expected}; found {found}.")
        self.take(mark)
        self.whole, self._opened = {"{": "object", "[": "list"}[mark], True

    def at_end(self, mark: str) -> bool:
        """Whether an object or a list ends here, whose mark is taken then; else the comma before what follows is."""
        if not self._opened:
            return self.take(f",{mark}") == mark
        self._opened = False
        return self.next_mark() == mark and bool(self.take(mark))

    def key(self) -> str:
        """The key of the member that follows, and its colon."""
        if self.next_mark() != '"':
            raise self.broken("Expecting property name enclosed in double quotes")
        key = self.value()
        self.take(":")
        return str(key)

    def items(self, content: Any, at: str, tell: Callable[[int], object]) -> Iterator[Any]:
        """Each item of the list that follows, as what it should be; `at` is where it stands; see `json_listed`."""
        decoder, number = msgspec.json.Decoder(list[content]), 0
        self.take("[")
        self._opened = True
        while not self.at_end("]"):
            self.place = f"{at}[{number}]"
            if several := self._items_at_once(decoder):
                yield from several
                number += len(several)
                tell(self.dropped + self._position)
                continue
            try:
                yield msgspec.convert(self.value(), content)
            except msgspec.ValidationError as error:
                raise wrong_value(error, str(self._path), self.place) from None
            number += 1

    def _items_at_once(self, decoder: msgspec.json.Decoder[list[Any]]) -> list[Any]:
        """The items that are objects and whole in the text, but for the last of them; [] where that cannot be told.

        Behind the last of them an object begins with "},{". Where that is one within an item, or of another list, they
        do not decode; if that is so in a few places, they are taken one by one up to where more is read.
        """
        if self._not_at_once == self.dropped + len(self._text):
            return []
        self._not_at_once = self.dropped + len(self._text)
        begin, tries = len(self._text), 0
        while tries < _TRIES and (begin := self._text.rfind("{", self._position, begin)) > self._position:
            before = self._text[max(self._position, begin - _MOST_SPACE) : begin].rstrip()
            if before.endswith(",") and before[:-1].rstrip().endswith("}"):
                tries += 1
                stop = self._text.rindex("}", self._position, begin) + 1
                with suppress(msgspec.MsgspecError, ValueError, RecursionError):
                    found = decoder.decode(f"[{self._text[self._position : stop]}]")
                    self._position = stop
                    return found
        return []

    def next_mark(self) -> str:
        """The next character that is no white space, which stays there; "" at the end of the file."""
        while (match := _NO_SPACE.search(self._text, self._position)) is None:
            self._position = len(self._text)
            if not self._read_on():
                return ""
        self._position = match.start()
        return match.group()

    def take(self, marks: str) -> str:
        """The next character that is no white space, which must be one of `marks`."""
        mark = self.next_mark()
        if not mark or mark not in marks:
            raise self.broken(f"Expecting {' or '.join(map(repr, marks))}")
        self._position += 1
        return mark

    def value(self) -> Any:
        """The JSON value that follows."""
        self.next_mark()
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
