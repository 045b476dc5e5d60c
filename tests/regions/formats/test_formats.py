"""Features of every format that is read come out of the store as they went in."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.regions.formats.samples import (
    CLASSES,
    COLOURS,
    Sample,
    bottom_up_line,
    composed,
    labels_of,
    lxmert_line,
    objects_of,
    oscar_line,
    prediction_line,
    published_folder,
    renamed,
    run,
    samples,
    write_lines,
    write_lmdb,
    write_npy_folder,
)
from vinvl.convert import convert
from vinvl.regions import RegionStore
from vinvl.regions.formats import source, tsv
from vinvl.run import lines as worker_pool
from vinvl.run.errors import UserError

IMAGES = samples()


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


@pytest.mark.parametrize("dialect", ["columns", "json"])
@pytest.mark.parametrize("sizes", [True, False], ids=["sizes in predictions", "sizes from boxes"])
def test_published_folders_are_joined_by_image_id(tmp_path: Path, dialect: str, sizes: bool) -> None:
    store = run(published_folder(tmp_path / "in", IMAGES, dialect, sizes), tmp_path / "out.h5", "detector=X152-C4")
    assert_features(store)
    assert_names(store)
    assert store.detector == "X152-C4" and store.label_map.classes[0] == "__background__"


def test_predictions_with_features_or_labels_beside_them(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "own.tsv", [prediction_line(image, with_features=True) for image in IMAGES])
    store = run(file, tmp_path / "own.h5")
    assert_features(store)
    assert_names(store)
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


def test_bottom_up_attention(tmp_path: Path) -> None:
    store = run(write_lines(tmp_path / "bottom_up.tsv", list(map(bottom_up_line, IMAGES))), tmp_path / "out.h5")
    assert_features(store)
    assert store.label_map.classes == () and not store["100"].classes.any()


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


def test_npy_files_of_mmf(tmp_path: Path) -> None:
    images = [renamed(image, f"val/{image.image_id}") for image in IMAGES]
    store = run(write_npy_folder(tmp_path / "in", images), tmp_path / "out.h5", "class_offset=1")
    assert_features(store, images)
    for image in images:
        np.testing.assert_array_equal(store[image.image_id].classes, image.classes + 1)
        np.testing.assert_array_equal(store[image.image_id].class_scores, image.scores)


def test_lmdb_of_mmf(tmp_path: Path) -> None:
    store = run(write_lmdb(tmp_path / "in", IMAGES), tmp_path / "out.h5")
    assert_features(store)
    np.testing.assert_array_equal(store["100"].classes, IMAGES[0].classes)
    (tmp_path / "in" / "data.mdb").write_bytes(b"x" * 9000)
    with pytest.raises(UserError, match=r"in is no LMDB, or a damaged one"):
        run(tmp_path / "in", tmp_path / "two.h5")


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
    with pytest.raises(UserError, match=r"Pass one of the two: weights=… for a model, or from=…"):
        convert(composed(f"to={tmp_path / 'out.h5'}", *given))
