"""Files of features that are at odds with their indices or with their predictions are refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.regions.formats.samples import (
    DIM,
    Sample,
    oscar_line,
    prediction_line,
    published_folder,
    refused,
    samples,
    write_lines,
    write_npy_folder,
)
from vinvl.regions.formats.convert import convert_features
from vinvl.regions.formats.rows import FeatureOptions

IMAGES = samples()


def lines_of(name: str, lines: list[str]) -> Callable[[Path], object]:
    return lambda folder: write_lines(folder / name, lines, lineidx=True)


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content)


def predictions(*images: Sample) -> Callable[[Path], object]:
    return lines_of("predictions.tsv", list(map(prediction_line, images)))


def shifted_lineidx(folder: Path) -> None:
    begins = (folder / "features.lineidx").read_text().split()
    (folder / "features.lineidx").write_text("\n".join([*begins[:2], str(int(begins[2]) - 1), *begins[3:]]))


def cut_without(*names: str) -> Callable[[Path], object]:
    """Cut off at the end of a line, and some indices are not there."""

    def cut(folder: Path) -> None:
        write_lines(folder / "features.tsv", [oscar_line(image) for image in IMAGES[:-1]])
        for name in names:
            (folder / name).unlink()

    return cut


def other_offset_map(folder: Path) -> None:
    """As run_vqa.py wants it: the byte of each image."""
    begins = (folder / "features.lineidx").read_text().split()
    offsets = {image.image_id: int(begin) for image, begin in zip(IMAGES, begins, strict=True)}
    (folder / "features_offset_map.json").write_text(json.dumps(offsets | {"107": int(begins[1]) + 1}))


def no_geometry(folder: Path) -> None:
    rows = IMAGES[0].rows.copy()
    rows[1, DIM] += 0.5
    write_lines(folder / "features.tsv", [oscar_line(IMAGES[0], rows=rows), *map(oscar_line, IMAGES[1:])], lineidx=True)


LINES = list(map(prediction_line, IMAGES))
ROWS = {image.image_id: number for number, image in enumerate(IMAGES)}
# Image 100 with the objects of image 121, which are as many, or of 107, which are more.
EXCHANGED = replace(IMAGES[3], image_id="100", width=IMAGES[0].width, height=IMAGES[0].height)
MORE = replace(IMAGES[1], image_id="100")
NAMELESS = [line.replace('"class"', '"label"', 1) for line in LINES]
CUT = "".join(LINES)[:-30]
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "shifted lineidx": (shifted_lineidx, r"features.lineidx sends line 3 of .*features.tsv to byte"),
    "no lineidx": (text("features.lineidx", "0\nmany\n"), r"features.lineidx is no list of numbers"),
    "cut": (cut_without(), r"features.lineidx lists 5 lines, but .*features.tsv has 4"),
    "cut, ids": (
        cut_without("features.lineidx"),
        r"imageid2idx.json names 1 images that .*features.tsv does not have, such as '128'",
    ),
    "cut, predictions": (
        cut_without("features.lineidx", "imageid2idx.json"),
        r"predictions.tsv has 1 images that .*features.tsv does not have, such as '128'",
    ),
    "offsets": (
        other_offset_map,
        r"features_offset_map.json sends image '107' to byte 160 \(from 0\), but it is byte 159",
    ),
    "exchanged ids": (
        text("imageid2idx.json", json.dumps(ROWS | {"100": 1, "107": 0})),
        r"imageid2idx.json sends image '100' to row 1 \(from 0\), but it is row 0",
    ),
    "text as row": (text("imageid2idx.json", '{"100": "0"}'), r"imageid2idx.json sends image '100' to row '0'"),
    "no prediction": (predictions(*IMAGES[1:]), r"features.tsv line 1: .*predictions.tsv has no image '100'"),
    "double": (predictions(*IMAGES, IMAGES[0]), r"predictions.tsv has image '100' more than once"),
    "exchanged objects": (
        predictions(EXCHANGED, *IMAGES[1:]),
        r"features.tsv line 1: image '100': its predicted boxes are not those of its features",
    ),
    "more objects": (
        predictions(MORE, *IMAGES[1:]),
        r"features.tsv line 1: image '100': it has 2 features and 3 predicted objects",
    ),
    "cut objects": (
        lines_of("predictions.tsv", [CUT]),
        r"predictions.tsv line 5 \(the last line, .*cut off\): image '128': column 2 is not valid JSON",
    ),
    "lineidx of objects": (text("predictions.lineidx", "0\n7\n"), r"predictions.lineidx sends line 2 of .* to byte 7"),
    "nameless": (
        lines_of("predictions.tsv", NAMELESS),
        r"predictions.tsv line 1: image '100': the class of an object is missing",
    ),
    "no geometry": (no_geometry, r"features.tsv line 1: image '100': the last six numbers"),
}


@pytest.mark.parametrize(("damage", "words"), FOLDERS.values(), ids=FOLDERS)
def test_files_that_are_at_odds_are_refused(tmp_path: Path, damage: Callable[[Path], object], words: str) -> None:
    folder = published_folder(tmp_path / "in", IMAGES)
    damage(folder)
    sentence = refused(folder, tmp_path)
    assert re.search(words, sentence), sentence
    assert str(folder) in sentence


def test_predictions_that_are_named_may_be_of_more_images(tmp_path: Path) -> None:
    folder = published_folder(tmp_path / "in", IMAGES)
    cut_without("features.lineidx", "imageid2idx.json")(folder)
    options = FeatureOptions(dim=DIM, predictions=folder / "predictions.tsv", workers=1)
    done = convert_features(folder, tmp_path / "out.h5", options)
    assert done.images == 4 and "has 1 images that" in done.notes[0] and not done.left_out


def test_features_and_their_boxes_are_in_two_files(tmp_path: Path) -> None:
    folder = write_npy_folder(tmp_path / "in", IMAGES)
    (folder / "107.npy").unlink()
    assert "107_info.npy has no 107.npy beside it" in refused(folder, tmp_path)
    np.savez(folder / "1.npz", x=IMAGES[0].features)
    assert "has both .npz and .npy files" in refused(folder, tmp_path)


def test_a_class_that_the_label_map_lacks_is_named(tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text(json.dumps({"label_to_idx": {"cat": 1, "dog": 2}}))
    sentence = refused(published_folder(tmp_path / "in", IMAGES), tmp_path, f"labels={tmp_path / 'map.json'}")
    assert "features.tsv line" in sentence and re.search("the label map has no '(tree|red|black)'", sentence)
