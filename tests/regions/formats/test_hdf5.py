"""HDF5 files of other programs: each layout is read to the number, and what is wrong with one is a sentence."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.regions.formats.samples import (
    CLASSES,
    DIM,
    Sample,
    padded,
    refused,
    run,
    samples,
    score_table,
    write_bottom_up_hdf5,
    write_gqa,
    write_m2,
)
from vinvl.regions import RegionStore
from vinvl.regions.formats import hdf5_file, source
from vinvl.regions.formats.boxes import cell_boxes
from vinvl.regions.formats.convert import convert_features
from vinvl.regions.formats.rows import FeatureOptions
from vinvl.run.errors import UserError

IMAGES = samples(7)


def labels(tmp_path: Path) -> str:
    (tmp_path / "map.json").write_text(json.dumps({"idx_to_label": dict(enumerate(("background", *CLASSES)))}))
    return f"labels={tmp_path / 'map.json'}"


def grid(image: int, height: int = 2, width: int = 3) -> np.ndarray:
    """(DIM, height, width)"""
    return np.random.default_rng(image).standard_normal((DIM, height, width)).astype(np.float16).astype(np.float32)


def test_meshed_memory_with_names_and_without_scores(tmp_path: Path) -> None:
    file = write_m2(tmp_path / "in", IMAGES)
    store = run(file, tmp_path / "one.h5", labels(tmp_path), f"sizes={tmp_path / 'sizes.json'}")
    for image in IMAGES:
        regions = store[image.image_id]
        assert [store.label_map.classes[n] for n in regions.classes] == [CLASSES[n] for n in image.classes]
        np.testing.assert_array_equal(regions.class_scores, image.scores)
        np.testing.assert_array_equal(regions.boxes, image.boxes)
    with h5py.File(file, "r+") as edited:
        for image in IMAGES:
            del edited[f"{image.image_id}_cls_prob"]
    assert not run(file, tmp_path / "two.h5", f"sizes={tmp_path / 'sizes.json'}").at(0).classes.any()
    with h5py.File(file, "r+") as edited:
        del edited["107_boxes"]
    assert "image '107': there is no boxes" in refused(file, tmp_path, f"sizes={tmp_path / 'sizes.json'}")


def test_sizes_grids_and_groups_by_image(tmp_path: Path) -> None:
    """As the files of DLCT have them, and one group an image."""
    with h5py.File(tmp_path / "in.hdf5", "w") as file:
        for number, image in enumerate(IMAGES):
            file[f"{image.image_id}_size"] = np.array([[image.height, image.width]])
            if number % 2:
                file[f"{image.image_id}_grids"] = grid(number, 3, 3).reshape(DIM, 9).T
                file[f"{image.image_id}_mask"] = np.ones((3, 9))
                continue
            file[f"{image.image_id}_features"], file[f"{image.image_id}_boxes"] = image.features, image.boxes
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        for image in IMAGES:
            group = file.create_group(image.image_id)
            group["features"], group["bboxes"] = image.features, image.boxes
            group["image_w"], group["image_h"] = image.width, image.height
    one, two = run(tmp_path / "in.hdf5", tmp_path / "one.h5"), run(tmp_path / "groups.h5", tmp_path / "two.h5")
    for number, image in enumerate(IMAGES):
        regions = one[image.image_id]
        assert (regions.width, regions.height) == (image.width, image.height)
        if number % 2:
            np.testing.assert_array_equal(regions.features, grid(number, 3, 3).reshape(DIM, 9).T)
            np.testing.assert_array_equal(regions.boxes, cell_boxes(3, 3, (image.width, image.height)))
        else:
            np.testing.assert_array_equal(regions.features, image.features)
        np.testing.assert_array_equal(two[image.image_id].boxes, image.boxes)
    assert one.verify() == two.verify() == []


def write_spatial(folder: Path) -> Path:
    folder.mkdir()
    with h5py.File(folder / "gqa_spatial_0.h5", "w") as file:
        file["features"] = np.stack([grid(number) for number in range(len(IMAGES))])
    info = {image.image_id: {"file": 0, "idx": number} for number, image in enumerate(IMAGES)}
    (folder / "gqa_spatial_info.json").write_text(json.dumps(info))
    return folder


@pytest.mark.parametrize("sized", [True, False])
def test_cells_of_a_grid_become_boxes(tmp_path: Path, sized: bool) -> None:
    folder = write_spatial(tmp_path / "in")
    assert "pass features.sizes=FILE, or features.assume_size" in refused(folder, tmp_path)
    (tmp_path / "sizes.json").write_text(json.dumps({image.image_id: [600, 400] for image in IMAGES}))
    how = f"sizes={tmp_path / 'sizes.json'}" if sized else "assume_size=[600,400]"
    store = run(folder, tmp_path / "out.h5", how)
    cells = [[0, 0, 200, 200], [200, 0, 400, 200], [400, 0, 600, 200]]
    for number, image in enumerate(IMAGES):
        regions = store[image.image_id]
        np.testing.assert_allclose(regions.boxes[:3], cells)
        np.testing.assert_allclose(regions.boxes[3:], np.array(cells) + np.array([0, 200, 0, 200]))
        np.testing.assert_array_equal(regions.features[4], grid(number)[:, 1, 1])


def test_parts_of_gqa_alone_and_merged(tmp_path: Path) -> None:
    folder = write_gqa(tmp_path / "in", IMAGES)
    part = run(folder / "gqa_objects_1.h5", tmp_path / "part.h5")
    assert part.image_ids.tolist() == [image.image_id for image in IMAGES[3:]]
    with h5py.File(folder / "gqa_objects.h5", "w") as file:
        file["features"] = padded([image.features for image in IMAGES], 5)
        file["bboxes"] = padded([image.boxes for image in IMAGES], 5)
    info = json.loads((folder / "gqa_objects_info.json").read_text())
    for number, entry in enumerate(info.values()):  # the old place in a part stays beside the new one
        del entry["file"]
        entry["index"] = number
    (folder / "gqa_objects_merged_info.json").write_text(json.dumps(info))
    merged = run(folder / "gqa_objects.h5", tmp_path / "merged.h5")
    assert merged.image_ids.tolist() == [image.image_id for image in IMAGES]
    for image in IMAGES:
        np.testing.assert_array_equal(merged[image.image_id].features, image.features)
        assert merged[image.image_id].width == image.width
    (folder / "gqa_objects_0.h5").unlink()
    (folder / "gqa_objects.h5").unlink()
    assert run(folder, tmp_path / "one.h5").image_ids.tolist() == part.image_ids.tolist()


@pytest.mark.parametrize("texts", [True, False])
def test_ids_within_the_file(tmp_path: Path, texts: bool) -> None:
    """As nocaps' updown-baseline reads them; regions of zeros at the end are padding."""
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["features"], file["boxes"] = padded([i.features for i in IMAGES], 5), padded([i.boxes for i in IMAGES], 5)
        file["image_id"] = [i.image_id if texts else int(i.image_id) for i in IMAGES]
        file["width"], file["height"] = [i.width for i in IMAGES], [i.height for i in IMAGES]
    store = run(tmp_path / "in.h5", tmp_path / "out.h5")
    assert store.image_ids.tolist() == [image.image_id for image in IMAGES]
    for image in IMAGES:
        np.testing.assert_array_equal(store[image.image_id].boxes, image.boxes)


