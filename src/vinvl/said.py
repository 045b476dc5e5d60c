"""What a file of results says of a split's records: brought to them, with what is missing, foreign or twice."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vinvl.data.table import RecordTable
from vinvl.examples import Outcome
from vinvl.run.errors import UserError

WRONG, LEAVE_OUT, REFUSE = MISSING = ("wrong", "leave_out", "refuse")


class Scored(NamedTuple):
    """What a room says of a file of results."""

    scores: dict[str, float]  # under the names that an evaluation of a checkpoint gives them
    headline: str
    rows: list[tuple[str, str]]  # for a person
    examples: Iterable[Outcome]
    told: Sequence[str] = ()  # what is missing in the file, or foreign
    missing: int = 0
    text: str = ""  # what an official script prints of it


@dataclass(frozen=True)
class Matched:
    """What was said of each record.

    Attributes:
        values: of each of the N records; `absent` where nothing was said of one that counts as wrong.
        places: the records that count, ascending.
        told: sentences about what is missing or foreign.
        lacking: the records that nothing was said of.
    """

    values: list[Any]
    places: list[int]
    told: list[str]
    lacking: frozenset[int]

    @property
    def missing(self) -> int:
        return len(self.lacking)


def matched(
    rows: Iterable[tuple[str, str, Any]],
    names: Sequence[Mapping[str, int]],
    records: RecordTable,
    path: Path,
    missing: str,
    absent: Any = "",
) -> Matched:
    """Brings what a file says to the records that it says it of.

    Args:
        rows: place in the file for messages, what a record is called, and what is said of it.
        names: ways to call records → their places; the first that knows a name counts.
        missing: one of `MISSING`: count records without an answer as wrong, leave them out, or refuse the file.
        absent: the value of one that counts as wrong.

    Raises:
        UserError: a record is there twice, none is of the split, or some are missing and that is refused.
    """
    nothing = object()
    values, first, foreign, num_foreign = [nothing] * len(records), dict[int, str](), "", 0
    for place, name, value in rows:
        found = next((of[name] for of in names if name in of), None)
        if found is None:
            foreign, num_foreign = foreign or f"{place} ({name})", num_foreign + 1
            continue
        if found in first:
            raise UserError(f"{place} is about {name} again, which {first[found]} is about: keep one of the two.")
        values[found], first[found] = value, place
    noun = records.form.noun
    if not first:
        known = next(iter(names[0]), "")
        begin = f"{foreign} is not among them" if num_foreign else "the file is empty"
        raise UserError(
            f"{path} says nothing of the {noun} of this split, which are called like {known}: {begin}; "
            "pass data=NAME and data.test_split=NAME of what it is of."
        )
    told, lacking = [], [place for place, value in enumerate(values) if value is nothing]
    if num_foreign:
        told.append(f"{num_foreign:,} entries are of none of these {noun}, the first {foreign}: they do not count.")
    if lacking:
        share = f"{len(lacking):,} of {len(records):,} {noun} are missing in {path}, the first "
        share += records.describe(lacking[0])
        if missing == REFUSE:
            raise UserError(f"{share}; complete the file, or pass missing=wrong or missing=leave_out.")
        how = "they count as wrong (missing=leave_out leaves them out)" if missing == WRONG else "they are left out"
        told.append(f"{share}; {how}.")
    kept = [place for place, value in enumerate(values) if missing == WRONG or value is not nothing]
    return Matched([absent if one is nothing else one for one in values], kept, told, frozenset(lacking))


def by_name(names: Iterable[Any]) -> dict[str, int]:
    """Names of records → their places; a name that several have tells none of them."""
    found, several = dict[str, int](), set[str]()
    for place, name in enumerate(map(str, names)):
        if found.setdefault(name, place) != place:
            several.add(name)
    return {name: place for name, place in found.items() if name not in several}


def numbered(texts: Sequence[str], places: Sequence[int]) -> tuple[list[str], list[int]]:
    """The different texts at these places, and the number of each among them."""
    numbers: dict[str, int] = {}
    chosen = [numbers.setdefault(texts[place], len(numbers)) for place in places]
    return list(numbers), chosen
