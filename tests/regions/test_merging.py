"""Joining store files, and what stores say of how they were made."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.regions.samples import assert_same, make_regions, write
from vinvl.regions import RegionStore
from vinvl.regions import merging as merging_module
from vinvl.regions.__main__ import main
from vinvl.regions.merging import merge_stores, shard_path
from vinvl.run.errors import UserError

IMAGES = [make_regions(f"image {i}", i % 5, attributes=1, seed=i) for i in range(12)]


def parts(folder: Path, count: int = 3) -> list[Path]:
    made = []
    for index in range(count):
        path = shard_path(folder / "out.h5", index, count)
        layout = {"chunk_rows": 2, "compression": "gzip"} if index == 1 else {}
        own = {"weights": "abc", "torch": f"2.{index}"}
        made.append(write(path, IMAGES[index::count], attributes=1, provenance=own, **layout))
    return made


def test_parts_become_one_store_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for path in parts(tmp_path)]
    assert main(["merge", *files, "--output", str(tmp_path / "out.h5")]) == 0
    assert "12 images of 3 files" in capsys.readouterr().out
    store = RegionStore(tmp_path / "out.h5")
    assert list(store.image_ids) == [f"image {i}" for first in range(3) for i in range(first, 12, 3)]
    for regions in IMAGES:
        assert_same(store[regions.image_id], regions)
    assert store.verify() == [] and store.headers[0].storage == "contiguous"
    assert store.provenance == {"weights": "abc", "torch": ["2.0", "2.1", "2.2"]}
    assert main(["info", str(tmp_path / "out.h5")]) == 0
    assert "weights            abc" in (printed := capsys.readouterr().out) and '["2.0", "2.1", "2.2"]' in printed


def test_nothing_is_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(path) for path in parts(tmp_path)]
    write(tmp_path / "out.h5", [])
    before = (tmp_path / "out.h5").read_bytes()
    assert main(["merge", *files, "--output", str(tmp_path / "out.h5")]) == 1
    assert "exists already" in capsys.readouterr().err and (tmp_path / "out.h5").read_bytes() == before
    assert main(["merge", *files, "--output", str(tmp_path / "out.h5"), "--overwrite"]) == 0
    assert len(RegionStore(tmp_path / "out.h5")) == 12


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    files = parts(tmp_path, 4)
    with pytest.raises(UserError, match=r"Of the 4 parts of out.h5, 2 are not among the files \(shard.index 1, 3\)"):
        merge_stores([files[2], files[0]], tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_an_image_in_two_files_is_refused(tmp_path: Path) -> None:
    one, other = (write(tmp_path / name, IMAGES[:2], attributes=1) for name in ("a.h5", "b.h5"))
    with pytest.raises(UserError, match="both hold image 'image 0'"):
        merge_stores([one, other], tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = parts(tmp_path)

    def fail(path: Path, *arguments: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(merging_module, "write_store_file", fail)
    with pytest.raises(UserError, match="No space left on device"):
        merge_stores(files, tmp_path / "out.h5")
    assert sorted(tmp_path.iterdir()) == sorted(files)


def test_a_store_says_how_its_features_were_made_unless_that_is_damaged(tmp_path: Path) -> None:
    own = {"nms_filter": 1, "versions": {"torch": "2.13"}, "ü": [0.2]}
    assert RegionStore(write(tmp_path / "b.h5", [])).provenance == {}
    path = write(tmp_path / "a.h5", [], provenance=own)
    assert RegionStore(path).provenance == own
    with h5py.File(path, "r+") as file:
        file.attrs["provenance"] = np.bytes_(b"[1]")
    with pytest.raises(UserError, match=r"a\.h5: root attribute provenance is no JSON object"):
        _ = RegionStore(path).provenance
