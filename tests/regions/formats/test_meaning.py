"""What files mean where their shapes alone do not tell: no regions, features on their side, class numbers."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.regions.formats.samples import (
    CLASSES,
    DIM,
    Sample,
    bottom_up_line,
    labels_of,
    lxmert_line,
    prediction_line,
    published_folder,
    refused,
    run,
    samples,
    tsv,
    write_lines,
    write_lmdb,
    write_npy_folder,
    write_records,
    write_tensors,
)
from vinvl.regions import RegionStore
from vinvl.regions.formats.convert import convert_features
from vinvl.regions.formats.rows import FeatureOptions

IMAGES = samples()


def without_regions(image: Sample) -> Sample:
    names = ("features", "boxes", "classes", "scores", "colours")
    return replace(image, **{name: getattr(image, name)[:0] for name in names})


def npz_with_tables(path: Path, images: list[Sample]) -> Path:
    path.mkdir()
    for i in images:
        table = np.zeros((len(i.classes), len(CLASSES)))
        table[np.arange(len(i.classes)), i.classes] = i.scores
        named = {"objects": i.classes, "cls_prob": table, "attrs_id": i.colours, "attrs_conf": i.scores}
        np.savez(path / f"{i.image_id}.npz", x=i.features, bbox=i.boxes, image_w=i.width, image_h=i.height, **named)
    return path


SOURCES: dict[str, Callable[[Path, list[Sample]], Path]] = {
    "bottom-up": tsv(bottom_up_line),
    "LXMERT": tsv(lxmert_line),
    "predictions": tsv(lambda image: prediction_line(image, with_features=True)),
    "columns": lambda path, images: published_folder(path, images, "columns"),
    "JSON": lambda path, images: published_folder(path, images, "json"),
    "npy": write_npy_folder,
    "npz": npz_with_tables,
    "tensors": write_tensors,
    "LMDB": write_lmdb,
}


@pytest.mark.parametrize("empty", [[0, 2], [0, 1, 2, 3, 4]], ids=["first and third", "all"])
@pytest.mark.parametrize("kind", SOURCES)
def test_an_image_in_which_nothing_was_found_is_an_image(tmp_path: Path, kind: str, empty: list[int]) -> None:
    images = [without_regions(image) if number in empty else image for number, image in enumerate(IMAGES)]
    source = SOURCES[kind](tmp_path / "in", images)
    dim = DIM if kind in ("columns", "JSON", "tensors") else None
    labels = tmp_path / "in.pkl" if kind == "tensors" else None
    if labels:
        labels.write_bytes(pickle.dumps(labels_of(images)))
    done = convert_features(source, tmp_path / "out.h5", FeatureOptions(dim=dim, predictions=labels, workers=1))
    store = RegionStore(tmp_path / "out.h5")
    assert done.images == 5 and store.verify() == []
    for image in images:
        regions = store[image.image_id]
        assert len(regions) == len(image.features) and (regions.width, regions.height) == (image.width, image.height)
        np.testing.assert_array_equal(regions.features.ravel(), image.features.astype(np.float16).ravel())


@pytest.mark.parametrize("turned", [np.float32, np.float64])
@pytest.mark.parametrize("counted", [True, False])
def test_features_that_lie_on_their_side_are_turned(tmp_path: Path, turned: type, counted: bool) -> None:
    image = IMAGES[1]
    fields: dict[str, Any] = {"bbox": image.boxes, "image_w": image.width, "image_h": image.height}
    fields |= {"num_boxes": len(image.boxes)} if counted else {}
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "107.npz", features=image.features[:, :5].T, **fields)
    assert "expected 8 as features.dim" in refused(tmp_path / "in", tmp_path)
    np.savez(tmp_path / "in" / "107.npz", features=image.features.T[:, :-1], **fields)
    assert re.search(
        r"number of boxes|features have shape \(8, 2\), but there are 3 boxes", refused(tmp_path / "in", tmp_path)
    )
    np.savez(tmp_path / "in" / "107.npz", features=image.features.T.astype(turned), **fields)
    np.testing.assert_array_equal(run(tmp_path / "in", tmp_path / "out.h5")["107"].features, image.features)


def scored(numbers: np.ndarray, columns: int, winners: np.ndarray) -> dict[str, np.ndarray]:
    """Class numbers as a file has them, with a table of scores whose highest columns are `winners`."""
    table = np.full((len(numbers), columns), 0.1, dtype=np.float32)
    table[np.arange(len(numbers)), winners] = 0.6
    return {"objects": numbers, "cls_prob": table}


NUMBERS = np.array([2, 0, 1, 2])  # into CLASSES
NAMED_BY: dict[str, dict[str, Any]] = {
    "no background": scored(NUMBERS, 3, NUMBERS),
    "background in the numbers alone": scored(NUMBERS + 1, 3, NUMBERS),
    "background in both": scored(NUMBERS + 1, 4, NUMBERS + 1),
    "background in the scores alone": scored(NUMBERS, 4, NUMBERS + 1),
    "what our own files say": {"objects": NUMBERS + 1, "class_offset": 0},
}


@pytest.mark.parametrize("fields", NAMED_BY.values(), ids=NAMED_BY)
@pytest.mark.parametrize("background", [True, False], ids=["map with background", "map from 0"])
@pytest.mark.parametrize("kind", ["npz", "LMDB"])
def test_class_numbers_are_told_by_their_scores(
    tmp_path: Path, fields: dict[str, Any], background: bool, kind: str
) -> None:
    names = ["BACKGROUND", *CLASSES] if background else CLASSES
    (tmp_path / "map.json").write_text(json.dumps({"idx_to_label": dict(enumerate(names))}))
    image = {"x": np.ones((4, DIM)), "bbox": np.tile([1.0, 2, 30, 40], (4, 1)), "image_w": 100, "image_h": 90} | fields
    (tmp_path / "in").mkdir()
    if kind == "npz":
        np.savez(tmp_path / "in" / "7.npz", **image)
    else:
        write_records(tmp_path / "in", {"7": image}, [])
    store = run(tmp_path / "in", tmp_path / "out.h5", f"labels={tmp_path / 'map.json'}")
    assert [store.label_map.classes[number] for number in store["7"].classes] == [CLASSES[n] for n in NUMBERS]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"objects": NUMBERS}, "nothing tells whether class numbers count the background"),
        ({"objects": NUMBERS, "cls_prob": np.ones(4)}, "nothing tells whether class numbers count the background"),
        ({"attributes": NUMBERS // 2}, "nothing tells whether attribute numbers count"),
        (scored(NUMBERS[[0, 2, 1, 1]], 4, NUMBERS + 1), "nothing tells whether class numbers count the background"),
        (scored(NUMBERS, 9, NUMBERS), "9 class columns, but the label map has 4 names"),
        (scored(np.array([0]), 4, np.array([0])) | {"cls_prob": np.array([[5, 4, 1, 2]])}, "nothing tells"),
    ],
)
def test_class_numbers_that_nothing_tells_are_asked_for(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    labels = {"label_to_idx": {"cat": 1, "dog": 2, "tree": 3}, "attribute_to_idx": {"red": 1, "black": 2}}
    (tmp_path / "map.json").write_text(json.dumps(labels))
    (tmp_path / "in").mkdir()
    count = len(fields.get("objects", NUMBERS))
    image = {"x": np.ones((count, DIM)), "bbox": np.tile([1.0, 2, 30, 40], (count, 1)), "image_w": 100, "image_h": 90}
    np.savez(tmp_path / "in" / "7.npz", **image, **fields)
    sentence = refused(tmp_path / "in", tmp_path, f"labels={tmp_path / 'map.json'}")
    assert words in sentence and "features.class_offset" in sentence
    store = run(tmp_path / "in", tmp_path / "out.h5", f"labels={tmp_path / 'map.json'}", "class_offset=1")
    if "objects" in fields:
        assert store["7"].classes.tolist() == (fields["objects"] + 1).tolist()


def test_numbers_that_the_label_map_has_not_name_the_offset(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"label_to_idx": {"cat": 1, "dog": 2}}))
    file = write_lines(tmp_path / "in.tsv", list(map(lxmert_line, IMAGES)))
    sentence = refused(file, tmp_path, f"labels={tmp_path / 'map.json'}")
    assert re.search(r"objects_id reach 2 \(and 1 is added\), but the label map has 3 names.*class_offset", sentence)
