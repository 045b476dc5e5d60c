"""Data sets as they are downloaded → annotations in one form, through the door."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from tests.data.reader_checks import refusal
from tests.detector.coco_samples import instances, write
from tests.golden import FOLDER
from vinvl.convert import convert
from vinvl.demo.detection_sets import SetSizes, ensure_detection_sets
from vinvl.detector.annotations import annotated_pictures, open_annotations
from vinvl.detector.conversion import ConversionSettings, convert_annotations
from vinvl.detector.instances import InstanceOptions, read_instances
from vinvl.detector.records import PictureRecords
from vinvl.regions.regions import LabelMap
from vinvl.run.folders import config_directory

PLAIN = ConversionSettings()


def converted(
    source: Path, target: Path, pictures: Path | None = None, **options: Any
) -> tuple[PictureRecords, LabelMap]:
    convert_annotations([source], pictures, target, ConversionSettings(**options))
    return open_annotations(target)


def same(one: PictureRecords, other: PictureRecords) -> bool:
    """Whether two sets have the same pictures with the same objects."""
    for ours, theirs in zip(annotated_pictures(one), annotated_pictures(other), strict=True):
        for left, right in zip(ours, theirs, strict=True):
            if not (np.array_equal(left, right) if isinstance(left, np.ndarray) else left == right):
                return False
    return True


def test_both_roads_of_coco_give_the_same(tmp_path: Path) -> None:
    path, pictures = write(tmp_path)
    found, labels = converted(path, tmp_path / "set.arrow")
    direct, names = read_instances(path, pictures, None, InstanceOptions())
    assert labels == names and same(found, direct)


@pytest.fixture
def stuff(tmp_path: Path) -> Path:
    """A second file of two of the pictures and another one, its annotations first."""
    content = instances()
    content["images"] = [
        content["images"][2],
        content["images"][0],
        {"id": 12, "file_name": "sub/012.png", "width": 20, "height": 20},
    ]
    annotations = [
        {"id": 20, "image_id": 1, "category_id": 100, "bbox": [1, 1, 9, 9]},
        {"id": 21, "image_id": 12, "category_id": 101, "bbox": [1, 1, 9, 9]},
        {"id": 22, "image_id": 1, "category_id": 100, "bbox": [2, 2, 9, 9]},
    ]
    categories = [{"id": 101, "name": "sky"}, {"id": 100, "name": "other"}]
    other = {"annotations": annotations, "images": content["images"], "categories": categories}
    path = tmp_path / "stuff.json"
    path.write_text(json.dumps(other))
    return path


def test_things_and_stuff_are_joined_by_image(tmp_path: Path, stuff: Path) -> None:
    path, _ = write(tmp_path)
    convert_annotations([path, stuff], None, tmp_path / "both.arrow", PLAIN)
    found, labels = open_annotations(tmp_path / "both.arrow")
    assert labels.classes == ("__background__", "cat", "dog", "other", "sky")
    assert labels.attributes == ("__no_attribute__", "black", "small")
    assert list(found["image_id"]) == ["1", "2", "7", "9", "12"]
    assert [found.objects(index).labels.tolist() for index in range(5)] == [[1, 3, 3], [2, 1], [2], [], [4]]
    assert found.objects(0).boxes.tolist() == [[0, 0, 40, 30], [1, 1, 10, 10], [2, 2, 11, 11]]
    assert found.objects(0).attributes.tolist() == [[1], [0], [0]]


@pytest.mark.parametrize(
    ("key", "index", "change", "words"),
    [
        ("images", 0, {"width": 51}, "is 'sub/007.png' of 51 × 50, and in"),
        ("images", 0, {"file_name": "7.png"}, "is '7.png' of 50 × 50, and in"),
        ("images", 1, {"id": 12, "file_name": "sub/012.png"}, "image 3 has the image_id 12 of another one"),
        ("annotations", 2, {"image_id": 8}, "annotation 3 (id 22) is of the image 8"),
        ("annotations", 1, {"image_id": 2}, ""),  # an image of the other file alone
        ("annotations", 1, {"category_id": 5}, "the category_id 5, which is none of"),
        (
            "annotations",
            2,
            {"bbox": [35, 2, 9, 9]},
            "annotation 3 (id 22): the bbox [35.0, 2.0, 9.0, 9.0] is not within",
        ),
        ("categories", 0, {"name": "cat"}, "has the category 'cat' with the id 101, and a file before it with 2"),
        ("categories", 0, {"name": "cat", "id": 2}, ""),
    ],
)
def test_files_that_do_not_fit_together(
    tmp_path: Path, stuff: Path, key: str, index: int, change: dict[str, Any], words: str
) -> None:
    path, _ = write(tmp_path)
    content = json.loads(stuff.read_text())
    content[key][index] |= change
    if change.get("id") == 2:
        content["annotations"][1]["category_id"] = 2
    stuff.write_text(json.dumps(content))
    target = tmp_path / "both.arrow"
    if not words:
        assert convert_annotations([path, stuff], None, target, PLAIN)
        return
    sentence = refusal(convert_annotations, [path, stuff], None, target, PLAIN)
    assert words in sentence and sentence.startswith(str(stuff)) and not target.exists(), sentence


def test_some_is_left_out(tmp_path: Path, stuff: Path) -> None:
    (tmp_path / "ids.txt").write_text("12\n7\n100\n")
    told = convert_annotations(
        [stuff],
        None,
        tmp_path / "set.arrow",
        ConversionSettings(leave_out=["other"], without=str(tmp_path / "ids.txt")),
    )
    assert told[1].endswith(f"2 pictures by {tmp_path / 'ids.txt'}, 2 objects of other")
    found, labels = open_annotations(tmp_path / "set.arrow")
    assert labels.classes == ("__background__", "sky") and list(found["image_id"]) == ["1"]
    assert len(found.objects(0).labels) == 0
    only = ConversionSettings(only=str(tmp_path / "ids.txt"))
    assert convert_annotations([stuff], None, tmp_path / "only.arrow", only)[1].startswith("Left out: 1 pictures by")
    assert list(open_annotations(tmp_path / "only.arrow")[0]["image_id"]) == ["7", "12"]
    wrong = ConversionSettings(leave_out=["Other"])
    assert "there is no class 'Other'" in refusal(convert_annotations, [stuff], None, tmp_path / "x.arrow", wrong)


def test_what_cannot_be_converted(tmp_path: Path) -> None:
    path, _ = write(tmp_path)
    target = tmp_path / "set.arrow"
    assert "does not exist" in refusal(convert_annotations, [tmp_path / "none.json"], None, target, PLAIN)
    labelled = ConversionSettings(label_map=str(tmp_path / "labels.json"))
    (tmp_path / "labels.json").write_text('{"cat": 1}')
    assert "leave data.label_map out" in refusal(convert_annotations, [path], None, target, labelled)
    content = instances()
    del content["images"][0]["width"], content["images"][0]["height"]
    write(tmp_path, content)
    assert "give pictures=FOLDER too" in refusal(convert_annotations, [path], None, target, PLAIN)
    assert convert_annotations([path], tmp_path / "pictures", target, PLAIN)
    assert "exists already" in refusal(convert_annotations, [path], None, target, PLAIN)
    assert "data.bad_boxes='drop'" in refusal(ConversionSettings, bad_boxes="drop")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in refusal(convert_annotations, [empty], None, tmp_path / "x.arrow", PLAIN)


SIZES = SetSizes(visual_genome=6, visual_genome_test=1, coco=5, objects365=4, open_images=3)


def test_four_sets_go_through_the_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sets"
    ensure_detection_sets(folder, SIZES)
    coco = [folder / "coco" / f"{name}_train2017.json" for name in ("instances", "stuff")]
    given: dict[str, list[str]] = {
        "vg": [
            f"annotations={folder / 'visual_genome'}",
            f"data.label_map={folder / 'vocabulary' / 'VG-SGG-dicts.json'}",
        ],
        "coco": [f"annotations=[{coco[0]},{coco[1]}]", "data.bad_boxes=clip"],
        "o365": [f"annotations={folder / 'objects365' / 'objects365_train.json'}"],
        "oi": [f"annotations={folder / 'open_images'}", f"pictures={folder / 'open_images' / 'train'}"],
    }
    for name, overrides in given.items():
        with initialize_config_dir(config_dir=config_directory(), version_base="1.3"):
            convert(compose("convert", overrides=[*overrides, f"to={tmp_path / name}.arrow"]))
        assert (
            f"{name}.arrow: {len(open_annotations(tmp_path / f'{name}.arrow')[0])} pictures with"
            in capsys.readouterr().out
        )
    counts = {name: len(open_annotations(tmp_path / f"{name}.arrow")[0]) for name in given}
    assert counts == {"vg": 6, "coco": 5, "o365": 4, "oi": 3}
    found, labels = open_annotations(tmp_path / "vg.arrow")
    assert found["file_name"][0].startswith("VG_100K/") and "small" in labels.attributes


def test_a_tsv_set_is_told_by_its_content_and_keeps_its_repeats(tmp_path: Path) -> None:
    source, target = tmp_path / "tsv" / "train.yaml", tmp_path / "set.arrow"
    shutil.copytree(FOLDER / "detector_training" / "tsv", source.parent)
    told = convert_annotations([source], None, target, PLAIN)
    assert told[1].startswith(f"{tmp_path / 'set.linelist.tsv'}: 4 rows, as {source} repeats pictures: data.splits")
    found, labels = open_annotations(target)
    assert list(found["image_id"]) == ["picture_11_2", "picture_11_0", "picture_11_1"] and len(labels.classes) > 2
    assert (tmp_path / "set.linelist.tsv").read_text() == "0\n1\n0\n2\n"
    target.unlink()
    assert "set.linelist.tsv exists already" in refusal(convert_annotations, [source], None, target, PLAIN)
    assert not target.exists()
    (tmp_path / "ids.txt").write_text("picture_11_0\n")
    convert_annotations([source], None, tmp_path / "part.arrow", ConversionSettings(without=str(tmp_path / "ids.txt")))
    assert (tmp_path / "part.linelist.tsv").read_text() == "0\n0\n1\n"
    assert len(convert_annotations([source.with_name("val.yaml")], None, tmp_path / "val.arrow", PLAIN)) == 1
    assert not (tmp_path / "val.linelist.tsv").exists()


def test_objects365_has_more_fields_and_folders(tmp_path: Path) -> None:
    content = instances()
    for number, image in enumerate(content["images"]):
        image |= {"license": 5, "url": "", "file_name": f"images/v1/patch{number}/objects365_v1_0000{number}.jpg"}
    for annotation in content["annotations"]:
        annotation |= {
            "iscrowd": 0,
            "isfake": 0,
            "isreflected": 1,
            "area": 1.5,
            "bbox": [float(x) for x in annotation["bbox"]],
        }
        del annotation["id"]
    content["categories"] = [{"supercategory": "x", **one} for one in content["categories"]]
    order = ("licenses", "annotations", "categories", "images")
    path = tmp_path / "objects365_train.json"
    path.write_text(json.dumps({key: content.get(key, []) for key in order}).replace('"attributes"', '"more"'))
    found, labels = converted(path, tmp_path / "set.arrow")
    assert len(found) == 4 and found.counts().tolist() == [1, 2, 1, 0] and labels.attributes == ("__no_attribute__",)
    assert found["file_name"][1] == "images/v1/patch1/objects365_v1_00001.jpg"
