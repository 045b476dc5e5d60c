"""One store file out of others: whole arrays are copied by the system, and checksums joined."""

from __future__ import annotations

import os
from pathlib import Path
from zlib import crc32

import h5py
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.regions.samples import make_regions
from tests.regions.test_writer import ATTRIBUTES, add, open_writer
from vinvl.regions import RegionStore
from vinvl.regions.merging import joined_checksum


@pytest.mark.parametrize("how", ["by the system", "part by part", "not to the end", "fails", "missing"])
def test_shards_that_are_copied_whole_make_the_same_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    order = [f"image {number}" for number in range(6)]
    add(tmp_path / "one", *range(6)).finish(ATTRIBUTES, order, [])
    for process, numbers in enumerate([(0, 1), (3,), (2,), (4, 5)]):
        unfinished = add(tmp_path / "many", *numbers, process=process)
    asked: list[int] = []
    system = getattr(os, "copy_file_range", None)

    def copy(*places: int) -> int:
        source, target, count, begin, to = places
        asked.append(count)
        if how == "by the system" and system:
            return int(system(*places))
        if how == "fails":
            raise OSError("not on this disk")
        return os.pwrite(target, os.pread(source, min(count - (how == "not to the end"), 7), begin), to)

    if how == "missing":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", copy, raising=False)
    unfinished.finish(ATTRIBUTES, order, [])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()
    assert RegionStore(tmp_path / "many").verify() == [] and bool(asked) == (how != "missing")


@given(st.binary(max_size=99), st.binary(max_size=99), st.integers(0, 2**20))
def test_checksums_are_joined_as_if_all_had_been_read(one: bytes, other: bytes, more: int) -> None:
    other += bytes(more)
    assert joined_checksum(crc32(one), crc32(other), len(other)) == crc32(one + other)


def test_damage_to_a_shard_while_a_store_is_written_is_told_by_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vinvl.regions.writer.SHARD_BYTES", 1)
    writer = open_writer(tmp_path / "a.h5")
    writer.add(make_regions("1", 3, attributes=1))
    writer._shards.finish()
    (path,) = tmp_path.glob(".a.h5.*/00000-00000.h5")
    with h5py.File(path, "r+") as file:
        file["features"][1, 1] = 7
    writer.close()
    assert [problem for problem in RegionStore(tmp_path / "a.h5").verify() if "features are not as they" in problem]
