"""The writer refuses bad images and needs constant memory; work that is killed goes on, or leaves nothing behind."""

from __future__ import annotations

import dataclasses
import errno
import gc
import itertools
import os
import re
import signal
import sys
import threading
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.regions.samples import LABELS, assert_same, make_regions, write
from vinvl.regions import LabelMap, Regions, RegionStore, RegionStoreWriter
from vinvl.regions import writer as writer_module
from vinvl.regions.layout import read_header
from vinvl.regions.regions import StoreAttributes, all_finite, finite
from vinvl.regions.writer import ShardWriter, Unfinished, checked_image, shard_files
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


BAD_ARGUMENTS = ({"feature_dim": 0}, {"num_attributes": -1}, {"feature_dtype": "int8"}, {"max_images_per_shard": 0})


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS, ids=str)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path, arguments: dict[str, object]) -> None:
    (name, value), *_ = arguments.items()
    with pytest.raises(UserError, match=f"{name} is {value!r}"):
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
        writer.add(make_regions("1", 1, attributes=1))  # its shard is written while others are added
        with pytest.raises(UserError, match="No space left"):
            writer.add(make_regions("2", 1, attributes=1))
    with pytest.raises(UserError, match="has failed"):
        writer.add(make_regions("3", 1, attributes=1))
    with pytest.raises(UserError, match="an earlier write failed"):
        writer.close()
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_lost_cleans_up(tmp_path: Path) -> None:
    writer = open_writer(tmp_path / "a.h5")
    writer.add(make_regions("1", 1, attributes=1))
    assert len(list(tmp_path.iterdir())) == 1
    del writer
    gc.collect()
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
    monkeypatch.setattr("vinvl.regions.writer.SHARD_BYTES", 2**19)
    image = make_regions("", 100, feature_dim=2048)
    written = 0
    tracemalloc.start()
    try:
        with RegionStoreWriter(tmp_path / "a.h5", feature_dim=2048, detector="", label_map=LABELS) as writer:
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            for number in range(40):
                writer.add(dataclasses.replace(image, image_id=str(number)))
                written += image.features.nbytes
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert written > 16e6 and peak < 14e6


def test_the_file_is_plain_hdf5_as_the_layout_says(tmp_path: Path) -> None:
    images = [make_regions("é", 2, attributes=1), make_regions("b", 1, attributes=1)]
    path = write(tmp_path / "a.h5", images, attributes=1)
    with h5py.File(path) as file:
        assert file.attrs["format"] == b"vinvl-regions" and file.attrs["version"] == 1
        assert file.attrs["feature_dim"] == 3 and file.attrs["complete"] == 1
        found = {name: (dataset.shape, str(dataset.dtype)) for name, dataset in file.items()}
        assert file["features"].chunks is None and file["features"].compression is None
        assert file["offsets"][:].tolist() == [0, 2, 3]
        assert file["image_ids"].asstr()[:].tolist() == ["é", "b"]
    assert found == {
        "features": ((3, 3), "float16"), "boxes": ((3, 4), "float32"), "classes": ((3,), "int32"),
        "class_scores": ((3,), "float32"), "attributes": ((3, 1), "int32"), "attribute_scores": ((3, 1), "float32"),
        "offsets": ((3,), "int64"), "image_ids": ((2,), "|S2"), "sizes": ((2, 2), "int32"),
    }  # fmt: skip


def test_every_half_that_is_not_finite_is_seen() -> None:
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    assert [all_finite(half) for half in np.split(halves, 2**12)] == np.isfinite(halves).reshape(-1, 16).all(1).tolist()
    assert [all_finite(halves[i : i + 1]) for i in range(31740, 31750)] == np.isfinite(halves[31740:31750]).tolist()
    assert all_finite(halves[:0]) and all_finite(np.zeros(2)) and not all_finite(np.array([1, np.inf], np.float32))


ATTRIBUTES = StoreAttributes(3, np.dtype("<f2"), 2, "X152-C4", LABELS, {"weights": "abc"})


