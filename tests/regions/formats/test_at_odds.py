"""What a file says twice must agree, and its checksums are looked at: no other numbers without a word."""

from __future__ import annotations

import base64
import json
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.regions.formats.samples import (
    DIM,
    bottom_up_line,
    labels_of,
    oscar_line,
    padded,
    prediction_line,
    published_folder,
    record,
    refused,
    run,
    samples,
    score_table,
    uniter_fields,
    vinvl_info,
    write_bottom_up_hdf5,
    write_gqa,
    write_lines,
    write_m2,
    write_records,
    write_tensors,
    write_uniter_lmdb,
)
from vinvl.regions import LabelMap
from vinvl.regions.formats.convert import convert_features
from vinvl.regions.formats.fields import same_image
from vinvl.regions.formats.lmdb_folder import read_records
from vinvl.regions.formats.rows import FeatureOptions, base64_rows
from vinvl.run.errors import UserError

IMAGES = samples()
ONE = IMAGES[1]  # 107, of 3 regions
READ = FeatureOptions(dim=DIM, workers=1)


def npz(folder: Path, **change: Any) -> Path:
    """As bottom-up-attention.pytorch saves features, with sizes and number in the arrays and once more in `info`."""
    folder.mkdir(exist_ok=True)
    own = {"image_id": "107", "image_h": ONE.height, "image_w": ONE.width, "num_boxes": len(ONE.boxes)}
    info = {**own, "objects_id": ONE.classes, "objects_conf": ONE.scores, **change.pop("info", {})}
    size = {"image_h": ONE.height, "image_w": ONE.width, "num_bbox": len(ONE.boxes)}
    np.savez(folder / "107.npz", **{"x": ONE.features, "bbox": ONE.boxes, **size, "info": info, **change})
    return folder


MORE = np.concatenate([ONE.features, ONE.features[:1]])
ZEROS = np.zeros((1, 4), dtype=np.float32)
NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "width and info": ({"info": {"image_w": 9}}, "its image_w and that in its info are not the same"),
    "two names of a height": ({"image_height": 9}, "its image_h and its image_height are not the same"),
    "two numbers of boxes": ({"info": {"num_boxes": 2}}, "its num_boxes and its num_bbox are not the same"),
    "two kinds of boxes": ({"boxes": ONE.boxes + 1}, "its boxes and its bbox are not the same"),
    "boxes twice, one of shares": ({"bbox": ONE.geometry, "norm_bb": ONE.geometry / 2}, "its boxes and its shares"),
    "features twice": ({"features": ONE.features + 1}, "its features and its x are not the same"),
    "another size": ({"size": [1, 2]}, "its size is 2 x 1, but its width and height 639 x 481"),
    "another image": ({"info": {"image_id": "100"}}, "it says that it is of image '100'"),
    "one too few": ({"num_bbox": 2, "info": {"num_boxes": 2}}, "is 2, but there are 3 that are not zero"),
    "one too many": (
        {"x": np.pad(ONE.features, ((0, 1), (0, 0))), "bbox": np.concatenate([ONE.boxes, ZEROS]), "num_bbox": 4,
         "info": {"num_boxes": 4}},
        "the number of boxes is 4, but the last of them is zeros",
    ),
    "more classes": ({"info": {"objects_id": np.zeros(5, int)}}, r"classes are \(5,\) of int64, expected .* 3 regions"),
    "more scores": ({"info": {"objects_conf": np.zeros(5)}}, r"class_scores are \(5,\)"),
    "no number as score": ({"info": {"objects_conf": np.full((3, 4), np.nan)}}, "scores are NaN or infinite"),
    "scores of no column": ({"info": {"objects_conf": np.zeros((3, 0))}}, r"scores have shape \(3, 0\)"),
    "classes and table": ({"info": {"objects_conf": score_table(ONE, 9)[::-1]}}, "are not those of the highest of 9"),
    "digits": ({"image_w": "6_39", "info": {"image_w": "6_39"}}, "width is .*6_39.*, a positive number"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), NPZ.values(), ids=NPZ)
