"""Layouts of other programs, each made as its program makes it, and what is wrong with one is told."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.regions.formats.samples import (
    DIM,
    FORMATS,
    Sample,
    bottom_up_line,
    composed,
    encoded,
    lxmert_line,
    npz_bytes,
    oscar_line,
    packed,
    prediction_line,
    refused,
    run,
    samples,
    uniter_fields,
    vinvl_info,
    write_lines,
    write_npy_folder,
    write_records,
    write_uniter_lmdb,
    write_uniter_npz,
    write_vinvl_npy,
)
from tests.regions.samples import LABELS, make_regions
from vinvl.convert import convert
from vinvl.regions import LabelMap, Regions, RegionStore, RegionStoreWriter
from vinvl.regions.formats.boxes import cell_boxes
from vinvl.regions.formats.lmdb_folder import fields_of
from vinvl.run.errors import UserError

IMAGES = samples()
ONE = IMAGES[1]  # 107, of 3 regions


def sizes_file(folder: Path, images: list[Sample] = IMAGES, more: int = 0) -> str:
    path = folder / "sizes.json"
    path.write_text(json.dumps({i.image_id: [i.width + more, i.height] for i in images}))
    return f"sizes={path}"


# MMF's VinVL.


def assert_vinvl(store: RegionStore) -> None:
    for image in IMAGES:
        regions = store[image.image_id]
        np.testing.assert_array_equal(regions.features, image.features.astype(np.float16))
        np.testing.assert_allclose(regions.boxes, image.boxes, atol=1e-3)
        np.testing.assert_allclose(regions.rows(), image.rows, atol=1e-6)
        np.testing.assert_array_equal(regions.classes, image.classes + 1)
        np.testing.assert_array_equal(regions.class_scores, image.scores)
        np.testing.assert_array_equal(regions.attributes[:, 0], image.colours + 1)
        assert regions.attributes.shape[1] == 2 and (regions.width, regions.height) == (image.width, image.height)
    assert store.verify() == []


def test_vinvl_of_mmf(tmp_path: Path) -> None:
    """Its numbers count the background, whatever a label map is; so does an LMDB of them."""
    (tmp_path / "map.txt").write_text("cat\ndog\ntree\n")
    store = run(write_vinvl_npy(tmp_path / "in", IMAGES), tmp_path / "out.h5", f"labels={tmp_path / 'map.txt'}")
    assert_vinvl(store)
    assert store.label_map.classes[1:] == ("cat", "dog", "tree")
    records = {i.image_id: {**vinvl_info(i), "features": i.rows, "num_boxes": None, "objects": None} for i in IMAGES}
    assert_vinvl(run(write_records(tmp_path / "lmdb", records), tmp_path / "two.h5"))


PIXELS = np.concatenate([ONE.boxes, ONE.boxes[:, 2:] - ONE.boxes[:, :2]], axis=1)
VINVL: dict[str, tuple[dict[str, Any], str]] = {
    "in pixels": ({"bbox": PIXELS}, r"boxes reach 6\d\d, expected shares of the image from 0 to 1"),
    "four columns of shares": ({"bbox": ONE.geometry[:, :4]}, "are not those of its features: not of one run"),
    "x y w h": ({"bbox": ONE.geometry[:, [0, 1, 4, 5, 2, 3]]}, "boxes are not x1/W, y1/H, x2/W, y2/H, w/W, h/H"),
    "y x y x": ({"bbox": ONE.geometry[:, [1, 0, 3, 2, 4, 5]]}, "boxes are not x1/W"),
    "other order": ({"bbox": ONE.geometry[::-1]}, "its boxes are not those behind its features"),
    "one fewer": ({"bbox": ONE.geometry[1:]}, r"features have shape \(3, 14\), but there are 2 boxes"),
    "turned": ({"bbox": ONE.geometry.T}, r"boxes have shape \(6, 3\), expected x1 y1 x2 y2"),
    "seven": ({"bbox": PIXELS[:, [0, 1, 2, 3, 4, 5, 5]]}, r"boxes have shape \(3, 7\)"),
    "other size": ({"bbox": ONE.boxes, "image_width": 100}, "are not those of its features"),
    "no size": ({"image_width": None, "image_height": None}, "nothing tells its width and height.*features.sizes=FILE"),
    "not a number": ({"bbox": ONE.geometry * np.nan}, "boxes are not x1/W"),
    "other scores": ({"scores": np.ones(2)}, r"class_scores are \(2,\)"),
}


@pytest.mark.parametrize(("change", "words"), VINVL.values(), ids=VINVL)
def test_vinvl_that_is_at_odds(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    folder = write_vinvl_npy(tmp_path / "in", IMAGES)
    content: Any = {**vinvl_info(ONE), **change}
    np.save(folder / "107_info.npy", content)
    sentence = refused(folder, tmp_path)
    assert re.search(rf"107\.npy: .*{words}", sentence), sentence


def test_geometry_that_is_none(tmp_path: Path) -> None:
    folder = write_vinvl_npy(tmp_path / "in", IMAGES)
    np.save(folder / "107.npy", np.concatenate([ONE.features, ONE.features[:, :6] * 9], axis=1))
    assert "107.npy: the last six numbers of a row" in refused(folder, tmp_path)
    half = np.concatenate([ONE.features, ONE.geometry], axis=1).astype(np.float16)
    np.save(folder / "107.npy", half)
    store = run(folder, tmp_path / "out.h5")
    np.testing.assert_allclose(store["107"].boxes, ONE.boxes, atol=0.4)
    np.testing.assert_array_equal(store["107"].features, ONE.features.astype(np.float16))


def test_a_number_of_boxes_that_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """MMF's FRCNN script writes that, and not how many there are; where the rest is not of one length, who knows."""
    folder = write_npy_folder(tmp_path / "in", IMAGES)
    infos = {i.image_id: np.load(folder / f"{i.image_id}_info.npy", allow_pickle=True).item() for i in IMAGES}

    def save(name: str, **change: Any) -> None:
        content: Any = {**infos[name], "num_boxes": 100, **change}
        np.save(folder / f"{name}_info.npy", content)

    for name in infos:
        save(name)
    store = run(folder, tmp_path / "out.h5")
    for image in IMAGES:
        np.testing.assert_array_equal(store[image.image_id].features, image.features.astype(np.float16))
    (tmp_path / "out.h5").unlink()
    assert capsys.readouterr().out.count("num_boxes is beyond the boxes") == 1
    for change in ({"bbox": ONE.boxes[:2]}, {"objects": ONE.classes[:2]}, {"num_boxes": 3.5}, {"image_width": None}):
        save("107", **change)
        assert "107.npy: " in refused(folder, tmp_path)


