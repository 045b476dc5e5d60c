"""Features of every format come out of the store as they went in, and go back into these formats."""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.regions.formats.samples import (
    CLASSES,
    COLOURS,
    DIM,
    FORMATS,
    Sample,
    bottom_up_line,
    composed,
    labels_of,
    lxmert_line,
    objects_of,
    oscar_line,
    prediction_line,
    published_folder,
    refused,
    renamed,
    run,
    samples,
    write_lines,
    write_lmdb,
    write_npy_folder,
    write_records,
)
from tests.regions.samples import make_regions, write
from vinvl.convert import convert
from vinvl.regions import RegionStore
from vinvl.regions.formats import source, tsv
from vinvl.run import lines as worker_pool
from vinvl.run.errors import UserError

IMAGES, MANY = samples(), samples(20)


def assert_features(store: RegionStore, images: list[Sample] = IMAGES) -> None:
    """Features and sizes, order and region rows; nothing of it wrong."""
    assert store.image_ids.tolist() == [image.image_id for image in images]
    for image in images:
        regions = store[image.image_id]
        np.testing.assert_array_equal(regions.features, image.features.astype(np.float16))
        assert (regions.width, regions.height) == (image.width, image.height)
        np.testing.assert_allclose(regions.boxes, image.boxes, atol=1e-3)
        np.testing.assert_allclose(regions.rows(), image.rows, atol=1e-6)
    assert store.verify() == []


def assert_names(store: RegionStore, images: list[Sample] = IMAGES) -> None:
    """Classes, attributes and their scores by name."""
    for image in images:
        regions, objects = store[image.image_id], objects_of(image)
        names = [store.label_map.classes[number] for number in regions.classes]
        assert names == [entry["class"] for entry in objects]
        np.testing.assert_allclose(regions.class_scores, image.scores, rtol=1e-6)
        for region, entry in enumerate(objects):
            filled = [store.label_map.attributes[number] for number in regions.attributes[region] if number]
            assert filled == entry["attributes"]
            assert regions.attribute_scores[region, : len(filled)].tolist() == entry["attr_scores"]


def without_regions(image: Sample) -> Sample:
    names = ("features", "boxes", "classes", "scores", "colours")
    return replace(image, **{name: getattr(image, name)[:0] for name in names})


EMPTY: list[list[int]] = [[], [0, 2], [0, 1, 2, 3, 4]]
FULL = ("JSON, sizes from boxes", "bottom-up HDF5")  # in which an image without regions cannot be
CASES = [(kind, empty) for kind in FORMATS for empty in EMPTY if not empty or kind not in FULL]


@pytest.mark.parametrize(("kind", "empty"), CASES, ids=str)
def test_what_was_found_comes_out_and_nothing_is_an_image_too(tmp_path: Path, kind: str, empty: list[int]) -> None:
    images = [without_regions(image) if number in empty else image for number, image in enumerate(IMAGES)]
    source = FORMATS[kind](tmp_path / "in", images)
    settings = ["class_offset=1"] * (kind in ("npy", "npz", "LMDB")) + ["detector=X152-C4"]
    if kind in ("meshed-memory", "adaptive HDF5"):
        settings += ["class_offset=0", f"sizes={tmp_path / 'sizes.json'}"]
    if kind == "tensors":
        (tmp_path / "in.pkl").write_bytes(pickle.dumps(labels_of(images)))
        settings.append(f"predictions={tmp_path / 'in.pkl'}")
    store = run(source, tmp_path / "out.h5", *settings)
    assert_features(store, images)
    assert store.detector == "X152-C4"
    if kind.startswith(("predictions", "columns", "JSON")):
        assert_names(store, images)
        assert store.label_map.classes[0] == "__background__"
    elif kind != "tensors":
        assert store.label_map.classes == ()
    if kind in ("npy", "npz", "LMDB", "LXMERT", "MMF VinVL", "meshed-memory"):
        assert [store[one.image_id].classes.tolist() for one in images] == [
            (one.classes + 1).tolist() for one in images
        ]


def test_features_with_labels_beside_them(tmp_path: Path) -> None:
    features = write_lines(tmp_path / "train.feature.tsv", [oscar_line(image, "json") for image in IMAGES])
    labels = [f"{image.image_id}\t{json.dumps(objects_of(image))}\n" for image in IMAGES]
    store = run(features, tmp_path / "out.h5", f"predictions={write_lines(tmp_path / 'train.label.tsv', labels)}")
    assert_features(store)
    assert_names(store)


