"""The rows of an epoch: copies and repeat factors as recorded, and what holds for class-aware sampling of any set."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.golden import facts
from vinvl.detector import sampling
from vinvl.detector.sampling import SetLabels, SetSampling, repeat_factors, repeats_by_class, sampled_rows
from vinvl.run.errors import UserError

GOLDEN = facts("detector_training/sampling")
Classes = list[list[int]]
sets_of_pictures = st.lists(st.lists(st.integers(1, 6), max_size=5), min_size=1, max_size=30)


def annotated(classes: Classes, crowd: list[list[bool]] | None = None, become: list[int] | None = None) -> SetLabels:
    """In chunks of two pictures, as a mapped file has chunks."""
    labels = pa.chunked_array([pa.array(classes[n : n + 2], pa.list_(pa.int32())) for n in range(0, len(classes), 2)])
    crowds = None if crowd is None else pa.chunked_array([pa.array(crowd, pa.list_(pa.bool_()))])
    return SetLabels(labels, crowds, None if become is None else np.array(become))


def from_one(classes: Classes) -> Classes:
    """The recorded classes, which begin at 0."""
    return [[one + 1 for one in picture] for picture in classes]


def instances(classes: Classes, rows: np.ndarray) -> Counter[int]:
    return Counter(one for row in rows.tolist() for one in classes[row])


def test_copies_follow_each_other_as_recorded() -> None:
    recorded = GOLDEN["copies"]
    names, sizes = list(recorded["sizes"]), [recorded["sizes"][name] for name in recorded["sizes"]]
    rows = sampled_rows(
        [(annotated([[1]] * recorded["sizes"][name]), SetSampling(recorded["copies"][name])) for name in names], seed=0
    )
    assert rows.dtype == np.int32 and len(rows) == recorded["length"]
    starts = np.insert(np.cumsum(sizes), 0, 0)
    for index in recorded["index_to_item"]:
        place = int(np.searchsorted(starts, rows[int(index)], side="right")) - 1
        assert [names[place], rows[int(index)] - starts[place]] == recorded["index_to_item"][index]


@pytest.mark.parametrize("block", [3, 1 << 16])
def test_repeat_factors_are_those_of_detectron2(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "PICTURES_AT_ONCE", block)
    recorded = GOLDEN["repeat_factor"]
    labels = annotated(from_one(recorded["image_classes"]))
    for name in recorded["per_image"]:
        threshold, way = name.removeprefix("threshold ").split(", ")
        factors = repeat_factors(labels, float(threshold), {"sqrt": 0.5, "linear": 1}[way])
        np.testing.assert_allclose(factors, recorded["per_image"][name], rtol=1e-6)


def test_fractions_of_repeat_factors_are_rounded_at_random_from_the_seed() -> None:
    labels = annotated([[1]] * 4000 + [[1, 2]] * 1000)  # of which the latter have the factor √(0.45 / 0.2) = 1.5
    assert np.array_equal(repeat_factors(labels, 0.45), [1.0] * 4000 + [1.5] * 1000)
    first, again, other = (
        np.bincount(sampled_rows([(labels, SetSampling(repeat_threshold=0.45))], seed)) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert (first[:4000] == 1).all() and set(first[4000:].tolist()) == {1, 2}
    assert 450 < np.count_nonzero(first[4000:] == 2) < 550


def test_class_aware_sampling_of_the_recorded_pictures() -> None:
    recorded = GOLDEN["instances_at_least"]
    classes, floor = recorded["image_classes"], recorded["at_least"]
    before = Counter(one for picture in classes for one in picture)
    assert {str(one): count for one, count in before.items()} == dict(recorded["instances"].items())
    assert {one for one, count in before.items() if count < floor} == set(recorded["classes_to_raise"])
    rows = sampled_rows([(annotated(from_one(classes)), SetSampling(at_least=floor))], seed=0)
    after = instances(classes, rows)
    assert set(rows.tolist()) == set(range(len(classes)))
    assert min(after.values()) >= floor and after.keys() == before.keys()
    assert not after.keys() & set(recorded["absent_classes"])


@given(sets_of_pictures, st.integers(1, 40), st.integers(0, 3))
@settings(deadline=None)
def test_every_class_has_enough_and_no_repeat_could_be_left_out(pictures: Classes, floor: int, seed: int) -> None:
    labels = annotated(pictures)
    repeats = repeats_by_class(labels, floor, np.random.default_rng(seed))
    assert np.array_equal(repeats, repeats_by_class(labels, floor, np.random.default_rng(seed)))
    assert (repeats >= 1).all()
    before = Counter(one for picture in pictures for one in picture)
    held = [Counter(picture) for picture in pictures]
    after = {one: sum(int(n) * own[one] for n, own in zip(repeats, held, strict=True)) for one in before}
    assert all(count >= floor for count in after.values())
    for count, own in zip(repeats.tolist(), held, strict=True):
        assert count == 1 or any(after[one] - number < floor for one, number in own.items()), "a needless repeat"


def test_pictures_with_most_of_a_class_are_repeated_first_and_all_before_any_twice() -> None:
    pictures: Classes = [[1], [1] * 3, [1] * 4, [1] * 2]

    def repeats(floor: int) -> list[int]:
        counts: list[int] = repeats_by_class(annotated(pictures), floor, np.random.default_rng(0)).tolist()
        return counts

    assert repeats(10) == [1, 1, 1, 1]
    assert repeats(11) == [2, 1, 1, 1]  # the one with fewest that suffices
    assert repeats(16) == [1, 1, 2, 2]
    assert repeats(20) == [2, 2, 2, 2]
    assert repeats(41) == [5, 4, 4, 4]
    many = repeats_by_class(annotated([[1]] * 300), 2000, np.random.default_rng(0))
    assert many.sum() == 2000 and many.max() - many.min() == 1


def test_crowds_and_classes_left_out_are_no_instances() -> None:
    crowd = [[True, True], [False], [False]]
    labels = annotated([[1, 1], [1], [2]], crowd, become=[0, 3, 0])
    assert repeats_by_class(labels, 4, np.random.default_rng(0)).tolist() == [1, 4, 1]
    assert repeat_factors(labels, 1).tolist() == [1, 3**0.5, 1]


def test_sets_are_joined_each_with_its_own_sampling() -> None:
    sets = [(annotated([[1], [2]]), SetSampling(copies=2, at_least=2)), (annotated([[1], []]), SetSampling(copies=3))]
    assert sampled_rows(sets, seed=0).tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 3, 2, 3, 2, 3]


@pytest.mark.parametrize(
    ("given_options", "sentence"),
    [
        ({"copies": 0}, "data.splits: copies=0 cannot be: expected int >= 1"),
        ({"copies": 1.5}, "data.splits: copies=1.5 cannot be: expected int"),
        ({"at_least": 0}, "at_least=0 cannot be"),
        ({"at_least": True}, "at_least=True cannot be"),
        ({"repeat_threshold": 0.0}, "repeat_threshold=0.0 cannot be"),
        ({"repeat_threshold": 2000}, "repeat_threshold=2000 cannot be"),
        ({"at_least": 5, "repeat_threshold": 0.1}, "two ways to sample one set"),
    ],
)
def test_what_cannot_be_is_refused(given_options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        SetSampling(**given_options)


def test_more_rows_than_can_be_numbered_are_refused() -> None:
    sampling_of_one = SetSampling(copies=2**20, at_least=2**20)
    with pytest.raises(UserError, match="set 1 would come to 1,099,511,627,776 rows"):
        sampled_rows([(annotated([[1]]), sampling_of_one)], seed=0)