# UNITER.


@pytest.mark.parametrize("kind", ["npz", "lmdb", "compressed"])
def test_uniter(tmp_path: Path, kind: str) -> None:
    """Boxes as near as half precision has them; the class is the best but for the background, which stands first."""
    write = write_uniter_npz if kind == "npz" else write_uniter_lmdb
    folder = write(tmp_path / ("feat_th0.2_max100_min10" + "_compressed" * (kind == "compressed")), IMAGES)
    assert "nothing tells its width and height" in refused(folder, tmp_path)
    names = tmp_path / "map.txt"
    names.write_text("cat\ndog\ntree\n")
    store = run(folder, tmp_path / "one.h5", sizes_file(tmp_path), f"labels={names}")
    assumed = run(folder, tmp_path / "two.h5", "assume_size=[1000,1000]")
    for image in IMAGES:
        regions = store[image.image_id]
        np.testing.assert_array_equal(regions.features, image.features.astype(np.float16))
        np.testing.assert_allclose(regions.boxes, image.boxes, atol=0.4)
        np.testing.assert_array_equal(regions.classes, image.classes + 1)
        np.testing.assert_array_equal(regions.class_scores, image.scores.astype(np.float16))
        np.testing.assert_allclose(assumed[image.image_id].rows(), regions.rows(), atol=1e-5)
    assert store.verify() == []
    names.write_text("cat\ndog\n")
    sentence = refused(folder, tmp_path, "assume_size=[9,9]", f"labels={names}")
    assert "there are scores of 4 class columns, expected were 2 or 3" in sentence


