"""How often each picture comes in an epoch: copies of sets, class-aware sampling, repeat factors.

An epoch is a list of rows that stays the same for a whole run: places of pictures in all sets, one set after the other,
each as often as its set says. What is random in it comes from the seed alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
from msgspec import Meta

from vinvl.run.errors import UserError
from vinvl.run.values import check_fields

PICTURES_AT_ONCE = 1 << 16
MOST_ROWS = 2**31 - 1  # that four bytes number


@dataclass(frozen=True)
class SetSampling:
    """How often the pictures of one set come in an epoch. Raises UserError for what cannot be.

    Args:
        copies: the whole set, sampled as follows, so many times.
        at_least: pictures are repeated until every class that the set has comes to so many instances: VinVL's
            class-aware sampling, with 2000. None: they are not.
        repeat_threshold: pictures with a class that less than this share of pictures have are repeated, by the factors
            of LVIS and detectron2. None: they are not.
    """

    copies: Annotated[int, Meta(ge=1, le=MOST_ROWS)] = 1
    at_least: Annotated[int, Meta(ge=1, le=MOST_ROWS)] | None = None
    repeat_threshold: Annotated[float, Meta(gt=0, le=1)] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "data.splits: ")
        if self.at_least is not None and self.repeat_threshold is not None:
            raise UserError("data.splits: at_least and repeat_threshold are two ways to sample one set: give one.")


@dataclass(frozen=True, eq=False)
class SetLabels:
    """The classes in the N pictures of one set, in columns that may be those of a mapped file.

    Attributes:
        labels: N lists of integers, the class of each object, from 1.
        crowd: N lists of bool. What stands for several objects is no instance: nothing is learnt from it.
        classes: (C,) int, what each of the set's own classes becomes, 0 where it is left out; None: it stays.
        listed: (L,) int32, the pictures that the set has by its list, in its order and with repeats; None: each once.
    """

    labels: pa.ChunkedArray
    crowd: pa.ChunkedArray | None = None
    classes: np.ndarray | None = None
    listed: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The picture (m,) int32, rising, and the class (m,) of each instance; those of some pictures at a time."""
        for start in range(0, len(self), PICTURES_AT_ONCE):
            lists = _block(self.labels, start)
            numbers = np.arange(start, start + len(lists), dtype=np.int32)
            pictures = np.repeat(numbers, lists.value_lengths().to_numpy())
            classes = lists.flatten().to_numpy()
            classes = classes if self.classes is None else self.classes[classes]
            counted = classes > 0
            if self.crowd is not None:
                counted &= ~_block(self.crowd, start).flatten().to_numpy(zero_copy_only=False)
            yield pictures[counted], classes[counted]


def _block(column: pa.ChunkedArray, start: int) -> pa.ListArray:
    """What some pictures have in a column; it is copied only where two chunks of the file meet."""
    part = column.slice(start, PICTURES_AT_ONCE)
    return part.chunk(0) if part.num_chunks == 1 else part.combine_chunks()


