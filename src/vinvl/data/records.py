"""Records of JSON files: checked field by field, told by their place."""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from omegaconf import OmegaConf

from vinvl.data.columns import CategoricalColumn, select_categories
from vinvl.run.errors import UserError
from vinvl.run.values import checked_id, checked_text, shown

# What the configuration says of a split's files, compared with the known forms.


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


def _keys(record: Record) -> str:
    """The first keys of a record, on one line whatever is in them."""
    return ", ".join((key if key.isprintable() else ascii(key))[:40] for key in sorted(record)[:8]) or "no keys"


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