def test_the_detectors_label_map_gives_the_numbers(tmp_path: Path) -> None:
    labels = {"label_to_idx": {"tree": 1, "dog": 2, "cat": 3, "car": 4}, "attribute_to_idx": {"red": 1, "black": 2}}
    (tmp_path / "map.json").write_text(json.dumps(labels))
    folder = published_folder(tmp_path / "in", IMAGES)
    store = run(folder, tmp_path / "out.h5", f"labels={tmp_path / 'map.json'}")
    assert store.label_map.classes == ("__background__", "tree", "dog", "cat", "car")
    assert_names(store)


@pytest.mark.parametrize("kind", ["json", "coco", "hw.tsv"])
def test_features_alone_need_the_sizes_of_their_images(tmp_path: Path, kind: str) -> None:
    if kind == "hw.tsv":
        sizes = [f"{i.image_id}\t{json.dumps([{'height': i.height, 'width': i.width}])}\n" for i in IMAGES]
        file = write_lines(tmp_path / "train.hw.tsv", sizes)
    else:
        of_coco = {"images": [{"id": int(i.image_id), "width": i.width, "height": i.height} for i in IMAGES]}
        plain = {image.image_id: [image.width, image.height] for image in IMAGES}
        file = tmp_path / "sizes.json"
        file.write_text(json.dumps(of_coco if kind == "coco" else plain))
    features = write_lines(tmp_path / "features.tsv", [oscar_line(image) for image in IMAGES])
    assert_features(run(features, tmp_path / "out.h5", f"sizes={file}"))


def test_with_assumed_sizes_a_model_reads_the_same_rows(tmp_path: Path) -> None:
    features = write_lines(tmp_path / "features.tsv", [oscar_line(image) for image in IMAGES])
    store = run(features, tmp_path / "out.h5", "assume_size=[1000,1000]")
    for image in IMAGES:
        np.testing.assert_allclose(store[image.image_id].rows(), image.rows, atol=1e-6)
        assert store[image.image_id].boxes.max() == 1000


def test_rows_without_geometry_take_the_predicted_boxes(tmp_path: Path) -> None:
    folder = published_folder(tmp_path / "in", IMAGES)
    write_lines(folder / "features.tsv", [oscar_line(i, rows=i.features) for i in IMAGES], lineidx=True)
    store = run(folder, tmp_path / "out.h5")
    assert_features(store)
    assert_names(store)


def test_rounded_predictions_leave_the_rows_as_they_are(tmp_path: Path) -> None:
    folder = published_folder(tmp_path / "in", IMAGES)
    write_lines(
        folder / "predictions.tsv", [prediction_line(replace(i, boxes=i.boxes + 1)) for i in IMAGES], lineidx=True
    )
    assert_features(run(folder, tmp_path / "out.h5"))


def test_lxmert_numbers_make_room_for_the_background(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "lxmert.tsv", list(map(lxmert_line, IMAGES)))
    store = run(file, tmp_path / "out.h5")
    assert_features(store)
    for image in IMAGES:
        regions = store[image.image_id]
        np.testing.assert_array_equal(regions.classes, image.classes + 1)
        np.testing.assert_array_equal(regions.attributes[:, 0], image.colours + 1)
        np.testing.assert_allclose(regions.class_scores, image.scores)
        np.testing.assert_allclose(regions.attribute_scores[:, 0], image.scores / 2)
    assert run(file, tmp_path / "0.h5", "class_offset=0")["100"].classes.tolist() == IMAGES[0].classes.tolist()


def test_ids_of_files_are_their_paths(tmp_path: Path) -> None:
    images = [renamed(image, f"val/{image.image_id}") for image in IMAGES]
    assert_features(run(write_npy_folder(tmp_path / "in", images), tmp_path / "out.h5", "class_offset=1"), images)


@pytest.mark.parametrize("with_info", [True, False])
def test_npz_files(tmp_path: Path, with_info: bool) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for image in IMAGES:
        info: Any = {"objects_id": image.classes, "objects_conf": image.scores, "image_id": image.image_id}
        more = {"info": info} if with_info else {"classes": image.classes}
        padded = np.pad(image.boxes, ((0, 3), (0, 0)))
        features = np.pad(image.features, ((0, 3), (0, 0)))
        size = {"image_w": image.width, "image_h": image.height, "num_bbox": len(image.boxes)}
        np.savez_compressed(folder / f"{image.image_id}.npz", x=features, bbox=padded, **size, **more)
    store = run(folder, tmp_path / "out.h5")
    assert_features(store)
    np.testing.assert_array_equal(store["100"].classes, IMAGES[0].classes)
    assert store["100"].class_scores.any() == with_info


