"""The demo's four sets for detectors, read as the real ones are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.demo.samples import content
from vinvl.demo.detection_sets import (
    COCO_KINDS,
    MARKER,
    NEW_KINDS,
    OTHER_WORDS,
    RARE,
    VG_KINDS,
    SetSizes,
    class_name,
    ensure_detection_sets,
)
from vinvl.demo.scene import PAINTS, SIZE_RADII, TEXTURES
from vinvl.detector.annotations import open_annotations
from vinvl.detector.conversion import ConversionSettings, convert_annotations
from vinvl.run.errors import UserError

SIZES = SetSizes(visual_genome=40, visual_genome_val=3, visual_genome_test=40, coco=20, objects365=20, open_images=20)
SOURCES = {
    "visual_genome": (["visual_genome"], "visual_genome"),
    "coco": (["coco/instances_train2017.json", "coco/stuff_train2017.json"], "coco/train2017"),
    "objects365": (["objects365/objects365_train.json"], "objects365/train"),
    "open_images": (["open_images"], "open_images/train"),
}
CLASSES = {
    "visual_genome": len(VG_KINDS),
    "coco": len(COCO_KINDS),
    "objects365": 4 + len(NEW_KINDS) + len(RARE),
    "open_images": len(VG_KINDS),
}
OWN_SHAPE = {other: shape for shape, other in OTHER_WORDS.items()}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sets") / "demo"
    ensure_detection_sets(folder, SIZES)
    return folder


@pytest.mark.parametrize("name", SOURCES)
def test_each_set_is_read_as_the_real_one_and_names_what_its_pictures_show(
    name: str, sets: Path, tmp_path: Path
) -> None:
    files, pictures = SOURCES[name]
    settings = ConversionSettings(
        label_map=str(sets / "vocabulary/VG-SGG-dicts.json") if name == "visual_genome" else None
    )
    target = tmp_path / "set.arrow"
    convert_annotations([sets / one for one in files], sets / pictures, target, settings)
    records, labels = open_annotations(target)
    assert len(labels.classes) - 1 == CLASSES[name]
    checked = 0
    for index, file_name in enumerate(records["file_name"]):
        with Image.open(sets / pictures / file_name) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        objects = records.objects(index)
        assert 3 <= len(objects.labels) <= 10
        for box, label in zip(objects.boxes, objects.labels, strict=True):
            colour, shape = labels.classes[label].lower().split()
            assert OWN_SHAPE.get(shape, shape) in OTHER_WORDS
            x1, y1, x2, y2 = box.round().astype(int)
            middle = pixels[(y1 + y2) // 2 - 2 : (y1 + y2) // 2 + 3, (x1 + x2) // 2 - 2 : (x1 + x2) // 2 + 3]
            others = {paint: np.abs(middle - PAINTS[paint]).sum(axis=2).min() for paint in PAINTS}
            checked += min(others, key=lambda paint: others[paint]) == colour  # unless another thing lies before it
    assert checked > 0.9 * int(records.counts().sum())


def test_attributes_are_visual_genomes_alone_and_its_training_classes_are_rare(sets: Path) -> None:
    described = content(sets / "visual_genome/attributes.json")
    for picture in described:
        for one in picture["attributes"]:
            texture, size = one["attributes"]
            assert texture in TEXTURES and size in SIZE_RADII
    names = [one["names"][0] for picture in content(sets / "visual_genome/objects.json") for one in picture["objects"]]
    rare = sum(name in set(map(class_name, RARE)) for name in names)
    assert 0 < rare < 0.2 * len(names)
    tests = content(sets / "visual_genome_test/objects.json")
    alike = [one["names"][0] in set(map(class_name, RARE)) for picture in tests for one in picture["objects"]]
    assert 0.35 < np.mean(alike) < 0.65


def test_sets_are_made_once_and_never_in_the_place_of_something_else(sets: Path, tmp_path: Path) -> None:
    before = (sets / "coco/stuff_train2017.json").stat()
    ensure_detection_sets(sets, SIZES)
    assert (sets / "coco/stuff_train2017.json").stat() == before
    other = tmp_path / "sets"
    ensure_detection_sets(other, replace(SIZES, coco=5, objects365=2, open_images=2, visual_genome_test=2))
    assert len(content(other / "coco/stuff_train2017.json")["images"]) == 5
    ensure_detection_sets(other, replace(SIZES, coco=4, objects365=2, open_images=2, visual_genome_test=2))
    assert len(content(other / "coco/stuff_train2017.json")["images"]) == 4
    (other / MARKER).unlink()
    with pytest.raises(UserError, match="holds no demo sets"):
        ensure_detection_sets(other, SIZES)
