"""Two files of examples of one split, row by row."""

import re
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vinvl.data.table import Column, replaced
from vinvl.examples import Examples
from vinvl.run.errors import UserError
from vinvl.run.values import shown

SET = re.compile(r"(.+-\d+)-\d+-\d+")  # an official identifier of NLVR2


@dataclass(frozen=True, eq=False)
class Pairs:
    """N examples that were scored twice: rows i of both tables are the same question to two models.

    Attributes:
        first, second: their files.
        one, other: their rows (N), with the columns of `Outcome`.
        left_out: how many examples of the first, and of the second, have no partner.
    """

    first: Examples
    second: Examples
    one: pa.Table
    other: pa.Table
    left_out: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.one)

    @property
    def task(self) -> str:
        return self.first.about.task

    def numpy(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(N,) numbers of a column of both."""
        return self.one[name].to_numpy(), self.other[name].to_numpy()

    def codes(self, name: str) -> tuple[list[str], np.ndarray]:
        """The different texts of a column, sorted, and (N,) int64: which of them each example has."""
        return sorted_codes(Column(self.one[name]))

    def units(self) -> tuple[list[str], np.ndarray, str]:
        """What is drawn, and how it is called: pictures, with all their examples; returned as `codes` are.

        Of NLVR2 it is the set of eight pictures, dev-308 of dev-308-1-0: its statements share pictures or sentence.
        """
        if self.task == "nlvr2":
            found = [SET.fullmatch(one) for one in self.one["id"].to_pylist()]
            if all(found):
                return *sorted_codes(Column.of(one[1] for one in found if one)), "sets of pictures"
        return *self.codes("image_id"), "pictures"


def sorted_codes(column: Column) -> tuple[list[str], np.ndarray]:
    """The different texts, sorted, and (N,) int64: which of them each entry is."""
    texts, codes = column.categories()
    order = sorted(range(len(texts)), key=texts.__getitem__)
    return [texts[code] for code in order], np.argsort(order)[codes]


def paired(first: Examples, second: Examples, common: bool = False) -> Pairs:
    """Finds of each of the first's examples the second's of the same id.

    Raises UserError if they are of other tasks, if one lacks examples that the other has (unless only those that are
    `common` are asked for), or if one id is another picture or has another truth: then it is another split.
    """
    one, other = first.about, second.about
    if (one.task, one.headline) != (other.task, other.headline):
        raise UserError(
            f"{first.path} is of {one.task} ({one.headline}) and {second.path} of {other.task} ({other.headline}): "
            "compare two evaluations of one task."
        )
    keys, others = first.keys().combine_chunks(), second.keys().combine_chunks()
    places = pc.index_in(keys, value_set=others)
    kept, lacking = pc.is_valid(places), pc.invert(pc.is_in(others, value_set=keys))
    left_out = (places.null_count, pc.sum(lacking).as_py())
    if places.null_count == len(keys):
        raise UserError(
            f"{first.path} (split '{one.split}') and {second.path} (split '{other.split}') have no example in common: "
            "compare two evaluations of one split."
        )
    if not common:
        _refuse_lacking(second, first, keys.filter(pc.invert(kept)))
        _refuse_lacking(first, second, others.filter(lacking))
    pairs = Pairs(first, second, first.table.filter(kept), second.table.take(places.drop_null()), left_out)
    _refuse_other(pairs, "image_id", "is about picture {} in the first and {} in the second")
    _refuse_other(pairs, "truth", "has the truth {} in the first and {} in the second")
    return with_groups(pairs)


def _refuse_lacking(lacks: Examples, has: Examples, keys: pa.Array) -> None:
    if len(keys):
        left = f"; {lacks.about.left_out:,} were left out as they have no regions" if lacks.about.left_out else ""
        splits = lacks.about.split, has.about.split
        raise UserError(
            f"{lacks.path} (split '{splits[0]}') lacks {len(keys):,} of the {len(has):,} examples of {has.path} (split "
            f"'{splits[1]}'), the first with the id {shown(keys[0].as_py())}{left}: evaluate both on one split, or "
            "pass --common to compare what both have."
        )


def _refuse_other(pairs: Pairs, name: str, told: str) -> None:
    one, other = pairs.one[name].combine_chunks(), pairs.other[name].combine_chunks()
    if one.equals(other):
        return
    values: list[tuple[Any, Any]] = list(zip(one.to_pylist(), other.to_pylist(), strict=True))
    differing = [place for place, (here, there) in enumerate(values) if here != there]
    here, there = values[differing[0]]
    if name == "truth":  # of several the first that is another
        here, there = next(pair for pair in zip_longest(here, there) if pair[0] != pair[1])
    own_id = pairs.one["id"][differing[0]].as_py()
    raise UserError(
        f"{pairs.first.path} and {pairs.second.path} are of different splits: the example {own_id!r} "
        f"{told.format(shown(here), shown(there))} ({len(differing):,} of {len(pairs):,} differ so)."
    )


def with_groups(pairs: Pairs) -> Pairs:
    """The groups of the second, where a file of results has told the first none."""
    one = pairs.one
    for name in ("group", "kind"):
        if not any(one[name].unique().to_pylist()):
            one = replaced(one, name, pairs.other[name])
    return Pairs(pairs.first, pairs.second, one, pairs.other, pairs.left_out)
