"""The writer refuses bad images, needs constant memory, and leaves nothing behind when it does not finish."""

from __future__ import annotations

import dataclasses
import gc
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.regions.samples import LABELS, assert_same, make_regions, write
from vinvl.regions import Regions, RegionStore, RegionStoreWriter
from vinvl.regions.regions import all_finite
from vinvl.run.errors import UserError


def open_writer(path: Path, **layout: Any) -> RegionStoreWriter:
    return RegionStoreWriter(path, feature_dim=3, detector="", label_map=LABELS, num_attributes=1, **layout)


def with_value(name: str, value: object) -> Regions:
    return dataclasses.replace(make_regions("42", 2, attributes=1), **{name: value})  # type: ignore[arg-type]


REFUSED = [
    ("features", np.zeros((2, 4)), "features have shape (2, 4), (2, 3) was expected"),
    ("features", np.array([[0, np.nan, 0], [0, 0, 0]]), "features of region 0 are NaN or infinite"),
    ("features", np.full((2, 3), 1e6), "features of region 0 are too large for float16"),
    ("features", np.array([["a", "b", "c"]] * 2), "numbers were expected"),
    ("features", np.float32(1), "features have shape (), (0, 3) was expected"),
    ("boxes", np.zeros((3, 4)), "boxes have shape (3, 4), (2, 4) was expected"),
    ("boxes", np.array([[0, 0, np.inf, 1]] * 2), "boxes of region 0 are NaN or infinite"),
    ("classes", np.zeros(1, dtype=int), "classes have shape (1,), (2,) was expected"),
    ("classes", np.zeros(2), "classes are of type float64, whole numbers were expected"),
    ("classes", np.array([0, 3]), "classes run from 0 to 3, the label map allows 0 to 2"),
    ("classes", np.array([-1, 0]), "classes run from -1 to 0"),
    ("class_scores", np.array([0.5, np.nan]), "class_scores of region 1 are NaN"),
    ("attributes", np.zeros((2, 2), dtype=int), "attributes have shape (2, 2), (2, 1) was expected"),
    ("attributes", np.array([[0], [2]]), "attributes run from 0 to 2, the label map allows 0 to 1"),
    ("attribute_scores", np.zeros(2), "attribute_scores have shape (2,), (2, 1) was expected"),
    ("width", 0, "width is 0, a positive number of pixels was expected"),
    ("height", -5, "height is -5"),
    ("height", 3.5, "height is 3.5"),
]


@pytest.mark.parametrize(("name", "value", "sentence"), REFUSED, ids=[f"{row[0]}: {row[2][:40]}" for row in REFUSED])
def test_bad_images_are_refused_by_name_and_leave_no_trace(
    tmp_path: Path, name: str, value: object, sentence: str
) -> None:
    good = make_regions("1", 2, attributes=1)
    with open_writer(tmp_path / "a.h5") as writer:
        with pytest.raises(UserError) as caught:
            writer.add(with_value(name, value))
        writer.add(good)
    assert sentence in str(caught.value) and "image '42'" in str(caught.value) and "a.h5" in str(caught.value)
    store = RegionStore(tmp_path / "a.h5")
    assert store.image_ids.tolist() == ["1"] and store.verify() == []
    assert_same(store["1"], good)


