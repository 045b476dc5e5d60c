"""Visual Genome's three files, made small to the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.reader_checks import BROKEN_FILES, refusal
from vinvl.detector.annotations import AnnotatedPicture, write_annotations
from vinvl.detector.visual_genome import read_visual_genome
from vinvl.regions.regions import LabelMap
from vinvl.run import values
from vinvl.run.errors import UserError

LABELS = LabelMap(("__background__", "dog", "t-shirt", "tree"), ("__no_attribute__", "brown", "tall"))
HOST = "https://cs.stanford.edu/people/rak248"


def content() -> dict[str, Any]:
    """Image 3 has no objects that are taken, image 4 is in no objects.json."""
    images = [
        {"image_id": number, "width": 80, "height": 60, "url": f"{HOST}/{folder}/{number}.jpg", "coco_id": None}
        for number, folder in ((1, "VG_100K_2"), (2, "VG_100K"), (3, "VG_100K"), (4, "VG_100K"))
    ]

    def one(number: int, name: str, box: tuple[float, ...], **more: Any) -> dict[str, Any]:
        x, y, w, h = box
        sides = {"x": x, "y": y, "w": w, "h": h}
        return {"object_id": number, **sides, "names": [name, "other"], "synsets": ["a.n.01"], **more}

    objects = [
        {
            "image_id": 1,
            "image_url": f"{HOST}/VG_100K_2/1.jpg",
            "objects": [
                one(10, "Trees", (1, 2, 30, 40)),
                one(11, "dog ", (5.5, 5, 20, 10), merged_object_ids=[15, 16]),
                one(12, "zebra", (5, 5, 20, 10)),
                {"object_id": 13, "x": 1, "y": 1, "w": 9, "h": 9, "names": []},
            ],
        },
        {"image_id": 2, "objects": [one(21, "dog", (0, 0, 80, 60)), one(20, "T-Shirt", (70, 50, 10, 10))]},
        {"image_id": 3, "objects": [one(30, "zebra", (1, 1, 9, 9))]},
    ]
    attributes = [  # of other images first, and of objects that are not there
        {"image_id": 2, "attributes": [{"object_id": 20, "attributes": ["Red", "red"], "names": ["T-Shirt"]}]},
        {
            "image_id": 1,
            "attributes": [
                {"object_id": 11, "attributes": ["brown", "tall ", "brown"]},
                {"object_id": 10, "names": ["trees"]},
                {"object_id": 16, "attributes": ["tall", "big"]},
                {"object_id": 99, "attributes": ["tall"]},
            ],
        },
    ]
    return {"image_data": images, "objects": objects, "attributes": attributes}


def write(folder: Path, files: dict[str, Any], aliases: bool = True) -> Path:
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    if aliases:
        (folder / "object_alias.txt").write_text("tree,trees,a tree\nanimal,zebra\n")
        (folder / "attribute_alias.txt").write_text("brown, brownish\n\nred,reddish\n")
    return folder


def read(folder: Path, labels: LabelMap | None = LABELS, **options: Any) -> tuple[LabelMap, list[AnnotatedPicture]]:
    labels, found = read_visual_genome(folder, labels, **options)
    return labels, list(found)


def changed(where: str, value: Any) -> dict[str, Any]:
    """The files with another value at a place such as objects.0.objects.1.x; ... takes it out."""
    files = content()
    *path, last = where.split(".")
    inner: Any = files
    for key in path:
        inner = inner[int(key) if isinstance(inner, list) else key]
    if value is ...:
        del inner[last]
    else:
        inner[int(last) if isinstance(inner, list) else last] = value
    return files


def test_with_a_label_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, found = read(write(tmp_path, content()))
    assert labels == LABELS
    assert [(one.image_id, one.file_name, one.width, one.height) for one in found] == [
        ("1", "VG_100K_2/1.jpg", 80, 60),
        ("2", "VG_100K/2.jpg", 80, 60),
        ("3", "VG_100K/3.jpg", 80, 60),
    ]
    assert [one.labels.tolist() for one in found] == [[3, 1], [1, 2], []]
    assert found[0].boxes.tolist() == [[1, 2, 31, 42], [5.5, 5, 25.5, 15]]
    assert [one.attributes for one in found] == [[[], [1, 2]], [[], []], []]
    assert not any(one.crowd.any() for one in found)
    assert write_annotations(tmp_path / "set.arrow", found, labels, "a test") == 3
    told = capsys.readouterr().out
    assert "3 of 7 objects are of 2 names without a class and are left out, most often 'zebra' 2, '' 1." in told
    assert "does not name 1 images of image_data.json" in told


def test_without_a_label_map_names_are_counted(tmp_path: Path) -> None:
    labels, found = read(write(tmp_path, content()), None)
    assert labels.classes[1:] == ("animal", "dog", "t-shirt", "tree")
    assert labels.attributes[1:] == ("big", "brown", "red", "tall")
    assert [one.labels.tolist() for one in found] == [[4, 2, 1], [2, 3], [1]]
    assert [one.attributes for one in found] == [[[], [2, 4, 1], []], [[], [3]], [[]]]
    assert read(tmp_path, None, least_instances=2)[0] == LabelMap(
        ("__background__", "animal", "dog"), ("__no_attribute__", "brown", "red", "tall")
    )
    assert "no class of 3 objects" in refusal(lambda: read(tmp_path, None, least_instances=3))


def test_without_aliases_only_the_names_themselves(tmp_path: Path) -> None:
    assert [one.labels.tolist() for one in read(write(tmp_path, content(), aliases=False))[1]] == [[1], [1, 2], []]


def test_aliases_are_followed_as_published(tmp_path: Path) -> None:
    (write(tmp_path, content()) / "object_alias.txt").write_text("dog,puppy\npuppy,zebra\ntree,trees\n")
    assert [one.labels.tolist() for one in read(tmp_path)[1]] == [[3, 1, 1], [1, 2], [1]]


@pytest.mark.parametrize(
    "where, value, told",
    [
        ("objects.1.image_id", 7, r"objects.json record 2 \(image 7\) is of an image that .*image_data.json does not"),
        ("objects.0.objects.1.x", "1", r"objects.json record 1: Expected `float`, got `str` at \$.objects\[1\].x"),
        ("objects.0.objects.1.w", ..., r"record 1: .*missing required field `w` at \$.objects\[1\]"),
        ("objects.0.objects.1.y", float("nan"), r"record 1: Expected `float`"),
        ("objects.0.objects.1.x", 1e300, r"record 1: Expected `float`"),
        ("objects.0.objects", {}, r"record 1: Expected `array`, got `object` at \$.objects"),
        ("objects.0.objects.0.names", ["a", 3], r"record 1: Expected `str`, got `int`"),
        ("objects", {}, "objects.json should be one JSON list of images with their objects; found '{'"),
        ("image_data.1.width", 0, r"image_data.json record 2: Expected `int` >= 1 at \$.width"),
        ("image_data.1.image_id", 1, "image_data.json record 2 has the image_id 1 of another one"),
        ("image_data.1.url", "2.jpg", "the url '2.jpg' of image 2 does not end in FOLDER/FILE"),
        ("image_data.1.url", "https://a/../2.jpg", "does not end in FOLDER/FILE"),
        ("attributes.0.attributes.0.object_id", 2**64, r"attributes.json record 1 \(image 2\) has an object_id beyond"),
        ("attributes.1.attributes.0.attributes", "brown", "attributes.json record 2: Expected `array"),
        ("objects.0.objects.0.w", 800, r"record 1 \(image 1\): box 1, \[1.0, 2.0, 801.0, 42.0\], is not within its"),
        ("objects.0.objects.0.w", 0, r"box 1, .* has no area: correct it, or pass data.bad_boxes=clip"),
    ],
)
def test_wrong_records_are_named(tmp_path: Path, where: str, value: Any, told: str) -> None:
    write(tmp_path, changed(where, value))
    with pytest.raises(UserError, match=told):
        read(tmp_path)


@pytest.mark.parametrize("name", ["objects", "attributes", "image_data"])
def test_broken_files_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, content())
    for broken, _ in BROKEN_FILES:
        (tmp_path / f"{name}.json").write_bytes(broken)
        assert f"{name}.json" in refusal(lambda: read(tmp_path))
    (tmp_path / f"{name}.json").unlink()
    assert f"{name}.json does not exist" in refusal(lambda: read(tmp_path))


def test_boxes_are_clipped_if_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = changed("objects.0.objects.0.x", -10)
    files["objects"][1]["objects"][0]["h"] = 0
    found = read(write(tmp_path, files), bad_boxes="clip")[1]
    assert found[0].boxes[0].tolist() == [0, 2, 20, 42] and found[1].labels.tolist() == [2]
    told = capsys.readouterr().out
    assert "1 of 4 boxes reached out of their picture" in told and "1 of all have no area" in told


def test_what_fits_nothing_is_refused(tmp_path: Path) -> None:
    write(tmp_path, content())
    other = LabelMap(("__background__", "Hund"), ())
    assert "has no object of a class in the label map" in refusal(lambda: read(tmp_path, other))
    files = content()
    for image in files["attributes"]:
        for number, one in enumerate(image["attributes"]):
            one["object_id"] = 1000 + number
    write(tmp_path, files)
    assert "has attributes of no object in objects.json" in refusal(lambda: read(tmp_path))
    files = content()
    for image in files["objects"]:
        for one in image["objects"]:
            one |= {"x": 0.1, "y": 0.2, "w": 0.5, "h": 0.5}
    write(tmp_path, files)
    assert "no box of " in (told := refusal(lambda: read(tmp_path))) and "not in shares of the picture" in told


@settings(deadline=None, max_examples=100)
@given(
    st.sampled_from(["objects", "attributes", "image_data"]),
    st.integers(0, 3000),
    st.binary(max_size=3),
    st.booleans(),
    st.integers(1, 60),
)
def test_changed_bytes_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, name: str, place: int, other: bytes, cut: bool, chunk: int
) -> None:
    folder = write(tmp_path_factory.mktemp("vg"), content())
    before = (folder / f"{name}.json").read_bytes()
    place %= len(before) + 1
    after = before[:place] + other + (b"" if cut else before[place + len(other) :])
    (folder / f"{name}.json").write_bytes(after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "_CHUNK", chunk)
        try:
            labels, found = read_visual_genome(folder, LABELS)
            write_annotations(folder / "set.arrow", found, labels, "a test")
        except UserError as error:
            assert str(error).endswith(".")
            assert not (folder / "set.arrow").exists()
