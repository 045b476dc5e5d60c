"""What `verify` finds, and the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import pytest

from tests.regions.samples import make_regions, write
from vinvl.regions import RegionStore
from vinvl.regions.__main__ import main
from vinvl.regions.merging import merge_stores
from vinvl.run.errors import UserError


def sample(path: Path, **layout: Any) -> Path:
    return write(path, [make_regions(f"n{n}", 4, attributes=1, seed=n) for n in range(6)], attributes=1, **layout)


DAMAGE = [
    ("features", (5, 1), np.nan, "1 regions have features that are NaN or infinite, first in image 'n1', region 1"),
    ("features", (slice(5, 9), 1), np.inf, "4 regions have features that are NaN"),
    ("boxes", (23, 0), np.nan, "1 regions have boxes that are NaN or infinite, first in image 'n5', region 3"),
    ("class_scores", 0, np.inf, "1 regions have class_scores that are NaN or infinite, first in image 'n0', region 0"),
    ("attribute_scores", (0, 0), np.nan, "have attribute_scores that are NaN"),
    ("boxes", 9, (50, 50, 40, 60), "have inverted boxes (x2 < x1 or y2 < y1), first in image 'n2', region 1"),
    ("boxes", 9, (50, 50, 60, 40), "have inverted boxes"),
    ("boxes", 9, (0, 0, 106, 9), "have boxes more than 5% of the image's size outside of the image"),
    ("boxes", 9, (0, -7, 9, 9), "have boxes more than 5%"),
    ("classes", 9, 3, "1 regions have classes outside of the label map (0 to 2), first in image 'n2', region 1"),
    ("classes", 9, -1, "have classes outside of the label map"),
    ("attributes", (9, 0), 2, "have attributes outside of the label map (0 to 1)"),
    ("sizes", (2, 1), 0, "1 images have a size that is not positive, the first is image number 2"),
    ("offsets", 2, 3, "offsets fall after image number 1"),
    ("image_ids", 2, b"n1", "image ids are repeated 1 times, such as 'n1'"),
    ("image_ids", 2, b"", "image number 2 has an empty id"),
    ("image_ids", 2, b"\xff", "image_ids hold bytes that are not UTF-8"),
]


@pytest.mark.parametrize("layout", [{}, {"compression": "gzip", "chunk_rows": 5}], ids=["contiguous", "gzip"])
@pytest.mark.parametrize("damage", DAMAGE, ids=[row[3][:45] for row in DAMAGE])
def test_damage_is_found_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: tuple[str, Any, Any, str], layout: dict[str, Any]
) -> None:
    name, place, value, sentence = damage
    # Blocks of a few rows, so that the counting crosses block boundaries.
    monkeypatch.setattr("vinvl.regions.shard._BLOCK_BYTES", 20)
    path = sample(tmp_path / "coco.h5", **layout)
    with h5py.File(path, "r+") as file:
        file["boxes"][9] = (-4, -5, 104, 125)  # which may stick out a little
        file.attrs.pop("checksums")
    assert RegionStore(path).verify() == []
    with h5py.File(path, "r+") as file:
        file[name][place] = np.array(value, dtype=file[name].dtype)
    problems = RegionStore(path).verify()
    assert any(sentence in problem for problem in problems), problems
    assert all(problem.startswith(f"{path}: ") and problem.endswith(".") for problem in problems)


VALUES: dict[str, object] = {  # every one allowed where it goes
    "features": 0.25,
    "boxes": 7,
    "class_scores": 0.5,
    "attribute_scores": 0.5,
    "classes": 1,
    "attributes": 1,
    "offsets": 9,
    "sizes": 131,
    "image_ids": b"m2",
}


@pytest.mark.parametrize("layout", [{}, {"compression": "lzf", "chunk_rows": 5}], ids=["contiguous", "lzf"])
@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_was_changed_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, layout: dict[str, Any]
) -> None:
    monkeypatch.setattr("vinvl.regions.shard._BLOCK_BYTES", 20)
    path = sample(tmp_path / "coco.h5", **layout)
    assert RegionStore(path).has_checksums
    with h5py.File(path, "r+") as file:
        file[name][2] = 0 if np.all(file[name][2] == VALUES[name]) else VALUES[name]
    told = f"{path}: {name} are not as they were written (their checksum differs)"
    store = RegionStore(path)
    assert [problem[: len(told)] for problem in store.verify()] == [told]
    with pytest.raises(UserError, match="are not as they were written"):
        store.require_sound(contents=True)
    with pytest.raises(UserError, match="are not as they were written"):
        merge_stores([path], tmp_path / "merged.h5")
    assert not (tmp_path / "merged.h5").exists()
    if name in ("features", "boxes", "class_scores", "attribute_scores"):
        store.require_sound()  # looks at what is small
    else:
        with pytest.raises(UserError, match="are not as they were written"):
            store.require_sound()


def test_every_writer_leaves_checksums(tmp_path: Path) -> None:
    images = [make_regions(f"n{n}", n % 3, attributes=1, seed=n) for n in range(7)]
    for number, layout in enumerate(({}, {"compression": "gzip", "chunk_rows": 2}, {"max_images_per_shard": 3})):
        path = write(tmp_path / str(number), images, attributes=1, **layout)
        merged = merge_stores([path], tmp_path / f"merged {number}.h5")
        for store in (RegionStore(path), merged):
            assert store.has_checksums and store.verify() == []
            store.require_sound(contents=True)
    same = [RegionStore(tmp_path / name).headers[0].checksums for name in ("0", "1", "merged 2.h5")]
    assert same[0] == same[1] == same[2]  # of the values, however they are stored


def test_a_shard_in_the_place_of_another_is_refused(tmp_path: Path) -> None:
    images = [make_regions(f"n{n}", 2, seed=n) for n in range(4)]
    folder = write(tmp_path / "coco", images, max_images_per_shard=2)
    first, second = sorted(folder.glob("*.h5"))
    other = write(tmp_path / "other", images, max_images_per_shard=2) / second.name
    other.replace(second)
    assert RegionStore(folder).verify() == []  # the very same
    first.replace(second)
    write(first, images[2:])
    with pytest.raises(UserError, match=r"shard-00000.h5 is not the file that .*manifest.json was written for"):
        RegionStore(folder)


class Command(Protocol):
    def __call__(self, *arguments: object) -> tuple[int, str, str]: ...


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Command:
    """The command line in this process: exit code, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return run


