"""TSV sets of the published scene-graph code: what it makes of them, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.reader_checks import refusal
from tests.detector.test_data import module
from tests.golden import FOLDER, facts
from vinvl.data.sampling import Draw
from vinvl.detector.annotations import AnnotatedPicture, open_annotations, write_annotations
from vinvl.detector.data import learnable
from vinvl.detector.tsv_sets import is_tsv_set, read_tsv_set
from vinvl.pictures import ReadingOptions, look_for, read_picture
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError

GOLDEN = FOLDER / "detector_training" / "tsv"
PLAIN = ReadingOptions()
FILES = ("pictures.tsv", "labels.tsv", "hw_list.tsv", "train.linelist.tsv", "labelmap.json", "train.yaml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The recorded set without its .lineidx."""
    for name in FILES:
        shutil.copy(GOLDEN / name, tmp_path)
    return tmp_path


def read(path: Path, labels: LabelMap | None = None) -> list[AnnotatedPicture]:
    return list(read_tsv_set(path, PLAIN, labels).pictures)


def changed(path: Path, row: int, change: Any) -> None:
    """Another JSON, or other bytes, behind the key of a row."""
    lines = path.read_bytes().splitlines(keepends=True)
    key, _, value = lines[row].rstrip(b"\n").partition(b"\t")
    lines[row] = key + b"\t" + (change if isinstance(change, bytes) else json.dumps(change(json.loads(value))).encode())
    lines[row] += b"\n"
    path.write_bytes(b"".join(lines))


def with_object(**fields: Any) -> Any:
    """What changes the first object of a label."""

    def change(label: dict[str, Any]) -> dict[str, Any]:
        label["objects"][0].update(fields)
        return label

    return change


@pytest.mark.parametrize("name", ["train", "val", "plain_hw", "no_linelist"])
def test_as_the_published_reader_has_it(name: str, tmp_path: Path) -> None:
    expected = facts("detector_training/tsv/expected")[name]
    found = read_tsv_set(GOLDEN / f"{name}.yaml", PLAIN)
    target = tmp_path / "set.arrow"
    pictures = list(found.pictures)
    write_annotations(target, pictures, found.labels, name)
    records, labels = open_annotations(target)
    rows = range(len(pictures)) if found.rows is None else found.rows.tolist()
    assert len(rows) == expected["length"] and expected["classes"] in (None, list(labels.classes))
    places = {one.name: one.place for one in look_for(found.container)[0]}
    keys = [line.split("\t")[0] for line in (GOLDEN / "labels.tsv").read_text().splitlines()]
    for row, item in zip(rows, expected["items"], strict=True):
        assert records["file_name"][row] == records["image_id"][row] == item["key"] == keys[item["line"]]
        picture, truth = read_picture(places[item["key"]], PLAIN), records.objects(row)
        assert records.sizes[row].tolist() == item["size_wh"] == list(picture.size)
        assert item["info"] == {"width": picture.width, "height": picture.height}
        assert list(picture.getpixel((0, 0))) == item["first_pixel_rgb"]  # type: ignore[arg-type]
        published = np.array(item["boxes"]).reshape(-1, 4)
        np.testing.assert_allclose(truth.boxes - (0, 0, 1, 1), published, atol=1e-5)
        assert truth.labels.tolist() == item["labels"] and not truth.crowd.any()
        padded = [one + [0] * (16 - len(one)) for one in records["attributes"][row]]
        assert padded == item["attributes"]
        assert learnable(truth).tolist() == (published[:, 2:] > published[:, :2]).all(axis=1).tolist()


@pytest.mark.parametrize("copies", [1, 3])
def test_a_training_set_has_the_order_and_the_repeats_of_its_linelist(tmp_path: Path, copies: int) -> None:
    keys = [item["key"] for item in facts("detector_training/tsv/expected")["train"]["items"]] * copies
    found = read_tsv_set(GOLDEN / "train.yaml", PLAIN)
    write_annotations(tmp_path / "set.arrow", found.pictures, found.labels, "a test")
    assert found.rows is not None
    (tmp_path / "rows.tsv").write_text("".join(f"{row}\n" for row in found.rows.tolist()))
    files = {"annotations": str(tmp_path / "set.arrow"), "pictures": str(found.container)}
    train = {**files, "linelist": str(tmp_path / "rows.tsv"), "copies": copies}
    splits = {"train": train, "val": files}
    (data := module(tmp_path, splits=splits)).setup("fit")
    dataset = data.datasets["train"]
    assert [dataset.records["image_id"][dataset[Draw(0, row)].index] for row in range(len(dataset))] == keys
    assert len(data.datasets["val"]) == 3
    also = {"train": train | {"at_least": 3}, "val": files}
    assert "and so does a sampling: give one" in refusal(module(tmp_path, splits=also).setup, "fit")
    also = {"train": train, "val": files | {"linelist": "rows.tsv"}}
    assert "which only a set that is trained on has" in refusal(module(tmp_path, splits=also).setup, "fit")
    (tmp_path / "rows.tsv").write_text("0\n3\n")
    assert "rows.tsv line 2 asks for row 3 (from 0), and" in refusal(module(tmp_path, splits=splits).setup, "fit")


