"""Work on a store that is killed and goes on: no finished shard is lost, none comes twice, no damaged one is used."""

from __future__ import annotations

import itertools
import os
import signal
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.regions.samples import LABELS, assert_same, make_regions, write
from vinvl.regions import Regions, RegionStore
from vinvl.regions import writer as writer_module
from vinvl.regions.layout import read_header
from vinvl.regions.regions import StoreAttributes
from vinvl.regions.writer import ShardWriter, Unfinished, checked_image, shard_files
from vinvl.run.errors import UserError

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
    for byte in [*places.values(), *range(0, len(written), 193)]:
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
