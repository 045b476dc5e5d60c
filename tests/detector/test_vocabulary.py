"""Names of classes: what they stand for in a vocabulary, and how several sets get one."""

import json
from pathlib import Path

import pytest

from vinvl.detector.vocabulary import class_map_of
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError

FORMS = {
    "coco_class2ind.json": '{"dog": 2, "cat": 1, "fire_hydrant": 3}',
    "with_background.json": '{"__background__": 0, "cat": 1, "dog": 2, "fire_hydrant": 3}',
    "train.labelmap.tsv": "cat\t2\ndog, small\t3\nfire_hydrant\t4\n",
    "dicts.json": '{"label_to_idx": {"cat": 1, "dog": 2, "fire_hydrant": 3}, "object_count": {"cat": 5}}',
    "names.txt": "cat\ndog\nfire_hydrant\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_class_maps_are_read_as_people_have_them(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FORMS[name])
    found = class_map_of(tmp_path / name)
    dog = "dog, small" if name.endswith(".tsv") else "dog"
    assert dict(found.indices) == {"cat": 1, dog: 2, "fire_hydrant": 3}
    assert [found.find(one) for one in ("cat", "CAT", "Fire hydrant", "fire-hydrant", "hydrant")] == [1, 1, 3, 3, None]
    assert LabelMap.from_file(tmp_path / name).classes == ("__background__", "cat", dog, "fire_hydrant")


def test_many_names_may_have_one_index_in_a_class_map_but_not_in_a_label_map(tmp_path: Path) -> None:
    path = tmp_path / "objects365_class2ind.json"
    path.write_text('{"Sneakers": 7, "Other Shoes": 7, "T-Shirt": 3, "t shirt": 4}')
    found = class_map_of(path)
    assert (found.find("sneakers"), found.find("other shoes"), found.find("T-Shirt"), found.find("t shirt")) == (
        7,
        7,
        3,
        4,
    )
    with pytest.raises(UserError, match=r"objects365_class2ind.json has 'T-Shirt' \(3\) and 't shirt' \(4\)"):
        found.find("t_shirt")
    with pytest.raises(UserError, match="class 7 has the names 'Sneakers' and 'Other Shoes'"):
        LabelMap.from_file(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"dog": 1, "cat": 2, "dog": 3}', "'dog' with the indices 1 and 3"),
        ('{"dog": -1}', "'dog' as -1"),
        (json.dumps({"dog": 10**9}), "'dog' as 1000000000"),
        ("dog\ncat\ndog\n", "'dog' as 1 and as 3"),
        ("{", "not valid JSON"),
        ('{"dog": "cat"}', "neither label_to_idx nor"),
        ('{"dog": 1.5}', "neither label_to_idx nor"),
        ("{}", "neither label_to_idx nor"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_what_is_no_class_map_is_named(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "coco_class2ind.json"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(UserError, match=rf"coco_class2ind\.json.*{sentence}"):
        class_map_of(path)