def image(number: int) -> Regions:
    return make_regions(f"image {number}", number % 4, attributes=2, seed=number)


def add(target: Path, *numbers: int, process: int = 0) -> Unfinished:
    """One more shard with these images."""
    unfinished = Unfinished(target)
    unfinished.begin({"threshold": 0.2})
    writer = ShardWriter(unfinished.folder, process, ATTRIBUTES)
    for number in numbers:
        writer.add(checked_image(image(number), ATTRIBUTES))
    writer.flush()
    return unfinished


def ids(unfinished: Unfinished) -> list[str]:
    return [image_id.decode() for shard in unfinished.shards() for image_id in shard.image_ids]


def test_a_store_is_made_of_all_shards_in_the_given_order(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    add(target, 3, 1)
    add(target, 2, process=1)
    assert add(target, 7).finish(ATTRIBUTES, ["image 1", "image 2", "image 3"], []) == 4
    store = RegionStore(target)
    assert list(store.image_ids) == ["image 1", "image 2", "image 3", "image 7"]
    for number in (1, 2, 3, 7):
        assert_same(store[f"image {number}"], image(number))
    assert store.provenance == {"weights": "abc"} and store.verify() == []
    assert os.listdir(tmp_path) == ["out.h5"]


@pytest.mark.parametrize("most", [1, 64])
def test_how_images_lie_in_shards_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Also where files are opened and closed in turn."""
    monkeypatch.setattr("vinvl.regions.merging.MOST_OPEN", most)
    order = [f"image {number}" for number in range(9)]
    for name, parts in (("one", [range(9)]), ("many", [(5, 8), (1,), (7, 2, 4), (0,), (3, 6)])):
        for process, numbers in enumerate(parts):
            unfinished = add(tmp_path / name, *numbers, process=process)
        unfinished.finish(ATTRIBUTES, order, [])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()


def test_an_earlier_store_gives_the_images_that_the_shards_have_not(tmp_path: Path) -> None:
    target = write(tmp_path / "out.h5", [image(1), image(2), image(3)], attributes=2)
    earlier = RegionStore(target)
    assert add(target, 9).finish(ATTRIBUTES, ["image 9", "image 2"], earlier.sources) == 4
    assert list(RegionStore(target).image_ids) == ["image 9", "image 2", "image 1", "image 3"]
    assert_same(RegionStore(target)["image 3"], image(3))


def test_a_shard_is_finished_by_size_and_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(writer_module.time, "monotonic", lambda: now)
    size = sum(array.nbytes for array in checked_image(image(3), ATTRIBUTES)[1].values())
    for bytes_, seconds, expected in ((2 * size, 60.0, [2, 2]), (10**9, 60.0, [3]), (10**9, 20.0, [2, 2])):
        monkeypatch.setattr(writer_module, "SHARD_BYTES", bytes_)
        folder = tmp_path / f"{bytes_} {seconds}"
        folder.mkdir()
        writer = ShardWriter(folder, 0, ATTRIBUTES, seconds=seconds)
        for _ in range(5):
            writer.add(checked_image(image(3), ATTRIBUTES))
            now += 20
        writer.finish()
        with_images = [read_header(path).num_images for path in shard_files(folder)]
        assert with_images == (expected if bytes_ != 10**9 or seconds != 60.0 else [4]), (bytes_, seconds)


def test_kill_9_loses_no_finished_shard(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            for number in itertools.count():
                add(target, 2 * number, 2 * number + 1)
                os.write(writing, f"{2 * number + 2}\n".encode())
        os._exit(1)
    os.close(writing)
    with os.fdopen(reading) as lines:
        told = next(int(line) for line in lines if int(line) >= 20)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = ids(Unfinished(target))
    assert found == [f"image {i}" for i in range(len(found))] and len(found) >= told and len(found) % 2 == 0
    add(target, 1000).finish(ATTRIBUTES, [], [])
    assert len(RegionStore(target)) == len(found) + 1 and os.listdir(tmp_path) == ["out.h5"]


def test_two_do_not_work_as_one_process(tmp_path: Path) -> None:
    unfinished = add(tmp_path / "out.h5", 1)
    with unfinished.locked(0):
        with pytest.raises(UserError, match="Another process is working on"), unfinished.locked(0):
            raise AssertionError
        with unfinished.locked(1):
            pass
    with unfinished.locked(0):
        pass


def test_settings_are_kept_and_refused_where_they_are_damaged(tmp_path: Path) -> None:
    unfinished = Unfinished(tmp_path / "out.h5")
    assert unfinished.settings() is None
    unfinished.begin({"threshold": 0.2})
    unfinished.begin({"threshold": 0.5})
    assert unfinished.settings() == {"threshold": 0.2}
    for content in ("[1]", "{", "[" * 100_000):
        (unfinished.folder / "settings.json").write_text(content)
        with pytest.raises(UserError, match=r"settings\.json"):
            unfinished.settings()
    (unfinished.folder / "settings.json").write_text("{}")
    (unfinished.folder / "part-00000").mkdir()
    with pytest.raises(UserError, match="part-00000 was written by an earlier version"):
        unfinished.settings()
    unfinished.discard()
    assert os.listdir(tmp_path) == []


def test_a_full_disk_keeps_shards_and_earlier_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write(tmp_path / "out.h5", [image(1)], attributes=2)
    unfinished = add(target, 2)

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_module, "write_store_file", fail)
    with pytest.raises(UserError, match=r"No space left on device.*make room and give the same command again"):
        unfinished.finish(ATTRIBUTES, [], [])
    assert list(RegionStore(target).image_ids) == ["image 1"] and ids(unfinished) == ["image 2"]


def test_no_shards_make_an_empty_store(tmp_path: Path) -> None:
    add(tmp_path / "out.h5")
    with pytest.raises(UserError, match="the same command goes on with it"):
        RegionStore(tmp_path / "out.h5")
    assert add(tmp_path / "out.h5").finish(ATTRIBUTES, ["image 1"], []) == 0
    assert len(RegionStore(tmp_path / "out.h5")) == 0


def test_a_shard_of_another_store_is_refused(tmp_path: Path) -> None:
    unfinished = add(tmp_path / "out.h5", 1)
    other = write(tmp_path / "other.h5", [image(2)], attributes=2)  # of another detector
    os.replace(other, unfinished.folder / "00000-00001.h5")
    with pytest.raises(UserError, match=r"00000-00001\.h5 is of another store"):
        unfinished.finish(ATTRIBUTES, [], [])


def test_one_bit_that_turned_makes_no_store(tmp_path: Path) -> None:
    """Whatever the bit is of: the shard is passed over and made again, refused, or (in unused bytes) as it was."""
    target = tmp_path / "out.h5"
    path = shard_files(add(target, 1, 2, 3).folder)[0]
    written = path.read_bytes()
    with h5py.File(path) as file:
        places = {name: file[name].id.get_offset() for name in file if file[name].size}
    refused = 0
    for byte in [*places.values(), *range(0, len(written), 397)]:
        content = bytearray(written)
        content[byte] ^= 1 << byte % 8
        path.write_bytes(content)
        unfinished = Unfinished(target)
        if not unfinished.shards():
            continue
        try:
            unfinished.finish(ATTRIBUTES, [], [])
        except UserError as error:
            assert "00000-00000.h5" in str(error) and not target.exists(), error
            refused += 1
        else:
            assert RegionStore(target).verify() == []
            for number in (1, 2, 3):
                assert_same(RegionStore(target)[f"image {number}"], image(number))
            target.unlink()
            unfinished.begin({})
    assert refused > 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["cut", "empty", "folder", "text", "without checksums"])
def test_a_shard_that_is_plainly_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    target = tmp_path / "out.h5"
    unfinished = add(add(target, 1).target, 2)
    path = shard_files(unfinished.folder)[0]
    if damage == "without checksums":
        with h5py.File(path, "r+") as file:
            del file.attrs["checksums"]
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"cut": path.read_bytes()[:-40], "empty": b"", "text": b"mine"}[damage])
    assert ids(unfinished) == ["image 2"]
    with suppress(UserError):
        add(target, 1)
    if damage != "folder":
        unfinished.finish(ATTRIBUTES, ["image 1"], [])
        assert list(RegionStore(target).image_ids) == ["image 1", "image 2"]


def test_features_and_boxes_are_enough(tmp_path: Path) -> None:
    """What is not given is zeros; what is given must fit."""
    boxes = np.array([[0, 0, 5, 5], [1, 2, 3, 4]], dtype=np.float32)
    with RegionStoreWriter(tmp_path / "a.h5", feature_dim=3) as writer:
        writer.add(Regions("1", np.ones((2, 3)), boxes, width=9, height=9))
        writer.add(Regions("2", np.ones((0, 3)), boxes[:0], width=9, height=9))
        for bad, words in (
            (Regions("3", np.ones((2, 3)), boxes), "width is 0, a positive number of pixels was expected"),
            (Regions("3", np.ones((1, 3)), boxes, width=9, height=9), "boxes have shape (2, 4), (1, 4) was expected"),
            (Regions("3", np.ones((2, 3)), boxes, np.ones(3), width=9, height=9), "classes have shape (3,), (2,) was"),
        ):
            with pytest.raises(UserError, match=re.escape(words)):
                writer.add(bad)
    store = RegionStore(tmp_path / "a.h5")
    assert store.verify() == [] and store.label_map == LabelMap() and store.num_attributes == 0 and store.detector == ""
    assert not store["1"].classes.any() and store["1"].attribute_scores.shape == (2, 0)
    with RegionStoreWriter(tmp_path / "b.h5", feature_dim=3, num_attributes=2) as writer:
        writer.add(Regions("1", np.ones((2, 3)), boxes, attributes=np.ones((2, 2), int), width=9, height=9))
    assert RegionStore(tmp_path / "b.h5")["1"].attribute_scores.tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("with_torch", [True, False])
def test_halves_are_those_of_numpy(monkeypatch: pytest.MonkeyPatch, with_torch: bool) -> None:
    """Every half, what lies between two of them and just beside that, slices and more than are converted at once."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    halves = np.sort(halves[np.isfinite(halves)]).astype(np.float32)
    between = (halves[1:] + halves[:-1]) / 2
    numbers = np.concatenate([halves, between, np.nextafter(between, np.inf), np.nextafter(between, -np.inf)])
    table = np.pad(numbers, (0, -len(numbers) % 6)).reshape(-1, 6).astype(np.float32)
    table.flags.writeable = False
    if not with_torch:
        monkeypatch.delitem(sys.modules, "torch")
    for given in (table, table[:, 1:4], table[:0]):
        made = finite(given, "features", np.dtype(np.float16))
        np.testing.assert_array_equal(made.view(np.uint16), given.astype(np.float16).view(np.uint16))
    with pytest.raises(UserError, match="features of region 1 are too large for float16"):
        finite(np.array([[1], [65520]], np.float32), "features", np.dtype(np.float16))


@pytest.mark.parametrize("how", ["next", "close", "abort", "lost"])
def test_images_are_taken_while_a_shard_is_written_and_its_failure_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    may_write, begun = threading.Event(), threading.Event()

    def write(path: Path, *given: Any) -> None:
        path.write_bytes(b"some")
        begun.set()
        assert may_write.wait(20)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(writer_module, "write_store_file", write)
    monkeypatch.setattr(writer_module, "SHARD_BYTES", 1)
    writer = open_writer(tmp_path / "a.h5")
    writer.add(make_regions("1", 3, attributes=1))
    assert begun.wait(20)  # and adding has returned
    may_write.set()
    if how in ("next", "close"):
        with pytest.raises(UserError, match="make room"):
            writer.add(make_regions("2", 3, attributes=1)) if how == "next" else writer.close()
        writer.abort()
    elif how == "abort":
        writer.abort()
    else:
        del writer
        gc.collect()
    assert list(tmp_path.iterdir()) == []
