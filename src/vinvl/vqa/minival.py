"""A part of a split that is the same in every run and on every machine: VQA's "2k val" and what it leaves."""

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

import numpy as np
from pytorch_lightning.utilities import rank_zero_warn

from vinvl.data.table import RecordTable
from vinvl.run.errors import UserError

IMAGE_COUNTS = ("only_images", "without_images")


def some_images(records: RecordTable, entry: Mapping[str, Any], place: str) -> RecordTable:
    """The questions about N images, or about all others, as `only_images: N` or `without_images: N` of `entry` say.

    The N are those whose ids have the smallest SHA-256, so they depend on nothing but the ids. `place` names the entry.

    Raises:
        UserError: a count is no whole number from 1, or both are given.
    """
    given = [key for key in IMAGE_COUNTS if key in entry]
    if not given:
        return records
    count = entry[given[0]]
    if len(given) > 1 or type(count) is not int or count < 1:
        raise UserError(
            f"{place} has {', '.join(f'{key} {entry[key]!r}' for key in given)}: give one, a number from 1."
        )
    names, codes = records["image_id"].categories()
    if len(names) <= count:
        rank_zero_warn(
            f"{place} has {given[0]} {count:,}, and there are {len(names):,} images: that is all of them; "
            "give a smaller number for a part."
        )
    ranked = sorted(range(len(names)), key=lambda code: sha256(str(names[code]).encode()).digest())
    chosen = np.isin(codes, ranked[:count])
    return records.select(chosen if given[0] == "only_images" else ~chosen)
