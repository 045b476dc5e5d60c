"""Features of boxes that a file gives: every form of file, how images are matched, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.detector.samples import small_detector
from tests.extraction.samples import USED, run_extract
from tests.picture_samples import gradient, save, with_orientation
from vinvl.detector import Detector
from vinvl.detector.annotations import AnnotatedPicture, write_annotations
from vinvl.extraction import given as given_module
from vinvl.extraction.given import given_boxes
from vinvl.pictures import PictureNames, ReadingOptions, find_pictures
from vinvl.regions import RegionStore
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError

SIZES = {"a": (60, 50), "b": (100, 80), "c": (100, 80), "d": (40, 70)}
BOXES: dict[str, list[list[float]]] = {  # in the order that they are to keep; one of c is there twice, d has none
    "c": [[60, 10, 90.5, 79], [0, 0, 30, 30], [60, 10, 90.5, 79]],
    "a": [[1.5, 2, 59, 49], [10, 10, 12, 40]],
    "d": [],
}


def pictures(folder: Path) -> Path:
    for name, size in SIZES.items():
        save(folder / f"{name}.png", gradient(*size))
    return folder


def lines(path: Path, records: Iterable[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def as_jsonl(folder: Path) -> Path:
    kept = [{"image_id": name, "boxes": boxes, "names": ["x"]} for name, boxes in BOXES.items()]
    return lines(folder / "b.jsonl", [*kept, kept[0]])  # a record again, as VCR has one for each question


def as_vcr(folder: Path) -> Path:
    boxes = {name: [[*box, 0.9] for box in boxes] for name, boxes in BOXES.items()}
    records = [{"img_fn": f"film/{name}.png", "boxes": boxes[name], "image_id": 7} for name in boxes]
    (folder / "b.json").write_text(json.dumps(records))
    return folder / "b.json"


def as_coco(folder: Path) -> Path:
    images = [{"id": n, "file_name": f"{name}.png"} for n, name in enumerate(BOXES, start=40)]
    images[0] |= {"width": 100, "height": 80}
    annotations = [
        {"id": 9, "image_id": n, "category_id": 3, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 1}
        for n, boxes in enumerate(BOXES.values(), start=40)
        for x1, y1, x2, y2 in boxes
    ]
    mixed = annotations[3:] + annotations[:3]  # those of one image stay in their order
    (folder / "b.json").write_text(json.dumps({"images": images, "annotations": mixed, "categories": []}, indent=1))
    return folder / "b.json"


def as_tsv(folder: Path) -> Path:
    objects = {name: [{"class": "x", "rect": box} for box in boxes] for name, boxes in BOXES.items()}
    rows = [f"{name}\t{json.dumps(own)}" for name, own in objects.items()]
    rows[1] = "a\t" + json.dumps({"image_w": 60, "image_h": 50, "objects": objects["a"]})
    (folder / "label.tsv").write_text("\n".join(rows) + "\n")
    return folder / "label.tsv"


def as_annotations(folder: Path) -> Path:
    whole = (
        AnnotatedPicture(
            f"{number}", f"{name}.png", *SIZES[name], np.array(boxes, dtype=np.float32).reshape(-1, 4),
            np.ones(len(boxes), np.int32), np.zeros(len(boxes), bool), [[] for _ in boxes],
        )
        for number, (name, boxes) in enumerate(BOXES.items())
    )  # fmt: skip
    write_annotations(folder / "b.arrow", whole, LabelMap(("bg", "x"), ("none",)), "a test")
    return folder / "b.arrow"


def store_of(folder: Path, boxes: Path, *more: str, name: str = "f.h5") -> RegionStore:
    run_extract(folder, f"images={folder / 'pictures'}", f"given_boxes={boxes}", f"output={folder / name}", *more)
    return RegionStore(folder / name)


@pytest.mark.parametrize("form", [as_jsonl, as_vcr, as_coco, as_tsv, as_annotations])
def test_given_boxes_are_the_regions_of_a_store(
    tmp_path: Path, form: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "pictures")
    file = form(tmp_path)
    store = store_of(tmp_path, file, "batch_size=2")
    assert list(store.image_ids) == ["a", "c", "d"] and store.verify() == []
    assert f"{file}: 5 boxes of 3 pictures; 1 pictures have none there and are left out" in capsys.readouterr().out
    detector = small_detector()
    detector.config = USED
    for name, boxes in BOXES.items():
        regions = store[name]
        (found,) = detector.detect([gradient(*SIZES[name])], [boxes])
        assert len(regions) == len(boxes) and (regions.width, regions.height) == SIZES[name]
        np.testing.assert_allclose(regions.boxes, np.array(boxes).reshape(-1, 4), atol=1.1)  # the last pixel is clipped
        np.testing.assert_allclose(regions.boxes, found.boxes.numpy(), atol=1e-2)
        np.testing.assert_allclose(regions.features.astype(np.float32), found.features.numpy(), rtol=2e-3, atol=1e-3)
        np.testing.assert_array_equal(regions.classes, found.labels.numpy())
        np.testing.assert_allclose(regions.attribute_scores, found.attribute_scores.numpy(), atol=1e-4)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert store.provenance["given_boxes"] == {"file": file.name, "sha256": digest}
    assert store.provenance["boxes"] == "given" and f"given by {file.name}" in store.detector


@pytest.mark.parametrize(
    ("record", "options"),
    [
        ({"image_id": 42}, ["id.pattern='0*(\\d+)$'"]),
        ({"image_id": 42, "file_name": "train/COCO_000042.png"}, []),
        ({"image_id": "COCO_000042.png"}, ["id.prefix=x_"]),
        ({"image_id": 9, "file_name": "COCO_000042.png"}, ["id.rule=file"]),
        ({"file_name": "sub/COCO_000042.jpg", "image_id": 1}, ["id.rule=path", "images={}/.."]),
    ],
)
def test_images_are_matched_by_the_rule_of_ids(tmp_path: Path, record: Any, options: list[str]) -> None:
    folder = tmp_path / "pictures" / "sub"
    save(folder / "COCO_000042.png", gradient(60, 50))
    more = [one.format(folder) for one in options]
    file = lines(tmp_path / "b.jsonl", [record | {"boxes": [[1, 2, 30, 40]]}])
    run_extract(tmp_path, f"images={folder}", f"given_boxes={file}", f"output={tmp_path / 'f.h5'}", *more)
    assert len(RegionStore(tmp_path / "f.h5").at(0)) == 1


def test_what_has_no_match_is_told_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "pictures")
    records = [{"image_id": name, "boxes": [[1, 2, 30, 40]]} for name in ("a", "zebra", "b")]
    file = lines(tmp_path / "b.jsonl", records)
    with pytest.raises(SystemExit, match=r"2 pictures have none .*; 1 of its images are no pictures here.*'zebra'"):
        store_of(tmp_path, file, "on_unmatched=error")
    assert {path.name for path in tmp_path.iterdir()} == {"b.jsonl", "labels.json", "pictures"}
    assert len(store_of(tmp_path, file)) == 2 and "'zebra'" in capsys.readouterr().out


def of(image: str, *boxes: Any, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "boxes": list(boxes), **more}


REFUSED: list[tuple[Any, str]] = [
    ([of("a", [30, 20, 10, 10])], r"line 1 .'a'. has box 1, .30, 20, 10, 10., which ends before"),
    ([of("a", [0.1, 0.2, 0.9, 1])], r"line 1 .image 'a'. has no box beyond pixel 1 of 60 × 50.*shares"),
    ([of("b", [0, 0, 9, 9], [5, 5, 190, 70])], r"line 1 .image 'b'. has box 2, .5, 5, 190.*outside"),
    ([of("b", [0, 0, 9, 9], width=200, height=160)], r"of 200 × 160 pixels, and it has 100 × 80"),
    ([of("a", [1, 2, 3])], r"line 1: .*length >= 4 at .*boxes"),
    ([of("a", [1, 2, 3, "x"])], r"line 1: .*float.* at .*boxes"),
    ([of("a", [20, 3, 19.7, 9], [5, 5, 40, 5], [20, 3, 18, 9])], r"line 1 .'a'. has box 3, .20, 3, 18, 9., which ends"),
    ([{"boxes": []}], r"line 1 names no image"),
    ([of("z")], r"none of the 4 pictures .ids are like 'a', the file's images like 'z'."),
    ([of("a", [1, 2, 3, 4]), of("a")], r"line 2 .'a'. is of the image of 1 and"),
    (
        {"images": [{"id": 1}], "annotations": [{"image_id": 2, "bbox": [1, 2, 3, 4]}]},
        r"annotation 1 is of the image 2",
    ),
    ({"images": [{"id": "a"}], "annotations": [{"image_id": "a", "bbox": [1, 2, -3, 4]}]}, r"annotations.0..bbox.2"),
    ({"images": []}, r"annotations.*give a COCO instances JSON, a TSV or JSON Lines of boxes"),
    ('a\t[{"height": 3}]\n', r"line 1: .*rect"),
    ("a\tfoo\n", r"line 1 is not a key, a tab and the JSON"),
    ("", r"is empty"),
    ("ARROW1", r"no annotations|damaged|cut off"),
]


@pytest.mark.parametrize(("content", "words"), REFUSED)
def test_bad_boxes_are_one_sentence(tmp_path: Path, content: Any, words: str) -> None:
    pictures(tmp_path / "pictures")
    file = tmp_path / "boxes"
    if isinstance(content, list):
        lines(file, content)
    else:
        file.write_text(content if isinstance(content, str) else json.dumps(content))
    found = find_pictures(tmp_path / "pictures", PictureNames())
    with pytest.raises(UserError, match=words) as refusal:
        those, given, _ = given_boxes(file, found, PictureNames())
        given.check_first(those, ReadingOptions())
    assert str(file) in str(refusal.value) and "\n" not in str(refusal.value)


def test_boxes_in_per_cent_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        save(tmp_path / "pictures" / f"{name}.png", gradient(300, 220))
    records = [{"image_id": name, "boxes": [[i, i, 50 + i, 50 + i] for i in range(10)]} for name in "ab"]
    with pytest.raises(SystemExit, match=r"none of 20 boxes reaches beyond pixel 100, .* not in per cent"):
        store_of(tmp_path, lines(tmp_path / "b.jsonl", records))
    records[0]["boxes"][0][2] = 180  # type: ignore[index]
    assert len(store_of(tmp_path, lines(tmp_path / "b.jsonl", records), "detector.min_size=32")) == 2


def test_a_record_that_fits_badly_is_put_aside_later_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "pictures")
    monkeypatch.setattr(given_module, "FIRST", 1)
    records = [{"image_id": name, "boxes": [[1, 2, 30, 2 * size[1]]]} for name, size in SIZES.items()]
    records[0]["boxes"] = [[1, 2, 30, 40]]
    file = lines(tmp_path / "b.jsonl", records)
    assert list(store_of(tmp_path, file).image_ids) == ["a"]
    listed = (tmp_path / "f.h5.unusable.txt").read_text()
    assert all(f"{file} line {number} (image '{name}')" in listed for number, name in ((2, "b"), (3, "c"), (4, "d")))


@pytest.mark.parametrize("apply", [True, False])
def test_boxes_are_where_a_viewer_shows_them_unless_read_as_stored(tmp_path: Path, apply: bool) -> None:
    """40 × 30 as stored, 30 × 40 where EXIF turns it; a box is the same part of both."""
    (tmp_path / "pictures").mkdir()
    path = with_orientation(tmp_path / "pictures" / "a.jpg", 6)
    given = [] if apply else ["reading.exif_orientation=ignore"]
    box = [2, 20, 28, 38] if apply else [20, 2, 38, 28]  # the right end of what is stored is the lower end of the other
    size = {"width": 30 if apply else 40, "height": 40 if apply else 30}
    file = lines(tmp_path / "b.jsonl", [{"image_id": "a", "boxes": [box], **size}])
    regions = store_of(tmp_path, file, *given)["a"]
    assert (regions.width, regions.height) == tuple(size.values())
    detector = small_detector()
    detector.config = USED
    with Image.open(path) as image:
        seen = image.transpose(Image.Transpose.ROTATE_270) if apply else image
        (found,) = detector.detect([seen], [[box]])
    np.testing.assert_allclose(regions.features.astype(np.float32), found.features.numpy(), rtol=2e-3, atol=1e-3)
    other = "reading.exif_orientation=" + ("ignore" if apply else "apply")
    with pytest.raises(SystemExit, match=r"EXIF turns it, and reading.exif_orientation"):
        store_of(tmp_path, file, other, name="other.h5")


def test_stopped_and_gone_on_with_is_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "pictures")
    file = as_jsonl(tmp_path)
    whole = store_of(tmp_path, file, name="whole.h5")
    detect, calls = Detector.detect_pixels, []

    def killed(self: Detector, *given: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise torch.AcceleratorError("the power is gone")
        return detect(self, *given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Detector, "detect_pixels", killed)
        with pytest.raises(torch.AcceleratorError):
            store_of(tmp_path, file, "shard_seconds=0")
    other = lines(tmp_path / "c.jsonl", [{"image_id": "a", "boxes": [[1, 2, 3, 4]]}])
    with pytest.raises(SystemExit, match=r"begun with other settings .given_boxes was .*b.jsonl.* and is .*c.jsonl"):
        store_of(tmp_path, other)
    store = store_of(tmp_path, file)
    assert len(calls) == 2 and len(store) == len(whole) == 3
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
