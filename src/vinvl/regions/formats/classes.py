"""Whether the class numbers of a file count the background, as the store's do, and what their table of scores tells."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError

# Columns of the detectors of Visual Genome, classes and attributes, which need no label map: with what is 0 here.
USUAL_NAMES = {"class": 1601, "attribute": 401}


def best_classes(table: np.ndarray, labels: LabelMap, offset: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(R,) class numbers as the store counts them and their scores, of a table (R, C) of all classes.

    `offset` is 0 if the first column is the background's, 1 if there is none for it, None if the number of names tells.
    A region that has a score for the background alone is background. Raises UserError if that does not fit the names.
    """
    expected = len(labels.classes) or (USUAL_NAMES["class"] if offset is None else 0)
    columns = table.shape[1] if table.ndim == 2 else 0
    offset = expected - columns if offset is None else offset
    if offset not in (0, 1) or columns < 2 or (expected and columns + offset != expected):
        raise UserError(
            f"there are scores of {columns} class columns, expected were {expected - 1} or {expected} (with the "
            "background): give the detector's label map with features.labels=FILE, or pass features.classes=false."
        )
    classes = table if offset else table[:, 1:]
    scores = classes.max(axis=1, initial=0)
    numbers = np.where(scores > 0, classes.argmax(axis=1) + 1, 0)
    return numbers, scores if offset else np.where(scores > 0, scores, table[:, 0])


def highest(scores: np.ndarray | None) -> np.ndarray | None:
    """(R,) scores, of a table (R, C) of all classes the highest of each region."""
    if scores is None or scores.ndim != 2:
        return scores
    if len(scores) and not scores.size:
        raise UserError(f"scores have shape {scores.shape}, expected a column or more.")
    return scores.max(axis=1) if scores.size else np.zeros(0, dtype=np.float32)


def offset_of(
    numbers: np.ndarray | None, table: np.ndarray | None, names: Sequence[str], kind: str, otherwise: int | None = None
) -> int | None:
    """What is to be added to class or attribute numbers (R,) or (R, K), 0 or 1, told by their table (R, C) of scores.

    A table with as many columns as there are names has the background, one with a column less leaves it out; which of
    its columns the numbers count shows in that they are those of the highest scores. `otherwise` is what holds where
    the table tells nothing: without that, UserError if there are names, which could be wrong.
    """
    if numbers is None or not numbers.size:
        return otherwise
    tells = False
    if numbers.ndim == 1 and table is not None and table.ndim == 2 and len(table) == len(numbers):
        columns, expected = table.shape[1], len(names) or USUAL_NAMES[kind]
        tells = columns in (expected, expected - 1)
        if not tells and names and columns > 1:
            raise UserError(
                f"there are scores of {columns} {kind} columns, but the label map has {len(names)} names, the "
                f"background's included: pass features.class_offset=0 or 1 ({kind} numbers with or without it)."
            )
        fits = _offsets_that_fit(numbers, table, with_background=columns == expected) if tells else []
        if len(fits) == 1:
            return fits[0]
        both = (_offsets_that_fit(numbers, table, with_background=one) for one in (True, False))
        if not tells and columns > 1 and _clear(table).any() and not any(both):
            raise UserError(
                f"its {kind} numbers are not those of the highest of {columns} scores: get it again, or pass "
                "features.class_offset=0 or 1 if both are right."
            )
    if (names or tells) and otherwise is None:
        gaps = (
            f" The ids of the label map have gaps: {sum(map(bool, names)) - 1} names, the last of {len(names) - 1}. "
            "Numbers are taken for these ids; if they count the names, give the names alone, one a line."
        )
        raise UserError(
            f"nothing tells whether {kind} numbers count the background: pass features.class_offset=0 if 0 is the "
            f"background, or 1 if 0 is the first {kind}.{gaps if '' in names[1:] else ''}"
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
        and (clear := _clear(scores)).any()
        and (numbers + offset == scores.argmax(axis=1) + first)[clear].all()
    }
    return sorted(fits)


def _clear(scores: np.ndarray) -> np.ndarray:
    """(R,) whether one of the scores (R, C) is the highest."""
    return np.asarray((scores == scores.max(axis=1, keepdims=True)).sum(axis=1) == 1)


def shifted(numbers: np.ndarray, offset: int, names: Sequence[str], what: str) -> np.ndarray:
    """Class or attribute numbers as the store counts them. Raises UserError for some that the label map has not."""
    if numbers.size and 0 < len(names) <= numbers.max() + offset:
        raise UserError(
            f"{what} reach {numbers.max()} (and {offset} is added), but the label map has {len(names)} names, the "
            "background's included: give the detector's label map, or another features.class_offset."
        )
    unnamed = [number for number, name in enumerate(names) if number and not name]
    if (wrong := numbers[np.isin(numbers + offset, unnamed)]).size:
        raise UserError(
            f"{what} hold {wrong[0]} (and {offset} is added), which has no name in the label map, whose ids have gaps: "
            "give one that numbers the classes as the features do, or another features.class_offset."
        )
    return numbers + offset