@pytest.mark.parametrize("images_per_shard", [None, 1])
def test_duplicate_and_malformed_ids_are_refused_also_across_shards(
    tmp_path: Path, images_per_shard: int | None
) -> None:
    with open_writer(tmp_path / "a", max_images_per_shard=images_per_shard) as writer:
        writer.add(make_regions("42", 1, attributes=1))
        writer.add(make_regions("43", 1, attributes=1))
        with pytest.raises(UserError, match="image '42' was added before"):
            writer.add(make_regions("42", 2, attributes=1))
        for malformed in ("", "a\0", "x" * 256, "\ud800", 42, None):
            with pytest.raises(UserError, match="image id"):
                writer.add(with_value("image_id", malformed))
    assert RegionStore(tmp_path / "a").image_ids.tolist() == ["42", "43"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"feature_dim": 0}, "feature_dim is 0"),
        ({"num_attributes": -1}, "num_attributes is -1"),
        ({"feature_dtype": "int8"}, "feature_dtype is 'int8', choose one of float16, float32"),
        ({"max_images_per_shard": 0}, "max_images_per_shard is 0"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        RegionStoreWriter(tmp_path / "a.h5", **({"feature_dim": 3, "detector": "", "label_map": LABELS} | arguments))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_written_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("")
    for name, size, words in (
        ("folder", None, "folder is a folder"),
        ("folder", 5, "folder exists already"),
        ("folder/thesis.tex/a.h5", None, "cannot be written"),
        ("a.partial", None, "choose another name"),
    ):
        with pytest.raises(UserError, match=words):
            open_writer(tmp_path / name, max_images_per_shard=size)


@pytest.mark.parametrize("layout", [{}, {"max_images_per_shard": 2}])
def test_an_interrupted_writer_leaves_nothing_but_the_old_file(tmp_path: Path, layout: dict[str, Any]) -> None:
    old = write(tmp_path / "a", [make_regions("old", 1)]) if not layout else None
    with pytest.raises(KeyboardInterrupt), open_writer(tmp_path / "a", **layout) as writer:
        for number in range(5):
            writer.add(make_regions(str(number), 3, attributes=1))
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == ([old] if old else [])
    assert old is None or RegionStore(old).image_ids.tolist() == ["old"]
    with pytest.raises(UserError, match="writer is closed"):
        writer.add(make_regions("9", 3, attributes=1))


def test_a_disk_that_fills_up_is_told_and_nothing_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"b.h5 cannot be written \(No space left"):
        patch.setattr("os.replace", fail)
        write(tmp_path / "b.h5", [make_regions("new", 1)])
    writer = open_writer(tmp_path / "a.h5")
    with monkeypatch.context() as patch:
        patch.setattr("vinvl.regions.writer.SHARD_BYTES", 1)
        patch.setattr("vinvl.regions.writer.write_store_file", fail)
        with pytest.raises(UserError, match="No space left"):
            writer.add(make_regions("1", 1, attributes=1))
    with pytest.raises(UserError, match="has failed"):
        writer.add(make_regions("2", 1, attributes=1))
    with pytest.raises(UserError, match="an earlier write failed"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_lost_or_left_at_exit_cleans_up(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "a.h5")
    writer.add(make_regions("1", 1, attributes=1))
    assert len(list(tmp_path.iterdir())) == 1
    del writer
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    code = (
        "from vinvl.regions import LabelMap, RegionStoreWriter as Writer\n"
        "import sys; w = Writer(sys.argv[1], feature_dim=3, detector='', label_map=LabelMap((), ()))\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b.h5")], check=True)
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_does_not_remove_its_parents_work(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.h5") as writer:
        writer.add(make_regions("1", 1, attributes=1))
        child = os.fork()
        if child == 0:
            writer.abort()
            os._exit(0)
        os.waitpid(child, 0)
        writer.add(make_regions("2", 1, attributes=1))
    assert RegionStore(tmp_path / "a.h5").image_ids.tolist() == ["1", "2"]


def test_rewriting_a_file_replaces_it_whole(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", [make_regions("1", 5)])
    reader = RegionStore(path)
    before = reader.at(0).features.copy()
    write(path, [make_regions("2", 1, seed=9)])
    np.testing.assert_array_equal(reader.at(0).features, before)
    assert RegionStore(path).image_ids.tolist() == ["2"]


def test_memory_does_not_grow_with_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vinvl.regions.writer.SHARD_BYTES", 2**20)
    image = make_regions("", 100, feature_dim=2048)
    written = 0
    tracemalloc.start()
    try:
        with RegionStoreWriter(tmp_path / "a.h5", feature_dim=2048, detector="", label_map=LABELS) as writer:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            for number in range(80):
                writer.add(dataclasses.replace(image, image_id=str(number)))
                written += image.features.nbytes
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert written > 32e6 and peak < 20e6


def test_the_file_is_plain_hdf5_as_the_layout_says(tmp_path: Path) -> None:
    images = [make_regions("é", 2, attributes=1), make_regions("b", 1, attributes=1)]
    path = write(tmp_path / "a.h5", images, attributes=1)
    with h5py.File(path) as file:
        assert file.attrs["format"] == b"vinvl-regions" and file.attrs["version"] == 1
        assert file.attrs["feature_dim"] == 3 and file.attrs["complete"] == 1
        shapes = {name: (dataset.shape, str(dataset.dtype)) for name, dataset in file.items()}
        assert file["features"].chunks is None and file["features"].compression is None
        assert file["offsets"][:].tolist() == [0, 2, 3]
        assert file["image_ids"].asstr()[:].tolist() == ["é", "b"]
    assert shapes == {
        "features": ((3, 3), "float16"),
        "boxes": ((3, 4), "float32"),
        "classes": ((3,), "int32"),
        "class_scores": ((3,), "float32"),
        "attributes": ((3, 1), "int32"),
        "attribute_scores": ((3, 1), "float32"),
        "offsets": ((3,), "int64"),
        "image_ids": ((2,), "|S2"),
        "sizes": ((2, 2), "int32"),
    }


def test_every_half_that_is_not_finite_is_seen() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    assert [all_finite(halves[i : i + 1]) for i in range(2**16)] == np.isfinite(halves).tolist()
    assert all_finite(halves[:0]) and all_finite(np.zeros(2)) and not all_finite(np.array([1, np.inf], np.float32))
