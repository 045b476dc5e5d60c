"""COCO instances files: what is read of them, what is refused, and what becomes of pictures and boxes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.reader_checks import BROKEN_FILES, refusal
from tests.detector.coco_samples import SIZES, instances, write
from tests.picture_samples import gradient, save, truncated, with_orientation
from vinvl.data.sampling import Draw
from vinvl.detector import DetectorConfig
from vinvl.detector.data import Augmentation, DetectionDataModule, DetectionDataset, mirrored, network_boxes
from vinvl.detector.instances import InstanceOptions, read_instances
from vinvl.detector.records import PictureRecords
from vinvl.pictures import ReadingOptions
from vinvl.regions.regions import LabelMap

NAMES = LabelMap(("__background__", "cat", "dog"), ("__no_attribute__", "black", "small"))
STRICT, LENIENT = InstanceOptions(), InstanceOptions(bad_boxes="clip", on_missing="skip")


def records(folder: Path, content: Any = None, options: InstanceOptions = STRICT) -> PictureRecords:
    path, pictures = write(folder, content)
    return read_instances(path, pictures, None, options)[0]


def test_what_is_read(tmp_path: Path) -> None:
    path, pictures = write(tmp_path)
    found, labels = read_instances(path, pictures, None, STRICT)
    assert labels == NAMES  # in the order of their ids
    assert list(found["image_id"]) == ["1", "2", "7", "9"] and found.path(1) == pictures / "sub" / "002.png"
    assert found.sizes.tolist() == [list(size) for size in SIZES.values()]
    assert found.objects(0).boxes.tolist() == [[0, 0, 40, 30]]
    assert found.objects(1).boxes.tolist() == [[1, 2, 11, 22.5], [5, 5, 25, 25]]
    assert found.objects(1).labels.tolist() == [2, 1] and found.objects(1).crowd.tolist() == [False, True]
    assert found.objects(2).boxes.tolist() == [[0, 10, 50, 11]]  # half a pixel too wide on either side
    assert found.objects(0).attributes.tolist() == [[1]] and found.objects(1).attributes.tolist() == [[2, 1], [0, 0]]
    assert found.objects(2).attributes.shape == (1, 0) and len(found.objects(3).labels) == 0


def test_attributes_by_name_alone_and_sizes_from_the_pictures(tmp_path: Path) -> None:
    content = instances()
    del content["attributes"]
    content["annotations"][0]["attributes"] = ["small", "black"]
    for image in content["images"]:
        del image["width"], image["height"]
    path, pictures = write(tmp_path, content)
    found, labels = read_instances(path, pictures, None, STRICT)
    assert labels == NAMES and found.sizes.tolist() == [list(size) for size in SIZES.values()]
    content["attributes"] = ["small", "black"]  # with the ids 1 and 2
    content["annotations"][0]["attributes"] = [1, "black"]
    path, pictures = write(tmp_path, content)
    found, labels = read_instances(path, pictures, None, STRICT)
    assert labels.attributes == ("__no_attribute__", "small", "black")
    assert found.objects(1).attributes[0].tolist() == [1, 2]


def test_no_attributes_at_all(tmp_path: Path) -> None:
    content = instances()
    del content["attributes"]
    for annotation in content["annotations"]:
        annotation.pop("attributes", None)
    path, pictures = write(tmp_path, content)
    found, labels = read_instances(path, pictures, None, STRICT)
    assert labels.attributes == ("__no_attribute__",) and found.objects(1).attributes.shape == (2, 0)


@pytest.mark.filterwarnings("ignore:.*bad_boxes=clip")
def test_boxes_are_clipped_where_that_is_asked_for(tmp_path: Path) -> None:
    content = instances()
    content["annotations"][0]["bbox"] = [-5, 2, 10, 100]
    content["annotations"][1]["bbox"] = [50, 2, 10, 10]  # outside
    content["annotations"][3]["bbox"] = [5, 5, 0, 3]  # no area
    found = records(tmp_path, content, LENIENT)
    assert found.objects(1).boxes.tolist() == [[0, 2, 5, 60], [5, 5, 25, 25]]
    assert len(found.objects(0).labels) == len(found.objects(2).labels) == 0
    assert found.objects(1).attributes[0].tolist() == [2, 1]


def of_boxes(*boxes: list[float], size: tuple[int, int] = (640, 480), images: int = 1) -> Any:
    """A file with images of one size that share out the boxes."""
    content = instances()
    sides = {"width": size[0], "height": size[1]}
    content["images"] = [{"id": number, "file_name": "sub/001.png", **sides} for number in range(images)]
    content["annotations"] = [
        {"image_id": index % images, "category_id": 5, "bbox": box} for index, box in enumerate(boxes)
    ]
    return content


def many(*factors: float, corners: bool = False) -> list[list[float]]:
    drawn = np.random.default_rng(0).uniform(0.05, 0.5, (40, 4))
    drawn[:, 2:] += drawn[:, :2] if corners else 0
    return (drawn * np.array(factors * 2)).tolist()


@pytest.mark.filterwarnings("ignore:.*bad_boxes=clip")
def test_boxes_in_other_units_are_refused(tmp_path: Path) -> None:
    both = (STRICT, LENIENT)
    for content, words, refusing in (
        (of_boxes(*many(1, 1)), "in shares of the image", both),
        (of_boxes([0.1, 0.2, 0.9, 0.8], size=(20, 30)), "in shares of the image", both),
        (of_boxes(*many(1, 1)[:10], *many(600, 400)[:10], images=20), "in shares", both),
        (of_boxes([0, 0, 1, 1], *many(600, 400)), "", ()),
        (of_boxes([0, 0, 1, 1], [0, 0, 0.5, 1], size=(16, 10)), "", ()),
        (of_boxes(*many(100, 100)), "not in per cent of the image", both),
        (of_boxes(*many(100, 100)[:8]), "", ()),  # objects may well lie in a corner
        (of_boxes(*many(640, 480, corners=True)), "as x1, y1, x2, y2", (LENIENT,)),
        (of_boxes(*many(128, 96, corners=True)[:9], size=(128, 96)), "as x1, y1, x2, y2", (LENIENT,)),
        (of_boxes(*many(2000, 2000)), "of another size of them", (LENIENT,)),
        (of_boxes(*many(640, 480)), "", ()),
    ):
        for options in both:
            path, pictures = write(tmp_path, content)
            if options in refusing:
                assert words in refusal(read_instances, path, pictures, None, options)
            elif not words:
                assert read_instances(path, pictures, None, options)[0].counts().sum() == len(content["annotations"])


def test_attributes_as_cvat_writes_them_and_pictures_by_whole_paths_and_links(tmp_path: Path) -> None:
    content = instances()
    del content["attributes"]
    for annotation in content["annotations"]:
        annotation["attributes"] = {"occluded": annotation["id"] == 11, "truncated": False, "rotation": 1.0}
    content["images"][1]["file_name"] = str(tmp_path / "pictures" / "sub" / "002.png")
    path, pictures = write(tmp_path, content)
    (pictures / "sub").rename(tmp_path / "elsewhere")
    (pictures / "sub").symlink_to(tmp_path / "elsewhere")
    found, labels = read_instances(path, pictures, None, STRICT)
    assert labels.attributes[1:] == ("occluded",) and len(found) == 4
    assert [found.objects(index).attributes.tolist() for index in (0, 1)] == [[[1]], [[], []]]


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ({"occluded": True, "truncated": False, "rotation": 12.5, "age": 3, "note": None}, ["occluded"]),
        ({"colour": "red", "shape": " round ", "text": "", "kind": "__undefined__"}, ["colour=red", "shape=round"]),
        ({"difficult": "true", "crowd": "False", "group": "TRUE"}, ["difficult", "group"]),  # check boxes as text
        ({"keyframe": True, "outside": True, "track_id": 4, "occluded": True}, ["occluded"]),  # of a video
        ({}, []),
        (["black", "small"], ["black", "small"]),
    ],
)
def test_attributes_of_an_object_become_names(said: Any, names: list[str], tmp_path: Path) -> None:
    content = instances()
    del content["attributes"]
    for annotation in content["annotations"]:
        annotation["attributes"] = said if annotation["id"] == 11 else None
    path, pictures = write(tmp_path, content)
    found, labels = read_instances(path, pictures, None, STRICT)
    assert list(labels.attributes[1:]) == sorted(names)
    (index,) = {index for index in range(len(found)) if found.objects(index).attributes.any()} or {0}
    told = {labels.attributes[number] for number in found.objects(index).attributes.ravel().tolist() if number}
    assert told == set(names)


def test_pictures_are_turned_or_not_as_the_annotations_want_it(tmp_path: Path) -> None:
    content = instances()
    for image in content["images"]:
        image["file_name"] = "turned.jpg"
        del image["width"], image["height"]
    content["annotations"] = content["annotations"][1:2]
    with_orientation(tmp_path / "pictures" / "turned.jpg", 6)
    for turning, size, box in (("apply", [30, 40], [0, 0, 30, 40]), ("ignore", [40, 30], [0, 0, 40, 30])):
        content["annotations"][0]["bbox"] = box
        path, pictures = write(tmp_path, content)
        reading = ReadingOptions(exif_orientation=turning)
        found, labels = read_instances(path, pictures, None, InstanceOptions(reading=reading))
        assert found.sizes[0].tolist() == size
        example = DetectionDataset(found, CONFIG, labels, None, 0, reading)[Draw(0, 0)]
        assert example.original_size == tuple(size)
        other = DetectionDataset(found, CONFIG, labels, None, 0, replace(reading, exif_orientation="ignore"))
        if turning == "apply":
            assert "data.reading.exif_orientation=ignore" in refusal(other.__getitem__, Draw(0, 0))
    save(pictures / "turned.jpg", gradient(100, 100))
    few = InstanceOptions(reading=ReadingOptions(max_pixels=9000))
    assert "and max_pixels is 9,000" in refusal(read_instances, path, pictures, None, few)


def changed(place: str, value: Any) -> Any:
    """The sample file with one value changed; `...` removes it."""
    content = instances()
    *path, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    target: Any = content
    for key in path:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value
    return content


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("images", ..., "missing required field `images` at $; give a COCO instances file"),
        ("images", [], "holds no images"),
        ("annotations", {}, "got `object` at $.annotations; give a COCO instances file"),
        ("categories", ..., "missing required field `categories`"),
        ("categories", [], "of length >= 1 at $.categories"),
        ("categories.0.name", "cat", "category 2 has the name 'cat' of another"),
        ("categories.0.id", 2, "category 2 has the id 2 of another"),
        ("categories.0.id", "5", "got `str` at $.categories[0].id"),
        ("categories.0.name", " ", "that is not blank at $.categories[0].name"),
        ("attributes", "small", "got `str` at $.attributes"),
        ("attributes.0", 7, "got `int` at $.attributes[0]"),
        ("attributes.0", "", "that is not blank at $.attributes[0]"),
        ("images.1", 3, "got `int` at $.images[1]"),
        ("images.1.id", 1, "image 2 has the image_id 1 of"),
        ("images.1.id", "1", "image 2 has the image_id 1 of"),
        ("images.1.id", ..., "missing required field `id` at $.images[1]"),
        ("images.1.file_name", "", "that is not blank at $.images[1].file_name"),
        ("images.1.file_name", 5, "got `int` at $.images[1].file_name"),
        ("images.1.file_name", "sub/../sub/002.png", "image 2: the file_name 'sub/../sub/002.png' leads out of"),
        ("images.1.file_name", "../instances.json", "leads out of"),
        ("images.1.file_name", "/etc/passwd", "leads out of"),
        ("images.1.file_name", "a\0.png", "leads out of"),
        ("images.1.width", 0, ">= 1 at $.images[1].width"),
        ("images.1.height", 2**31, "at $.images[1].height"),
        ("images.1.height", "60", "got `str` at $.images[1].height"),
        ("images.1.width", ..., "image 2 has one of width and height"),
        ("annotations.2", None, "got `null` at $.annotations[2]"),
        ("annotations.2.image_id", 8, "annotation 3 (id 12) is of the image 8"),
        ("annotations.2.image_id", ..., "missing required field `image_id` at $.annotations[2]"),
        ("annotations.2.category_id", 3, "annotation 3 (id 12) is of the category_id 3"),
        ("annotations.2.category_id", [2], "got `array` at $.annotations[2].category_id"),
        ("annotations.2.bbox", ..., "missing required field `bbox` at $.annotations[2]"),
        ("annotations.2.bbox", [1, 2, 3], "of length 4, got 3 at $.annotations[2].bbox"),
        ("annotations.2.bbox", [1, 2, 3, True], "got `bool` at $.annotations[2].bbox[3]"),
        ("annotations.2.bbox", [1, 2, 3, 1e9], "at $.annotations[2].bbox[3]"),
        ("annotations.2.bbox", [1, 2, 3, float("nan")], "at $.annotations[2].bbox[3]"),
        ("annotations.2.bbox", [1, 2, 3, 10**400], "at $.annotations[2].bbox[3]"),
        ("annotations.2.bbox", [1, 2, 0, 5], "has no area"),
        ("annotations.2.bbox", [1, 2, -3, 5], "has no area"),
        ("annotations.2.bbox", [40, 2, 3, 5], "annotation 3 (id 12): the bbox [40.0, 2.0, 3.0, 5.0] is not within its"),
        ("annotations.2.bbox", [20, 2, 12, 5], "is not within its image of 30 × 60"),
        ("annotations.2.bbox", [20, -2, 5, 5], "is not within its image of 30 × 60"),
        ("annotations.2.bbox", [10, 20, 20, 50], "is not within its image of 30 × 60 (its corners would be"),
        ("annotations.2.iscrowd", "0", "got `str` at $.annotations[2].iscrowd"),
        ("annotations.2.iscrowd", 2, "<= 1 at $.annotations[2].iscrowd"),
        ("annotations.0.attributes", "small", "got `str` at $.annotations[0].attributes"),
        ("annotations.0.attributes", {"small": ["yes"]}, "got `array` at $.annotations[0].attributes[...]"),
        ("annotations.0.attributes", {"size": "large"}, "the attribute 'size=large', which is none of"),
        ("annotations.0.attributes", [4], "annotation 1 (id 10) has the attribute 4, which is none"),
        ("annotations.0.attributes", [None], "got `null` at $.annotations[0].attributes[0]"),
        ("annotations.0.attributes", ["large"], "the attribute 'large', which is none of the file's"),
    ],
)
def test_bad_records_are_refused(tmp_path: Path, place: str, value: Any, words: str) -> None:
    path, pictures = write(tmp_path, changed(place, value))
    sentence = refusal(read_instances, path, pictures, None, STRICT)
    assert sentence.startswith(str(path)) and words in sentence, sentence


def test_bad_files_and_options_are_refused(tmp_path: Path) -> None:
    _, pictures = write(tmp_path)
    path = tmp_path / "broken.json"
    assert "does not exist" in refusal(read_instances, path, pictures, None, STRICT)
    for content, _words in BROKEN_FILES:
        path.write_bytes(content)
        assert refusal(read_instances, path, pictures, None, STRICT).startswith(str(path))
    assert "data.bad_boxes='drop'" in refusal(InstanceOptions, bad_boxes="drop")
    assert "data.on_missing='ignore'" in refusal(InstanceOptions, on_missing="ignore")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 50) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
PLACES = [
    *("images", "annotations", "categories", "attributes", "images.1", "annotations.0", "categories.1", "attributes.0"),
    *("images.1.id", "images.1.file_name", "images.1.width", "categories.0.name"),
    *(f"annotations.0.{key}" for key in ("bbox", "attributes", "image_id", "iscrowd")),
]


@settings(max_examples=150, deadline=None)
@given(place=st.sampled_from(PLACES), value=ANYTHING)
def test_any_value_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, place: str, value: Any) -> None:
    folder = tmp_path_factory.getbasetemp() / "any"
    folder.mkdir(exist_ok=True)
    path, pictures = write(folder, changed(place, value))
    try:
        read_instances(path, pictures, None, STRICT)
    except Exception as error:
        assert type(error).__name__ == "UserError" and "\n" not in str(error), error


CONFIG = DetectorConfig(min_size=60, max_size=200)


def dataset(folder: Path, augmentation: Augmentation | None = None) -> DetectionDataset:
    return DetectionDataset(records(folder), CONFIG, NAMES, augmentation, seed=3)


def test_examples_are_resized_with_their_boxes(tmp_path: Path) -> None:
    found = dataset(tmp_path)
    example = found[Draw(0, 1)]
    assert example.pixels.shape == (120, 60, 3) and example.pixels.dtype == torch.uint8
    assert example.original_size == (30, 60) and example.index == 1
    # The crowd is not learnt from; the last pixel counts in, before the picture is resized.
    assert example.objects.boxes.tolist() == [[2, 4, 20, 43]] and example.objects.labels.tolist() == [2]
    assert example.objects.attributes.tolist() == [[2, 1]]
    assert example.truth.boxes.tolist() == [[1, 2, 11, 22.5], [5, 5, 25, 25]]
    assert len(found[Draw(0, 2)].objects.labels) == 0  # one pixel high: it could not be found
    assert len(found[Draw(0, 3)].objects.labels) == 0


def test_flipped_pictures_have_flipped_boxes(tmp_path: Path) -> None:
    plain, flipped = dataset(tmp_path)[Draw(0, 1)], dataset(tmp_path, Augmentation(flip_probability=1.0))[Draw(0, 1)]
    assert torch.equal(flipped.pixels, plain.pixels.flip(1))
    assert flipped.objects.boxes.tolist() == [[60 - 1 - 20, 4, 60 - 1 - 2, 43]]
    torch.testing.assert_close(mirrored(flipped.objects.boxes, 60), plain.objects.boxes)
    assert flipped.truth.boxes.tolist() == plain.truth.boxes.tolist()


def test_what_is_random_follows_from_epoch_and_item(tmp_path: Path) -> None:
    random = dataset(tmp_path, Augmentation(0.5, (30, 60, 90)))
    shapes = [tuple(random[Draw(epoch, 0)].pixels.shape[:2]) for epoch in range(40)]
    assert set(shapes) == {(30, 40), (60, 80), (90, 120)}
    flips = [bool(random[Draw(epoch, 0)].pixels[0, 0, 0] > 128) for epoch in range(40)]  # red grows to the right
    assert 8 < sum(flips) < 32
    for epoch in range(5):
        assert torch.equal(random[Draw(epoch, 0)].pixels, random[Draw(epoch, 0)].pixels)


def test_pictures_may_be_larger_in_training_than_in_use(tmp_path: Path) -> None:
    """Recipes train with sides of up to 1333 pixels what is used with up to 1000; the shorter side follows."""
    larger = dataset(tmp_path, Augmentation(0.0, (60, 90), 100))
    shapes = {tuple(larger[Draw(epoch, 0)].pixels.shape[:2]) for epoch in range(20)}
    assert shapes == {(60, 80), (75, 100)}  # of 30 × 40, where the detector's are 60 and 200
    data = module(tmp_path, min_sizes=[60, 230], max_size=240)
    data.setup("fit")
    drawn = data.datasets["train"]._drawn(Draw(0, 0))[0]
    assert drawn.max_size == 240 and drawn.min_size in (60, 230)
    assert data.datasets["val"]._drawn(Draw(0, 0))[0] == CONFIG
    assert "data.min_sizes or detector.min_size has 230, and the longer side at most 200" in refusal(
        module, tmp_path, min_sizes=[60, 230]
    )


def test_boxes_of_the_network_are_those_of_the_published_code() -> None:
    """Its BoxList turns x, y, width, height into corners that count the last pixel in, then multiplies them."""
    boxes = np.array([[10.0, 20, 30, 50]])
    assert network_boxes(boxes, (100, 100), (200, 150)).tolist() == [[20, 30, 58, 73.5]]


def test_pictures_of_another_size_are_refused(tmp_path: Path) -> None:
    found = dataset(tmp_path)
    save(tmp_path / "pictures" / "sub" / "001.png", gradient(30, 40))
    assert "is 30 × 40 pixels, and" in refusal(found.__getitem__, Draw(0, 0))
    truncated(tmp_path / "pictures" / "sub" / "001.png")
    assert "cut off or damaged" in refusal(found.__getitem__, Draw(0, 0))


def test_batches_pad_and_give_back(tmp_path: Path) -> None:
    found = dataset(tmp_path)
    examples = [found[Draw(0, index)] for index in range(4)]
    batch = found.collate(examples)
    assert len(batch) == batch.num_items == 4 and batch.padded.shape == (4, 120, 120, 3)
    assert batch.counts == (1, 1, 0, 0) and batch.joined.attributes.tolist() == [[1, 0], [2, 1]]
    for picture, objects, example in zip(batch.pictures(), batch.objects(), examples, strict=True):
        assert torch.equal(picture, example.pixels)
        assert torch.equal(objects.boxes, example.objects.boxes) and len(objects.labels) == len(example.objects.labels)
    assert batch.padded[0, 60:].eq(0).all() and batch.padded[0, :, 80:].eq(0).all()
    moved = batch.to("meta")
    assert moved.padded.device.type == moved.joined.labels.device.type == "meta" and moved.truths is batch.truths


def test_like_shapes_come_together(tmp_path: Path) -> None:
    lengths = dataset(tmp_path).lengths()
    assert lengths.argsort().tolist() == [1, 2, 0, 3]  # 1:2, 1:1, 4:3, 2:1
    assert (lengths >= 0).all()


def test_batches_of_one_orientation(tmp_path: Path) -> None:
    data = module(tmp_path, group_by="orientation", batch_size=3, empty_pictures="keep")
    data.setup("fit")
    assert data.datasets["train"].lengths().tolist() == [0, 1, 1, 0]  # 4:3, 1:2, 1:1, 2:1
    batches = sorted(sorted(batch.indices) for batch in data.train_dataloader())  # type: ignore[attr-defined]
    assert batches == [[0, 3], [1, 2]]
    assert data.datasets["val"].lengths().max() > 1
    assert refusal(module, tmp_path, group_by="size") == "data.group_by='size' is unknown: give shape or orientation."


def module(folder: Path, **changes: Any) -> DetectionDataModule:
    annotations, pictures = write(folder)
    split = {"annotations": str(annotations), "pictures": str(pictures)}
    arguments: dict[str, Any] = {
        "splits": {"train": split, "val": split}, "detector": CONFIG, "label_map": None, "train_split": "train",
        "val_split": "val", "test_split": "val", "empty_pictures": "skip", "bad_boxes": "refuse", "on_missing": "error",
        "flip_probability": 0.5, "min_sizes": None, "batch_size": 2, "eval_batch_size": 2, "num_workers": 0,
        "pin_memory": False, "seed": 5, "prepare": None,
    }  # fmt: skip
    return DetectionDataModule(**{**arguments, **changes})


def test_the_module_reads_splits_and_deals_batches(tmp_path: Path) -> None:
    data = module(tmp_path)
    data.setup("fit")
    assert data.label_map == NAMES and set(data.datasets) == {"train", "val"}
    assert len(data.datasets["train"]) == 3 and len(data.datasets["val"]) == 4  # one picture has no objects
    seen = [index for batch in data.train_dataloader() for index in batch.indices]  # type: ignore[attr-defined]
    assert sorted(seen) == [0, 1, 2]
    goes_on = data.train_dataloader()
    goes_on.batch_sampler.position = 1  # type: ignore[union-attr]
    rest = [index for batch in goes_on for index in batch.indices]  # type: ignore[attr-defined]
    assert rest[: len(seen[2:])] == seen[2:]
    scored = [index for batch in data.val_dataloader() for index in batch.indices]  # type: ignore[attr-defined]
    assert sorted(scored) == [0, 1, 2, 3]
    text = data.example_text("train", 1)
    assert (
        "of 3" in text
        and "002.png: 30 × 60, resized to 60 × 120" in text
        and "  small black dog at 1, 2, 11, 22" in text
    )
    crowded, content = module(tmp_path), instances()
    content["annotations"].append({"image_id": 9, "category_id": 2, "bbox": [1, 1, 9, 9], "iscrowd": 1})
    write(tmp_path, content)
    crowded.setup("fit")
    assert len(crowded.datasets["train"]) == 3  # a crowd is nothing to learn from
    keeping = module(tmp_path, empty_pictures="keep")
    keeping.setup("fit")
    assert len(keeping.datasets["train"]) == 4


def test_a_label_map_file_gives_the_order(tmp_path: Path) -> None:
    names = LabelMap(("__background__", "dog", "cat"), NAMES.attributes)
    (tmp_path / "labels.json").write_text(names.to_json())
    data = module(tmp_path, label_map=str(tmp_path / "labels.json"))
    data.setup("test")
    assert data.label_map == names and data.datasets["test"].records.objects(1).labels.tolist() == [1, 2]


def test_module_refusals(tmp_path: Path) -> None:
    assert "data.empty_pictures='drop'" in refusal(module, tmp_path, empty_pictures="drop")
    assert "data.flip_probability=2" in refusal(module, tmp_path, flip_probability=2)
    assert "no split 'dev'" in refusal(module(tmp_path, val_split="dev").setup, "fit")
    files = {"annotations": "a.json", "pictures": None}
    assert "data.splits.train has no pictures" in refusal(module(tmp_path, splits={"train": files}).setup, "fit")
    nothing = changed("annotations", [])
    data = module(tmp_path)
    write(tmp_path, nothing)
    assert "no annotated objects" in refusal(data.setup, "fit")


def test_the_demo_world_as_instances(demo_data: Path) -> None:
    from tests.conftest import TINY_WORLD
    from vinvl.demo.world import ensure_demo_instances
    from vinvl.run.files import read_json

    world = ensure_demo_instances(demo_data / "demo", seed=0, **TINY_WORLD)
    found, labels = read_instances(world.instances("val"), world.images, None, STRICT)
    assert labels.classes == ("__background__", "circle", "square", "triangle", "star")
    assert len(found) == TINY_WORLD["num_val_images"] and found.sizes.tolist()[0] == [200, 150]
    scene = read_json(world.scenes("val"))["scenes"][2]
    assert found["image_id"][2] == str(scene["image_id"])
    for index, thing in enumerate(scene["objects"]):
        assert labels.classes[found.objects(2).labels[index]] == thing["shape"]
        assert [labels.attributes[one] for one in found.objects(2).attributes[index]] == [
            thing["colour"],
            thing["texture"],
        ]
        centre = (found.objects(2).boxes[index, :2] + found.objects(2).boxes[index, 2:]) / 2
        assert centre.tolist() == pytest.approx([thing["x"], thing["y"]], abs=0.02)
    dataset = DetectionDataset(found, replace(CONFIG, min_size=150), labels, None, 0)
    assert dataset[Draw(0, 2)].pixels.shape == (150, 200, 3)
