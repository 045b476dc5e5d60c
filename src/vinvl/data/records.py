"""Records of JSON files: read member by member in little memory, checked field by field, told by their place."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import numpy as np
from omegaconf import OmegaConf

from vinvl.data.columns import CategoricalColumn, select_categories
from vinvl.run.errors import UserError
from vinvl.run.files import refuse_half_characters

# What the configuration says of a split's files, held against the forms that there are.


NULL_REMOVES = "where configurations build upon each other, null takes a key away"


def plain(files: Any) -> Any:
    """What the configuration says in plain dicts and lists, without keys that are null."""
    if OmegaConf.is_config(files):
        files = OmegaConf.to_container(files, resolve=True, throw_on_missing=True)
    if isinstance(files, Mapping):
        return {str(key): value for key, value in files.items() if value is not None}
    return files


def checked_entry(entry: Any, place: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """An entry that names files by keys, of which each must be known.

    Args:
        entry: what the configuration has.
        place: where it has it, for messages: "data.splits.train".
        needed, optional: the keys.

    Raises:
        UserError: it is no mapping, lacks a key, or has another.
    """
    form = f"{{{', '.join(f'{key}: …' for key in (*needed, *optional))}}}"
    given = plain(entry)
    if not isinstance(given, dict):
        raise UserError(f"{place} is {given!r}: give {form}.")
    for key in needed:
        if not isinstance(given.get(key), str):
            raise UserError(f"{place} has {'no' if key not in given else 'no file as'} {key}: give {form}.")
    unknown = [key for key in given if key not in needed and key not in optional]
    if unknown:
        raise UserError(f"{place} has the key {unknown[0]}, which nothing reads: give {form} ({NULL_REMOVES}).")
    return given


def file_names(files: Any, place: str, forms: str) -> list[str]:
    """A file or a list of files.

    Args:
        files: what the configuration has.
        place: where it has it, for messages: "data.splits.train".
        forms: what may be given, for messages.

    Raises:
        UserError: something else is given.
    """
    given = plain(files)
    listed = [given] if isinstance(given, str) else given
    if not isinstance(listed, list) or not listed or not all(isinstance(name, str) for name in listed):
        raise UserError(f"{place} is {given!r}: give {forms}.")
    return listed


# Checks of single fields of a JSON record; `place` names the record in the UserError that a bad one raises.


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


# Where the records of a split were read, and the ids that tell them apart.


Part = TypeVar("Part", bound=Sized)

_INT64 = np.iinfo(np.int64)


@dataclass(frozen=True, eq=False)
class RecordSources:
    """Where Q records were read: `files` names file and kind of place ("train.jsonl line"), `numbers` (Q,) int64 counts
    from 1."""

    files: CategoricalColumn
    numbers: np.ndarray

    @classmethod
    def of_file(cls, file: str, numbers: Sequence[int]) -> Self:
        """Records of one file; `file` as in `files`."""
        return cls(CategoricalColumn.from_texts([file] * len(numbers)), np.array(numbers, dtype=np.int64))

    @classmethod
    def concatenate(cls, parts: Sequence["RecordSources"]) -> Self:
        """The sources of all parts, in order."""
        files = CategoricalColumn.concatenate([part.files for part in parts])
        return cls(files, np.concatenate([part.numbers for part in parts]))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> str:
        return f"{self.files[index]} {self.numbers[index]}"

    def select(self, keep: np.ndarray) -> "RecordSources":
        """The sources where `keep` (Q,) bool is True."""
        return RecordSources(select_categories(self.files, keep), self.numbers[keep])


def parts_to_join(parts: Sequence[Part]) -> list[Part]:
    """The parts without empty ones, of which the first stays if there is no other; ValueError if there are no parts."""
    if not parts:
        raise ValueError("There are no records to join.")
    return [part for part in parts if len(part) > 0] or [parts[0]]


def id_array(ids: Sequence[int | str]) -> np.ndarray:
    """Ids as int64 where every one is an integer that fits, otherwise as text of fixed width."""
    if all(isinstance(value, int) and _INT64.min <= value <= _INT64.max for value in ids):
        return np.array(ids, dtype=np.int64)
    return np.array([str(value) for value in ids], dtype=np.str_)


def joined_ids(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The ids of all parts, in order: integers where every part has integers, otherwise text."""
    integers = all(part.dtype.kind == "i" for part in parts)
    return np.concatenate(list(parts) if integers else [part.astype(np.str_) for part in parts])


def first_repeat(ids: np.ndarray) -> tuple[int, int, int] | None:
    """(index of an id, index of its repeat, number of repeats in all) of (Q,) ids; None if all are different."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    repeats = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(repeats) == 0:
        return None
    return int(order[repeats[0]]), int(order[repeats[0] + 1]), len(repeats)


def refuse_repeated_ids(ids: np.ndarray, sources: RecordSources, name: str, remedy: str) -> None:
    """UserError if two records share an id; `name` is the id's key ("question_id"), `remedy` says what to do."""
    repeat = first_repeat(ids)
    if repeat is not None:
        first, second, count = repeat
        raise UserError(
            f"{sources[second]} has the {name} {ids[second]} of {sources[first]} ({count:,} such repeats); {remedy}."
        )


def refuse_mixed(present: np.ndarray, sources: RecordSources, noun: str) -> None:
    """UserError if some records have what others lack: `present` (Q,) bool; `noun` is what it is ("answer")."""
    if present.any() and not present.all():
        bare, full = int(np.argmin(present)), int(np.argmax(present))
        raise UserError(
            f"{sources[bare]} has no {noun} and {sources[full]} has one ({np.count_nonzero(~present):,} of "
            f"{len(present):,} records have none); give one in every record, or in none to predict only."
        )


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
