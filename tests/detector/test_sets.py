"""Detection sets: several of them with one label map, pictures in folders and containers, and what is refused."""

import base64
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.reader_checks import refusal
from tests.detector.coco_samples import SIZES, instances, write
from tests.detector.test_data import CONFIG, NAMES, module
from tests.picture_samples import gradient, save, with_orientation
from vinvl.data.sampling import Draw
from vinvl.detector.annotations import AnnotatedPicture, write_annotations
from vinvl.detector.data import DetectionDataModule
from vinvl.detector.instances import InstanceOptions
from vinvl.detector.sampling import SetSampling
from vinvl.detector.sets import SetEntry, read_sets, used_rows
from vinvl.regions.regions import LabelMap

STRICT, LENIENT = InstanceOptions(), InstanceOptions(on_missing="skip", unknown_classes="drop")
OTHER_NAMES = LabelMap(("__background__", "Horse", "Dog", "T_shirt"))


def entry(path: Path, pictures: Path, **more: Any) -> SetEntry:
    (one,) = SetEntry.all_of({"annotations": str(path), "pictures": str(pictures), **more}, "data.splits.train")
    return one


def arrow(folder: Path, names: LabelMap = OTHER_NAMES, attributes: bool = False) -> Path:
    """Three of the pictures with 1, 2 and 3 objects of the classes 1, 1 2 and 1 2 3."""
    pictures = []
    for number, key in enumerate((7, 1, 2), start=1):
        boxes = np.array([[0, 0, 10 + place, 20] for place in range(number)], np.float32)
        named = [[1] if attributes else [] for _ in range(number)]
        labels = np.arange(1, number + 1, dtype=np.int32)
        pictures.append(
            AnnotatedPicture(str(key), f"sub/{key:03d}.png", *SIZES[key], boxes, labels, np.zeros(number, bool), named)
        )
    write_annotations(folder / "other.arrow", pictures, names, "a test")
    return folder / "other.arrow"


def test_names_of_a_label_map_give_the_indices(tmp_path: Path) -> None:
    path, pictures = write(tmp_path)
    other = LabelMap(("__background__", "horse", "dog", "cat"), ("__no_attribute__", "small", "old", "black"))
    found, labels, _ = read_sets([entry(path, pictures)], other, STRICT, "labels.json")
    assert labels == other and found.objects(1).labels.tolist() == [2, 3]
    assert found.objects(1).attributes.tolist() == [[1, 3], [0, 0]]
    without_dog = LabelMap(("__background__", "cat"), other.attributes)
    sentence = refusal(read_sets, [entry(path, pictures)], without_dog, STRICT, "labels.json")
    assert (
        "instances.json: image '2' has the class 'dog', which labels.json does not have (1 such: 'dog' 2)" in sentence
    )
    without_small = LabelMap(other.classes, ("__no_attribute__", "black"))
    sentence = refusal(read_sets, [entry(path, pictures)], without_small, STRICT, "labels.json")
    assert "image '2' has the attribute 'small', which labels.json does not" in sentence
    dropping = InstanceOptions(unknown_classes="drop", unknown_attributes="drop")
    nameless = LabelMap(("__background__", "cat"))
    found, _, (report,) = read_sets([entry(path, pictures)], nameless, dropping, "labels.json")
    assert found.objects(1).labels.tolist() == [1] and found.objects(1).crowd.tolist() == [True]
    assert found.objects(1).boxes.tolist() == [[5, 5, 25, 25]] and found.objects(0).attributes.shape == (1, 0)
    assert found.counts().tolist() == [1, 0, 0, 0]
    assert str(report) == (
        f"{path}: 4 pictures with 1 objects; classes: 1 names mapped, 1 left out ('dog' 2); "
        "attributes: 0 names mapped, 2 left out ('black' 2, 'small' 1)"
    )


def test_sets_are_joined_by_their_names(tmp_path: Path) -> None:
    path, pictures = write(tmp_path)
    both = [entry(path, pictures), entry(arrow(tmp_path), pictures)]
    found, labels, reports = read_sets(both, None, STRICT, "the sets")
    assert labels == LabelMap(("__background__", "cat", "dog", "Horse", "T_shirt"), NAMES.attributes)
    assert len(found) == 7 and [len(found.objects(index).labels) for index in range(7)] == [1, 2, 1, 0, 1, 2, 3]
    assert found.objects(6).labels.tolist() == [3, 2, 4] and found.objects(1).labels.tolist() == [2, 1]
    assert found.path(6) == pictures / "sub" / "002.png" and found.source(6).endswith("other.arrow")
    assert str(reports[1]).endswith(
        "3 pictures with 6 objects; classes: 1 names mapped, 2 new ('Horse' 3, 'T_shirt' 1)"
    )
    assert "classes: 2 names mapped; attributes: 2 names mapped" in str(reports[0])