def test_numbers_of_regions_beside_an_lmdb_count(tmp_path: Path) -> None:
    folder, beside = write_uniter_lmdb(tmp_path / "feat_th0.2_max9_min1", IMAGES), tmp_path / "nbb_th0.2_max9_min1.json"
    counts = {f"{image.image_id}.npz": 2 for image in IMAGES}
    beside.write_text(json.dumps(counts))
    store = run(folder, tmp_path / "one.h5", "assume_size=[1000,1000]")
    assert [len(store.at(number)) for number in range(len(store))] == [2] * len(IMAGES)
    beside.write_text(json.dumps(counts | {"107.npz": 4}))
    assert "image '107': the number of boxes is 4, expected" in refused(folder, tmp_path, "assume_size=[9,9]")
    beside.write_text(json.dumps(counts | {"1.npz": 4}))
    assert "has no '1.npz', which the nbb_*.json beside it names" in refused(folder, tmp_path, "assume_size=[9,9]")
    beside.write_text(json.dumps({"107.npz": "2"}))
    assert "says '2' of '107.npz', expected a number" in refused(folder, tmp_path, "assume_size=[9,9]")


def test_keys_of_an_lmdb_without_a_record(tmp_path: Path) -> None:
    records: dict[str, Any] = {f"{image.image_id}.npz": packed(uniter_fields(image)) for image in IMAGES}
    folder = write_records(tmp_path / "in", records | {"__keys__": json.dumps([*records, "9.npz"]).encode()}, [])
    assert "'__keys__' has '9.npz', which has no record" in refused(folder, tmp_path, "assume_size=[9,9]")


