"""A store written in other people's formats, and read back."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from tests.regions.formats.samples import DIM, bottom_up_line, composed, published_folder, run, samples, write_lines
from tests.regions.samples import make_regions, write
from vinvl.convert import convert
from vinvl.regions import RegionStore
from vinvl.run.errors import UserError

IMAGES = samples(20)


def written(store: Path, folder: Path, kind: str) -> Path:
    return convert(composed(f"from={store}", f"to={folder}", f"format={kind}"))


def assert_alike(store: RegionStore, other: RegionStore) -> None:
    assert store.image_ids.tolist() == other.image_ids.tolist()
    for number in range(len(store)):
        one, two = store.at(number), other.at(number)
        np.testing.assert_array_equal(one.features, two.features)
        np.testing.assert_allclose(one.boxes, two.boxes, atol=1e-3)
        np.testing.assert_array_equal(one.class_scores, two.class_scores)
        np.testing.assert_array_equal(one.classes, two.classes)
        np.testing.assert_array_equal(one.attributes, two.attributes)
        np.testing.assert_array_equal(one.attribute_scores, two.attribute_scores)
        assert (one.width, one.height) == (two.width, two.height)


@pytest.mark.parametrize("kind", ["oscar_tsv", "mmf_npy"])
def test_what_is_written_reads_as_it_was(tmp_path: Path, kind: str) -> None:
    published_folder(tmp_path / "in", IMAGES)
    run(tmp_path / "in", tmp_path / "one.h5")
    folder = written(tmp_path / "one.h5", tmp_path / "out", kind)
    back, store = run(folder, tmp_path / "two.h5"), RegionStore(tmp_path / "one.h5")
    if kind == "oscar_tsv":
        assert_alike(store, back)
        assert back.label_map == store.label_map
        assert "__no_attribute__" not in (folder / "predictions.tsv").read_text()
    else:  # files of one image come in the order of their names, which is that of these ids
        by_name = sorted(store.image_ids.tolist())
        assert back.image_ids.tolist() == by_name
        for name in by_name:
            np.testing.assert_array_equal(back[name].features, store[name].features)
            np.testing.assert_array_equal(back[name].boxes, store[name].boxes)
            np.testing.assert_array_equal(back[name].classes, store[name].classes)
            np.testing.assert_array_equal(back[name].attributes, store[name].attributes)
            np.testing.assert_array_equal(back[name].attribute_scores, store[name].attribute_scores)


def test_rows_are_found_as_oscar_finds_them(tmp_path: Path) -> None:
    run(published_folder(tmp_path / "in", IMAGES), tmp_path / "one.h5")
    folder = written(tmp_path / "one.h5", tmp_path / "out", "oscar_tsv")
    row = json.loads((folder / "imageid2idx.json").read_text())["121"]
    begin = int((folder / "features.lineidx").read_text().split()[row])
    columns = (folder / "features.tsv").read_bytes()[begin:].split(b"\n")[0].split(b"\t")
    assert columns[0] == b"121"
    rows = np.frombuffer(base64.b64decode(columns[-1]), dtype=np.float32).reshape(int(columns[1]), -1)
    np.testing.assert_allclose(rows, IMAGES[3].rows, atol=1e-6)
    assert rows.shape[1] == DIM + 6


def test_a_store_without_names_has_sizes_and_no_predictions(tmp_path: Path) -> None:
    run(write_lines(tmp_path / "in.tsv", list(map(bottom_up_line, IMAGES))), tmp_path / "one.h5")
    folder = written(tmp_path / "one.h5", tmp_path / "out", "oscar_tsv")
    assert not (folder / "predictions.tsv").exists()
    assert_alike(RegionStore(tmp_path / "one.h5"), run(folder, tmp_path / "two.h5", f"sizes={folder / 'hw.tsv'}"))


@pytest.mark.parametrize("image_id", ["../up", "/root", "a\tb", "7_info"])
def test_ids_that_are_no_file_names_write_nothing(tmp_path: Path, image_id: str) -> None:
    (tmp_path / "sub").mkdir()
    store = write(tmp_path / "sub" / "one.h5", [make_regions("7", 2), make_regions(image_id, 2)])
    with pytest.raises(UserError, match=r"one.h5: image .* has an id that is no name of a file"):
        written(store, tmp_path / "sub" / "out", "mmf_npy")
    assert [path.name for path in tmp_path.rglob("*")] == ["sub", "one.h5"]


def test_refusals(tmp_path: Path) -> None:
    store = write(tmp_path / "one.h5", [make_regions("a\nb", 2)])
    with pytest.raises(UserError, match="an id that no TSV can hold"):
        written(store, tmp_path / "out", "oscar_tsv")
    with pytest.raises(UserError, match=r"one.h5 is a store already"):
        run(store, tmp_path / "out")
    with pytest.raises(UserError, match="format is 'oscar'; of features choose one of oscar_tsv, mmf_npy"):
        written(store, tmp_path / "out", "oscar")
    with pytest.raises(UserError, match="exists already"):
        written(store, tmp_path, "oscar_tsv")
    assert [path.name for path in tmp_path.iterdir()] == ["one.h5"]
