"""Captions of scenes of the demo world, and statements about two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from operator import eq, gt, lt

import numpy as np

from vinvl.demo.scene import COLOURS, SHAPES, Scene, SceneObject

# Five captions a picture.


CAPTIONS_PER_IMAGE = 5
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def describe(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five different sentences that are all true of the scene."""
    order = [scene.objects[int(index)] for index in rng.permutation(len(scene.objects))]
    commonest = Counter(thing.shape for thing in scene.objects).most_common(1)[0][0]
    return _sentences(scene, order, counted=commonest, singled_out=order[1])


def describe_shape(scene: Scene, shape: str, more_of_it: bool, rng: np.random.Generator) -> list[str]:
    """Five different true sentences that all name a shape of which the scene holds at least one.

    The other objects named are of that shape too (`more_of_it`), or of others, as far as there are any.
    """
    drawn = [scene.objects[int(index)] for index in rng.permutation(len(scene.objects))]
    first = next(thing for thing in drawn if thing.shape == shape)
    others = [thing for thing in drawn if thing is not first]
    others.sort(key=lambda thing: (thing.shape == shape) != more_of_it)  # stable: the drawn order otherwise
    return _sentences(scene, [first, *others], counted=shape, singled_out=first)


def _sentences(scene: Scene, order: list[SceneObject], counted: str, singled_out: SceneObject) -> list[str]:
    count = sum(thing.shape == counted for thing in scene.objects)
    many = f"{_NUMBERS[count]} {counted}{'s' if count > 1 else ''}"
    total = _NUMBERS[len(scene.objects)]
    return [
        f"a {_short(order[0])} and a {_short(order[1])} on a light background",
        f"a picture of {many} among {total} objects",
        f"a {order[0].size} {_short(order[0])} {_relation(order[0], order[2])} a {_short(order[2])}",
        f"there are {total} objects, one of them is a {singled_out.texture} {_short(singled_out)}",
        f"a {order[2].size} {order[2].texture} {order[2].shape} with a {_short(order[0])} and a {_short(order[1])}",
    ]


def _short(thing: SceneObject) -> str:
    return f"{thing.colour} {thing.shape}"


def _relation(first: SceneObject, second: SceneObject) -> str:
    if abs(first.x - second.x) > abs(first.y - second.y):
        return "to the left of" if first.x < second.x else "to the right of"
    return "above" if first.y < second.y else "below"


# Statements about two pictures, each put to pairs of which half make it true.

PAIRS_PER_STATEMENT = 4  # two true, two false: the words of a statement tell nothing of its truth

Case = Callable[[int, int], bool]  # of the values of the left and the right picture


@dataclass(frozen=True)
class Fact:
    """What a statement may say of a single picture, with its value for every picture."""

    kind: str  # shape | colour | coloured_shape | two | shape_count | colour_count
    words: str
    values: np.ndarray  # (pictures,) int64: 1 where it holds and 0 elsewhere, or a count


@dataclass(frozen=True)
class StatementFamily:
    """Statements that share their logic: `phrasings` have a gap {0} for the words of a fact of one of `kinds`."""

    name: str
    weight: float  # relative share among the statements
    kinds: dict[str, float]  # kind of fact -> relative share inside the family
    phrasings: tuple[str, ...]
    true_cases: tuple[Case, Case]
    false_cases: tuple[Case, Case]


@dataclass(frozen=True)
class Statement:
    """A sentence and the pairs of pictures it is put to; a pair is (left, right, truth), pictures by position."""

    sentence: str
    family: str
    subject: str
    pairs: tuple[tuple[int, int, bool], ...]


class PairsOfCase:
    """All ordered pairs of different pictures whose values (pictures,) int64 of a fact make a case, to draw from."""

    def __init__(self, values: np.ndarray, case: Case) -> None:
        pools = {int(value): np.flatnonzero(values == value) for value in np.unique(values)}
        self._blocks = [(pools[a], pools[b], a == b) for a, b in product(pools, pools) if case(a, b)]
        sizes = [len(left) * (len(right) - same) for left, right, same in self._blocks]
        self._ends = np.cumsum([0, *sizes])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """One pair as positions (left, right); there must be one."""
        number = int(rng.integers(len(self)))
        block = int(np.searchsorted(self._ends, number, side="right")) - 1
        left, right, same = self._blocks[block]
        first, second = divmod(number - int(self._ends[block]), len(right) - same)
        second += same and second >= first  # inside one pool no picture stands beside itself
        return int(left[first]), int(right[second])


def state(scenes: Sequence[Scene], count: int, rng: np.random.Generator) -> list[Statement]:
    """`count` statements on pairs of scenes; none where the scenes are too few or too much alike.

    A statement comes only with a fact for which every case of its family has enough different pairs.
    """
    facts = picture_facts(scenes)
    choices: list[tuple[StatementFamily, Fact, list[PairsOfCase]]] = []
    weights: list[float] = []
    for family in statement_families():
        found = [(fact, _pairs_of_cases(family, fact)) for fact in facts if fact.kind in family.kinds]
        usable = [(family, fact, pairs) for fact, pairs in found if pairs is not None]
        per_kind = Counter(fact.kind for _, fact, _ in usable)
        shares = [family.kinds[fact.kind] / per_kind[fact.kind] for _, fact, _ in usable]
        choices.extend(usable)
        weights.extend(family.weight * share / sum(shares) for share in shares)
    if not choices:
        return []
    # Evenly spaced in the line of shares, then shuffled: families get their shares in small worlds too.
    ends = np.cumsum(np.array(weights) / sum(weights))
    places = (rng.permutation(count) + rng.random()) / count
    drawn = np.minimum(np.searchsorted(ends, places, side="right"), len(choices) - 1)
    return [_state_one(*choices[int(index)], rng) for index in drawn]