def test_class_maps_say_what_names_stand_for(tmp_path: Path) -> None:
    path, pictures = write(tmp_path)
    vocabulary = LabelMap(("__background__", "animal", "shirt", "dog", "cat"), NAMES.attributes)
    (tmp_path / "class2ind.json").write_text(json.dumps({"horse": 1, "dog": 3, "t-shirt": 2, "unused": 4}))
    (tmp_path / "two.json").write_text(json.dumps({"horse": 1, "dog": 1, "t-shirt": 2}))  # two names of one set
    (tmp_path / "labelmap.tsv").write_text("horse\t5\nDog\t6\nT_SHIRT\t7\n")
    mapped = [("class2ind.json", [1, 3, 2]), ("two.json", [1, 1, 2]), ("labelmap.tsv", [1, 2, 3])]
    for name, expected in mapped:
        one = entry(arrow(tmp_path), pictures, class_map=str(tmp_path / name))
        assert read_sets([one], vocabulary, STRICT, "v.json")[0].objects(2).labels.tolist() == expected
    one = entry(arrow(tmp_path), pictures, class_map=str(tmp_path / "two.json"))
    sentence = refusal(read_sets, [entry(path, pictures), one], vocabulary, STRICT, "v.json")
    assert "'dog' is class 1 in" in sentence and "two.json and class 3 for" in sentence
    assert "give it, as data.label_map=FILE" in refusal(read_sets, [one], None, STRICT, "")
    (tmp_path / "two.json").write_text('{"horse": 5}')
    assert "'horse' as 5, and v.json has 4 classes" in refusal(read_sets, [one], vocabulary, STRICT, "v.json")
    (tmp_path / "two.json").write_text('{"horse": 1}')
    sentence = refusal(read_sets, [one], vocabulary, STRICT, "v.json")
    assert "two.json does not have (2 such: 'Dog' 2, 'T_shirt' 1): give the set a class_map" in sentence


@pytest.mark.parametrize("kind", ["tsv", "by_id.tsv", "zip", "folder.zip"])
def test_pictures_lie_in_containers(tmp_path: Path, kind: str) -> None:
    path, pictures = write(tmp_path)
    container = tmp_path / f"pictures.{kind}"
    files = {f"sub/{number:03d}.png": pictures / "sub" / f"{number:03d}.png" for number in (7, 1, 2, 9)}
    if kind.endswith("tsv"):
        lines = [
            f"{int(Path(name).stem) if 'id' in kind else name}\t{base64.b64encode(file.read_bytes()).decode()}\n"
            for name, file in files.items()
        ]
        container.write_text("".join(lines))
    else:
        with zipfile.ZipFile(container, "w") as archive:
            for name, file in files.items():
                archive.write(file, f"train/{name}" if "folder" in kind else name)
    for annotations in (path, arrow(tmp_path)):
        split = {"annotations": str(annotations), "pictures": str(container)}
        data = module(tmp_path, splits={"train": split, "val": [split]})
        data.setup("fit")
        plain = module(tmp_path, splits={"train": split | {"pictures": str(pictures)}, "val": split})
        plain.setup("fit")
        for stage in ("train", "val"):
            assert len(data.datasets[stage]) == len(plain.datasets[stage]) >= 3
            for index in range(3):
                assert data.datasets[stage][Draw(0, index)].pixels.equal(plain.datasets[stage][Draw(0, index)].pixels)
    assert ("sub/007.png" in data.example_text("train")) == ("id" not in kind)
    assert "is no folder, and no TSV" in refusal(read_sets, [entry(path, path)], None, STRICT, "")


@pytest.mark.filterwarnings("ignore:.*left out")
def test_missing_pictures(tmp_path: Path) -> None:
    path, pictures = write(tmp_path)
    (pictures / "sub" / "002.png").unlink()
    for annotations, count in ((path, 4), (arrow(tmp_path), 3)):
        one = [entry(annotations, pictures)]
        found = read_sets(one, None, STRICT, "")[0]
        sentence = refusal(used_rows, found, one, STRICT, training=True, seed=0)
        assert f"lacks 1 of the {count} pictures" in sentence and "'sub/002.png' (image 2)" in sentence
        rows = used_rows(found, one, LENIENT, training=True, seed=0).tolist()
        assert rows == [index for index in range(count) if found["image_id"][index] != "2"]
        nowhere = [entry(annotations, tmp_path / "nowhere")]
        assert "does not exist" in refusal(read_sets, nowhere, None, LENIENT, "")
        wrong = [entry(annotations, tmp_path)]  # "sub" is not there
        missing = read_sets(wrong, None, LENIENT, "")[0]
        assert f"lacks {count} of the {count}" in refusal(used_rows, missing, wrong, LENIENT, training=True, seed=0)


def two_sets(folder: Path, **more: Any) -> DetectionDataModule:
    path, pictures = write(folder)
    entries = [{"annotations": str(one), "pictures": str(pictures)} for one in (path, arrow(folder))]
    entries[1] |= more
    return module(folder, splits={"train": entries, "val": entries[0]})