def test_files_without_checksums_stay_what_they_were(tmp_path: Path, run_command: Command) -> None:
    folder = sample(tmp_path / "coco", max_images_per_shard=4)
    for path in folder.glob("*.h5"):
        with h5py.File(path, "r+") as file:
            del file.attrs["checksums"]
    manifest = json.loads((folder / "manifest.json").read_text())
    for shard in manifest["shards"]:
        del shard["checksum"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    store = RegionStore(folder)
    assert not store.has_checksums and store.verify() == []
    store.require_sound(contents=True)
    code, out, _ = run_command("verify", folder)
    assert code == 0 and f"2 of 2 files have no checksums, as {folder}/shard-00000.h5: changed values pass" in out


def test_damaged_checksums_are_told(tmp_path: Path) -> None:
    path = sample(tmp_path / "coco.h5")
    for text in ("", "[]", "{}", '{"features": 1}', "{" * 60_000):
        with h5py.File(path, "r+") as file:
            file.attrs["checksums"] = text
        with pytest.raises(UserError, match="root attribute checksums is"):
            RegionStore(path)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [row[:3] for row in DAMAGE if row[0] not in ("features", "boxes", "class_scores", "attribute_scores")][:-1],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_what_is_found_quickly_is_refused_before_training(
    tmp_path: Path, name: str, place: object, value: object, sharded: bool
) -> None:
    path = sample(tmp_path / "coco.h5")
    with h5py.File(path, "r+") as file:
        file[name][place] = np.array(value, dtype=file[name].dtype)
        del file.attrs["checksums"]
    files = [path, write(tmp_path / "more.h5", [make_regions("z", 1, attributes=1)], attributes=1)]
    with pytest.raises(UserError, match=str(path)):
        RegionStore(files if sharded else path).require_sound()


def test_info_prints_a_summary(tmp_path: Path, run_command: Command) -> None:
    code, out, errors = run_command("info", sample(tmp_path / "coco", max_images_per_shard=4))
    assert (code, errors) == (0, "")
    lines = {" ".join(line[:20].split()): line[21:] for line in out.splitlines()}
    assert lines["files"] == f"2: {tmp_path}/coco/shard-00000.h5 to {tmp_path}/coco/shard-00001.h5"
    assert lines["complete"] == "yes"
    assert lines["images"] == "6, ids like 'n0'" and lines["regions"] == "24"
    assert lines["regions an image"] == "min 4, mean 4.0, max 4"
    assert lines["features"] == "dimension 3, float16, contiguous"
    assert lines["label map"] == "3 classes, 2 attributes" and lines["detector"] == "X152-C4, NMS_FILTER 1"
    size = sum(file.stat().st_size for file in (tmp_path / "coco").glob("*.h5"))
    assert lines["bytes"] == f"{size:,}"


def test_verify_prints_sound_or_the_problems(tmp_path: Path, run_command: Command) -> None:
    path = sample(tmp_path / "coco.h5")
    assert run_command("verify", path) == (0, f"{path}: sound, 6 images\n", "")
    with h5py.File(path, "r+") as file:
        file["features"][5, 1] = np.nan
    code, out, errors = run_command("verify", path)
    assert (code, errors) == (1, "") and out.startswith(f"{path}: 1 regions have features that are NaN")


def test_command_line_errors_are_one_line(tmp_path: Path, run_command: Command) -> None:
    code, out, errors = run_command("info", tmp_path / "missing.h5")
    assert (code, out) == (1, "")
    assert errors == f"error: {tmp_path}/missing.h5 cannot be opened: No such file or directory.\n"
    code, out, _ = run_command("--help")
    assert code == 0 and {"verify", "info", "merge", "compare"} <= set(re.split(r"\W", out))
