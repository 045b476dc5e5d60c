"""Whether the class numbers of a file count the background, as the store's do, or begin with the first class."""

from __future__ import annotations

import numpy as np

from vinvl.run.errors import UserError

# Columns of the detectors of Visual Genome, classes and attributes, which need no label map: with what is 0 here.
USUAL_NAMES = {"class": 1601, "attribute": 401}


def offset_of(
    numbers: np.ndarray | None, table: np.ndarray | None, names: int, kind: str, otherwise: int | None = None
) -> int | None:
    """What is to be added to the class or attribute numbers of an image, told by their table of scores.

    A table with as many columns as there are names has the background, one with a column less leaves it out; which of
    its columns the numbers count shows in that they are those of the highest scores.

    Args:
        numbers: (R,) or (R, K) as in the file; None if it has none.
        table: (R, C) scores of all classes, or anything else that then tells nothing.
        names: of the label map, the background's included; 0 if there is none.
        kind: "class" or "attribute".
        otherwise: what holds where the table tells nothing; None if nothing else does.

    Returns:
        0 or 1; without names, where no name can be wrong, `otherwise` if the table does not tell.

    Raises:
        UserError: there are names, and nothing tells.
    """
    if numbers is None or not numbers.size:
        return otherwise
    tells = False
    if numbers.ndim == 1 and table is not None and table.ndim == 2 and len(table) == len(numbers):
        columns, expected = table.shape[1], names or USUAL_NAMES[kind]
        tells = columns in (expected, expected - 1)
        if not tells and names and columns > 1:
            raise UserError(
                f"there are scores of {columns} {kind} columns, but the label map has {names} names, the background's "
                f"included: pass features.class_offset=0 or 1 ({kind} numbers with or without the background)."
            )
        fits = _offsets_that_fit(numbers, table, with_background=columns == expected) if tells else []
        if len(fits) == 1:
            return fits[0]
    if (names or tells) and otherwise is None:
        raise UserError(
            f"nothing tells whether {kind} numbers count the background: pass features.class_offset=0 if 0 is the "
            f"background, or 1 if 0 is the first {kind}."
        )
    return otherwise


def _offsets_that_fit(numbers: np.ndarray, table: np.ndarray, *, with_background: bool) -> list[int]:
    """The offsets with which the numbers are those of the highest scores, in every row that has one highest."""
    # As the store counts: the best class, and where the table has the background, the best of all.
    best = [(table[:, 1:] if with_background else table, 1), *([(table, 0)] if with_background else [])]
    fits = {
        offset
        for scores, first in best
        for offset in ((0, 1) if first else (0,))
        if scores.shape[1]
        and (clear := (scores == scores.max(axis=1, keepdims=True)).sum(axis=1) == 1).any()
        and (numbers + offset == scores.argmax(axis=1) + first)[clear].all()
    }
    return sorted(fits)
