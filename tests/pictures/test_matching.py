"""The pictures that a store was made of, found again without a word about its ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.regions.samples import write
from vinvl.pictures import PictureNames, find_pictures, name_of, pictures_of_store
from vinvl.regions import Regions, RegionStore
from vinvl.run.errors import UserError


def store(folder: Path, *ids: str, said: object = None) -> RegionStore:
    box, none = np.array([[1, 1, 5, 5]], dtype=np.float32), np.zeros(1, dtype=np.int32)
    images = [
        Regions(one, np.zeros((1, 8), np.float16), box, none, none.astype(np.float32), none[:, None], box[:, :1], 8, 8)
        for one in ids
    ]
    made = {} if said is None else {"image_id": said}
    return RegionStore(write(folder / "f.h5", images, feature_dim=8, attributes=1, provenance=made))


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "p" / name).touch()
    return folder / "p"


def places(found: dict[int, str], folder: Path) -> dict[int, str]:
    return {index: str(Path(name_of(place)).relative_to(folder)) for index, place in sorted(found.items())}


@pytest.mark.parametrize(
    ("ids", "pictures", "told"),
    [
        (["300001", "300002"], ["000000300001.png", "000000300002.png"], "the numbers at the end"),
        (["300001", "42"], ["val/COCO_val2014_000000300001.jpg", "val/COCO_val2014_000000000042.jpg"], "the numbers"),
        (["gqa_300001", "gqa_7"], ["300001.jpg", "7.jpg"], "the numbers at the end of names and ids behind 'gqa_'"),
        (["COCO_val2014_000000300001.jpg", "COCO_val2014_000000000007.jpg"], ["300001.jpg", "7.jpg"], "the numbers"),
        (["val/a", "val/b"], ["val/a.jpg", "val/b.jpg"], "id.rule=path"),
        (["val/a", "val/b"], ["a.jpg", "b.jpg"], "their names behind 'val/'"),
        (["val/a.png", "val/a.jpg"], ["val/a.png", "val/a.jpg"], "id.rule=file"),
        (["a", "b"], ["x/a", "b.jpeg"], "id.rule=stem"),
        # COCO's train and val share no numbers.
        (["COCO_train2014_000000000009", "COCO_val2014_000000000042"], ["9.jpg", "42.jpg"], "the numbers"),
    ],
)
def test_rules_are_found(ids: list[str], pictures: list[str], told: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, *pictures)
    for name in set(pictures) & {"x/a"}:
        (folder / name).write_bytes(b"\xff\xd8\xff" + bytes(20))
    match = pictures_of_store(store(tmp_path, *ids), folder)
    assert places(match.places, folder) == dict(enumerate(pictures))
    assert told in match.told and "2 of 2 images" in match.told


@pytest.mark.parametrize("prefix", ["", "gqa_"])
@pytest.mark.parametrize("rule", ["stem", "path", "file"])
@pytest.mark.parametrize("pattern", [None, r"_0*(\d+)(?:\.jpg)?$"])
def test_a_store_says_how_its_ids_were_made(rule: str, pattern: str | None, prefix: str, tmp_path: Path) -> None:
    names = PictureNames(rule, pattern, prefix)  # type: ignore[arg-type]
    folder = folder_of(tmp_path, "x/COCO_0001.jpg", "y/COCO_0012.jpg", "y/COCO_0003.jpg")
    made = find_pictures(folder, names)
    said = {"rule": rule, "pattern": pattern} | ({"prefix": prefix} if prefix else {})
    match = pictures_of_store(store(tmp_path, *made.ids, said=said), folder)
    assert match.places == dict(enumerate(made.paths))
    assert f"id.rule={rule}" in match.told and (f"id.prefix={prefix}" in match.told) == bool(prefix)


def test_the_rule_by_which_most_images_have_a_picture(tmp_path: Path) -> None:
    """One that the store names, or that fits by accident, does not hide the others."""
    folder = folder_of(tmp_path, "1.jpg", "0002.jpg", "0003.jpg", "notes.txt")
    match = pictures_of_store(store(tmp_path, "1", "2", "3", "4", said={"rule": "stem", "pattern": None}), folder)
    assert places(match.places, folder) == {0: "1.jpg", 1: "0002.jpg", 2: "0003.jpg"} and "3 of 4 images" in match.told
    given = pictures_of_store(RegionStore(tmp_path / "f.h5"), folder, PictureNames())
    assert places(given.places, folder) == {0: "1.jpg"}
    odd = pictures_of_store(store(tmp_path, "1", said={"rule": 7, "of": "another version"}), folder)
    assert len(odd.places) == 1


def test_what_two_pictures_claim_is_no_image_s(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "train/1.jpg", "val/1.jpg", "val/2.jpg")
    assert places(pictures_of_store(store(tmp_path, "1", "2"), folder).places, folder) == {1: "val/2.jpg"}


def test_ids_of_two_sets_that_share_numbers(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "000001.jpg", "000002.jpg")
    with pytest.raises(UserError, match=r"fit ids like 'coco_…' and 'gqa_…' by the numbers .*id\.prefix"):
        pictures_of_store(store(tmp_path, "coco_1", "coco_2", "gqa_1", "gqa_2"), folder)
    most = pictures_of_store(store(tmp_path, "coco_1", "gqa_1", "gqa_2"), folder)
    assert sorted(most.places) == [1, 2] and "behind 'gqa_'" in most.told
    names = PictureNames(pattern=r"0*(\d+)$", prefix="coco_")
    assert sorted(pictures_of_store(RegionStore(tmp_path / "f.h5"), folder, names).places) == [0]


def test_no_picture_fits(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "kettle.jpg")
    with pytest.raises(UserError, match=r"has no picture of .*ids are like 'cat'; the first picture is .*kettle\.jpg"):
        pictures_of_store(store(tmp_path, "cat"), folder)
