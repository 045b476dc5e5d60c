"""Stores of splits: made on first use, a store for each chunk, ids of several sets in one, ids by a table."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import golden
from tests.regions.samples import make_regions, write
from vinvl.data.stores import OpenStore, StoreFile, found_by_name, image_id_table
from vinvl.data.table import TEXT, Form, RecordTable
from vinvl.data.tags import positions_in
from vinvl.regions import RegionStore
from vinvl.run.errors import UserError

REPLICA = golden.FOLDER / "published/replica"


def opened(given: Any) -> RegionStore:
    files = StoreFile.listed(given, "data.regions")
    for file in files:
        file.make()
    return OpenStore.of(files, None, False).store


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (None, "data.regions is None: give a store"),
        ([], "data.regions names no store"),
        ({"from": "a.tsv"}, "data.regions is .*: give a store"),
        ({"to": "a.h5"}, "data.regions is .*: give a store"),
        ({"from": "nowhere.tsv", "to": "nowhere.h5"}, r"nowhere\.h5 does not exist, and neither does nowhere\.tsv"),
        ({"from": "nowhere/*", "to": "x/*.h5"}, r"nowhere/\* stands for no folder of features"),
    ],
)
def test_stores_that_cannot_be(given: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        opened(given)


def test_settings_of_a_conversion_are_those_of_the_door(tmp_path: Path) -> None:
    source = {"from": str(REPLICA / "nlvr2/nlvr2_img_frcnn_feats.pt"), "to": str(tmp_path / "new/regions.h5")}
    with pytest.raises(UserError, match=r"nothing tells its width and height"):
        opened(source)
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(UserError, match=r"features.*assumed_size"):
        opened({**source, "assumed_size": [1, 1]})
    store = opened({**source, "assume_size": [1000, 1000], "id_prefix": "nlvr2_"})
    assert all(one.startswith("nlvr2_") for one in store.image_ids)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["regions.h5"]
    before = (tmp_path / "new/regions.h5").stat().st_mtime_ns
    opened({**source, "assume_size": [1000, 1000], "id_prefix": "nlvr2_"})
    assert (tmp_path / "new/regions.h5").stat().st_mtime_ns == before


def test_a_store_for_each_chunk(tmp_path: Path) -> None:
    """One call makes a store of each chunk's folder; when the features are gone the stores are enough."""
    chunks = tmp_path / "sets/oi/model"
    for chunk in ("0", "7"):
        (chunks / chunk).mkdir(parents=True)
        text = (REPLICA / "coco_caption/val.feature.tsv").read_text()  # the same ids in both
        (chunks / chunk / "features.tsv").write_text(text)
    given = {
        "from": str(chunks / "*"), "to": str(tmp_path / "stores/oi/*.h5"), "id_prefix": "oi_*_",
        "assume_size": [1000, 1000],
    }  # fmt: skip
    store = opened(given)
    assert sorted(store.image_ids) == [f"oi_{chunk}_{image}" for chunk in "07" for image in ("184613", "318219")]
    (chunks.parent).rename(tmp_path / "gone")
    assert sorted(opened(given).image_ids) == sorted(store.image_ids)


def test_sets_that_share_numbers_need_a_prefix(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / f"{name}.h5", [make_regions("522418", 2)])) for name in ("coco", "gqa")]
    with pytest.raises(UserError, match=r"coco\.h5 and .*gqa\.h5 both hold image '522418'"):
        opened(paths)


@pytest.mark.parametrize("cache", [None, "ram"])
def test_a_store_that_others_read_as_it_is(tmp_path: Path, cache: str | None) -> None:
    path = write(tmp_path / "coco.h5", [make_regions(one, 8, attributes=1) for one in ("7", "31")], attributes=1)
    as_it_is = RegionStore(path)
    given = {"from": "gone.tsv", "to": str(path), "read": {"id_prefix": "coco_", "classes": False}}
    (file,) = StoreFile.listed(given, "data.regions")
    opened_store = OpenStore.of([file], cache, True)
    store = pickle.loads(pickle.dumps(opened_store.store))
    assert list(store.image_ids) == ["coco_7", "coco_31"] and "7" not in store and not store.verify()
    assert not store.label_map.classes and store.num_attributes == 0
    found, own = store["coco_31"], as_it_is["31"]
    assert own.classes.any() and own.attributes.any()
    np.testing.assert_array_equal(found.rows(8), own.rows(8))
    assert not found.classes.any() and not store.classes_at(1).any() and found.attributes.shape == (8, 0)
    assert not found.class_scores.any() and pickle.loads(pickle.dumps(found)).image_id == "coco_31"
    with pytest.raises(UserError, match=r"read of .*coco\.h5 takes id_prefix and classes .*unknown field `prefix`"):
        StoreFile.listed({**given, "read": {"prefix": "a"}}, "data.regions")


