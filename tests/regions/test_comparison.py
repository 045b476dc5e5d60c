"""Whether two stores hold the same features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.regions.samples import LABELS, make_regions
from vinvl.regions import LabelMap, Regions, RegionStore, RegionStoreWriter
from vinvl.regions.__main__ import compare_stores, main
from vinvl.run.errors import UserError

IMAGES = [make_regions(f"{i}", 6, feature_dim=16, seed=i) for i in range(10)]


def write(path: Path, images: list[Regions], labels: LabelMap = LABELS, dim: int = 16) -> RegionStore:
    with RegionStoreWriter(path, feature_dim=dim, detector="d", label_map=labels) as writer:
        for one in images:
            writer.add(one)
    return RegionStore(path)


@pytest.fixture
def first(tmp_path: Path) -> RegionStore:
    return write(tmp_path / "first.h5", IMAGES)


def other(tmp_path: Path, change, **given: object) -> RegionStore:  # type: ignore[no-untyped-def]
    return write(tmp_path / "second.h5", [change(one) for one in IMAGES], **given)  # type: ignore[arg-type]


def reordered(one: Regions) -> Regions:
    """The same regions the other way round, rounded a little."""
    names = ("features", "boxes", "classes", "class_scores", "attributes", "attribute_scores")
    turned = replace(one, **{name: getattr(one, name)[::-1].copy() for name in names})
    turned.features[:] = turned.features * np.float16(1.001)
    return turned


def test_the_same_regions_in_another_order_are_the_same(first: RegionStore, tmp_path: Path) -> None:
    found = compare_stores(first, other(tmp_path, reordered))
    assert found.verdict.startswith("the same") and found.same_box == found.same_tag == 1.0
    assert found.regions == (60, 60) and (found.shared, found.images) == (10, 10)


def test_names_count_and_not_their_numbers(first: RegionStore, tmp_path: Path) -> None:
    labels = LabelMap((LABELS.classes[0], LABELS.classes[2], LABELS.classes[1].upper()), LABELS.attributes)
    swapped = {0: 0, 1: 2, 2: 1}
    second = other(tmp_path, lambda one: replace(one, classes=np.vectorize(swapped.get)(one.classes)), labels=labels)
    assert compare_stores(first, second).same_tag == 1.0
    assert compare_stores(first, other(tmp_path, lambda one: one, labels=labels)).same_tag < 1.0


def noisy(one: Regions) -> Regions:
    noise = np.random.default_rng(0).standard_normal(one.features.shape) * 0.2
    return replace(one, features=(one.features + noise).astype(np.float16))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda one: replace(one, boxes=one.boxes / 2), "the boxes differ"),
        (lambda one: replace(one, features=one.features[::-1].copy()), "boxes agree and features do not"),
        (noisy, "much alike"),
        (lambda one: replace(one, features=one.features * np.float16(1.5)), "much alike"),
        (lambda one: replace(one, width=one.height, height=one.width), "differ in size"),
        (lambda one: make_regions(one.image_id, 0, feature_dim=16), "the boxes differ"),
    ],
)
def test_what_differs_is_said(first: RegionStore, tmp_path: Path, change: object, words: str) -> None:
    assert words in compare_stores(first, other(tmp_path, change)).verdict


def test_a_sample_is_enough(first: RegionStore, tmp_path: Path) -> None:
    found = compare_stores(first, other(tmp_path, lambda one: one), most=3)
    assert (found.shared, found.images, found.regions[0]) == (10, 3, 18)


def test_stores_that_cannot_be_compared(first: RegionStore, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image in common"):
        compare_stores(first, other(tmp_path, lambda one: replace(one, image_id=f"COCO_{one.image_id}")))
    small = write(tmp_path / "small.h5", [make_regions("1", 2)], dim=3)
    with pytest.raises(UserError, match="dimensions are 16 and 3"):
        compare_stores(first, small)


def test_the_command(first: RegionStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other(tmp_path, reordered)
    assert main(["compare", str(tmp_path / "first.h5"), str(tmp_path / "second.h5")]) == 0
    printed = capsys.readouterr().out
    assert "10, 10 of them looked at" in printed and "the same features, rounding aside" in printed
    assert main(["compare", str(tmp_path / "first.h5"), str(tmp_path / "none.h5")]) == 1
    capsys.readouterr()
    for unread in (["comp\x1b[31m"], ["compare", "--images", "x\x1b[31m", "a", "b"], ["info", "a", "--\x1b[31m"]):
        assert main(unread) == 1
        (sentence,) = capsys.readouterr().err.splitlines()
        assert sentence.startswith("error: ") and r"\x1b[31m" in sentence and sentence.isprintable()