def test_several_sets_are_trained_on_as_often_as_they_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = two_sets(tmp_path, copies=2, at_least=4)
    data.setup("fit")
    (told,) = [line for line in capsys.readouterr().out.splitlines() if "rows of an epoch" in line]
    assert "other.arrow: 3 pictures make 12 rows of an epoch, one picture 8 at most." in told
    train = data.datasets["train"]
    assert train.rows is not None and set(train.rows.tolist()) == {0, 1, 2, 4, 5, 6}  # picture 3 has no objects
    times = np.bincount(train.rows, minlength=7).tolist()
    assert times[:3] == [1, 1, 1] and times[6] == 8 and len(train) == sum(times)  # 4 of the third class, twice
    assert len(train.lengths()) == len(train)
    for row in (0, len(train) - 1):
        index = int(train.rows[row])
        example = train[Draw(0, row)]
        assert example.index == index and example.original_size == tuple(train.records.sizes[index])
    seen = [index for batch in data.train_dataloader() for index in batch.indices]  # type: ignore[attr-defined]
    assert np.bincount(seen, minlength=7).tolist() == times
    assert data.datasets["val"].labels == train.labels and len(data.datasets["val"].records) == 4
    assert len(train.labels.classes) == 5


def test_entries_are_checked(tmp_path: Path) -> None:
    files = {"annotations": "a.json", "pictures": "p"}
    for given, words in (
        ([], "is an empty list"),
        ([files, "b.json"], "train[1] is 'b.json': give {annotations"),
        ([{"annotations": "a.json"}], "train[0] has no pictures"),
        (files | {"weight": 2}, "has the key weight"),
        (files | {"copies": 0}, "copies=0"),
        (files | {"at_least": 2000, "repeat_threshold": 0.001}, "give one"),
        (files | {"class_map": 7}, "class_map is 7"),
    ):
        assert words in refusal(SetEntry.all_of, given, "data.splits.train"), given
    assert entry(tmp_path, tmp_path, copies=8, class_map=None).sampling == SetSampling(copies=8)
    data = two_sets(tmp_path)
    data.splits = {"train": data.splits["train"], "val": data.splits["val"] | {"copies": 2}}
    assert "only a set that is trained on" in refusal(data.setup, "fit")


def test_a_set_of_the_other_orientation_is_refused_before_training(tmp_path: Path) -> None:
    path, pictures = write(tmp_path)
    with_orientation(pictures / "sub" / "001.png", 6)
    for one in (path, arrow(tmp_path)):
        split = {"annotations": str(one), "pictures": str(pictures)}
        data = module(tmp_path, splits={"train": split, "val": split})
        with_orientation(pictures / "sub" / "001.png", 6)
        sentence = refusal(data.setup, "fit")
        assert "001.png is 30 × 40 pixels, and" in sentence and "data.reading.exif_orientation=ignore" in sentence
        assert str(one) in sentence


def test_pictures_that_exif_turns_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, pictures = write(tmp_path)
    split = {"annotations": str(path), "pictures": str(pictures)}
    other = [{**split, "annotations": str(arrow(tmp_path))}]
    data = module(tmp_path, splits={"train": split, "val": other}, unknown_classes="drop")
    with_orientation(pictures / "sub" / "001.jpg", 3).replace(pictures / "sub" / "001.png")  # upside down
    data.setup("fit")
    told = [line for line in capsys.readouterr().out.splitlines() if "EXIF" in line]
    assert [line.partition(": ")[0] for line in told] == [str(path), str(tmp_path / "other.arrow")]
    assert "EXIF turns 1 of 3 pictures that were looked at" in told[0]
    module(tmp_path, splits={"train": split, "val": split}).setup("fit")
    assert "EXIF" not in capsys.readouterr().out


def test_a_split_needs_objects_to_learn_from(tmp_path: Path) -> None:
    content = instances()
    content["annotations"] = [{"image_id": 1, "category_id": 2, "bbox": [5, 5, 1, 1]}]
    data = module(tmp_path)
    write(tmp_path, content)
    assert "no object of more than a pixel" in refusal(data.setup, "fit")
    dropped = {"annotations": str(arrow(tmp_path)), "pictures": str(tmp_path / "pictures")}
    (tmp_path / "labels.json").write_text('{"cow": 1}')
    data = module(tmp_path, splits={"train": dropped, "val": dropped}, label_map=str(tmp_path / "labels.json"))
    assert "labels.json does not have (3 such" in refusal(data.setup, "fit")
    labels = {"label_map": str(tmp_path / "labels.json"), "unknown_classes": "drop"}
    data = module(tmp_path, splits={"train": dropped, "val": dropped}, **labels)
    assert "no annotated objects" in refusal(data.setup, "fit")


def test_a_picture_changes_its_size_after_it_was_looked_at(tmp_path: Path) -> None:
    data = two_sets(tmp_path)
    data.setup("fit")
    save(tmp_path / "pictures" / "sub" / "007.png", gradient(33, 44))
    assert "other.arrow says 50 × 50" in refusal(data.datasets["train"].__getitem__, Draw(0, 3))
    assert CONFIG.min_size == 60
