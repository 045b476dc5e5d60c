"""Work on a store that is killed and goes on: nothing committed is lost, nothing comes twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.regions.samples import LABELS, assert_same, make_regions, write
from vinvl.regions import Regions, RegionStore
from vinvl.regions import journal as journal_module
from vinvl.regions.journal import (
    JournalPart,
    begin_journal,
    committed_images,
    discard_journal,
    finish_journal,
    journal_folder,
    read_journal,
    read_journal_settings,
)
from vinvl.regions.spool import SIDE_FILES, RowShapes
from vinvl.regions.writer import StoreAttributes
from vinvl.run.errors import UserError

SHAPES = RowShapes(3, np.dtype("<f2"), 2)
ATTRIBUTES = StoreAttributes(SHAPES, "X152-C4", LABELS, '{"weights": "abc"}')


def image(number: int) -> Regions:
    return make_regions(f"image {number}", number % 4, attributes=2, seed=number)


def open_part(target: Path, number: int = 0) -> JournalPart:
    begin_journal(target, {"threshold": 0.2})
    return JournalPart(target, number, SHAPES, LABELS)


def ids(target: Path) -> list[str]:
    return [image_id.decode() for part in read_journal(target, SHAPES) for image_id in part.image_ids]


def test_a_finished_journal_is_a_store_in_the_given_order(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    first, second = open_part(target), open_part(target, 1)
    first.add([image(3), image(1)])
    second.add([image(2), image(7)])
    for part in (first, second):
        part.commit()
        part.close()
    assert finish_journal(target, ATTRIBUTES, ["image 1", "image 2", "image 3"], []) == 4
    store = RegionStore(target)
    assert list(store.image_ids) == ["image 1", "image 2", "image 3", "image 7"]
    for number in (1, 2, 3, 7):
        assert_same(store[f"image {number}"], image(number))
    assert store.provenance == {"weights": "abc"} and store.verify() == []
    assert os.listdir(tmp_path) == ["out.h5"]


def test_an_earlier_store_gives_the_images_that_the_journal_has_not(tmp_path: Path) -> None:
    target = write(tmp_path / "out.h5", [image(1), image(2), image(3)], attributes=2)
    part = open_part(target)
    part.add([image(9)])
    part.commit()
    part.close()
    earlier = RegionStore(target)
    assert finish_journal(target, ATTRIBUTES, ["image 9", "image 2"], earlier.sources) == 4
    assert list(RegionStore(target).image_ids) == ["image 9", "image 2", "image 1", "image 3"]
    assert_same(RegionStore(target)["image 3"], image(3))


def test_what_was_not_committed_is_cut_off(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    part = open_part(target)
    part.add([image(1)])
    part.commit()
    part.add([image(2)])
    part.close()
    assert ids(target) == ["image 1"]
    part = open_part(target)
    part.add([image(3)])
    part.commit()
    part.close()
    assert ids(target) == ["image 1", "image 3"]
    finish_journal(target, ATTRIBUTES, [], [])
    assert_same(RegionStore(target)["image 3"], image(3))


@settings(max_examples=40, deadline=None)
@given(
    batches=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    damage=st.lists(st.tuples(st.sampled_from(["features", "boxes", "offsets", "image_ids"]), st.integers(1, 60))),
    cut=st.integers(0, 40),
)
def test_whatever_a_disk_loses_the_rest_is_whole(
    tmp_path_factory: pytest.TempPathFactory, batches: list[int], damage: list[tuple[str, int]], cut: int
) -> None:
    """Files are shortened at random, the list of commits too: what is read is a beginning of what was written."""
    target = tmp_path_factory.mktemp("journal") / "out.h5"
    part, written = open_part(target), 0
    for count in batches:
        part.add([image(written + i) for i in range(count)])
        part.commit()
        written += count
    part.close()
    folder = journal_folder(target) / "part-00000"
    for name, size in [*((f"{name}.raw", size) for name, size in damage), ("commits.bin", cut)]:
        os.truncate(folder / name, max(0, (folder / name).stat().st_size - size))
    found = ids(target)
    assert found == [f"image {i}" for i in range(len(found))]
    if not damage and cut == 0:
        assert len(found) == written
    part = open_part(target)
    rest = [image(i) for i in range(len(found), written + 1)]
    part.add(rest)
    part.commit()
    part.close()
    finish_journal(target, ATTRIBUTES, [], [])
    store = RegionStore(target)
    assert list(store.image_ids) == [f"image {i}" for i in range(written + 1)]
    for i in range(written + 1):
        assert_same(store.at(i), image(i))


def test_a_commit_that_was_lost_does_not_come_back(tmp_path: Path) -> None:
    """After a cut, new rows grow past the place where a lost commit ended: its line must be gone by then."""
    target = tmp_path / "out.h5"
    part = open_part(target)
    for number in (1, 2):
        part.add([image(number)])
        part.commit()
    part.close()
    features = journal_folder(target) / "part-00000" / "features.raw"
    os.truncate(features, features.stat().st_size - 1)
    part = open_part(target)
    part.add([image(5), image(6), image(7)])  # as long as what was lost, and not committed
    part.close()
    assert ids(target) == ["image 1"]


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from tests.regions.test_journal import image, open_part
from pathlib import Path
part = open_part(Path({target!r}))
number = 0
while True:
    part.add([image(number), image(number + 1)])
    part.commit()
    number += 2
    print(number, flush=True)
"""