COMPRESSED = {"compression": "gzip", "chunks": True}


@pytest.mark.parametrize("adaptive", [True, False])
def test_bottom_up_files_tell_their_sizes(tmp_path: Path, adaptive: bool) -> None:
    file = write_bottom_up_hdf5(tmp_path / "in", IMAGES, adaptive, **COMPRESSED)
    store = run(file, tmp_path / "one.h5")
    assert [(one.width, one.height) for one in map(store.at, range(7))] == [(i.width, i.height) for i in IMAGES]
    with h5py.File(file, "r+") as edited:
        edited["image_bb"][...] = np.roll(edited["image_bb"][...], 1, axis=-2)
    assert re.search(r"are not those of its features|nothing tells|do not begin together", refused(file, tmp_path))


@pytest.mark.parametrize("write", [write_m2, write_gqa, write_bottom_up_hdf5])
@pytest.mark.parametrize("stored", [{}, COMPRESSED], ids=["contiguous", "gzip"])
def test_processes_give_what_one_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., Path], stored: dict[str, Any]
) -> None:
    images = samples(60)
    made = write(tmp_path / "in", images, **stored)
    settings = [f"sizes={tmp_path / 'sizes.json'}", "class_offset=0"] if write is write_m2 else []
    run(made, tmp_path / "one.h5", "workers=1", *settings)
    monkeypatch.setattr(source, "SMALL", 0)
    monkeypatch.setattr(hdf5_file, "BLOCK_BYTES", 3000)
    run(made, tmp_path / "two.h5", "workers=2", *settings)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "two.h5").read_bytes()
    assert sorted(RegionStore(tmp_path / "two.h5").image_ids) == sorted(image.image_id for image in images)


