"""Open Images' image-level labels: whatever order their rows have, they become tags; what is wrong is a sentence."""

import json
import random
from pathlib import Path

import pytest

from vinvl.data import open_images as csv_files
from vinvl.pretraining.command import main

DESCRIPTIONS = '/m/1,Star\n/m/2,Traffic light\n/m/3,"Circle, round"\n/m/4,Star\n'
HEAD = "ImageID,Source,LabelName,Confidence\n"
ROWS = ("a1,verification,/m/1,1", "b2,verification,/m/2,1", "a1,verification,/m/3,1", "a1,v,/m/2,0", "b2,v,/m/2,1",
        "b2,v,/m/4,1", "b2,v,/m/1,1", "c3,v,/m/1,0")  # fmt: skip


def command(folder: Path, rows: str, *words: str, output: str = "out") -> int:
    (folder / "labels.csv").write_text(rows)
    (folder / "names.csv").write_text(DESCRIPTIONS)
    files = [str(folder / "labels.csv"), "--descriptions", str(folder / "names.csv"), "--output", str(folder / output)]
    return main(["open-images", *files, *words])


def tags(file: Path) -> dict[str, list[str]]:
    return {row["image_id"]: row["tags"] for row in map(json.loads, file.read_text().splitlines())}


def test_labels_become_tags_in_any_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path, HEAD + "\n".join(ROWS), "--validation-share", "0") == 0
    train = tmp_path / "out/train/open_images_tags.jsonl"
    assert tags(train) == {"a1": ["Star", "Circle, round"], "b2": ["Traffic light", "Star"]}
    told = capsys.readouterr().out
    assert "images train 2; 5 tags of 4 classes" in told and "2 labels that are absent" in told
    for number in range(5):
        mixed = random.Random(number).sample(ROWS, len(ROWS))
        assert command(tmp_path, HEAD + "\n".join(mixed), "--validation-share", "0", output=f"mixed{number}") == 0
        found = tags(tmp_path / f"mixed{number}/train/open_images_tags.jsonl")
        assert {one: sorted(of) for one, of in found.items()} == {one: sorted(of) for one, of in tags(train).items()}


def test_some_classes_alone_and_blocks_that_cut_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 64)
    (tmp_path / "some.csv").write_text("LabelName,DisplayName\n/m/1,Star\n")
    words = ["--classes", str(tmp_path / "some.csv"), "--validation-share", "0"]
    assert command(tmp_path, HEAD + "\n".join(ROWS), *words) == 0
    assert tags(tmp_path / "out/train/open_images_tags.jsonl") == {"a1": ["Star"], "b2": ["Star"]}


def test_lines_and_absent_labels_are_counted_over_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(csv_files, "BLOCK_BYTES", 64)
    rows = [*ROWS * 3, *(f"d{number},v,/m/2,0" for number in range(5))]
    assert command(tmp_path, HEAD + "\n".join(rows), "--validation-share", "0") == 0
    assert "11 labels that are absent" in capsys.readouterr().out  # 2 of each ROWS, and 5
    assert command(tmp_path, HEAD + "\n".join([*rows, "e5,v,/m/9,1"]), output="bad") == 1
    assert f"line {len(rows) + 2}: LabelName '/m/9'" in capsys.readouterr().err


def test_a_share_of_the_images_is_validation(tmp_path: Path) -> None:
    rows = "\n".join(f"{number:016x},v,/m/1,1" for number in range(300))
    assert command(tmp_path, HEAD + rows, "--validation-share", "0.1") == 0
    found = [tags(tmp_path / f"out/{split}/open_images_tags.jsonl") for split in ("train", "val")]
    assert len(found[0]) + len(found[1]) == 300 and 10 < len(found[1]) < 60 and not found[0].keys() & found[1].keys()


@pytest.mark.parametrize(
    ("was", "becomes", "sentence"),
    [
        ("/m/1,1", "/m/9,1", "line 2: LabelName '/m/9' is in no line of"),
        ("/m/1,1", "/m/1,0.7", "line 2: Confidence 0.7 is neither 0 nor 1: give labels that people verified"),
        ("/m/1,1", "/m/1,yes", "line 2: Confidence is 'yes'"),
        ("/m/1,1", "/m/1", "line 2 has 3 columns, not 4"),
        ("a1,", '"",', "line 2: ImageID '' is no id"),
        ("Confidence", "Conf", "has no column Confidence"),
        (",1\n", ",0\n", "holds no label of confidence 1"),
    ],
)
def test_what_is_wrong_is_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], was: str, becomes: str, sentence: str
) -> None:
    rows = (HEAD + "\n".join(ROWS) + "\n").replace(was, becomes)
    assert command(tmp_path, rows, "--validation-share", "0") == 1
    told = capsys.readouterr().err
    assert sentence in told and told.count("error: ") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_classes_are_of_one_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, HEAD + "\n".join(ROWS), "--validation-share", "0") == 0
    assert command(tmp_path, HEAD + "\n".join(ROWS), "--validation-share", "0") == 1
    (tmp_path / "other.csv").write_text("/m/8,Ball\n")
    assert command(tmp_path, HEAD + "\n".join(ROWS), "--classes", str(tmp_path / "other.csv"), output="new") == 1
    told = capsys.readouterr().err
    assert "exists already" in told and "names the class /m/8" in told and not (tmp_path / "new").exists()