def test_kill_9_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    code = KILLED.format(tests=str(Path(__file__).parents[2]), target=str(target))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = 0
        for line in process.stdout:
            told = int(line)
            if told >= 20:
                process.send_signal(signal.SIGKILL)
                break
    found = ids(target)
    assert found == [f"image {i}" for i in range(len(found))] and len(found) >= told and len(found) % 2 == 0


def test_two_processes_do_not_work_on_one_part(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    part = open_part(target)
    with pytest.raises(UserError, match="Another process is working on"):
        open_part(target)
    part.close()
    open_part(target).close()


def test_settings_are_kept_and_refused_where_they_are_damaged(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    assert read_journal_settings(target) is None
    begin_journal(target, {"threshold": 0.2})
    begin_journal(target, {"threshold": 0.5})
    assert read_journal_settings(target) == {"threshold": 0.2}
    for content in ("[1]", "{", "[" * 100_000):
        (journal_folder(target) / "settings.json").write_text(content)
        with pytest.raises(UserError, match=r"settings\.json"):
            read_journal_settings(target)
    discard_journal(target)
    assert os.listdir(tmp_path) == []


def test_a_refused_image_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    part = open_part(target)
    with pytest.raises(UserError, match="image 'bad'"):
        part.add([image(1), make_regions("bad", 2, feature_dim=4, attributes=2)])
    part.add([image(2)])
    part.commit()
    part.close()
    assert ids(target) == ["image 2"]


def test_a_full_disk_keeps_journal_and_earlier_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write(tmp_path / "out.h5", [image(1)], attributes=2)
    part = open_part(target)
    part.add([image(2)])
    part.commit()
    part.close()

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal_module, "write_store_file", fail)
    with pytest.raises(UserError, match=r"No space left on device.*make room and give the same command again"):
        finish_journal(target, ATTRIBUTES, [], [])
    assert list(RegionStore(target).image_ids) == ["image 1"] and ids(target) == ["image 2"]


def test_an_empty_journal_makes_an_empty_store(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    open_part(target).close()
    assert finish_journal(target, ATTRIBUTES, ["image 1"], []) == 0
    assert len(RegionStore(target)) == 0


def test_who_opens_an_unfinished_store_is_told_how_to_go_on(tmp_path: Path) -> None:
    open_part(tmp_path / "out.h5").close()
    with pytest.raises(UserError, match=r"the same vinvl\.extract command goes on with it"):
        RegionStore(tmp_path / "out.h5")


def finished_part(target: Path) -> Path:
    part = open_part(target)
    part.add([image(1), image(2)])
    part.commit()
    part.add([image(3)])
    part.commit()
    part.close()
    return journal_folder(target) / "part-00000"


@pytest.mark.parametrize("name", [*(f"{name}.raw" for name in SIDE_FILES), "commits.bin", "lock"])
def test_a_folder_in_place_of_a_file_is_told(tmp_path: Path, name: str) -> None:
    target = tmp_path / "out.h5"
    folder = finished_part(target)
    (folder / name).unlink()
    (folder / name).mkdir()
    for use in (lambda: open_part(target).close(), lambda: finish_journal(target, ATTRIBUTES, [], [])):
        with suppress(UserError):
            use()
    assert not target.exists() or RegionStore(target).verify() == []


def test_a_folder_in_place_of_the_list_of_commits_is_told_by_all_that_read_it(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    commits = finished_part(target) / "commits.bin"
    commits.unlink()
    commits.mkdir()
    for use in (open_part, ids, lambda path: committed_images(path, besides=1)):
        with pytest.raises(UserError, match=r"commits\.bin cannot be read \(Is a directory\): delete .*part-00000 and"):
            use(target)


def test_a_commit_of_less_than_nothing_is_no_commit(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    with (finished_part(target) / "commits.bin").open("ab") as file:
        file.write(np.full(13, -(2**63), dtype="<i8").tobytes())
    assert len(ids(target)) == 3
    open_part(target).close()


def test_work_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "out.h5"
    (finished_part(target) / "commits.raw").touch()
    with pytest.raises(UserError, match="was written by an earlier version"):
        open_part(target)


@pytest.mark.parametrize("name", SIDE_FILES)
def test_one_bit_that_turned_makes_no_store(tmp_path: Path, name: str) -> None:
    target = tmp_path / "out.h5"
    side_file = finished_part(target) / f"{name}.raw"
    written = side_file.read_bytes()
    for bit in range(0, 8 * len(written), 7):
        content = bytearray(written)
        content[bit // 8] ^= 1 << bit % 8
        side_file.write_bytes(content)
        with pytest.raises(UserError, match="part-00000 is damaged: delete it and give the same command again"):
            finish_journal(target, ATTRIBUTES, [], [])
    assert not target.exists()
    side_file.write_bytes(written)
    finish_journal(target, ATTRIBUTES, [], [])
    assert RegionStore(target).verify() == []


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("offsets", [0, 3, 1, 6]),  # falls
        ("offsets", [1, 1, 3, 6]),  # begins behind the first row
        ("offsets", [0, 1, 3, 5]),  # ends before the last
        ("id_lengths", [7, 7, 8]),  # longer than the ids
        ("id_lengths", [0, 14, 7]),
        ("id_lengths", [-7, 21, 7]),
    ],
)
def test_side_files_that_contradict_each_other_are_refused_before_anything_is_done(
    tmp_path: Path, name: str, values: list[int]
) -> None:
    target = tmp_path / "out.h5"
    side_file = finished_part(target) / f"{name}.raw"
    side_file.write_bytes(np.array(values, dtype="<i8" if name == "offsets" else "<i4").tobytes())
    with pytest.raises(UserError, match="part-00000 is damaged"):
        read_journal(target, SHAPES)