def test_fields_that_disagree(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    run(npz(tmp_path / "sound"), tmp_path / "sound.h5")
    with pytest.raises(UserError, match=rf"107\.npz: .*{words}"):
        convert_features(npz(tmp_path / "in", **change), tmp_path / "out.h5", READ)


@pytest.mark.parametrize(
    ("said", "image_id", "same"),
    [("107", "107", True), (107, "COCO_val2014_000000000107", True), ("val/107.jpg", "107", True), ("a", "a.jpg", True),
     (np.array("107"), "0107", True), (b"108", "107", False), ("a", "b", False), ("a1", "1b", False)],
)  # fmt: skip
def test_what_names_an_image(said: Any, image_id: str, same: bool) -> None:
    assert same_image(said, image_id) is same


def test_features_that_vinvl_has_twice(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    other: Any = {**vinvl_info(ONE), "box_features": ONE.features[::-1]}
    np.save(tmp_path / "in" / "107.npy", ONE.rows)
    np.save(tmp_path / "in" / "107_info.npy", other)
    assert "107.npy: its features are not its box_features" in refused(tmp_path / "in", tmp_path)


def test_regions_behind_a_dimension_are_no_grid(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "7.npy", ONE.features[None])
    sentence = refused(tmp_path / "in", tmp_path, "assume_size=[9,9]")
    assert "a grid of shape (1, 3, 8) may be of regions behind a dimension of 1: pass features.grid=[1,3]" in sentence
    assert len(run(tmp_path / "in", tmp_path / "out.h5", "assume_size=[90,90]", "grid=[1,3]")["7"]) == 3


# Checksums, and lists of what is there.


def byte_changed(path: Path, before: bytes, after: bytes, last: bool = False) -> None:
    content = path.read_bytes()
    place = content.rindex(before) if last else content.index(before)
    path.write_bytes(content[:place] + after + content[place + len(before) :])


@pytest.mark.parametrize("kind", ["pt", "pth"])
def test_checksums_of_tensor_files(tmp_path: Path, kind: str) -> None:
    if kind == "pt":
        file = source = write_tensors(tmp_path / "in", IMAGES)
    else:
        source = tmp_path / "in"
        source.mkdir()
        torch.save(torch.from_numpy(ONE.features.T[:, None].copy()), file := source / "7.pth")
    run(source, tmp_path / "sound.h5", "assume_size=[90,90]")
    with zipfile.ZipFile(file) as archive:
        number = archive.read(next(name for name in archive.namelist() if name.endswith("data/0")))[:4]
    byte_changed(file, number, b"\1" + number[1:])
    words = f"damaged one (the checksum of {'in' if kind == 'pt' else '7'}/data/0 is wrong)"
    assert words in refused(source, tmp_path, "assume_size=[90,90]")


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"soft_labels.npy", b"sofT_labels.npy"), (b"PK\x05\x06\0\0\0\0\x05\0\x05\0", b"PK\x05\x06\0\0\0\0\x05\0\x04\0")],
)
def test_the_list_of_an_npz(tmp_path: Path, before: bytes, after: bytes) -> None:
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "7.npz", **uniter_fields(ONE), other=np.zeros(2))
    byte_changed(tmp_path / "in" / "7.npz", before, after, last=True)
    assert "7.npz is no npz, or a damaged one" in refused(tmp_path / "in", tmp_path, "assume_size=[9,9]")


def test_two_records_of_an_lmdb_in_one_place(tmp_path: Path) -> None:
    big = np.zeros((300, DIM), dtype=np.float32)
    values: dict[str, Any] = {name: record(ONE) | {"features": big + number} for number, name in enumerate("ab")}
    write_records(tmp_path / "in", values, [])
    data = tmp_path / "in" / "data.mdb"
    with data.open("rb") as file:
        first, second = ((page or 0).to_bytes(8, "little") for *_, page in read_records(file))
    byte_changed(data, b"b" + second, b"b" + first)
    assert "two of its records are in one place" in refused(tmp_path / "in", tmp_path)