def picture_facts(scenes: Sequence[Scene]) -> list[Fact]:
    """Everything that statements may mention, with its value for each of the scenes, in a fixed order."""
    looks = [Counter((thing.colour, thing.shape) for thing in scene.objects) for scene in scenes]
    counts = np.array(
        [[[look[colour, shape] for shape in SHAPES] for colour in COLOURS] for look in looks], dtype=np.int64
    ).reshape(len(scenes), len(COLOURS), len(SHAPES))
    facts: list[Fact] = []
    for number, shape in enumerate(SHAPES):
        of_shape = counts[:, :, number].sum(axis=1)
        facts.append(Fact("shape", f"a {shape}", (of_shape > 0).astype(np.int64)))
        facts.append(Fact("two", f"exactly two {shape}s", (of_shape == 2).astype(np.int64)))
        facts.append(Fact("shape_count", f"{shape}s", of_shape))
    for number, colour in enumerate(COLOURS):
        of_colour = counts[:, number].sum(axis=1)
        facts.append(Fact("colour", f"a {colour} object", (of_colour > 0).astype(np.int64)))
        facts.append(Fact("colour_count", f"{colour} objects", of_colour))
    for (row, colour), (column, shape) in product(enumerate(COLOURS), enumerate(SHAPES)):
        facts.append(Fact("coloured_shape", f"a {colour} {shape}", (counts[:, row, column] > 0).astype(np.int64)))
    return facts


def statement_families() -> tuple[StatementFamily, ...]:
    """All kinds of statements with their shares, in a fixed order."""
    # The false cases are close to the true ones, so that one picture of the two seldom decides.
    return (*_quantified(), *_one_sided("left", "right"), *_one_sided("right", "left"))


# Most of what is stated is simple, so that a small model finds out from random weights what the words refer to; the
# harder kinds (two pictures as an exclusive or, colour and shape of one thing, counts) are fewer.
_KINDS = {"shape": 5.0, "colour": 4.0, "coloured_shape": 1.5, "two": 0.5}
_COUNT_KINDS = {"shape_count": 1.0, "colour_count": 1.0}


def _quantified() -> list[StatementFamily]:
    both, left, right, none = _is(1, 1), _is(1, 0), _is(0, 1), _is(0, 0)
    said = (
        ("both", 5, "both pictures show {0}", "each picture contains {0}", (both, both), (left, right)),
        (
            "at_least_one", 5, "at least one picture shows {0}", "one or both of the pictures contain {0}",
            (left, right), (none, none),
        ),
        (
            "neither", 3, "neither picture shows {0}", "neither of the two pictures contains {0}",
            (none, none), (left, right),
        ),
        (
            "exactly_one", 2, "exactly one of the two pictures shows {0}", "only one picture contains {0}",
            (left, right), (both, none),
        ),
    )  # fmt: skip
    return [StatementFamily(name, share, _KINDS, (one, other), *cases) for name, share, one, other, *cases in said]


def _one_sided(side: str, other: str) -> list[StatementFamily]:
    """Statements that `side` has something that `other` lacks, or more of it."""
    only = (f"the {side} picture shows {{0}} and the {other} one does not", f"only the {side} picture contains {{0}}")
    more = (
        f"there are more {{0}} in the {side} picture than in the {other} one",
        f"the {side} picture shows more {{0}} than the {other} one",
    )
    here, larger, smaller = (_is(1, 0), gt, lt) if side == "left" else (_is(0, 1), lt, gt)
    return [
        StatementFamily(f"only_{side}", 2, _KINDS, only, (here, here), (_is(1, 1), _is(0, 0))),
        StatementFamily(f"more_{side}", 0.5, _COUNT_KINDS, more, (larger, larger), (smaller, eq)),
    ]


def _is(left_value: int, right_value: int) -> Case:
    return lambda left, right: (left, right) == (left_value, right_value)


def _pairs_of_cases(family: StatementFamily, fact: Fact) -> list[PairsOfCase] | None:
    """Pairs for the two true and the two false cases, or None if a case has too few."""
    cases = (*family.true_cases, *family.false_cases)
    by_case = {case: PairsOfCase(fact.values, case) for case in cases}
    if any(len(by_case[case]) < wanted for case, wanted in Counter(cases).items()):
        return None
    return [by_case[case] for case in cases]


def _state_one(
    family: StatementFamily, fact: Fact, pairs_of_cases: list[PairsOfCase], rng: np.random.Generator
) -> Statement:
    pairs: list[tuple[int, int, bool]] = []
    for number, pairs_of_case in enumerate(pairs_of_cases):
        while (pair := (*pairs_of_case.draw(rng), number < len(family.true_cases))) in pairs:
            pass
        pairs.append(pair)
    order = rng.permutation(len(pairs))
    phrasing = family.phrasings[int(rng.integers(len(family.phrasings)))]
    return Statement(phrasing.format(fact.words), family.name, fact.words, tuple(pairs[int(index)] for index in order))
