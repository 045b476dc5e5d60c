"""Caption files of the demo world in the layouts of the Karpathy splits and of NoCaps."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tests.demo.samples import assert_five_true_sentences
from vinvl.demo.files import NOVEL_SHAPE, CaptionedImage, domain, karpathy_layout, nocaps_file
from vinvl.demo.scene import SHAPES, Scene, sample_scene
from vinvl.demo.sentences import describe_shape

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """The scenes of a default world's val."""
    ids = range(200_001, 200_001 + 300)
    return [sample_scene(image_id, np.random.default_rng([0, image_id, 0])) for image_id in ids]


def test_a_tenth_of_train_and_of_nothing_else_is_restval() -> None:
    images = [CaptionedImage(number, split, ("a star",)) for split in SPLITS for number in range(100)]
    layout = karpathy_layout(images, "images")
    assert Counter(image["split"] for image in layout["images"]) == {
        "train": 90, "restval": 10, "val": 100, "test": 100,
    }  # fmt: skip


def test_every_domain_of_a_default_world_has_pictures_enough(scenes: list[Scene]) -> None:
    counts = Counter(map(domain, scenes))
    assert set(counts) == {"in-domain", "near-domain", "out-domain"}
    assert min(counts.values()) >= 20
    for scene in scenes:
        share = np.mean([thing.shape == NOVEL_SHAPE for thing in scene.objects])
        expected = "in-domain" if share == 0 else "out-domain" if share >= 0.5 else "near-domain"
        assert domain(scene) == expected


def test_captions_near_domain_name_known_things_and_out_of_domain_mostly_novel_ones(scenes: list[Scene]) -> None:
    images = [CaptionedImage(scene.image_id, "val", ("a",)) for scene in scenes]
    made = nocaps_file(scenes, images, np.random.default_rng(0))
    domains = {entry["id"]: entry["domain"] for entry in made["images"]}
    known: dict[object, list[bool]] = {}
    for entry in made["annotations"]:
        names_known = any(shape in str(entry["caption"]) for shape in SHAPES if shape != NOVEL_SHAPE)
        known.setdefault(domains[entry["image_id"]], []).append(names_known)
    assert np.mean(known["near-domain"]) > 0.55
    assert np.mean(known["out-domain"]) < 0.25


@pytest.mark.parametrize("more_of_it", [True, False])
def test_descriptions_of_a_shape_are_true(scenes: list[Scene], more_of_it: bool) -> None:
    numbers = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    for scene in scenes:
        for shape in {thing.shape for thing in scene.objects}:
            sentences = describe_shape(scene, shape, more_of_it, np.random.default_rng(scene.image_id))
            assert_five_true_sentences(scene, sentences)
            count = sum(thing.shape == shape for thing in scene.objects)
            assert f"{numbers[count - 1]} {shape}" in sentences[1]
            assert f"{numbers[len(scene.objects) - 1]} objects" in sentences[1]
