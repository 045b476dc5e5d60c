"""What is written to a store comes back, whatever it is and however it is laid out."""

from __future__ import annotations

import dataclasses
import json
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.regions.samples import LABELS, ROW_NAMES, assert_same, make_regions, write
from vinvl.regions import LabelMap, RegionStore
from vinvl.run.errors import UserError

image_ids = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=12)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_ragged_contents_come_back(data: st.DataObject) -> None:
    names = data.draw(st.lists(image_ids, unique=True, max_size=9))
    feature_dim = data.draw(st.integers(1, 5))
    attributes = data.draw(st.integers(0, 2))
    compression, chunk_rows = data.draw(st.sampled_from([(None, None), (None, 2), ("gzip", None), ("lzf", 3)]))
    images_per_shard = data.draw(st.none() | st.integers(1, 4))
    images = [
        make_regions(name, data.draw(st.integers(0, 5)), feature_dim, attributes, seed)
        for seed, name in enumerate(names)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = write(
            Path(folder) / "store", images, feature_dim, attributes,
            compression=compression, chunk_rows=chunk_rows, max_images_per_shard=images_per_shard,
        )  # fmt: skip
        store = RegionStore(path)
        assert [entry.name for entry in Path(folder).iterdir()] == ["store"]
        assert len(store) == len(images) and store.image_ids.tolist() == names
        assert store.num_regions.dtype == np.int64 and store.num_regions.tolist() == [len(image) for image in images]
        assert store.label_map == LABELS and store.detector == "X152-C4, NMS_FILTER 1"
        assert (store.feature_dim, store.num_attributes) == (feature_dim, attributes)
        for index, written in enumerate(images):
            assert written.image_id in store and store.index_of(written.image_id) == index
            assert_same(store.at(index), written)
            assert_same(store[written.image_id], written)
        stranger = data.draw(image_ids.filter(lambda name: name not in names))
        assert stranger not in store
        assert store.verify() == []


def test_float32_features_keep_their_precision(tmp_path: Path) -> None:
    regions = dataclasses.replace(make_regions("7", 2), features=np.full((2, 3), 1 / 3, dtype=np.float32))
    store = RegionStore(write(tmp_path / "a.h5", [regions], feature_dtype="float32"))
    assert store.feature_dtype == np.float32
    assert_same(store["7"], regions)
    layout = store.headers[0].arrays["features"]  # the bytes on the disk are what a map shows
    mapped = np.memmap(tmp_path / "a.h5", layout.dtype, mode="r", offset=layout.offset or 0, shape=layout.shape)
    np.testing.assert_array_equal(mapped, regions.features)


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_arrays_are_read_once_are_ones_own_and_travel(tmp_path: Path, compression: str | None) -> None:
    images = [make_regions(str(number), 3 + number, attributes=2, seed=number) for number in range(5)]
    store = RegionStore(write(tmp_path / "a.h5", images, attributes=2, compression=compression))
    one, again = store["2"], store.at(2)
    assert_same(pickle.loads(pickle.dumps(again)), images[2])
    assert_same(dataclasses.replace(store.at(2), image_id="new"), dataclasses.replace(images[2], image_id="new"))
    for name in ROW_NAMES:
        array = getattr(one, name)
        assert array is getattr(one, name) and array.flags.aligned
        array[...] = 1
        np.testing.assert_array_equal(getattr(again, name), getattr(images[2], name))
        assert_same(store["2"], images[2])
    with pytest.raises(AttributeError):
        one.colour  # noqa: B018


def test_region_rows_are_features_and_float32_geometry() -> None:
    regions = dataclasses.replace(
        make_regions("7", 2), boxes=np.array([[10, 12, 60, 72], [0, 0, 100, 120]], dtype=np.float32)
    )
    rows = regions.rows()
    assert rows.shape == (2, 3 + 6) and rows.dtype == np.float32
    np.testing.assert_array_equal(rows[:, :3], regions.features.astype(np.float32))
    expected = np.array([[0.1, 0.1, 0.6, 0.6, 0.5, 0.5], [0, 0, 1, 1, 1, 1]], dtype=np.float32)
    np.testing.assert_array_equal(rows[:, 3:], expected)
    np.testing.assert_array_equal(regions.box_geometry(), expected)
    np.testing.assert_array_equal(regions.rows(limit=1), rows[:1])
    assert regions.rows(limit=9).shape == (2, 9) and regions.rows(limit=0).shape == (0, 9)
    assert make_regions("7", 0).rows().shape == (0, 9)


@pytest.mark.parametrize("name", ["features", "boxes"])
def test_check_finite_names_file_image_and_region(name: str) -> None:
    regions = dataclasses.replace(make_regions("7", 3), source="coco.h5")
    regions.check_finite()
    getattr(regions, name)[2, 1] = np.nan
    with pytest.raises(UserError, match=f"coco.h5: image '7' has NaN or infinite {name} in region 2"):
        regions.check_finite()


def test_several_files_and_folders_are_one_store(tmp_path: Path) -> None:
    images = [make_regions(f"image {number}", number % 3, seed=number) for number in range(7)]
    one = write(tmp_path / "one.h5", images[:2])
    folder = write(tmp_path / "folder", images[2:], max_images_per_shard=2)
    names = ["manifest.json", "shard-00000.h5", "shard-00001.h5", "shard-00002.h5"]
    assert sorted(entry.name for entry in folder.iterdir()) == names
    store = RegionStore([one, str(folder)])
    assert len(store) == 7
    for index, written in enumerate(images):
        assert_same(store.at(index), written)
        assert store[written.image_id].source.endswith(".h5") and store.index_of(written.image_id) == index


label_names = st.lists(st.text(st.characters(codec="utf-8"), max_size=6), max_size=6)


@given(classes=label_names, attributes=label_names)
def test_label_maps_come_back(classes: list[str], attributes: list[str]) -> None:
    labels = LabelMap(tuple(classes), tuple(attributes))
    assert LabelMap.from_json(labels.to_json()) == labels


def test_the_published_label_map_leaves_index_0_out() -> None:
    text = '{"label_to_idx": {"cat": 1, "dog": 2}, "attribute_to_idx": {"red": 1}}'
    assert LabelMap.from_json(text) == LabelMap(("__background__", "cat", "dog"), ("__no_attribute__", "red"))


FILES = {
    "lines": "cat,kitten\r\ndog\r\n\n",
    "lines with the background": "__background__\ncat\ndog\n",
    "byte-order mark": '\ufeff{"label_to_idx": {"cat": 1, "dog": 2}}',
    "COCO from 1": '{"info": {}, "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat", "none": 5}]}',
    "MMF from 0": '{"categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]}',
    "byte-order mark, lines": "\ufeffcat\ndog",
}  # fmt: skip


@pytest.mark.parametrize("form", FILES)
def test_label_maps_as_people_have_them(tmp_path: Path, form: str) -> None:
    path = tmp_path / "objects_vocab.txt"
    path.write_text(FILES[form], encoding="utf-8", newline="")
    assert LabelMap.from_file(path) == LabelMap(("__background__", "cat", "dog"), ())
    (tmp_path / "attributes_vocab.txt").write_text("red\nblue\n")
    attributes = ("__no_attribute__", "red", "blue") if FILES[form].strip("\ufeff")[0] != "{" else ()
    assert LabelMap.from_file(path).attributes == attributes


def test_ids_of_categories_stay_theirs_with_gaps(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"categories": [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}]}))
    assert LabelMap.from_file(path).classes == ("__background__", "person", "", "car")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"cat\n\ndog", "line 2 names none"),
        (b"\x80\xff", "not UTF-8"),
        (b"", "is empty"),
        (b"c" * 300, "no list of a name a line"),
        (b'{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "has category 1 twice"),
        (b'{"categories": [{"id": 99999999, "name": "a"}]}', "not below 100,000"),
        (b'{"categories": [{"name": "a"}]}', "categories"),
        (b'{"categories": []}', "neither label_to_idx nor"),
    ],
)
def test_what_is_no_label_map_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "map.txt").write_bytes(content)
    with pytest.raises(UserError, match=rf"map\.txt.*{words}"):
        LabelMap.from_file(tmp_path / "map.txt")


HOSTILE = [
    "{", "[" * 100_000, "[]", "{}", '{"label_to_idx": 3}', '{"label_to_idx": {"cat": 1000000000000}}',
    '{"label_to_idx": {"cat": 900000000}}', '{"label_to_idx": {"cat": -1}}', '{"label_to_idx": {"cat": true}}',
    '{"label_to_idx": {"cat": [[1]]}}', '{"idx_to_label": {"one": "cat"}}', '{"idx_to_label": {"1": 5}}',
    '{"idx_to_label": {"1": "\\ud800"}}', '{"label_to_idx": {"cat": 1, "dog": 1}}',
    '{"label_to_idx": {"cat": 1}, "attribute_to_idx": {"red": 3}}',
    '{"label_to_idx": {"cat": 1}, "idx_to_label": {"1": "dog"}}',
    '{"cat": 1, "dog": 3}', '{"cat": 1, "dog": 1}', '{"cat": -1}', '{"cat": 1, "cat": 2}', '{"\\ud800": 1}',
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_label_maps_give_one_sentence(text: str) -> None:
    with pytest.raises(UserError, match=r"^labels\.json\b.*\.$"):
        LabelMap.from_json(text, "labels.json")
