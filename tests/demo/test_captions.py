"""Caption files of the demo world in the layouts of the Karpathy splits and of NoCaps."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.demo.samples import assert_five_true_sentences, content
from vinvl.demo import DemoWorld
from vinvl.demo.files import NOVEL_SHAPE, CaptionedImage, domain, karpathy_layout, nocaps_file
from vinvl.demo.scene import SHAPES, Scene, sample_scene
from vinvl.demo.sentences import describe_shape

SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """The scenes of a default world's val."""
    ids = range(200_001, 200_001 + 300)
    return [sample_scene(image_id, np.random.default_rng([0, image_id, 0])) for image_id in ids]


def _captions(file: Path) -> dict[int, list[str]]:
    captions: dict[int, list[str]] = {}
    for entry in content(file)["annotations"]:
        captions.setdefault(entry["image_id"], []).append(entry["caption"])
    return captions


def _shapes(world: DemoWorld, split: str) -> dict[int, set[str]]:
    scenes = content(world.scenes(split))["scenes"]
    return {scene["image_id"]: {thing["shape"] for thing in scene["objects"]} for scene in scenes}


@pytest.mark.parametrize("name", ["karpathy", "nocaps_train"])
def test_ids_of_a_karpathy_file_are_consistent(world: DemoWorld, name: str) -> None:
    file = content(getattr(world, name))
    assert file.keys() == {"dataset", "images"}
    sentences = []
    for number, image in enumerate(file["images"]):
        assert image.keys() == {"filepath", "filename", "cocoid", "split", "imgid", "sentids", "sentences"}
        assert image["imgid"] == number
        assert (world.folder / image["filepath"] / image["filename"]).is_file()
        assert int(Path(image["filename"]).stem) == image["cocoid"]
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
        assert {sentence["imgid"] for sentence in image["sentences"]} == {number}
        sentences.extend(image["sentences"])
    assert [sentence["sentid"] for sentence in sentences] == list(range(len(sentences)))
    for sentence in sentences:
        assert sentence.keys() == {"raw", "tokens", "imgid", "sentid"}
        assert sentence["tokens"] == re.sub(r"[^a-z0-9 ]", "", sentence["raw"]).split()


def test_the_karpathy_file_holds_all_pictures_with_the_captions_they_have(world: DemoWorld) -> None:
    images = content(world.karpathy)["images"]
    expected = {split: _captions(world.captions(split)) for split in SPLITS}
    assert len(images) == sum(map(len, expected.values()))
    counts = Counter(image["split"] for image in images)
    assert counts["restval"] == (len(expected["train"]) + 8) // 10 > 0
    for image in images:
        split = "train" if image["split"] == "restval" else image["split"]
        assert [sentence["raw"] for sentence in image["sentences"]] == expected[split][image["cocoid"]]


def test_a_tenth_of_train_and_of_nothing_else_is_restval() -> None:
    images = [CaptionedImage(number, split, ("a star",)) for split in SPLITS for number in range(100)]
    layout = karpathy_layout(images, "images")
    assert Counter(image["split"] for image in layout["images"]) == {
        "train": 90, "restval": 10, "val": 100, "test": 100,
    }  # fmt: skip


def test_nocaps_training_neither_shows_nor_names_the_novel_shape(world: DemoWorld) -> None:
    shapes = _shapes(world, "train")
    images = content(world.nocaps_train)["images"]
    assert {image["cocoid"] for image in images} == {
        image_id for image_id, shown in shapes.items() if NOVEL_SHAPE not in shown
    }
    assert {image["split"] for image in images} == {"train", "restval"}
    assert not any(NOVEL_SHAPE in sentence["raw"] for image in images for sentence in image["sentences"])


def test_nocaps_val_has_domains_and_names_the_novel_shape_where_it_is(world: DemoWorld) -> None:
    file, shapes, given = content(world.nocaps_val), _shapes(world, "val"), _captions(world.captions("val"))
    captions = _captions(world.nocaps_val)
    assert [entry["id"] for entry in file["annotations"]] == list(range(1, len(file["annotations"]) + 1))
    assert [image["id"] for image in file["images"]] == list(shapes)
    for image in file["images"]:
        assert image.keys() == {"id", "file_name", "width", "height", "domain"}
        assert (world.images / image["file_name"]).is_file()
        mine = captions[image["id"]]
        assert len(set(mine)) == 5
        assert (image["domain"] == "in-domain") == (NOVEL_SHAPE not in shapes[image["id"]])
        if image["domain"] == "in-domain":
            assert mine == given[image["id"]]
        else:
            assert all(NOVEL_SHAPE in caption for caption in mine)


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
