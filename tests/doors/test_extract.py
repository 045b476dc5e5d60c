"""`python -m vinvl.extract` as a user calls it: killed and resumed, on two processes, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import door_runs
from tests.conftest import refusal
from tests.door_runs import door_environment
from tests.extraction.samples import overrides, pictures, run_extract
from tests.picture_samples import broken_pictures
from tests.pictures.test_containers import CONTAINERS
from vinvl.regions import RegionStore
from vinvl.regions.merging import merge_stores, shard_path
from vinvl.regions.writer import Unfinished

QUICK = ("detector.min_size=64", "detector.max_size=107")


def arguments(folder: Path, *given: str) -> list[str]:
    place = [f"images={folder / 'pictures'}", f"output={folder / 'f.h5'}"]
    return [*overrides(folder), *QUICK, "workers=1", *place, *given]


def extracted(folder: Path, *given: str, output: str = "f.h5") -> Path:
    """The store that the door makes within this process."""
    run_extract(folder, f"images={folder / 'pictures'}", f"output={folder / output}", *QUICK, *given)
    return folder / output


def refused(folder: Path, *given: str) -> str:
    with pytest.raises(SystemExit) as ended:
        extracted(folder, *given)
    return str(ended.value.code)


def start(folder: Path, *given: str) -> door_runs.DoorProcess:
    return door_runs.DoorProcess(
        folder, "vinvl.extract", *arguments(folder, *given), environment=door_environment(folder)
    )


def call(folder: Path, *given: str) -> subprocess.CompletedProcess[str]:
    return door_runs.call(folder, "vinvl.extract", *arguments(folder, *given), environment=door_environment(folder))


def finished(target: Path) -> int:
    """Images in finished shards."""
    return sum(shard.header.num_images for shard in Unfinished(target).shards())


# Convolutions of one picture and of two differ in their last bits, and a kill decides which pictures are left over.
ALONE = "batch_size=1"


@pytest.mark.slow
def test_killed_again_and_again_nothing_is_lost_or_comes_twice(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 12)
    broken_pictures(tmp_path / "pictures" / "broken")
    target, before, saved = tmp_path / "f.h5", 0, f"predictions={tmp_path / 'f.tsv'}"
    small = "prediction_fields=[rect]"  # rows that fit into a buffer
    for goal in (2, 5):
        process = start(tmp_path, "shard_seconds=0", ALONE, saved, small)
        process.wait_until(lambda goal=goal: finished(target) >= goal)  # type: ignore[misc]
        process.signalled(signal.SIGKILL)
        assert f"{18 - before} of 18 pictures to do" in process.printed()
        before = finished(target)
        assert goal <= before < 12 and not target.exists() and Unfinished(target).folder.is_dir()
    result = call(tmp_path, "shard_seconds=0", ALONE, saved, small)
    assert result.returncode == 0, result.stderr
    assert f"{18 - before} of 18 pictures to do" in result.stdout and "6 pictures could not be used" in result.stdout
    whole = extracted(tmp_path, ALONE, f"predictions={tmp_path / 'whole.tsv'}", small, output="whole.h5")
    assert target.read_bytes() == whole.read_bytes()
    assert (tmp_path / "f.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes() != b""
    assert len(RegionStore(target)) == 12 and not Unfinished(target).folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_two_processes_make_the_same_store(kind: str, tmp_path: Path) -> None:
    """From a container too, which each reads by itself; its shares are merged to the same."""
    folder = pictures(tmp_path / "pictures", 8)
    broken_pictures(folder / "broken")
    place = ["prediction_fields=[rect,scores_all]"]
    if kind != "folder":
        contents = {path.stem: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
        place.append(f"images={CONTAINERS[kind](tmp_path, contents)}")
    saved = [f"predictions={tmp_path / name}.tsv" for name in ("f", "whole", "part")]
    printed = door_runs.ranks_succeed(tmp_path, tmp_path, "extract", *arguments(tmp_path, *place, saved[0]))
    assert "pictures could not be used" in printed
    whole = extracted(tmp_path, *place, saved[1], output="whole.h5")
    assert (tmp_path / "f.h5").read_bytes() == whole.read_bytes()
    assert (tmp_path / "f.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes() != b""
    for index in range(2):
        extracted(tmp_path, *place, saved[2], f"shard.index={index}", "shard.count=2", output="part.h5")
    merged = merge_stores([shard_path(tmp_path / "part.h5", index, 2) for index in range(2)], tmp_path / "merged.h5")
    theirs = RegionStore(whole)
    assert list(merged.image_ids) == list(theirs.image_ids) and len(merged) == 8
    for index in range(len(merged)):
        np.testing.assert_array_equal(merged.at(index).features, theirs.at(index).features)


def test_control_c_keeps_what_was_done(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 16)
    process = start(tmp_path, "shard_seconds=0")
    process.wait_until(lambda: finished(tmp_path / "f.h5") >= 4)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 130 and "Traceback" not in process.printed(), process.printed()
    assert "same command" in process.printed()
    assert finished(tmp_path / "f.h5") >= 4
    assert len(RegionStore(extracted(tmp_path))) == 16


def other_weights(folder: Path) -> str:
    torch.save({"model": {"backbone.body.stem.conv1.weight": torch.zeros(64, 3, 7, 7)}}, folder / "other.pth")
    return f"weights={folder / 'other.pth'}"


def other_labels(folder: Path) -> str:
    (folder / "few.json").write_text(json.dumps({"label_to_idx": {"cat": 1}, "attribute_to_idx": {"red": 1}}))
    return f"labels={folder / 'few.json'}"


def a_file(folder: Path) -> str:
    (folder / "taken.h5").write_text("mine")
    return f"output={folder / 'taken.h5'}"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda f: f"images={f / 'none'}", ["none does not exist"]),
        (lambda f: f"images={f / 'empty'}", ["holds no pictures"]),
        (lambda f: f"weights={f / 'none.pth'}", ["none.pth does not exist"]),
        (other_weights, ["other.pth lacks", "another architecture"]),
        (lambda f: "detector.architecture.num_classes=90 labels=none", ["cls_score", "81", "90"]),
        (other_labels, ["few.json names 2 classes", "81"]),
        (lambda f: "labels=null", ["label map", "labels=FILE", "labels=none"]),
        (a_file, ["taken.h5 exists", "overwrite=true"]),
        (lambda f: f"output={f / 'empty'}", ["is a folder"]),
        (lambda f: "output=/proc/nothing/f.h5", ["/proc/nothing", "cannot be written"]),
        (lambda f: "shard.index=3 shard.count=3", ["shard.index=3", "below the count"]),
        (lambda f: "dtype=int8", ["dtype='int8'"]),
        (lambda f: "batch_size=0", ["batch_size=0"]),
        (lambda f: "id.pattern='('", ["id.pattern", "regular expression"]),
        (lambda f: "reading.exif_orientation=turn", ["exif_orientation='turn'"]),
        (lambda f: "detector.nms_filter=2", ["nms_filter=2", "boxes=proposals"]),
        (lambda f: f"images={f / 'twins'}", ["both have the image id 'a'", "id.rule=path"]),
        (lambda f: f"images={f / 'broken'}", ["None of the 6 pictures could be used"]),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, given: object, words: list[str]) -> None:
    pictures(tmp_path / "pictures", 2)
    (tmp_path / "empty").mkdir()
    broken_pictures(tmp_path / "broken")
    for suffix in ("png", "jpg"):
        (tmp_path / "twins" / suffix).mkdir(parents=True)
        (tmp_path / "twins" / suffix / f"a.{suffix}").touch()
    asked = str(given(tmp_path)).split()  # type: ignore[operator]
    before = sorted([*tmp_path.rglob("*"), tmp_path / "labels.json"])
    sentence = refused(tmp_path, *asked)
    assert sentence.startswith("error: ") and "\n" not in sentence and all(word in sentence for word in words), sentence
    assert sorted(tmp_path.rglob("*")) == before


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 2)
    content = extracted(tmp_path).read_bytes()
    assert 'boxes was "regressed" and is "proposals"' in refused(tmp_path, "detector.boxes=proposals")
    assert (tmp_path / "f.h5").read_bytes() == content


def test_unfinished_work_with_other_settings_is_kept_unless_it_is_to_be_overwritten(tmp_path: Path) -> None:
    pictures(tmp_path / "pictures", 2)
    target = tmp_path / "f.h5"
    folder = Unfinished(target).folder
    folder.mkdir()
    (folder / "settings.json").write_text('{"nms_filter": 2}')
    assert "begun with other settings" in refused(tmp_path) and folder.is_dir()
    assert len(RegionStore(extracted(tmp_path, "overwrite=true"))) == 2 and not folder.exists()


def test_missing_settings_are_asked_for(tmp_path: Path) -> None:
    result = door_runs.call(tmp_path, "vinvl.extract", environment=door_environment(tmp_path))
    sentence = refusal(result)
    assert all(f"{name}=VALUE" in sentence for name in ("images", "weights", "output"))
    assert list(tmp_path.iterdir()) == []


def test_help_tells_how(tmp_path: Path) -> None:
    result = door_runs.call(tmp_path, "vinvl.extract", "--help", environment=door_environment(tmp_path))
    assert result.returncode == 0
    assert "python -m vinvl.extract images=DIR" in result.stdout and "exif_orientation" in result.stdout