@pytest.mark.parametrize("zipped", [True, False], ids=["torch 2", "torch 1.2"])
@pytest.mark.parametrize("key", [str, int])
def test_published_tensors_with_a_label_pickle(tmp_path: Path, zipped: bool, key: type) -> None:
    tensors = {key(image.image_id): torch.from_numpy(image.rows) for image in IMAGES}
    torch.save(tensors, tmp_path / "in.pt", _use_new_zipfile_serialization=zipped)
    (tmp_path / "labels.pkl").write_bytes(pickle.dumps(labels_of(IMAGES, key), protocol=2))
    store = run(tmp_path / "in.pt", tmp_path / "out.h5", f"predictions={tmp_path / 'labels.pkl'}")
    assert_features(store)
    names = [store.label_map.classes[number] for number in store["107"].classes]
    assert names == [CLASSES[number] for number in IMAGES[1].classes]


def test_ids_shards_and_float32(tmp_path: Path) -> None:
    images = [renamed(image, f"COCO_val2014_{int(image.image_id):012d}") for image in IMAGES]
    file = write_lines(tmp_path / "in.tsv", list(map(bottom_up_line, images)))
    settings = ("id_pattern='0*(\\d+)$'", "images_per_shard=2", "dtype=float32")
    store = run(file, tmp_path / "out", *settings)
    assert_features(store)
    assert len(store.headers) == 3 and store.feature_dtype == np.float32


@pytest.mark.parametrize("write", [published_folder, write_npy_folder, write_lmdb])
def test_processes_give_what_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, list[Sample]], Path]
) -> None:
    """Many small parts, decoded by two processes: the same file, byte by byte."""
    images = samples(60)
    folder, given = write(tmp_path / "in", images), [] if write is published_folder else ["class_offset=1"]
    run(folder, tmp_path / "one.h5", "workers=1", *given)
    monkeypatch.setattr(source, "SMALL", 0)
    monkeypatch.setattr(tsv, "PART_BYTES", 1000)
    run(folder, tmp_path / "two.h5", "workers=2", *given)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    in_order = images if write is published_folder else sorted(images, key=lambda image: image.image_id)
    assert_features(RegionStore(tmp_path / "two.h5"), in_order)


def test_a_worker_that_is_killed_is_told_of() -> None:
    with pytest.raises(UserError, match=r"A worker process was ended from outside"):
        list(worker_pool.in_order(os._exit, [1, 1, 1], workers=2))


def test_a_conversion_tells_how_it_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(write_lines(tmp_path / "in.tsv", list(map(bottom_up_line, IMAGES))), tmp_path / "out.h5")
    printed = capsys.readouterr()
    regions = sum(len(image.boxes) for image in IMAGES)
    assert f"5 images with {regions} regions" in printed.out and "MB/s" in printed.out
    assert printed.out.count("\n") == 1 and printed.err == ""
    assert COLOURS and sorted(path.name for path in tmp_path.iterdir()) == ["in.tsv", "out.h5"]


@pytest.mark.parametrize("given", [[], ["weights=a", "from=b"]])
def test_one_source_is_converted_at_a_time(given: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Pass one of weights=…, from=…, .* not (none|weights and from)\."):
        convert(composed(f"to={tmp_path / 'out.h5'}", *given))


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
    assert re.search(r"classes reach 2 \(and 1 is added\), but the label map has 3 names.*class_offset", sentence)


def written(store: Path, folder: Path, kind: str) -> Path:
    return convert(composed(f"from={store}", f"to={folder}", f"format={kind}"))


def assert_alike(store: RegionStore, other: RegionStore) -> None:
    assert store.image_ids.tolist() == other.image_ids.tolist()
    for number in range(len(store)):
        one, two = store.at(number), other.at(number)
        np.testing.assert_array_equal(one.features, two.features)
        np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-3)
        np.testing.assert_array_equal(one.class_scores, two.class_scores)
        np.testing.assert_array_equal(one.classes, two.classes)
        np.testing.assert_array_equal(one.attributes, two.attributes)
        np.testing.assert_array_equal(one.attribute_scores, two.attribute_scores)
        assert (one.width, one.height) == (two.width, two.height)


@pytest.mark.parametrize("kind", ["oscar_tsv", "mmf_npy", "m2_hdf5"])
def test_what_is_written_reads_as_it_was(tmp_path: Path, kind: str) -> None:
    published_folder(tmp_path / "in", MANY)
    run(tmp_path / "in", tmp_path / "one.h5")
    folder = written(tmp_path / "one.h5", tmp_path / "out", kind)
    back, store = run(folder, tmp_path / "two.h5"), RegionStore(tmp_path / "one.h5")
    if kind == "oscar_tsv":
        assert_alike(store, back)
        assert back.label_map == store.label_map
        assert "__no_attribute__" not in (folder / "predictions.tsv").read_text()
    else:  # files of one image come in the order of their names, which is that of these ids
        by_name = sorted(store.image_ids.tolist())
        assert back.label_map == store.label_map
        assert back.image_ids.tolist() == by_name
        for name in by_name:
            np.testing.assert_array_equal(back[name].features, store[name].features)
            np.testing.assert_array_equal(back[name].boxes, store[name].boxes)
            np.testing.assert_array_equal(back[name].classes, store[name].classes)
            np.testing.assert_array_equal(back[name].class_scores, store[name].class_scores)
            assert (back[name].width, back[name].height) == (store[name].width, store[name].height)
            if kind == "m2_hdf5":
                continue
            np.testing.assert_array_equal(back[name].attributes, store[name].attributes)
            np.testing.assert_array_equal(back[name].attribute_scores, store[name].attribute_scores)