# An index that says something else than the file.


def gqa_info(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        made = write_gqa(folder / "in", IMAGES)
        info = json.loads((made / "gqa_objects_info.json").read_text())
        change(info)
        (made / "gqa_objects_info.json").write_text(json.dumps(info))
        return made

    return make


def other_split(rows: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = write_bottom_up_hdf5(folder / "in", IMAGES)
        index = {1000 + row: row for row in range(rows)}
        (folder / "train36_imgid2idx.pkl").write_bytes(pickle.dumps(index))
        return file

    return make


def twice(folder: Path) -> Path:
    made = write_gqa(folder / "in", IMAGES)
    path = made / "gqa_objects_info.json"
    text = path.read_text()
    path.write_text(text[:-1] + ", " + text[1 : text.index("}") + 1] + "}")
    return made


def without_part(folder: Path) -> Path:
    made = write_gqa(folder / "in", IMAGES, parts=3)
    (made / "gqa_objects_1.h5").unlink()
    return made


def without_index(folder: Path) -> Path:
    made = write_gqa(folder / "in", IMAGES, parts=1)
    (made / "gqa_objects_info.json").unlink()
    return made


def hostile_index(folder: Path) -> Path:
    file = write_bottom_up_hdf5(folder / "in", IMAGES)
    (folder / "train36_imgid2idx.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    return file


WRONG: dict[str, tuple[Callable[[Path], Path], str, int | None]] = {
    "beyond": (gqa_info(lambda info: info["100"].update(idx=9)), "sends image '100' to row 9 (from 0) of", None),
    "twice": (twice, "gqa_objects_info.json has image '100' more than once", 7),
    "one row": (gqa_info(lambda info: info.update(x=info["100"])), "sends images '100' and 'x' both to row 0", 6),
    "too many": (
        gqa_info(lambda info: info["107"].update(objectsNum=99)),
        "the number of boxes is 99, but 3 are not zeros",
        6,
    ),
    "no row": (gqa_info(lambda info: info["107"].pop("idx")), "image '107': nothing tells its row", None),
    "half a row": (gqa_info(lambda info: info["107"].update(idx=0.5)), "image '107': its row is 0.5", None),
    "no size": (gqa_info(lambda info: info["114"].update(height=None)), "image '114': height is missing", None),
    "smaller split": (other_split(5), "names 5 images, but none for row 5 (from 0)", None),
    "larger split": (other_split(9), "sends image '1007' to row 7 (from 0) of", None),
    "a part is missing": (without_part, "has 2 images in file 1, which is missing", 5),
    "no index": (without_index, "nothing tells their ids: put gqa_objects_0_imgid2idx.pkl", None),
    "hostile": (hostile_index, "is a pickle that wants to call os.system", None),
}


@pytest.mark.parametrize("kind", WRONG)
def test_index_and_contents_that_disagree(tmp_path: Path, kind: str) -> None:
    make, words, left = WRONG[kind]
    made = make(tmp_path)
    sentence = refused(made, tmp_path)
    assert words in sentence and str(tmp_path) in sentence, sentence
    options = FeatureOptions(dim=DIM, workers=1, on_damaged="skip")
    if left is None:
        assert words in refused(made, tmp_path, "on_damaged=skip")
    else:
        done = convert_features(made, tmp_path / "out.h5", options)
        assert done.images == left and any(words in reason for reason in done.journal.first), done.journal.first
        assert RegionStore(tmp_path / "out.h5").verify() == []


# Files that nobody should trust.


def edited(change: Callable[[h5py.File], object]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        file = write_m2(folder / "in", IMAGES)
        with h5py.File(file, "r+") as out:
            if "107_boxes" in out:
                del out["107_boxes"]
            change(out)
        return file

    return make


def put(value: object) -> Callable[[h5py.File], object]:
    return lambda file: file.__setitem__("107_boxes", value)


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3, 4), "<f4")
    layout[...] = h5py.VirtualSource("elsewhere.h5", "boxes", (3, 4))
    file.create_virtual_dataset("107_boxes", layout)


def sparse(file: h5py.File) -> None:
    file.create_dataset("107_boxes", (3, 4), "<f4", chunks=(1, 4))[1] = 1


def declared(**arguments: Any) -> Callable[[h5py.File], object]:
    return lambda file: file.create_dataset("107_boxes", **arguments)


HOSTILE: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "soft link": (put(h5py.SoftLink("/100_boxes")), "107_boxes is missing or a link elsewhere"),
    "external link": (put(h5py.ExternalLink("/etc/passwd", "x")), "107_boxes is missing or a link elsewhere"),
    "virtual": (virtual, "the data of 107_boxes lie elsewhere"),
    "external": (declared(shape=(3, 4), dtype="<f4", external=[("/etc/passwd", 0, 48)]), "107_boxes lie elsewhere"),
    "never written": (declared(shape=(3, 4), dtype="<f4"), "107_boxes was declared but never written"),
    "partly written": (sparse, "parts of 107_boxes were never written"),
    "huge": (
        declared(shape=(10**9, 4), dtype="<f4", chunks=True, compression="gzip"),
        "that claim to be 16,000,000,000",
    ),
    "references": (declared(shape=(3,), dtype=h5py.ref_dtype), "is of object, expected plain numbers"),
    "any length": (declared(shape=(3,), dtype=h5py.vlen_dtype(np.float32)), "is of object, expected plain numbers"),
    "texts": (put([b"a", b"b", b"c"]), "expected plain numbers"),
    "compound": (put(np.zeros(3, dtype="f4,f4")), "expected plain numbers"),
    "filter": (declared(data=np.ones((3, 4), np.int32), chunks=(3, 4), scaleoffset=0), "in a way that is not read"),
    "null": (put(h5py.Empty("f4")), "expected plain numbers"),
    "group": (lambda file: file.create_group("107_boxes"), "107_boxes is no dataset"),
    "turned": (put(IMAGES[1].boxes.T), "boxes have shape (4, 3), expected x1 y1 x2 y2"),
    "complex": (put(np.ones((3, 4), complex)), "expected plain numbers"),
    "shares": (put(IMAGES[1].boxes / 640), "no box reaches beyond pixel 1 of 639 x 481; boxes are expected in pixels"),
    "other order": (put(IMAGES[1].boxes[:, [2, 3, 0, 1]]), "is inverted; x1 y1 x2 y2 was expected"),
    "other size": (put(IMAGES[1].boxes * 3), "lies outside of the image of 639 x 481"),
    "not a number": (put(np.full((3, 4), np.nan)), "boxes of region 0 are NaN"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_no_program_writes_is_a_sentence(tmp_path: Path, kind: str) -> None:
    change, words = HOSTILE[kind]
    file = edited(change)(tmp_path)
    settings = [f"sizes={tmp_path / 'sizes.json'}", "class_offset=0"]
    sentence = refused(file, tmp_path, *settings)
    assert words in sentence and str(file) in sentence and "107" in sentence, sentence
    store = run(file, tmp_path / "out.h5", *settings, "on_damaged=skip")
    assert len(store) == 6 and "107" not in store and store.verify() == []


def test_half_and_double_precision_and_big_endian_are_numbers(tmp_path: Path) -> None:
    image = IMAGES[0]
    for number, kind in enumerate(("<f2", ">f4", "<f8")):
        with h5py.File(tmp_path / f"{number}.h5", "w") as file:
            file["7_features"], file["7_boxes"] = image.features.astype(kind), image.boxes.astype(kind)
            file["7_size"] = [image.height, image.width]
        store = run(tmp_path / f"{number}.h5", tmp_path / f"{number}_out.h5")
        np.testing.assert_array_equal(store["7"].features, image.features)


def test_files_of_other_things_and_of_several(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "keras.h5", "w") as file:
        file["weights"] = np.zeros(3)
    assert "keras.h5 is an HDF5 file of other things ('weights' …)" in refused(tmp_path / "keras.h5", tmp_path)
    with h5py.File(tmp_path / "boxes.h5", "w") as file:
        file["boxes"] = np.zeros((3, 4))
    assert "boxes.h5 has no features (one of features, x" in refused(tmp_path / "boxes.h5", tmp_path)
    sentence = refused(tmp_path, tmp_path)
    assert "has several HDF5 files (boxes.h5, keras.h5): give one of these files" in sentence


def test_a_file_of_one_file_each_is_sorted_by_row(tmp_path: Path) -> None:
    """The order of an index is any; it is the rows' that is read."""
    file = write_bottom_up_hdf5(tmp_path / "in", IMAGES)
    index = {int(image.image_id): row for row, image in reversed(list(enumerate(IMAGES)))}
    (tmp_path / "train36_imgid2idx.pkl").unlink()
    (tmp_path / "any_imgid2idx.json").write_text(json.dumps(index))
    assert run(file, tmp_path / "out.h5").image_ids.tolist() == [image.image_id for image in IMAGES]


def test_scores_of_a_table(tmp_path: Path) -> None:
    """1,601 columns are Visual Genome's with the background, 1,600 without; of others a label map must tell."""

    def store_of(table: np.ndarray, *settings: str) -> RegionStore:
        image: Sample = IMAGES[0]
        with h5py.File(tmp_path / "in.h5", "w") as file:
            file["7_features"], file["7_boxes"], file["7_cls_prob"] = image.features, image.boxes, table
            file["7_size"] = [image.height, image.width]
        (tmp_path / "out.h5").unlink(missing_ok=True)
        return run(tmp_path / "in.h5", tmp_path / "out.h5", *settings)

    expected = (IMAGES[0].classes + 1).tolist()
    assert store_of(score_table(IMAGES[0], 1601))["7"].classes.tolist() == expected
    assert store_of(score_table(IMAGES[0], 1601)[:, 1:])["7"].classes.tolist() == expected[: len(expected)]
    only = np.zeros((2, 1601), dtype=np.float32)
    only[:, 0] = 0.9
    background = store_of(only)["7"]
    assert background.classes.tolist() == [0, 0] and background.class_scores.tolist() == [np.float32(0.9)] * 2
    store_of(score_table(IMAGES[0], 9), "classes=false")
    (tmp_path / "out.h5").unlink()
    assert "there are scores of 9 class columns" in refused(tmp_path / "in.h5", tmp_path)


def test_changed_bytes_are_never_more_than_a_sentence(tmp_path: Path) -> None:
    """Within the structures at the begin, which have no checksums; a name that is no text too."""
    file = write_m2(tmp_path / "in", IMAGES)
    content, random = file.read_bytes(), np.random.default_rng(5)
    sizes = tmp_path / "sizes.json"
    options = FeatureOptions(dim=DIM, workers=1, class_offset=0, sizes=sizes, on_damaged="skip")
    place = content.index(b"107_boxes")
    for number, position in enumerate([place, *random.integers(8, 6000, size=20).tolist()]):
        changed = bytearray(content)
        changed[position] = 0xFF if number == 0 else int(random.integers(256))
        file.write_bytes(changed)
        (tmp_path / "out.h5").unlink(missing_ok=True)
        try:
            done = convert_features(file, tmp_path / "out.h5", options)
        except UserError as error:
            assert str(file) in str(error) and "\n" not in str(error)
        else:
            assert done.images + done.journal.count >= len(IMAGES)