PACKED = {"features": {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [1, 2], b"data": bytes(8)}}
HOSTILE = {
    "cut": packed(uniter_fields(ONE))[:-30],
    "a list without end": b"\x81\xa8features\xdd\xff\xff\xff\xff",
    "deep": b"\x81\xa8features" + b"\x91" * 100_000 + b"\x01",
    "objects": msgspec.msgpack.encode({"features": PACKED["features"] | {b"type": "|O"}}),
    "other length": msgspec.msgpack.encode({"features": PACKED["features"] | {b"shape": [2**40, 2**40]}}),
    "no shape": msgspec.msgpack.encode({"features": PACKED["features"] | {b"shape": "7"}}),
    "no data": msgspec.msgpack.encode({"features": {b"nd": True, b"type": "<f4"}}),
    "number as key": b"\x81\x01\x02",
    "cut npz": npz_bytes(uniter_fields(ONE), compress=True)[:-30],
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_hostile_records_give_one_sentence(value: bytes) -> None:
    with pytest.raises(UserError, match=r"^the record[^\n]*get the (folder|file) again"):
        fields_of(value)
    np.testing.assert_array_equal(fields_of(msgspec.msgpack.encode(PACKED))["features"], [[0, 0]])


@given(st.integers(0, 2**32))
def test_a_changed_byte_of_messagepack_is_never_more_than_a_sentence(seed: int) -> None:
    value = bytearray(packed(uniter_fields(ONE)))
    random = np.random.default_rng(seed)
    value[random.integers(1, len(value))] = random.integers(256)
    try:
        fields_of(bytes(value))
    except UserError as error:
        assert "\n" not in str(error)


def test_vilberts_lmdb(tmp_path: Path) -> None:
    """Columns of bottom-up-attention's TSV, pickled."""
    records = {
        i.image_id: {
            "image_id": i.image_id, "image_w": str(i.width), "image_h": str(i.height), "num_boxes": str(len(i.boxes)),
            "boxes": encoded(i.boxes).encode(), "features": encoded(i.features).encode(),
        }
        for i in IMAGES
    }  # fmt: skip
    store = run(write_records(tmp_path / "in", records), tmp_path / "out.h5")
    np.testing.assert_array_equal(store["107"].boxes, ONE.boxes)
    np.testing.assert_array_equal(store["107"].features, ONE.features)


# OpenVQA and MCAN.


def openvqa(folder: Path, image: Sample, **change: Any) -> Path:
    folder.mkdir(exist_ok=True)
    fields = {"x": image.features.T, "bbox": image.boxes, "num_bbox": len(image.boxes)}
    size = {"image_h": image.height, "image_w": image.width}
    np.savez(folder / f"{image.image_id}.npz", **{**fields, **size, **change})
    return folder


def wide(count: int) -> Sample:
    boxes = np.tile(ONE.boxes[:1], (count, 1))
    return replace(ONE, features=np.arange(count * DIM, dtype=np.float32).reshape(count, DIM), boxes=boxes)


ROW = np.ones((1, DIM), dtype=np.float32)
OPENVQA: dict[str, tuple[Sample, dict[str, Any]]] = {
    "as it is": (ONE, {}),
    "rows": (ONE, {"x": ONE.features}),
    "half precision": (ONE, {"x": ONE.features.T.astype(np.float16), "bbox": ONE.boxes.astype(np.float16)}),
    "Fortran's order": (ONE, {"x": np.asfortranarray(ONE.features.T)}),
    "padded": (ONE, {"x": np.pad(ONE.features.T, ((0, 0), (0, 9))), "bbox": np.pad(ONE.boxes, ((0, 9), (0, 0)))}),
    "features padded": (ONE, {"x": np.pad(ONE.features.T, ((0, 0), (0, 9)))}),
    "many": (wide(36), {}),
}


@pytest.mark.parametrize(("image", "change"), OPENVQA.values(), ids=OPENVQA)
def test_openvqa(tmp_path: Path, image: Sample, change: dict[str, Any]) -> None:
    regions = run(openvqa(tmp_path / "in", image, **change), tmp_path / "out.h5")["107"]
    np.testing.assert_array_equal(regions.features, image.features)
    np.testing.assert_allclose(regions.boxes, image.boxes, atol=0.3)


SQUARE = wide(DIM)
ODD: dict[str, tuple[Sample, dict[str, Any], str]] = {
    "boxes turned": (ONE, {"bbox": ONE.boxes.T}, r"boxes have shape \(4, 3\), expected x1 y1 x2 y2"),
    "square": (SQUARE, {}, r"x has shape \(8, 8\), .*features.transposed=true"),
    "more than boxes": (ONE, {"x": np.ones((DIM, 5))}, r"features have shape \(8, 5\), but there are 3 boxes"),
    "other dimension": (ONE, {"x": ONE.features[:, :5].T}, "dimension 5, expected 8"),
    "boxes in shares": (ONE, {"bbox": ONE.geometry[:, :4]}, "boxes are expected in pixels"),
    "x y w h": (ONE, {"bbox": np.array([[300, 300, 20, 30]] * 3)}, "is inverted; x1 y1 x2 y2 was expected"),
    "count of another": (ONE, {"num_bbox": 7}, "the number of boxes is .*7.*, expected"),
    "no size": (ONE, {"image_h": np.nan}, "height is .*nan"),
}


@pytest.mark.parametrize(("image", "change", "words"), ODD.values(), ids=ODD)
def test_openvqa_that_is_odd(tmp_path: Path, image: Sample, change: dict[str, Any], words: str) -> None:
    sentence = refused(openvqa(tmp_path / "in", image, **change), tmp_path)
    assert re.search(rf"107\.npz.*{words}", sentence), sentence


@pytest.mark.parametrize("transposed", [True, False])
def test_how_a_square_lies_is_said(tmp_path: Path, transposed: bool) -> None:
    folder = openvqa(tmp_path / "in", SQUARE, x=SQUARE.features.T if transposed else SQUARE.features)
    store = run(folder, tmp_path / "out.h5", f"transposed={str(transposed).lower()}")
    np.testing.assert_array_equal(store["107"].features, SQUARE.features)


# Sizes beside, for all formats.

HAVE_NONE = {"tensors", "JSON, sizes from boxes", "bottom-up HDF5", "adaptive HDF5", "meshed-memory"}
HAVE_SIZES = sorted(set(FORMATS) - HAVE_NONE)


@pytest.mark.parametrize("kind", HAVE_SIZES)
def test_sizes_that_disagree_are_both_told(tmp_path: Path, kind: str) -> None:
    source, offset = FORMATS[kind](tmp_path / "in", IMAGES), "class_offset=1"
    run(source, tmp_path / "same.h5", sizes_file(tmp_path), offset)
    sentence = refused(source, tmp_path, sizes_file(tmp_path, more=1), offset)
    assert re.search(r"in\b.*100.*: its size is 640 x 480, but .*sizes.json says 641 x 480", sentence), sentence


def test_sizes_by_the_id_in_the_store(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    named = replace(ONE, image_id=f"COCO_val2014_{int(ONE.image_id):012d}")
    np.savez(folder / f"{named.image_id}.npz", x=ONE.features, bbox=ONE.boxes)
    store = run(folder, tmp_path / "one.h5", "id_pattern='0*(\\d+)$'", sizes_file(tmp_path))
    assert (store["107"].width, store["107"].height) == (ONE.width, ONE.height)
    assert "pass features.sizes=FILE, such as" in refused(folder, tmp_path, "assume_size=[1000,1000]")


# Grids.

CELLS = np.random.default_rng(1).standard_normal((3, 5, 16)).astype(np.float16)


def torch_file(path: Path, grid: np.ndarray) -> None:
    torch.save(torch.from_numpy(grid.astype(np.float32)), path.with_suffix(".pth"))


GRIDS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "grid-feats-vqa": (lambda path: torch_file(path, CELLS.transpose(2, 0, 1)[None]), []),
    "npy D H W": (lambda path: np.save(path.with_suffix(".npy"), CELLS.transpose(2, 0, 1)), []),
    "npy H W D": (lambda path: np.save(path.with_suffix(".npy"), CELLS), []),
    "npz": (lambda path: np.savez(path.with_suffix(".npz"), features=CELLS[None]), []),
    "npy H*W D": (lambda path: np.save(path.with_suffix(".npy"), CELLS.reshape(15, 16)), ["grid=[3,5]"]),
    "openvqa's CLEVR": (lambda path: np.savez(path.with_suffix(".npz"), x=CELLS.reshape(15, 16)), ["grid=[3,5]"]),
    "npz D H*W": (lambda path: np.savez(path.with_suffix(".npz"), x=CELLS.reshape(15, 16).T), ["grid=[3,5]"]),
}


@pytest.mark.parametrize(("write", "more"), GRIDS.values(), ids=GRIDS)
def test_cells_of_a_grid_are_regions(tmp_path: Path, write: Callable[[Path], None], more: list[str]) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / ONE.image_id)
    store = run(folder, tmp_path / "one.h5", "dim=16", sizes_file(tmp_path), *more)
    regions = store["107"]
    np.testing.assert_array_equal(regions.features, CELLS.reshape(15, 16))
    np.testing.assert_array_equal(regions.boxes, cell_boxes(3, 5, (ONE.width, ONE.height)))
    np.testing.assert_allclose(regions.boxes[7], [ONE.width * 0.4, ONE.height / 3, ONE.width * 0.6, ONE.height / 1.5])
    assert not regions.classes.any() and store.label_map.classes == () and store.verify() == []
    assert "nothing tells its width and height" in refused(folder, tmp_path, "dim=16", *more)
    assumed = run(folder, tmp_path / "two.h5", "dim=16", "assume_size=[1000,1000]", *more)
    np.testing.assert_allclose(assumed["107"].rows(), regions.rows(), atol=1e-6)
    assert re.search("grid", refused(folder, tmp_path, "dim=16", "assume_size=[9,9]", "grid=[5,5]"))