def test_numbers_of_regions_that_come_twice(tmp_path: Path) -> None:
    folder = write_uniter_lmdb(tmp_path / "feat_a", IMAGES)
    (tmp_path / "nbb_a.json").write_text('{"107.npz": 3, "107.npz": 2}')
    assert "says 3 and 2 of '107.npz'" in refused(folder, tmp_path, "assume_size=[9,9]")


# Oscar's.


def predicted(change: Callable[[str], str]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        made = published_folder(folder / "in", IMAGES)
        (made / "predictions.lineidx").unlink()
        lines = [change(line) if line.startswith("107") else line for line in map(prediction_line, IMAGES)]
        (made / "predictions.tsv").write_bytes("".join(lines).encode("latin-1"))
        return made

    return make


PREDICTED: dict[str, tuple[Callable[[str], str], str]] = {
    "a score lost": (lambda line: line.replace('"conf"', '"comf"', 1), "only some of the objects have conf"),
    "scores of attributes lost": (
        lambda line: line.replace('"attr_scores"', '"attr_score"', 1), "only some of the objects have attribute scores"
    ),
    "attributes lost": (
        lambda line: line.replace('"attributes"', '"Attributes"', 1), "attributes and their scores are not lists of one"
    ),
    "half a size": (lambda line: line.replace('"image_w"', '"image_v"'), "width is missing"),
    "no text": (lambda line: line.replace('"image_w"', '"image_\xe9": 1, "image_w"'), "column 2 is not UTF-8 text"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), PREDICTED.values(), ids=PREDICTED)
def test_names_of_fields_that_are_damaged(tmp_path: Path, change: Callable[[str], str], words: str) -> None:
    sentence = refused(predicted(change)(tmp_path), tmp_path)
    assert words in sentence and "image '107'" in sentence, sentence


def test_shares_in_place_of_pixels_tell_no_size(tmp_path: Path) -> None:
    folder = published_folder(tmp_path / "in", IMAGES, sizes=False)
    run(folder, tmp_path / "sound.h5")
    shares = [prediction_line(replace(image, boxes=image.geometry[:, :4]), with_size=False) for image in IMAGES]
    write_lines(folder / "predictions.tsv", shares, lineidx=True)
    assert "image '100': nothing tells its width and height" in refused(folder, tmp_path)


def pickled(change: Callable[[dict[Any, Any]], Any]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        content = labels_of(IMAGES)
        change(content)
        (folder / "labels.pkl").write_bytes(pickle.dumps(content))
        return write_tensors(folder / "in", IMAGES)

    return make


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (pickled(lambda all: all["107"].update(boxes=ONE.boxes.T.copy())), "image '107': boxes have shape (4, 3)"),
        (
            pickled(lambda all: all.update({107: all["100"]})),
            "has image '107' more than once, as a number and as a text",
        ),
    ],
)
def test_label_pickles(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    source = make(tmp_path)
    assert words in refused(source, tmp_path, f"predictions={tmp_path / 'labels.pkl'}")


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path: Path) -> None:
    lines = list(map(bottom_up_line, IMAGES))
    (tmp_path / "in.tsv").write_bytes(b"\xef\xbb\xbf" + "".join(lines).encode())
    assert run(tmp_path / "in.tsv", tmp_path / "out.h5").image_ids[0] == "100"
    write_lines(tmp_path / "two.tsv", [lines[0], "1\x1b" + lines[1]])
    with pytest.raises(UserError, match=r"line 2: image '1\\x1b107': its id has characters that cannot be printed"):
        convert_features(tmp_path / "two.tsv", tmp_path / "two.h5", READ)


# HDF5.


def rewritten(file: Path, name: str, change: Callable[[np.ndarray], Any]) -> Path:
    with h5py.File(file, "r+") as opened:
        array = change(opened[name][...]) if name in opened else change(np.zeros(0))
        if name in opened:
            del opened[name]
        opened[name] = array
    return file


def put(*place: Any, value: Any) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