def test_ids_by_a_table(tmp_path: Path) -> None:
    def written(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content)
        return tmp_path / name

    listed = {"images": [{"id": 1, "open_images_id": "00ff"}, {"id": 2, "open_images_id": "00fe"}]}
    files = {"images": [{"id": 1, "file_name": "val/00ff.jpg"}, {"id": 2, "file_name": "00fe.png", "width": 4}]}
    for path in (
        written("a.json", json.dumps({"1": "00ff", "2": "00fe"})),
        written("files.json", json.dumps(files)),
        written("b.json", json.dumps(listed)),
        written("c.tsv", "1\t00ff\n2\t00fe\n"),
    ):
        assert image_id_table(path) == {"1": "00ff", "2": "00fe"}
    for name, content, sentence in (
        ("d.tsv", "1\t00ff\n2\n", r"d\.tsv line 2 has not two columns"),
        ("e.tsv", "1\t00ff\n1\t00fe\n", r"e\.tsv has image 1 twice, as 00ff and as 00fe"),
        ("f.json", "[1]", r"f\.json is no table of image ids"),
        ("g.json", '{"images": [{"id": 1}]}', r"g\.json is no table of image ids"),
        ("h.json", "{}", r"h\.json names no images"),
    ):
        with pytest.raises(UserError, match=sentence):
            image_id_table(written(name, content))


NAMED = Form("images", "image", {"image_id": TEXT, "file_name": TEXT, "open_images_id": TEXT}, filled={"file_name": ""})


def named(*images: tuple[str, str | None, str | None]) -> RecordTable:
    return RecordTable.of(NAMED, [("val.json image", number, *one) for number, one in enumerate(images, 1)], "val.json")


@pytest.mark.filterwarnings("ignore:The images of val.json images are looked up")
@pytest.mark.parametrize(
    ("ids", "records", "expected"),
    [
        (["00ff", "00fe"], named(("0", None, "00ff"), ("1", None, "00fe")), [0, 1]),
        (["a", "b"], named(("0", "val/a.jpg", None), ("1", "b.jpg", None)), [0, 1]),
        (["val/a.jpg", "b.jpg"], named(("0", "val/a.jpg", None), ("1", "b.jpg", None)), [0, 1]),
        (["0", "1"], named(("0", "1.jpg", None), ("1", "0.jpg", None)), [0, 1]),  # ids come first
        (["0", "7", "00ff", "00fe"], named(("0", None, "00ff"), ("1", None, "00fe")), [2, 3]),  # COCO has a 0 too
        (["0"], named(("0", None, "00ff"), ("1", None, "00fe")), [0, -1]),
        (["0", "1", "00fe"], named(("0", None, "00ff"), ("1", None, "00fe")), [-1, 2]),
        (["x"], named(("0", None, None), ("1", None, None)), [-1, -1]),
    ],
)
def test_images_are_found_by_the_names_of_their_pictures(
    ids: list[str], records: RecordTable, expected: list[int], tmp_path: Path
) -> None:
    store = RegionStore(write(tmp_path / "a.h5", [make_regions(one, 2) for one in ids]))
    assert found_by_name(store, records, positions_in(store, records.image_ids)).tolist() == expected


def test_it_is_told_where_they_are_looked_up_by_name(tmp_path: Path) -> None:
    store = RegionStore(write(tmp_path / "a.h5", [make_regions("00ff", 2)]))
    with pytest.warns(UserWarning, match=r"images of val\.json images are looked up in .* by open_images_id"):
        found_by_name(store, named(("0", None, "00ff")), np.array([-1]))
