"""Features that are damaged, foreign or at odds with their indices are refused in a sentence, and nothing is left."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.regions.formats.samples import (
    DIM,
    Sample,
    bottom_up_line,
    encoded,
    lxmert_line,
    oscar_line,
    prediction_line,
    published_folder,
    refused,
    run,
    samples,
    write_lines,
    write_npy_folder,
)
from vinvl.regions import writer
from vinvl.regions.formats import rows as base64_arrays
from vinvl.regions.formats.convert import convert_features
from vinvl.regions.formats.rows import FeatureOptions
from vinvl.run.errors import UserError

IMAGES = samples()


def with_row(row: int, line: str) -> list[str]:
    lines = [bottom_up_line(image) for image in IMAGES]
    return [*lines[:row], line, *lines[row + 1 :]]


def bottom_up(**changes: Any) -> str:
    return bottom_up_line(replace(IMAGES[2], **changes))


def column(line: str, number: int, value: str) -> str:
    columns = line.rstrip("\n").split("\t")
    columns[number] = value
    return "\t".join(columns) + "\n"


THIRD = IMAGES[2]
LINE = bottom_up_line(THIRD)
NAN, HUGE = THIRD.features.copy(), THIRD.features.copy()
NAN[1, 3], HUGE[1, 3] = np.nan, 1e6
ROWS = {
    "cut": (LINE[:-9].rstrip("="), "base64"),
    "short features": (column(LINE, 5, encoded(THIRD.features[:-1, :-1])), "features are"),
    "short boxes": (column(LINE, 4, encoded(THIRD.boxes[:-1])), r"boxes are .* expected 4 x 4 x 4 for 4 boxes"),
    "no base64": (column(LINE, 5, LINE.split("\t")[5].rstrip("\n").replace("A", "!")), "base64"),
    "number of boxes": (column(LINE, 3, "many"), "number of boxes is 'many'"),
    "vast number of boxes": (column(LINE, 3, "9" * 5000), "number of boxes"),
    "negative number of boxes": (column(LINE, 3, "-1"), "number of boxes is '-1'"),
    "columns": (LINE.replace("\t", "\t\t", 1), "7 columns, expected 6"),
    "width": (column(LINE, 1, "0"), "width is .*0"),
    "id": (column(LINE, 0, " "), "image id"),
    "duplicate": (column(LINE, 0, IMAGES[0].image_id), "image '100' was added before"),
    "NaN": (bottom_up(features=NAN), "features of region 1 are NaN or infinite"),
    "too large": (bottom_up(features=HUGE), "too large for float16"),
    "infinite box": (bottom_up(boxes=THIRD.boxes + np.inf), "boxes of region 0 are NaN"),
    "outside": (bottom_up(boxes=THIRD.boxes * 1.2), "box 0 .*outside of the image of 638 x 482"),
    "width and height exchanged": (bottom_up(width=THIRD.height, height=THIRD.width), "outside of the image"),
    "inverted": (bottom_up(boxes=THIRD.boxes[:, [2, 3, 0, 1]]), "inverted"),
    "fractions": (bottom_up(boxes=THIRD.geometry[:, :4]), "expected in pixels"),
    "other dimension": (bottom_up(features=THIRD.features[:, :5]), "dimension 5, expected 8"),
}


@pytest.mark.parametrize(("line", "words"), ROWS.values(), ids=ROWS)
def test_a_wrong_row_is_named(tmp_path: Path, line: str, words: str) -> None:
    file = write_lines(tmp_path / "in.tsv", with_row(2, line if line.endswith("\n") else line + "\n"))
    sentence = refused(file, tmp_path)
    assert sentence.startswith(f"{file} line 3: ")
    assert re.search(words, sentence), sentence


def test_boxes_outside_can_be_cut_off(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "in.tsv", with_row(2, bottom_up(boxes=THIRD.boxes * np.float32(1.2))))
    store = run(file, tmp_path / "out.h5", "clip_boxes=true")
    np.testing.assert_allclose(store[THIRD.image_id].boxes[0], [0, 0, THIRD.width, THIRD.height])
    assert store.verify() == []


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 400))
def test_a_file_cut_anywhere_in_its_last_row_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    content = "".join(map(lxmert_line, IMAGES)).encode()[:-1]  # a last line without an end is allowed
    last = len(lxmert_line(IMAGES[-1])) - 1
    (folder / "in.tsv").write_bytes(content[: len(content) - min(cut, last - 1)])
    sentence = refused(folder / "in.tsv", folder)
    assert sentence.startswith(f"{folder / 'in.tsv'} line 5")
    # Where by chance a number is cut off every region, the row is sound but for its dimension.
    assert "(the last line, without an end: the file may be cut off): " in sentence or "expected 8 as" in sentence


def test_a_whole_last_line_needs_no_end(tmp_path: Path) -> None:
    (tmp_path / "in.tsv").write_text("".join(map(lxmert_line, IMAGES))[:-1])
    assert len(run(tmp_path / "in.tsv", tmp_path / "out.h5")) == 5


@pytest.mark.parametrize("width", [DIM, DIM + 6])
def test_boxes_that_nothing_tells_are_asked_for(tmp_path: Path, width: int) -> None:
    file = write_lines(tmp_path / "features.tsv", [oscar_line(i, rows=i.rows[:, :width]) for i in IMAGES])
    assert ("predictions" if width == DIM else "features.sizes") + "=FILE" in refused(file, tmp_path)


def test_a_target_that_exists_is_left_alone(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "in.tsv", list(map(bottom_up_line, IMAGES)))
    (tmp_path / "out.h5").write_text("mine")
    assert refused(file, tmp_path).startswith(f"{tmp_path / 'out.h5'} exists already")
    assert (tmp_path / "out.h5").read_text() == "mine"
    assert "exists already" in refused(tmp_path / "none", tmp_path)  # and said before anything is read
    with pytest.raises(UserError, match=r"in.tsv/out.h5 cannot be written"):
        run(file, file / "out.h5")


@pytest.mark.parametrize("call", [1, 3, 6])  # a shard, a later one, and the store itself
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    file, calls, write = write_lines(tmp_path / "in.tsv", with_row(2, LINE)), [], writer.write_store_file

    def write_some(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(*arguments)

    monkeypatch.setattr(writer, "SHARD_BYTES", 1)
    monkeypatch.setattr(writer, "write_store_file", write_some)
    assert "out.h5 cannot be written (No space left on device)" in refused(file, tmp_path)
    assert len(calls) == call


class Program:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/it-ran",)


def cut_by(name: str, count: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-count])


def info(content: Any) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / "107_info.npy", np.array(content, dtype=object))


ARRAYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "program": (info({"bbox": Program()}), r"107_info.npy is a pickle that wants to call posix.system"),
    "no info": (lambda folder: (folder / "107_info.npy").unlink(), r"107.npy has no 107_info.npy beside it"),
    "cut array": (cut_by("107.npy", 5), r"107.npy has \d+ bytes of data, expected"),
    "cut info": (cut_by("107_info.npy", 50), r"107_info.npy is a damaged pickle"),
    "no boxes": (info({"image_width": 5}), r"107.npy: there is no boxes \(one of boxes, bbox"),
}


@pytest.mark.parametrize(("damage", "words"), ARRAYS.values(), ids=ARRAYS)
def test_damaged_array_files_are_named(tmp_path: Path, damage: Callable[[Path], object], words: str) -> None:
    folder = write_npy_folder(tmp_path / "in", IMAGES)
    damage(folder)
    sentence = refused(folder, tmp_path)
    assert re.search(words, sentence), sentence
    assert not Path("/tmp/it-ran").exists()


def test_tensors_that_are_programs_or_no_region_rows(tmp_path: Path) -> None:
    file = tmp_path / "in.pt"
    torch.save({"1": Program()}, file)
    assert "in.pt is no file of tensors" in refused(file, tmp_path)
    torch.save({"1": torch.zeros(3, DIM + 1)}, file)
    assert "in.pt: image '1': it has shape (3, 9), expected 8 or 14" in refused(file, tmp_path)
    torch.save({"1": torch.zeros(3, DIM + 6), 1: torch.zeros(3, DIM + 6)}, file)
    assert "in.pt, image 1: image '1' was added before" in refused(file, tmp_path, "assume_size=[9,9]")
    file.write_bytes(file.read_bytes()[:-100])
    assert "in.pt is no file of tensors" in refused(file, tmp_path)


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.tsv").touch()
    (tmp_path / "words.tsv").write_text("a\tb\n")
    with h5py.File(tmp_path / "coco", "w") as file:  # meshed-memory's, under any name
        file["9_features"], file["9_boxes"] = np.zeros((2, 3)), np.zeros((2, 4))
    (tmp_path / "cut.h5").write_bytes((tmp_path / "coco").read_bytes()[:900])
    for name, words in (("none", "does not exist"), ("empty", "has no file of features"), ("empty.tsv", "is empty"),
                        ("coco", "coco, image '9': nothing tells its width and height, which boxes need: pass"),
                        ("cut.h5", "truncated"),
                        ("words.tsv", "no TSV of features: its first line has 2 columns")):  # fmt: skip
        assert words in refused(tmp_path / name, tmp_path)


UNUSABLE = (
    "dtype=int8 dim=0 on_damaged=maybe clip_boxes=1 assume_size=[1] workers=0 id_pattern='(' id_pattern=x sizes=none"
)


@pytest.mark.parametrize("setting", UNUSABLE.split(" "))
def test_unusable_settings_are_named(tmp_path: Path, setting: str) -> None:
    file = write_lines(tmp_path / "features.tsv", list(map(oscar_line, IMAGES)))
    options = ["assume_size=[9,9]"] if setting.startswith("id") else []
    assert f"features.{setting.split('=')[0]}" in refused(file, tmp_path, setting, *options)


@given(st.integers(0, 5), st.integers(1, 6), st.binary(max_size=200), st.integers(0, 3))
def test_base64_of_the_right_length_is_read_and_of_another_refused(
    rows: int, width: int, noise: bytes, kind: int
) -> None:
    numbers = np.arange(rows * width, dtype="<f4").reshape(rows, width)
    text = base64.b64encode(numbers.tobytes())
    np.testing.assert_array_equal(base64_arrays.base64_rows(text, rows, (width,), "x", "<f4"), numbers)
    damaged = (text[:-1], text + b"AAAA", text[:2] + b"\x00" + text[2:], noise)[kind]
    if damaged.rstrip(b"=") != text.rstrip(b"=") and len(damaged) != len(text):
        with pytest.raises(UserError, match=r"^x "):
            base64_arrays.base64_rows(damaged, rows, (width,), "x", "<f4")


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
PLACES = {image.image_id: number for number, image in enumerate(IMAGES)}
# Image 100 with the objects of image 121, which are as many, or of 107, which are more.
EXCHANGED = replace(IMAGES[3], image_id="100", width=IMAGES[0].width, height=IMAGES[0].height)
MORE = replace(IMAGES[1], image_id="100")
NAMELESS = [line.replace('"class"', '"label"', 1) for line in LINES]
CUT = "".join(LINES)[:-30]
FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "shifted lineidx": (shifted_lineidx, r"features.lineidx sends line 3 of .*features.tsv to byte"),
    "no lineidx": (text("features.lineidx", "0\nmany\n"), r"features.lineidx is no list of numbers"),
    "cut": (cut_without(), r"features.lineidx lists 5 lines, but .*features.tsv has 4"),
    "cut, ids": (cut_without("features.lineidx"), r"idx.json names 1 images that .*features.tsv does not .* '128'"),
    "cut, predictions": (cut_without("features.lineidx", "imageid2idx.json"),
                         r"predictions.tsv has 1 images that .*features.tsv does not have, such as '128'"),
    "offsets": (other_offset_map, r"offset_map.json sends image '107' to byte 160 \(from 0\), but it is byte 159"),
    "exchanged ids": (text("imageid2idx.json", json.dumps(PLACES | {"100": 1, "107": 0})),
                      r"imageid2idx.json sends image '100' to row 1 \(from 0\), but it is row 0"),
    "text as row": (text("imageid2idx.json", '{"100": "0"}'), r"imageid2idx.json sends image '100' to row '0'"),
    "no prediction": (predictions(*IMAGES[1:]), r"features.tsv line 1: .*predictions.tsv has no image '100'"),
    "double": (predictions(*IMAGES, IMAGES[0]), r"predictions.tsv has image '100' more than once"),
    "exchanged objects": (predictions(EXCHANGED, *IMAGES[1:]),
                          r"features.tsv line 1: image '100': its boxes are not those of its features"),
    "more objects": (predictions(MORE, *IMAGES[1:]),
                     r"features.tsv line 1: image '100': it has 2 features and 3 predicted objects"),
    "cut objects": (lines_of("predictions.tsv", [CUT]),
                    r"predictions.tsv line 5 \(the last line, .*cut off\): image '128': column 2 is not valid JSON"),
    "lineidx of objects": (text("predictions.lineidx", "0\n7\n"), r"predictions.lineidx sends line 2 of .*to byte 7"),
    "nameless": (lines_of("predictions.tsv", NAMELESS),
                 r"predictions.tsv line 1: image '100': column 2: .*`class` at \$.objects\[0\]"),
    "no geometry": (no_geometry, r"features.tsv line 1: image '100': the last six numbers"),
}  # fmt: skip


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
    assert done.images == 4 and "has 1 images that" in done.journal.notes[0] and not done.journal.count


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


@pytest.mark.parametrize("fast", [True, False])
def test_base64_is_read_alike_with_and_without_the_package(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    if not fast:
        monkeypatch.setattr(base64_arrays, "pybase64", None)
    whole = base64.b64encode(np.arange(6, dtype="<f4").tobytes())
    for text in (whole, whole.decode(), f"b'{whole.decode()}'"):
        assert base64_arrays.base64_rows(text, 2, None, "features", "<f4").tolist() == [[0, 1, 2], [3, 4, 5]]
    for bad, words in (
        (whole[:-1], "features are no base64"),
        (whole[:-4], "features are 21 bytes of base64, expected 2 x D x 4 for 2 boxes"),
        (whole.replace(b"A", b"!", 1), "features (are no base64|hold characters that are not base64)"),
        (whole[:9] + b" " + whole[9:], "features hold characters that are not base64"),
        (whole + b"====", "features hold characters that are not base64"),
        (b"\xff" * 32, "features hold characters that are not base64"),
    ):
        with pytest.raises(UserError, match=words):
            base64_arrays.base64_rows(bad, 2, None, "features", "<f4")
