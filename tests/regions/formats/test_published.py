"""The released features of captioning and of the sets in chunks, as they lie."""

import shutil
from base64 import b64encode
from pathlib import Path

import numpy as np
import pytest

from tests import golden
from vinvl.regions import RegionStore
from vinvl.regions.formats.convert import run_conversion
from vinvl.run.errors import UserError

REPLICA = golden.FOLDER / "published" / "replica"


def made(source: Path, target: Path, **features: object) -> RegionStore:
    run_conversion(source, target, features)
    return RegionStore(target)


@pytest.mark.parametrize(("task", "split"), [("coco_caption", "val"), ("coco_caption", "test"), ("nocaps", "val")])
def test_sizes_are_those_of_the_file_beside(tmp_path: Path, task: str, split: str) -> None:
    store = made(REPLICA / task / f"{split}.feature.tsv", tmp_path / "a.h5")
    arrays = golden.arrays(f"published/expected/{task}")
    for image_id in map(str, store.image_ids):
        regions = store[image_id]
        assert np.array_equal(regions.features, arrays[f"features.{image_id}"])
        rows = regions.rows(len(regions))[:, -6:]
        np.testing.assert_allclose(rows, arrays[f"geometry.{image_id}"], rtol=0, atol=1e-6)
        assert (regions.width, regions.height) != (1000, 1000)


def test_without_sizes_they_are_asked_for(tmp_path: Path) -> None:
    shutil.copy(REPLICA / "nocaps" / "val.feature.tsv", tmp_path)
    with pytest.raises(UserError, match=r"line 1: image '\w+': nothing tells its width and height"):
        made(tmp_path, tmp_path / "a.h5")
    assert len(made(tmp_path, tmp_path / "a.h5", assume_size=[1000, 1000])) == 3


def test_labels_of_another_detection_are_no_predictions(tmp_path: Path) -> None:
    folder = REPLICA / "coco_caption"
    with pytest.raises(UserError, match=r"\d+ features and \d+ predicted objects.*pass data\.tags=FILE"):
        made(folder / "test.feature.tsv", tmp_path / "a.h5", predictions=str(folder / "test.label.tsv"))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_several_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"several splits \(test\.feature\.tsv, train\.feature\.tsv, val\.feature"):
        made(REPLICA / "coco_caption", tmp_path / "a.h5")


def chunked(folder: Path) -> Path:
    """Two chunks that share an id; their objects have other names."""
    for chunk, name in (("0", "cat"), ("11", "dog")):
        (folder / chunk).mkdir(parents=True)
        rows = np.arange(8, dtype="<f4")
        rows[2:] = (0.1, 0.2, 0.5, 0.6, 0.4, 0.4)
        encoded = b64encode(rows.tobytes()).decode()
        (folder / chunk / "features.tsv").write_text(f"5\t1\t{encoded}\n")
        one = f'{{"class": "{name}", "rect": [10, 40, 50, 120], "conf": 0.9}}'
        objects = f'{{"image_w": 100, "image_h": 200, "objects": [{one}]}}'
        (folder / chunk / "predictions.tsv").write_text(f"5\t{objects}\n")
    return folder


def test_chunks_of_different_labels_can_be_one_store_without_them(tmp_path: Path) -> None:
    folder = chunked(tmp_path / "oi")
    with pytest.raises(UserError, match=r"oi has features\.tsv in folders of chunks \(0, 11\).*id_prefix=NAME_0_"):
        made(folder, tmp_path / "a.h5", dim=2)
    paths = [tmp_path / f"{chunk}.h5" for chunk in ("0", "11")]
    for path in paths:
        made(folder / path.stem, path, dim=2, id_prefix=f"oi_{path.stem}_")
    with pytest.raises(UserError, match=r"label maps differ; converted ones can be with .*features\.classes=false"):
        RegionStore(paths)
    for path in paths:
        path.unlink()
        made(folder / path.stem, path, dim=2, id_prefix=f"oi_{path.stem}_", classes=False)
    store = RegionStore(paths)
    assert list(store.image_ids) == ["oi_0_5", "oi_11_5"]
    regions = store["oi_11_5"]
    assert (regions.width, regions.height) == (100, 200) and regions.classes.tolist() == [0]
    assert regions.attributes.shape == (1, 0) and not store.label_map.classes
    np.testing.assert_allclose(regions.boxes, [[10, 40, 50, 120]], rtol=1e-6)