def _pairs(pictures: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of m instances the p pairs of a class and a picture, sorted: pictures, classes, instances of each."""
    keys, numbers = np.unique(classes.astype(np.int64) << 32 | pictures, return_counts=True)
    return (keys & 0xFFFFFFFF).astype(np.int32), (keys >> 32).astype(np.int32), numbers


def _total(counts: Iterator[np.ndarray]) -> np.ndarray:
    """(C,) int64, the sum of counts of different lengths."""
    total = np.zeros(1, dtype=np.int64)
    for one in counts:
        longer, shorter = (one, total) if len(one) > len(total) else (total, one)
        longer[: len(shorter)] += shorter
        total = longer
    return total


def repeats_by_class(annotated: SetLabels, at_least: int, generator: np.random.Generator) -> np.ndarray:
    """(N,) int64, how often each picture comes so that every class that there is has `at_least` instances.

    The definition is ours: VinVL's is not published. Classes are taken by rising number of instances. Where one is
    short of them, the pictures that have it are repeated in turn, those with most instances of it first and none twice
    for it before all are once; the last is the one with fewest that suffices. Of equal ones the generator chooses. In
    the end repeats that other classes have made needless are taken back, so that none could be left out.
    """
    instances = _total(np.bincount(classes) for _, classes in annotated.blocks())
    short = (instances > 0) & (instances < at_least)
    chosen = [(pictures[short[classes]], classes[short[classes]]) for pictures, classes in annotated.blocks()]
    repeats = np.ones(len(annotated), dtype=np.int64)
    if not short.any():
        return repeats
    pictures, classes, numbers = _pairs(*map(np.concatenate, zip(*chosen, strict=True)))
    rising = np.flatnonzero(short)[np.argsort(instances[short], kind="stable")]
    for one in rising.tolist():
        holders = slice(*np.searchsorted(classes, (one, one + 1)))
        lacking = at_least - int(numbers[holders] @ repeats[pictures[holders]])
        if lacking > 0:
            repeats[pictures[holders]] += _more(numbers[holders], lacking, generator)
    surplus = np.bincount(classes, numbers * repeats[pictures]).astype(np.int64) - at_least
    _take_back(repeats, surplus, pictures, classes, numbers)
    return repeats


def _more(numbers: np.ndarray, lacking: int, generator: np.random.Generator) -> np.ndarray:
    """(n,) int64, how often pictures with `numbers` (n,) instances of a class are repeated for the `lacking` ones."""
    rounds, lacking = divmod(lacking, int(numbers.sum()))
    more = np.full(len(numbers), rounds)
    if lacking:
        order = generator.permutation(len(numbers))
        order = order[np.argsort(-numbers[order], kind="stable")]
        reached = np.cumsum(numbers[order])
        last = int(np.searchsorted(reached, lacking))
        missing = lacking - (reached[last] - numbers[order[last]])
        more[order[:last]] += 1
        more[order[np.flatnonzero(numbers[order] >= missing)[-1]]] += 1
    return more


def _take_back(
    repeats: np.ndarray, surplus: np.ndarray, pictures: np.ndarray, classes: np.ndarray, numbers: np.ndarray
) -> None:
    """Lowers `repeats` (N,), those of the most repeated first, where all classes of a picture have a `surplus` (C,)."""
    order = np.argsort(pictures, kind="stable")
    classes, numbers = classes[order], numbers[order]
    held, starts = np.unique(pictures[order], return_index=True)
    ends = np.append(starts[1:], len(order))
    spare = np.minimum.reduceat(surplus[classes] // numbers, starts)
    candidates = np.flatnonzero((spare > 0) & (repeats[held] > 1))
    for one in candidates[np.argsort(-repeats[held[candidates]], kind="stable")].tolist():
        own = slice(starts[one], ends[one])
        less = min(int((surplus[classes[own]] // numbers[own]).min()), int(repeats[held[one]]) - 1)
        repeats[held[one]] -= less
        surplus[classes[own]] -= less * numbers[own]


def repeat_factors(annotated: SetLabels, threshold: float, power: float = 0.5) -> np.ndarray:
    """(N,) float64, detectron2's `repeat_factors_from_category_frequency`: max(1, (threshold / share) ^ power).

    The share is that of the pictures with a class; of a picture's classes the greatest factor counts. `power` 1 is
    detectron2's choice without a root.
    """
    counts = _total(np.bincount(_pairs(*block)[1]) for block in annotated.blocks())
    shares = np.maximum(counts, 1) / len(annotated)
    of_class = np.maximum(1.0, (threshold / shares) ** power)
    factors = np.ones(len(annotated))
    for pictures, classes in annotated.blocks():
        np.maximum.at(factors, pictures, of_class[classes])
    return factors


def sampled_rows(sets: Sequence[tuple[SetLabels, SetSampling]], seed: int) -> np.ndarray:
    """(E,) int32, the picture of each row of an epoch, counted over all sets; each at least once, but for lists.

    A set's copies follow each other, each in the order of the set, or of the list that it has. The fractions of repeat
    factors are rounded at random once, from (seed, place of the set), so that all epochs of a run have the same rows.

    Raises:
        UserError: an epoch would have more than 2³¹ rows.
    """
    parts, first = [], 0
    for place, (annotated, sampling) in enumerate(sets):
        repeats, generator = np.ones(len(annotated), dtype=np.int64), np.random.default_rng((seed, place))
        if sampling.at_least is not None:
            repeats = repeats_by_class(annotated, sampling.at_least, generator)
        elif sampling.repeat_threshold is not None:
            factors = repeat_factors(annotated, sampling.repeat_threshold)
            repeats = (factors + generator.random(len(factors))).astype(np.int64)
        own = np.arange(len(annotated), dtype=np.int32) if annotated.listed is None else annotated.listed
        total = float(repeats[own].sum()) * sampling.copies
        if total > MOST_ROWS:
            raise UserError(
                f"data.splits: set {place + 1} would come to {total:,.0f} rows an epoch, more than {MOST_ROWS:,}: "
                "lower its copies, at_least or repeat_threshold."
            )
        rows = own + np.int32(first)
        parts.append(np.tile(rows if (repeats == 1).all() else np.repeat(rows, repeats[own]), sampling.copies))
        first += len(annotated)
    return np.concatenate(parts)


def told_rows(rows: np.ndarray, starts: Sequence[int], sources: Sequence[str]) -> list[str]:
    """What the rows (E,) of an epoch have of each set, for people; of sets without repeats nothing.

    Args:
        starts: (S + 1,) where the pictures of each set begin, and the last ones end.
        sources: (S,) the sets' names.
    """
    told, counts = [], np.bincount(rows, minlength=starts[-1])
    for source, start, stop in zip(sources, starts, starts[1:], strict=False):
        if (most := int((own := counts[start:stop]).max(initial=0))) > 1:
            pictures = f"{source}: {np.count_nonzero(own):,} pictures"
            told.append(f"{pictures} make {own.sum():,} rows of an epoch, one picture {most:,} at most.")
    return told
