"""Names of classes: what they stand for in a vocabulary, and how several sets get one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from vinvl.convert import convert
from vinvl.detector.annotations import AnnotatedPicture, write_annotations
from vinvl.detector.vocabulary import (
    ClassMap,
    VocabularySettings,
    class_map_of,
    class_names,
    make_vocabulary,
    map_names,
    read_aliases,
)
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError
from vinvl.run.folders import config_directory

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
        ('{"dog": 0, "cat": 1}', "'dog' as 0"),
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


# A vocabulary that is made.

NAMES = {
    "vg.json": json.dumps(
        {
            "label_to_idx": {"ball": 1, "brick wall": 2, "couch": 3, "dog": 4, "television": 5, "wall": 6},
            "attribute_to_idx": {"red": 1},
        }
    ),
    "things.json": json.dumps(
        {"categories": [{"id": n, "name": name} for n, name in ((1, "Dog"), (3, "sports ball"), (7, "tv"))]}
    ),
    "stuff.json": json.dumps(
        {
            "categories": [
                {"id": 92 + n, "name": name} for n, name in enumerate(("wall-brick", "wall-other", "solid-other"))
            ]
        }
    ),
    "open_images.csv": 'LabelName,DisplayName\n/m/0,Dog\n/m/1,Sofa bed\n/m/2,"Yak"\n/m/3,Solid\n/m/4,Fire_Hydrant\n',
    "objects365.labelmap.tsv": "Yak\t1\nfire-hydrant\t2\nFire Hydrant\t3\nbasket\t4\n",
    "object_alias.txt": "television,tv,telly\nball,sports ball,\ncouch,settee\n",
    "own.json": '{"couch": ["sofa bed"], "tv": "telly"}',
}
SETS = "vocabulary.sets={coco: [things.json, stuff.json], oi: open_images.csv, objects365: objects365.labelmap.tsv}"


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for file, text in NAMES.items():
        (tmp_path / file).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path) -> dict[str, Any]:
    """The content of the files of a vocabulary."""
    texts = {file.name: file.read_text() for file in folder.iterdir()}
    return {name: json.loads(text) if name.endswith(".json") else text for name, text in texts.items()}


def test_a_vocabulary_begins_with_its_base_and_the_sets_join_it_by_names_and_aliases(
    names: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["vocabulary.base=vg.json", SETS, "vocabulary.aliases=[object_alias.txt, own.json]", "to=merged"]
    with initialize_config_dir(config_dir=config_directory(), version_base="1.3"):
        files = written(convert(compose("convert", overrides=given)))
    base = ["ball", "brick wall", "couch", "dog", "television", "wall"]
    added = ["solid", "yak", "fire hydrant", "basket"]
    assert files["class2ind.json"] == {name: index for index, name in enumerate([*base, *added], start=1)}
    assert files["coco_class2ind.json"] == {
        **{"dog": 4, "sports ball": 1, "tv": 5},
        **{"wall-brick": 2, "wall-other": 6, "solid-other": 7},
    }
    assert files["oi_class2ind.json"] == {"dog": 4, "sofa bed": 3, "yak": 8, "solid": 7, "fire_hydrant": 9}
    assert files["objects365_class2ind.json"] == {"yak": 8, "fire-hydrant": 9, "fire hydrant": 9, "basket": 10}
    report = files["report.txt"]
    assert report.splitlines() == [
        "10 classes, the first 6 of vg.json",
        "coco: 6 names: 5 mapped, 4 of them to another name; 1 new; 0 dropped. It has 6 classes of the vocabulary.",
        "  to another name: sports ball → ball, tv → television, wall-brick → brick wall, wall-other → wall",
        "  new: solid-other → solid",
        "  to the same name: Dog",
        "oi: 5 names: 3 mapped, 1 of them to another name; 2 new; 0 dropped. It has 5 classes of the vocabulary.",
        "  to another name: Sofa bed → couch",
        "  new: Yak → yak, Fire_Hydrant → fire hydrant",
        "  to the same name: Dog, Solid",
        "objects365: 4 names: 3 mapped, 1 of them to another name; 1 new; 0 dropped. "
        "It has 3 classes of the vocabulary.",
        "  to another name: fire-hydrant → fire hydrant",
        "  new: basket",
        "  to the same name: Yak, Fire Hydrant",
    ]
    assert report in capsys.readouterr().out
    for file in ("coco_class2ind.json", "oi_class2ind.json"):  # what a data set's own names are then
        found = class_map_of(names / "merged" / file)
        assert all(found.find(name.upper()) == index for name, index in files[file].items())


def test_sets_are_mapped_onto_a_vocabulary_that_stays_as_it_is(names: Path) -> None:
    (names / "four_sets_class2ind.json").write_text(
        json.dumps({f"class {n}": n for n in range(1848, 1, -1)} | {"dog": 1})
    )
    given: Any = {"base": "four_sets_class2ind.json", "sets": {"open_images": "open_images.csv"}}
    make_vocabulary(VocabularySettings(**given, new="drop"), names / "mapped")
    files = written(names / "mapped")
    assert len(files["class2ind.json"]) == 1848 and files["open_images_class2ind.json"] == {"dog": 1}
    assert "1 mapped, 0 of them to another name; 0 new; 4 dropped" in files["report.txt"]
    assert "  dropped: Sofa bed, Yak, Solid, Fire_Hydrant\n" in files["report.txt"]
    with pytest.raises(UserError, match=r"no class for names of the sets .open_images: 'Sofa bed', 'Yak', 'Solid'"):
        make_vocabulary(VocabularySettings(**given, new="refuse"), names / "refused")
    assert not (names / "refused").exists()


def test_the_names_in_annotations_are_taken(tmp_path: Path) -> None:
    none: Any = np.zeros(0)
    picture = AnnotatedPicture("1", "1.jpg", 10, 10, none.reshape(0, 4), none, none, [])
    write_annotations(tmp_path / "coco.arrow", [picture], LabelMap(("__background__", "Dog", "cat")), "a test")
    assert class_names(str(tmp_path / "coco.arrow")) == ["Dog", "cat"]


def test_a_name_counts_before_its_aliases_and_the_last_alias_before_others(names: Path) -> None:
    (names / "more.txt").write_text("dog,Telly Box\ncouch,tv\nball,dog\n")
    aliases = read_aliases(["object_alias.txt", "more.txt"])
    found = map_names(["dog", "telly-box", "TV"], {"couch": 1, "dog": 2, "television": 3}, aliases, "base", add=True)
    assert found.indices == {"dog": 2, "telly-box": 2, "TV": 1} and not found.new


def test_classes_that_one_set_tells_apart_stay_apart_where_they_are_new() -> None:
    aliases = {"sofa": ["couch", "sofa"], "couch": ["couch", "sofa"]}
    assert map_names(["sofa", "couch"], {"dog": 1}, aliases, "base", add=True).indices == {"sofa": 2, "couch": 3}
    assert map_names(["sofa", "couch"], {"dog": 1, "couch": 2}, aliases, "base", add=True).indices == {
        "sofa": 2,
        "couch": 2,
    }


def test_new_names_that_are_written_alike_are_one_class() -> None:
    found = map_names(["Hot_Dog", "yak", "hot-dog"], {"dog": 1}, {}, "base", add=True)
    assert found.new == {"Hot_Dog": "hot dog", "yak": "yak", "hot-dog": "hot dog"}
    assert found.indices == {"Hot_Dog": 2, "yak": 3, "hot-dog": 2}


def test_stuff_is_found_as_grit_reads_its_names() -> None:
    """Its class maps have "brick wall" and "wall" for COCO's "wall-brick" and "wall-other"."""
    found = ClassMap({"brick wall": 1, "wall": 2, "door": 3, "t-shirt": 4}, "map")
    names_of_stuff = ("wall-brick", "Wall-Other", "door-stuff", "t-shirt", "T shirt", "wall-wood", "-other")
    assert [found.find(one) for one in names_of_stuff] == [1, 2, 3, 4, 4, None, None]


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        (
            "base_class2ind.json",
            '{"dog": 1, "Cat": 2}',
            "base_class2ind.json: class 2 is 'Cat': a vocabulary has names in",
        ),
        ("base_class2ind.json", '{"dog": 1, "cat": 3}', "class index 2 has no name although higher indices do"),
        ("base_class2ind.json", '{"dog": 1, "cat": 1}', "class 1 has the names 'dog' and 'cat'"),
        ("base_class2ind.json", '{"__background__": 1, "cat": 2}', "class 1 is '__background__'"),
        ("base.txt", "dog\nCat\ncat\n", "base.txt: class 3, 'cat', is class 2 too"),
        ("base.csv", "/m/0,Dog\n/m/1\n", "base.csv line 2 is '/m/1': expected /m/"),
        ("base.csv", "", "base.csv names no classes"),
        ("base.json", "[]", "base.json: Expected `object`"),
        ("base.txt", "t shirt\nT-Shirt\nt_shirt\n", None),
        ("aliases.json", '{"dog": 5}', r"aliases.json: Expected `str \| array`, got `int` at \$\[...\]"),
        ("aliases.txt", "dog" * 100, r"aliases.txt is no file of aliases \(line 1\)"),
        ("aliases.txt", "\udcff", "aliases.txt is not UTF-8 text"),
    ],
)
def test_files_that_no_vocabulary_can_be_made_of(names: Path, file: str, text: str, sentence: str | None) -> None:
    (names / file).write_text(text, errors="surrogateescape")
    (names / "set.txt").write_text("dog\nT__Shirt\n")
    given: Any = {"base": "vg.json", "aliases": file} if "alias" in file else {"base": file}
    with pytest.raises(UserError, match=sentence or r"'t shirt' \(1\) and 't-shirt' .* \(3\): write 'T__Shirt' as one"):
        make_vocabulary(VocabularySettings(**given, sets={"one": "set.txt"}), names / "merged")
    assert not (names / "merged").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"base": "vg.json", "sets": None}, "Give both vocabulary.base=FILE and"),
        ({"base": None, "sets": {"oi": "open_images.csv"}}, "Give both vocabulary.base=FILE and"),
        ({"base": "vg.json", "sets": "things.json"}, "vocabulary.sets='things.json' cannot be"),
        ({"base": "vg.json", "sets": {"../x": "things.json"}}, "vocabulary.sets=.* cannot be"),
        ({"base": "vg.json", "sets": {"oi": "open_images.csv"}, "new": "all"}, "vocabulary.new='all' is unknown"),
    ],
)
def test_settings_that_cannot_be(settings: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        VocabularySettings(**settings)