def test_what_meshed_memory_has_no_place_for_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Background has the first column; a class without a score, an id that is no number, attributes have none."""
    images = [make_regions(name, 2, attributes=1) for name in ("7", "a", "9")]
    images[1].class_scores[:], images[2].classes[:] = 0, 0
    folder = written(write(tmp_path / "one.h5", images, attributes=1), tmp_path / "out", "m2_hdf5")
    told = capsys.readouterr().out
    assert all(words in told for words in ("1 images have no cls_prob", "Attributes have no", "1 ids are no numbers"))
    with h5py.File(folder / "detections.hdf5") as file:
        assert sorted(name for name in file if name.startswith("7")) == [
            "7_boxes",
            "7_cls_prob",
            "7_features",
            "7_size",
        ]
        best = file["7_cls_prob"][...]
        assert best.argmax(axis=1).tolist() == images[0].classes.tolist() and file["7_features"].dtype == np.float32
        np.testing.assert_array_equal(best.max(axis=1), images[0].class_scores)
    back = run(folder, tmp_path / "two.h5", "dim=3")
    assert not back["a"].classes.any()
    np.testing.assert_array_equal(back["9"].class_scores, images[2].class_scores)
    with pytest.raises(UserError, match=r"image 'a/b' has an id that is no name in HDF5"):
        written(write(tmp_path / "sub.h5", [make_regions("a/b", 2)]), tmp_path / "no", "m2_hdf5")


def test_rows_are_found_as_oscar_finds_them(tmp_path: Path) -> None:
    run(published_folder(tmp_path / "in", MANY), tmp_path / "one.h5")
    folder = written(tmp_path / "one.h5", tmp_path / "out", "oscar_tsv")
    row = json.loads((folder / "imageid2idx.json").read_text())["121"]
    begin = int((folder / "features.lineidx").read_text().split()[row])
    columns = (folder / "features.tsv").read_bytes()[begin:].split(b"\n")[0].split(b"\t")
    assert columns[0] == b"121"
    rows = np.frombuffer(base64.b64decode(columns[-1]), dtype=np.float32).reshape(int(columns[1]), -1)
    np.testing.assert_allclose(rows, MANY[3].rows, atol=1e-6)
    assert rows.shape[1] == DIM + 6


def test_a_store_without_names_has_sizes_and_no_predictions(tmp_path: Path) -> None:
    run(write_lines(tmp_path / "in.tsv", list(map(bottom_up_line, MANY))), tmp_path / "one.h5")
    folder = written(tmp_path / "one.h5", tmp_path / "out", "oscar_tsv")
    assert not (folder / "predictions.tsv").exists()
    assert_alike(RegionStore(tmp_path / "one.h5"), run(folder, tmp_path / "two.h5", f"sizes={folder / 'hw.tsv'}"))


@pytest.mark.parametrize("image_id", ["../up", "/root", "a\tb", "7_info"])
def test_ids_that_are_no_file_names_write_nothing(tmp_path: Path, image_id: str) -> None:
    (tmp_path / "sub").mkdir()
    store = write(tmp_path / "sub" / "one.h5", [make_regions("7", 2), make_regions(image_id, 2)])
    with pytest.raises(UserError, match=r"one.h5: image .* has an id that is no name of a file"):
        written(store, tmp_path / "sub" / "out", "mmf_npy")
    assert [path.name for path in tmp_path.rglob("*")] == ["sub", "one.h5"]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    store = write(tmp_path / "one.h5", [make_regions("a\nb", 2)])
    with pytest.raises(UserError, match="an id that no TSV can hold"):
        written(store, tmp_path / "out", "oscar_tsv")
    with pytest.raises(UserError, match=r"one.h5 is a store already"):
        run(store, tmp_path / "out")
    with pytest.raises(UserError, match="format is 'oscar'; of features choose one of oscar_tsv, mmf_npy, m2"):
        written(store, tmp_path / "out", "oscar")
    with pytest.raises(UserError, match="exists already"):
        written(store, tmp_path, "oscar_tsv")
    assert [path.name for path in tmp_path.iterdir()] == ["one.h5"]