def test_told_by_its_keys(folder: Path) -> None:
    assert is_tsv_set(folder / "train.yaml")
    (folder / "other.yaml").write_text("img: a.tsv\n")
    (folder / "broken.yaml").write_text("img: [")
    assert not any(is_tsv_set(folder / name) for name in ("other.yaml", "broken.yaml", "labels.tsv"))


def test_indices_are_not_needed_but_used(folder: Path) -> None:
    plain = read(folder / "train.yaml")
    for path in GOLDEN.glob("*.lineidx"):
        shutil.copy(path, folder)
    for one, other in zip(plain, read(folder / "train.yaml"), strict=True):
        assert one.image_id == other.image_id and one.boxes.tolist() == other.boxes.tolist()
    for wrong in ("0\n313\n900\n1220", "0\n313\n937\n5000", "0\n313", "", "0\nx"):
        (folder / "labels.lineidx").write_text(wrong)
        told = refusal(read, folder / "train.yaml")
        assert "labels.lineidx" in told and "delete it" in told
    (folder / "labels.lineidx").unlink()
    (folder / "labels.tsv").write_text((folder / "labels.tsv").read_text() + "\n\n")
    assert len(read(folder / "train.yaml")) == 3


def test_sizes_are_those_of_the_pictures_without_hw(folder: Path) -> None:
    told = read(folder / "train.yaml")
    (folder / "train.yaml").write_text("img: pictures.tsv\nlabel: labels.tsv\njsondict: labelmap.json\n")
    found = {one.image_id: one for one in read(folder / "train.yaml")}
    assert len(found) == 4
    assert all((found[one.image_id].width, found[one.image_id].height) == (one.width, one.height) for one in told)


def test_a_list_of_names_and_a_bare_list_of_objects(folder: Path) -> None:
    (folder / "train.labelmap.tsv").write_text("dog\t5\nperson\t3\n")
    content = {"img": "pictures.tsv", "label": "labels.tsv", "hw": "hw_list.tsv", "labelmap": "train.labelmap.tsv"}
    (folder / "train.yaml").write_text(json.dumps(content))
    for row in range(4):
        changed(folder / "labels.tsv", row, lambda label: [])
    changed(folder / "labels.tsv", 1, lambda label: [{"rect": [1, 2, 3, 4], "class": "person"}])
    found = read_tsv_set(folder / "train.yaml", PLAIN)
    one = list(found.pictures)[1]
    assert found.labels.classes == ("__background__", "dog", "person") and found.rows is None
    assert one.labels.tolist() == [2] and one.boxes.tolist() == [[1, 2, 4, 5]] and one.attributes == [[]]


def test_files_are_looked_for_where_they_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (folder / "labels.tsv").rename(elsewhere / "labels.tsv")
    monkeypatch.chdir(elsewhere)
    assert len(read(folder / "train.yaml")) == 3
    (elsewhere / "pictures.tsv").write_text("")
    assert "is both here and in" in refusal(read, folder / "train.yaml")


