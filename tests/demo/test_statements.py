"""NLVR2 files of the demo world, checked against the scenes by other code than stated them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.demo.samples import sampled
from vinvl.demo.files import nlvr2_records
from vinvl.demo.scene import Scene
from vinvl.demo.sentences import PairsOfCase, state, statement_families

Things = list[dict[str, object]]
Record = dict[str, object]
# What a sentence says of the amounts of something in the left and in the right picture.
READINGS = {
    r"both pictures show (.+)|each picture contains (.+)": lambda left, right: left and right,
    r"at least one picture shows (.+)|one or both of the pictures contain (.+)": lambda left, right: left or right,
    r"neither picture shows (.+)|neither of the two pictures contains (.+)": lambda left, right: not (left or right),
    r"exactly one of the two pictures shows (.+)|only one picture contains (.+)": lambda left, right: left != right,
    r"the left picture shows (.+) and the right one does not|only the left picture contains (.+)": (
        lambda left, right: left and not right
    ),
    r"the right picture shows (.+) and the left one does not|only the right picture contains (.+)": (
        lambda left, right: right and not left
    ),
    r"there are more (.+) in the left picture than .+|the left picture shows more (.+) than the right one": (
        lambda left, right: left > right
    ),
    r"there are more (.+) in the right picture than .+|the right picture shows more (.+) than the left one": (
        lambda left, right: right > left
    ),
}


def _amount(things: Things, words: str) -> int:
    """How often the words hold: a number of things, or 1 and 0 for "a …" and "exactly two …"."""
    article, _, noun = words.partition(" ") if words.startswith("a ") else ("", "", words)
    exactly = noun.startswith("exactly two ")
    wanted = {word.removesuffix("s") for word in noun.removeprefix("exactly two ").split()} - {"object"}
    number = sum(wanted <= {str(thing["shape"]), str(thing["colour"])} for thing in things)
    if exactly:
        return int(number == 2)
    return int(number > 0) if article else number


def _reading(sentence: str) -> tuple[str, str]:
    """The pattern that a sentence follows and the words in its gap."""
    found = [(pattern, match) for pattern in READINGS if (match := re.fullmatch(pattern, sentence))]
    assert len(found) == 1, sentence
    pattern, match = found[0]
    return pattern, next(words for words in match.groups() if words)


def _truth(sentence: str, left: Things, right: Things) -> bool:
    pattern, words = _reading(sentence)
    return bool(READINGS[pattern](_amount(left, words), _amount(right, words)))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return sampled(400, seed=8)


@pytest.fixture(scope="module")
def many(scenes: list[Scene]) -> list[Record]:
    return nlvr2_records("train", scenes, state(scenes, 1600, np.random.default_rng(2)))


def test_labels_of_every_family_are_true(scenes: list[Scene], many: list[Record]) -> None:
    things = {str(scene.image_id): [vars(thing) for thing in scene.objects] for scene in scenes}
    families: dict[object, set[str]] = defaultdict(set)
    for record in many:
        left, right = (things[str(record[f"{side}_image_id"])] for side in ("left", "right"))
        assert record["label"] == str(_truth(str(record["sentence"]), left, right)), record
        families[record["query"]].add(_reading(str(record["sentence"]))[0])
    assert set(families) == {family.name for family in statement_families()}
    assert all(len(patterns) == 1 for patterns in families.values())
    assert len({pattern for patterns in families.values() for pattern in patterns}) == len(READINGS)


def test_every_sentence_and_family_is_as_often_true_as_false(many: list[Record]) -> None:
    for key in ("sentence", "query", "synset"):
        counts: dict[object, Counter[object]] = defaultdict(Counter)
        for record in many:
            counts[record[key]][record["label"]] += 1
        assert all(count["True"] == count["False"] for count in counts.values()), key
    place = Counter((str(record["identifier"]).split("-")[2], record["label"]) for record in many)
    assert len(place) == 8  # nor does the place in the set tell
    assert min(place.values()) > 0.85 * len(many) / 8


def test_families_come_in_their_shares(many: list[Record]) -> None:
    counts = Counter(record["query"] for record in many)
    weights = {family.name: family.weight for family in statement_families()}
    for name, weight in weights.items():
        assert abs(counts[name] / len(many) - weight / sum(weights.values())) < 0.002, name


def test_neither_picture_alone_decides(scenes: list[Scene], many: list[Record]) -> None:
    # The best that can be done with the sentence and one of its pictures: per family, by what that picture shows.
    things = {str(scene.image_id): [vars(thing) for thing in scene.objects] for scene in scenes}
    for side in ("left", "right"):
        labels: dict[tuple[object, int], Counter[object]] = defaultdict(Counter)
        for record in many:
            amount = _amount(things[str(record[f"{side}_image_id"])], _reading(str(record["sentence"]))[1])
            labels[record["query"], min(amount, 3)][record["label"]] += 1
        best = sum(max(count.values()) for count in labels.values()) / len(many)
        assert 0.6 < best < 0.75
    amounts: Counter[object] = Counter()
    for record in many:
        shown = sum(len(things[str(record[f"{side}_image_id"])]) for side in ("left", "right"))
        amounts[shown > 8, record["label"]] += 1
    assert abs(amounts[True, "True"] - amounts[True, "False"]) < 0.06 * len(many)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 12), st.integers(0, 2**31))
def test_few_scenes_give_true_statements_or_none(count: int, seed: int) -> None:
    scenes = sampled(count, seed)
    statements = state(scenes, 5, np.random.default_rng(seed))
    assert len(statements) in ((0, 5) if count > 2 else (0,))
    for statement in statements:
        assert len(set(statement.pairs)) == 4
        for left, right, truth in statement.pairs:
            assert left != right
            shown = [[vars(thing) for thing in scenes[position].objects] for position in (left, right)]
            assert truth == _truth(statement.sentence, shown[0], shown[1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=7), st.integers(0, 2**31))
def test_pairs_of_a_case_are_all_reached_and_no_others(values: list[int], seed: int) -> None:
    expected = {
        (a, b)
        for a, first in enumerate(values)
        for b, second in enumerate(values)
        if a != b and first >= second
    }  # fmt: skip
    pairs = PairsOfCase(np.array(values, dtype=np.int64), lambda left, right: left >= right)
    assert len(pairs) == len(expected)
    if expected:
        rng = np.random.default_rng(seed)
        drawn = Counter(pairs.draw(rng) for _ in range(60 * len(expected)))
        assert set(drawn) == expected