NO_GRIDS: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "rows alone": (lambda path: np.save(path.with_suffix(".npy"), ONE.features), [], r"pass features.grid=\[H,W\]"),
    "rows of an npz": (lambda path: np.savez(path.with_suffix(".npz"), x=ONE.features), [], r"there is no boxes.*grid"),
    "a cube": (lambda path: np.save(path.with_suffix(".npy"), np.ones((5, 5, 5))), ["dim=5"], "none of"),
    "five dimensions": (lambda path: np.save(path.with_suffix(".npy"), np.ones((1, 1, 5, 5, 8))), [], "none of"),
    "two pictures": (lambda path: np.save(path.with_suffix(".npy"), np.ones((2, 5, 5, 8))), [], "none of"),
    "cut": (lambda path: path.with_suffix(".pth").write_bytes(b"PK\x03\x04"), [], "is no file of tensors"),
    "text": (lambda path: torch.save({"features": "no"}, path.with_suffix(".pth")), [], "there is no features"),
    "sparse": (
        lambda path: torch.save(torch.ones(8, 2, 2).to_sparse(), path.with_suffix(".pth")),
        [],
        "features is sparse or quantised",
    ),
}


@pytest.mark.parametrize(("write", "more", "words"), NO_GRIDS.values(), ids=NO_GRIDS)
def test_what_is_no_grid_is_told(tmp_path: Path, write: Callable[[Path], object], more: list[str], words: str) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "107")
    sentence = refused(tmp_path / "in", tmp_path, "assume_size=[1000,1000]", *more)
    assert re.search(rf"107\.[a-z]+\b.*{words}", sentence), sentence


@settings(max_examples=30)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(10, 2000), st.integers(10, 2000))
def test_cells_cover_the_picture(rows: int, columns: int, width: int, height: int) -> None:
    boxes = cell_boxes(rows, columns, (width, height)).astype(np.float64)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    np.testing.assert_allclose(areas, width * height / rows / columns, rtol=1e-3)
    np.testing.assert_allclose([boxes[:, :2].min(0), boxes[:, 2:].max(0)], [[0, 0], [width, height]], rtol=1e-6)