def test_a_box_outside_becomes_a_pixel_at_the_border(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(folder / "labels.tsv", 0, with_object(rect=[100, -9, 120, -3]))
    one = next(one for one in read(folder / "train.yaml") if one.image_id == "picture_11_0")
    assert one.boxes[0].tolist() == [23, 0, 24, 1] and len(one.boxes) == 2
    assert "2 of 9 boxes reached out" in (told := capsys.readouterr().out) and "1 of all have no area" in told


@pytest.mark.parametrize(
    "row, change, told",
    [
        (0, with_object(**{"class": "cat"}), r"labels.tsv row 0 \('picture_11_0'\) has the class 'cat', which"),
        (0, with_object(**{"class": "__background__"}), "has the class '__background__', which"),
        (1, with_object(attributes=["blue"]), r"row 1 \('picture_11_1'\) has the attribute 'blue', which"),
        (1, with_object(rect=[9, 9, 3, 3]), "row 1 .* has a rect that ends before it begins"),
        (1, with_object(rect=[9, 9, 3]), "row 1 .*Expected `array` of length 4"),
        (1, with_object(rect=[0, 0, 1e300, 3]), "row 1 .*Expected `float` < 1000000000"),
        (2, lambda label: {"boxes": []}, "row 2 .*missing required field `objects`"),
        (2, b'{"objects": [', "row 2 .* is not valid JSON"),
        (2, b"", "row 2 .* is empty"),
    ],
)
def test_a_wrong_label_is_named_with_row_and_key(folder: Path, row: int, change: Any, told: str) -> None:
    changed(folder / "labels.tsv", row, change)
    with pytest.raises(UserError, match=told):
        read(folder / "train.yaml")


@pytest.mark.parametrize(
    "name, content, told",
    [
        ("train.linelist.tsv", "2\n0\n4\n", "train.linelist.tsv line 3 asks for row 4 .*has 4: the linelist is of"),
        ("train.linelist.tsv", "2\n-1\n", "line 2 is '-1', and no row number"),
        ("train.linelist.tsv", "", "lists no rows"),
        ("hw_list.tsv", "picture_11_0\t31 24\n", "hw_list.tsv has 1: the linelist is of another file"),
        ("hw_list.tsv", "a\t1 1\nb\t1 1\nc\t1 1\n", r"labels.tsv row 2 .*that row of .*hw_list.tsv is of 'c'"),
        ("labels.tsv", "", "is no TSV of a detection set"),
        ("train.yaml", "img: pictures.tsv\n", "missing required field label"),
        ("train.yaml", "img: [", "is no yaml of a TSV set"),
        ("train.yaml", "img: pictures.tsv\nlabel: gone.tsv\n", "there is no .*gone.tsv"),
        ("train.yaml", "img: pictures.tsv\nlabel: labels.tsv\n", "names no labelmap"),
        ("train.yaml", "img: a\nlabel: b\ncomposite: true\n", "give the yaml of each"),
    ],
)
def test_wrong_files_are_refused(folder: Path, name: str, content: str, told: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=told):
        read(folder / "train.yaml")


@pytest.mark.parametrize(
    "size", [b"0 24", b"[]", b"{}", b"[31, 24]", b'{"height": 31}', b'{"height": 31, "width": -1}']
)
def test_wrong_sizes_are_refused(folder: Path, size: bytes) -> None:
    changed(folder / "hw_list.tsv", 0, size)
    assert "hw_list.tsv row 0" in refusal(read, folder / "train.yaml")


def test_files_of_different_lengths_and_repeated_keys(folder: Path) -> None:
    text = (folder / "train.yaml").read_text().replace("linelist: train.linelist.tsv\n", "")
    (folder / "train.yaml").write_text(text)
    assert len(read(folder / "train.yaml")) == 4
    for name in ("labels.tsv", "hw_list.tsv"):
        first = (folder / name).read_text().splitlines()[0]
        (folder / name).write_text((folder / name).read_text() + first + "\n")
    assert "they are of different sets" in refusal(read, folder / "train.yaml")
    with (folder / "pictures.tsv").open("a") as file:
        file.write((folder / "pictures.tsv").read_text().splitlines()[0] + "\n")
    assert "row 4 ('picture_11_0') has the key of row 0" in refusal(read, folder / "train.yaml")


def test_boxes_in_shares_are_refused(folder: Path) -> None:
    for row in range(3):
        objects = [{"rect": [0.1, 0.2, 0.9, 1.0], "class": "dog"}]
        changed(folder / "labels.tsv", row, lambda label, objects=objects: {"objects": objects})
    assert "boxes are expected in pixels, not in shares" in refusal(read, folder / "train.yaml")


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(FILES[1:]), st.integers(0, 2000), st.binary(max_size=3), st.booleans())
def test_changed_bytes_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: int, other: bytes, cut: bool
) -> None:
    folder = tmp_path_factory.mktemp("tsv")
    for file in FILES:
        shutil.copy(GOLDEN / file, folder)
    content = (folder / name).read_bytes()
    place %= len(content) + 1
    (folder / name).write_bytes(content[:place] + other + (b"" if cut else content[place + len(other) :]))
    try:
        found = read_tsv_set(folder / "train.yaml", PLAIN)
        write_annotations(folder / "set.arrow", found.pictures, found.labels, "a test")
    except UserError as error:
        assert str(error).endswith(".")
        assert not (folder / "set.arrow").exists()
