"""Where the records of a split were read, and the ids that tell them apart."""

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Self, TypeVar

import numpy as np

from vinvl.data.column_parts import select_categories
from vinvl.data.columns import CategoricalColumn
from vinvl.errors import UserError

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