# Base64 as Python 3 shows bytes, in columns and in JSON.

SHOWN: dict[str, Callable[[Sample], str]] = {
    "bottom-up": bottom_up_line,
    "LXMERT": lxmert_line,
    "columns": oscar_line,
    "JSON": lambda image: oscar_line(image, "json"),
    "predictions": lambda image: prediction_line(image, with_features=True),
}


@pytest.mark.parametrize("quote", ["'", '\\"'])
@pytest.mark.parametrize("kind", SHOWN)
def test_base64_as_python_3_shows_it(tmp_path: Path, kind: str, quote: str) -> None:
    quote = quote if kind in ("JSON", "predictions") else quote[-1]
    line = re.sub(r"[A-Za-z0-9+/]{14,}={0,2}(?=[\t\n\"])", lambda found: f"b{quote}{found[0]}{quote}", SHOWN[kind](ONE))
    assert line.count(quote) >= 2
    store = run(write_lines(tmp_path / "in.tsv", [line]), tmp_path / "out.h5", sizes_file(tmp_path))
    np.testing.assert_array_equal(store["107"].features, ONE.features)
    np.testing.assert_allclose(store["107"].boxes, ONE.boxes, atol=1e-3)


# Features of a dimension that nothing tells.


def test_oscars_rows_tell_their_dimension_by_their_geometry(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "features.tsv", [oscar_line(image) for image in IMAGES])
    write_lines(
        tmp_path / "hw.tsv", [f'{i.image_id}\t[{{"height": {i.height}, "width": {i.width}}}]\n' for i in IMAGES]
    )
    store = run(file, tmp_path / "one.h5", "dim=null")
    np.testing.assert_allclose(store["107"].rows(), ONE.rows, atol=1e-6)
    write_lines(tmp_path / "features.tsv", [oscar_line(image, rows=image.features) for image in IMAGES])
    assert "the last six numbers of a row" in refused(file, tmp_path, "dim=null")


# Out of a store and back.


@settings(max_examples=12, deadline=None)
@given(
    kind=st.sampled_from(["oscar_tsv", "mmf_npy"]),
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any),
    attributes=st.integers(0, 3),
    named=st.booleans(),
    dtype=st.sampled_from(["float16", "float32"]),
    seed=st.integers(0, 2**20),
)
def test_a_store_goes_out_and_comes_back(
    kind: str, counts: list[int], attributes: int, named: bool, dtype: str, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = [make_regions(f"v/{n}", count, 3, attributes, seed + n) for n, count in enumerate(counts)]
        labels = LABELS if named else LabelMap((), ())
        facts: Any = {"detector": "x", "label_map": labels, "num_attributes": attributes, "feature_dtype": dtype}
        with RegionStoreWriter(folder / "one.h5", feature_dim=3, **facts) as writer:
            for image in images:
                writer.add(image)
        one = RegionStore(folder / "one.h5")
        convert(composed(f"from={folder / 'one.h5'}", f"to={folder / 'out'}", f"format={kind}"))
        two = run(folder / "out", folder / "two.h5", "dim=null", f"dtype={dtype}")
        assert sorted(two.image_ids) == sorted(one.image_ids) and two.verify() == []
        for image_id in one.image_ids:
            was, now = one[image_id], two[image_id]
            np.testing.assert_array_equal(now.features, was.features)
            np.testing.assert_allclose(now.boxes, was.boxes, atol=1e-4)
            assert (now.width, now.height) == (was.width, was.height)
            if kind == "mmf_npy":
                for what in ("boxes", "classes", "class_scores", "attributes", "attribute_scores"):
                    np.testing.assert_array_equal(getattr(now, what), getattr(was, what))
            elif named:
                np.testing.assert_array_equal(now.class_scores, was.class_scores)
                assert names_of(now, two.label_map) == names_of(was, one.label_map)


def names_of(regions: Regions, labels: LabelMap) -> list[tuple[str, list[tuple[str, float]]]]:
    return [
        (
            labels.classes[number],
            [(labels.attributes[n], score) for n, score in zip(attributes, scores, strict=True) if n],
        )
        for number, attributes, scores in zip(
            regions.classes, regions.attributes, regions.attribute_scores.tolist(), strict=True
        )
    ]