def gqa(count: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        made = write_gqa(folder / "in", IMAGES)
        info = json.loads((made / "gqa_objects_info.json").read_text())
        info["107"]["objectsNum"] = count
        (made / "gqa_objects_info.json").write_text(json.dumps(info))
        return made

    return make


def adaptive(folder: Path) -> Path:
    return write_bottom_up_hdf5(folder / "in", IMAGES, adaptive=True)


def updown(folder: Path, counts: int = 0, ids: int = 0) -> Path:
    with h5py.File(folder / "in.h5", "w") as file:
        file["features"], file["boxes"] = padded([i.features for i in IMAGES], 5), padded([i.boxes for i in IMAGES], 5)
        file["image_id"] = [int(i.image_id) + ids for i in IMAGES]
        file["width"], file["height"] = [i.width for i in IMAGES], [i.height for i in IMAGES]
        file["num_boxes"] = [len(i.boxes) + counts for i in IMAGES]
    return folder / "in.h5"


def indexed(folder: Path) -> Path:
    (folder / "in_imgid2idx.json").write_text(json.dumps({i.image_id: row for row, i in enumerate(IMAGES)}))
    return updown(folder, ids=1)


def overlapping(folder: Path) -> Path:
    """The address of an array is that of another, as one changed bit may make it."""
    file = write_m2(folder / "in", IMAGES)
    with h5py.File(file) as opened:
        first, second = (opened[f"{name}_boxes"].id.get_offset().to_bytes(8, "little") for name in (100, 107))
    byte_changed(file, second, first)
    return file


def twice(folder: Path) -> Path:
    file = write_m2(folder / "in", IMAGES)
    return rewritten(file, "107/features", lambda _: ONE.features + 1)


HDF5: dict[str, tuple[Callable[[Path], Path], str]] = {
    "one too few": (gqa(2), "image '107' of gqa_objects_info.json: the number of boxes is 2, but 3 are not zeros"),
    "one too many": (gqa(4), "the number of boxes is 4, but 3 are not zeros"),
    "none of some": (gqa(0), "the number of boxes is 0, but 3 are not zeros"),
    "padding that is none": (
        lambda folder: rewritten(write_bottom_up_hdf5(folder / "in", IMAGES), "image_bb", put(0, 3, 2, value=5.0)),
        "image '100' of train36_imgid2idx.pkl: the zeros behind its regions do not begin together "
        "(image_bb at region 4, image_features at region 2",
    ),
    "regions of two images": (
        lambda folder: rewritten(adaptive(folder), "pos_boxes", put(0, 1, value=3)),
        "of row 2 pos_boxes makes two images",
    ),
    "regions of none": (
        lambda folder: rewritten(adaptive(folder), "pos_boxes", put(1, 0, value=3)),
        "of row 2 pos_boxes makes two images",
    ),
    "numbers within the file": (lambda folder: updown(folder, counts=-1), "is 1, but there are 5 that are not zeros"),
    "ids within the file": (indexed, "sends image '100' to row 0 (from 0) of"),
    "arrays in one place": (overlapping, "lies where another array lies"),
    "arrays and a group": (twice, "beside a group or arrays of that image"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "words"), HDF5.values(), ids=HDF5)
def test_hdf5_that_is_at_odds(tmp_path: Path, make: Callable[[Path], Path], words: str) -> None:
    source, sizes = make(tmp_path), tmp_path / "sizes.json"
    settings = [f"sizes={sizes}", "class_offset=0"] if sizes.exists() else []
    assert words in refused(source, tmp_path, *settings)


# Label maps.


def test_a_label_map_with_gaps_asks_what_numbers_count(tmp_path: Path) -> None:
    """COCO's ids run to 90 for 80 classes; whether features count the ids or the classes nothing tells."""
    coco = tmp_path / "coco.json"
    coco.write_text(
        json.dumps({"categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 9, "name": "x"}]})
    )
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "107.npy", ONE.rows)
    np.save(folder / "107_info.npy", {**vinvl_info(ONE), "labels": np.ones(3, int)})  # type: ignore[arg-type]
    sentence = refused(folder, tmp_path, f"labels={coco}")
    assert "nothing tells whether class numbers count the background" in sentence
    assert "ids of the label map have gaps: 3 names, the last of 9. Numbers are taken for these ids" in sentence
    store = run(folder, tmp_path / "out.h5", f"labels={coco}", "class_offset=0")
    assert store.label_map.classes[store["107"].classes[0]] == "cat"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"label_to_idx": {"cat": 1}, "idx_to_label": {"1": "cat", "2": "dog"}},
            "label 2 is 'dog', which has no index",
        ),
        ({"label_to_idx": {"cat": 1, "dog": 2}, "idx_to_label": {"1": "dog", "2": "cat"}}, "has the names"),
    ],
)
def test_halves_of_a_label_map(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    (tmp_path / "map.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        LabelMap.from_file(tmp_path / "map.json")
    (tmp_path / "attributes.txt").touch()
    (tmp_path / "objects.txt").write_text("cat\n")
    with pytest.raises(UserError, match=r"attributes.txt is no list of a name a line"):
        LabelMap.from_file(tmp_path / "objects.txt")


# What may be damage and may be not is told at the end.


def test_oddities_are_told(tmp_path: Path) -> None:
    lines = [prediction_line(image, with_features=True) for image in IMAGES]
    lines[1] = lines[1].replace('"conf"', '"comf"')
    lines[2] = lines[2].replace('"attr_scores"', '"attr_score"')
    lines[3] = lines[3].replace('"conf": 0.', '"conf": 7.')
    lines[4] = "00" + lines[4]
    done = convert_features(write_lines(tmp_path / "own.tsv", lines), tmp_path / "out.h5", READ)
    assert done.journal.notes == [
        "1 images have no class scores where others have, such as '107'",
        "1 images have no attribute scores where others have, such as '114'",
        "1 images have class scores that are not between 0 and 1, such as '121'",
        "ids are numbers with zeros in front and without ('00128' and '100'): a picture may be there twice",
    ]


def test_sound_files_are_told_nothing(tmp_path: Path) -> None:
    write_lines(tmp_path / "features.tsv", list(map(oscar_line, IMAGES)))
    done = convert_features(
        tmp_path / "features.tsv", tmp_path / "out.h5", FeatureOptions(dim=DIM, workers=1, assume_size=(9, 9))
    )
    assert not done.journal.notes


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_hdf5_that_goes_on_behind_its_end(tmp_path: Path, libver: str) -> None:
    """A byte that was put in moves all numbers behind it, and HDF5 does not mind."""
    with h5py.File(tmp_path / "in.h5", "w", libver=libver) as file:
        file["7_features"], file["7_boxes"] = ONE.features, ONE.boxes
        file["7_size"] = [ONE.height, ONE.width]
    assert len(run(tmp_path / "in.h5", tmp_path / "sound.h5")) == 1
    byte_changed(tmp_path / "in.h5", ONE.features.tobytes(), b"\0" + ONE.features.tobytes())
    assert re.search("has ([0-9,]+) bytes, but says that it ends at ", refused(tmp_path / "in.h5", tmp_path))


@pytest.mark.parametrize("origin", ["<f2", "<f4"])
@pytest.mark.parametrize(("kind", "bits"), [("<f2", 16), ("<f8", 64), ("<f4", 0)])
def test_base64_of_another_precision(origin: str, kind: str, bits: int) -> None:
    """Of 512 numbers a region 256, or 1,024: other numbers, which may look like features of another network."""
    features = np.random.default_rng(0).standard_normal((4, 512)).clip(-0.5).astype(origin)
    text = base64.b64encode(features.astype(kind).tobytes())
    if bits:
        with pytest.raises(UserError, match=f"features are numbers of {bits} bits, expected are 32"):
            base64_rows(text, 4, None, "features", "<f4")
    else:
        np.testing.assert_array_equal(base64_rows(text, 4, None, "features", "<f4"), features)
