"""Object tags: from the store of the regions, another detector's store, or a file."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.test_text import golden_tokenizer
from tests.regions.samples import make_regions, write
from tests.retrieval.samples import retrieval_data
from vinvl.data.tags import GivenTags, StoreTags, TagChoice, TagSource, tag_source
from vinvl.regions import LabelMap, Regions, RegionStore, RegionStoreWriter
from vinvl.run.errors import UserError

TOKENIZER = golden_tokenizer()
OTHER_LABELS = LabelMap(("__background__", "dog", "red bike"), ("__no_attribute__",))


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    """Images 7, 8 and 9 with 4, 1 and 3 regions; classes cat and "chien 🐕", some of them background."""
    images = [make_regions(str(7 + seed), count, seed=seed) for seed, count in enumerate((4, 1, 3))]
    return RegionStore(write(tmp_path / "regions.h5", images))


def other_store(path: Path, image_ids: list[str]) -> str:
    """Another detector's store: 3 regions an image, of the classes dog, red bike and background, in this order."""
    with RegionStoreWriter(path, feature_dim=3, detector="another", label_map=OTHER_LABELS, num_attributes=0) as writer:
        for seed, image_id in enumerate(image_ids):
            regions = make_regions(image_id, 3, seed=seed + 10)
            regions.classes[:] = (1, 2, 0)
            writer.add(regions)
    return str(path)


def written(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def token_ids(*texts: str) -> list[int]:
    found: list[int] = TOKENIZER(" ".join(texts), add_special_tokens=False)["input_ids"]
    return found


def assert_counts_agree(tags: TagSource, images: int, limits: range = range(6)) -> None:
    """What batches are sorted by is what `encode` gives."""
    for limit in limits:
        counted = tags.counts(np.arange(images), limit)
        assert counted.dtype == np.int64
        assert counted.tolist() == [len(tags.encode(image, limit)) for image in range(images)]


def test_classes_of_the_store_in_the_order_of_the_regions(store: RegionStore) -> None:
    tags = tag_source(None, store, TOKENIZER)
    names = store.label_map.classes
    for image in range(len(store)):
        for limit in range(5):
            expected = [names[index] for index in store.at(image).classes[:limit] if index != 0]
            assert tags.encode(image, limit).tolist() == token_ids(*expected)
            assert tags.text(image, limit) == ", ".join(expected)
    assert_counts_agree(tags, len(store))
    assert any((store.at(image).classes == 0).any() for image in range(len(store)))  # background was among them


def test_classes_of_another_store_matched_by_image_id(store: RegionStore, tmp_path: Path) -> None:
    tags = tag_source(other_store(tmp_path / "other.h5", ["9", "7", "1000"]), store, TOKENIZER)
    assert isinstance(tags, StoreTags)
    assert tags.encode(0, 50).tolist() == token_ids("dog", "red bike")  # image 7
    assert tags.text(2, 50) == "dog, red bike"  # image 9
    assert tags.text(2, 1) == "dog"
    assert len(tags.encode(1, 50)) == 0 and tags.text(1, 50) == ""  # image 8 is not in the other store
    assert_counts_agree(tags, len(store))


def test_tags_of_a_file_as_lists_or_joined(store: RegionStore, tmp_path: Path) -> None:
    path = written(tmp_path / "tags.json", {"7": ["Red Bike", " dog "], "9": "cat; two dogs;;", "5": ["stranger"]})
    tags = tag_source(path, store, TOKENIZER)
    assert isinstance(tags, GivenTags)
    assert tags.encode(0, 50).tolist() == token_ids("red bike", "dog")
    assert tags.encode(2, 50).tolist() == token_ids("cat", "two dogs")
    assert len(tags.encode(1, 50)) == 0
    assert tags.encode(0, 1).tolist() == token_ids("red bike", "dog")  # they belong to no region
    assert_counts_agree(tags, len(store))


TAG = st.text(st.characters(exclude_characters=";", exclude_categories=["Cs"]), max_size=8)


@given(names=st.lists(TAG, max_size=5))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_list_and_the_same_tags_joined_are_the_same_tokens(
    store: RegionStore, tmp_path: Path, names: list[str]
) -> None:
    found = tag_source(written(tmp_path / "tags.json", {"7": names, "8": ";".join(names)}), store, TOKENIZER)
    assert found.encode(0, 9).tolist() == found.encode(1, 9).tolist() == token_ids(*names)
    assert found.text(0, 9) == ", ".join(name.strip() for name in names if name.strip())


def test_strangers_are_refused(store: RegionStore, tmp_path: Path) -> None:
    for source in (other_store(tmp_path / "a.h5", ["70", "80"]), written(tmp_path / "a.json", {"70": ["dog"]})):
        with pytest.raises(
            UserError, match=r"a\..* has tags of none of the 3 images of .*ids like '7'.*data\.tags=null"
        ):
            tag_source(source, store, TOKENIZER)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (["dog"], r"tags\.json record 1"),
        ([{"img_id": 7, "o": 3}], r"tags\.json record 1"),
        ([{"img_id": 7, "o": "a;b"}, {"img_id": 7, "o": "a"}], "record 2 gives image 7 other tags"),
        ("dog", "is not a tag file"),
        *(
            ({"7": tags}, "image 7: its tags are .*; give a list of names")
            for tags in (3, ["dog", 4], None, {"dog": 1})
        ),
        ({}, "has tags of none of the 3 images"),
    ],
)
def test_tag_files_of_another_shape(store: RegionStore, tmp_path: Path, content: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tag_source(written(tmp_path / "tags.json", content), store, TOKENIZER)


def test_files_that_are_not_there_or_broken(store: RegionStore, tmp_path: Path) -> None:
    for name in ("nowhere.json", "nowhere.h5"):
        with pytest.raises(UserError, match="nowhere"):
            tag_source(str(tmp_path / name), store, TOKENIZER)
    (tmp_path / "broken.json").write_bytes(b'{"7": ["dog"')
    with pytest.raises(UserError, match=r"broken\.json"):
        tag_source(str(tmp_path / "broken.json"), store, TOKENIZER)


def tsv(path: Path, *rows: tuple[str, Any]) -> str:
    path.write_text("".join(f"{image_id}\t{json.dumps(objects)}\n" for image_id, objects in rows))
    return str(path)


def objects(*names: str) -> list[dict[str, Any]]:
    return [{"class": name, "rect": [0, 0, 1, 1], "conf": 0.5} for name in names]


def test_tags_of_published_files(store: RegionStore, tmp_path: Path) -> None:
    """A label TSV of any number of objects, and questions or statements that carry tags of their images."""
    labels = tsv(tmp_path / "l.tsv", ("5", objects("x")), ("9", {"objects": objects("Red Bike", "dog")}), ("7", []))
    questions = written(tmp_path / "q.json", [{"img_id": "9", "o": "Red Bike;dog"}, {"img_id": 7, "o": ""}] * 2)
    sides = [{"img_id": {"left": "9", "right": 7}, "o": {"left": "Red Bike;dog", "right": ""}}]
    for path in (labels, questions, written(tmp_path / "s.json", sides)):
        tags = tag_source(path, store, TOKENIZER)
        assert isinstance(tags, GivenTags)
        assert tags.encode(2, 1).tolist() == token_ids("red bike", "dog")
        assert len(tags.encode(0, 9)) == len(tags.encode(1, 9)) == 0
        assert tags.without(np.array([0, 1, 2, 1])) == 1  # image 8: image 7 has a list, without tags
        assert_counts_agree(tags, len(store))
    both = tag_source([labels, written(tmp_path / "8.json", {"8": "cat"})], store, TOKENIZER)
    assert both.text(1, 9) == "cat" and both.text(2, 9) == "Red Bike, dog"


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([("7", objects("a")), ("7", objects("a"))], r"l\.tsv line 2 gives image 7 tags a second time"),
        ([("7", objects("a")), ("8", [{"conf": 1}])], r"l\.tsv line 2: image '8'.*class"),
        ([("70", objects("a"))], "has tags of none of the 3 images"),
    ],
)
def test_label_files_that_cannot_be(store: RegionStore, tmp_path: Path, rows: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        tag_source(tsv(tmp_path / "l.tsv", *rows), store, TOKENIZER)


def test_an_index_of_another_label_file_is_refused(store: RegionStore, tmp_path: Path) -> None:
    path = tsv(tmp_path / "l.tsv", ("7", objects("a")), ("8", objects("b")))
    (tmp_path / "l.lineidx").write_text("0\n9\n")
    with pytest.raises(UserError, match=r"l\.lineidx sends line 2.*of another file"):
        tag_source(path, store, TOKENIZER)


def test_a_vocabulary_of_tags_and_attributes_before_classes(store: RegionStore, tmp_path: Path) -> None:
    path = written(tmp_path / "tags.json", {"7": ["Traffic Light", "wheel", "cat"]})
    coco = TagChoice.of("coco80", "class")
    assert coco.vocabulary is not None and len(coco.vocabulary) == 80
    assert tag_source(path, store, TOKENIZER, coco).encode(0, 9).tolist() == token_ids("traffic light", "cat")
    (tmp_path / "names.txt").write_text("Wheel\n\n")
    own = TagChoice.of(str(tmp_path / "names.txt"), "class")
    assert tag_source(path, store, TOKENIZER, own).text(0, 9) == "wheel"
    (tmp_path / "empty.txt").write_text("\n")
    for vocabulary, form in ((str(tmp_path / "empty.txt"), "class"), (None, "attribute")):
        with pytest.raises(UserError, match=r"empty\.txt holds no names|data\.tag_form is 'attribute'"):
            TagChoice.of(vocabulary, form)
    with pytest.raises(UserError, match=r"data\.tag_form=attribute\+class needs a store"):
        tag_source(path, store, TOKENIZER, TagChoice.of(None, "attribute+class"))


@pytest.mark.parametrize("attributes", [0, 2])
def test_attributes_before_classes(tmp_path: Path, attributes: int) -> None:
    """Each region's surest attribute, unless it has none; a region of the background has neither."""
    images = [make_regions(str(seed), 6, attributes=attributes, seed=seed) for seed in range(4)]
    store = RegionStore(write(tmp_path / "regions.h5", images, attributes=attributes))
    tags, names = tag_source(None, store, TOKENIZER, TagChoice.of(None, "attribute+class")), store.label_map
    for image in range(len(store)):
        regions, expected = store.at(image), []
        for number, of_region in zip(regions.classes, regions.attributes, strict=True):
            if number:
                expected += [names.attributes[one] for one in of_region[:1] if one]
                expected.append(names.classes[number])
        assert tags.text(image, 50) == ", ".join(expected)
        assert tags.encode(image, 50).tolist() == token_ids(*expected)
    assert_counts_agree(tags, len(store))


def test_a_store_of_features_alone_has_no_tags_and_a_run_says_so(demo_data: Path, tmp_path: Path) -> None:
    """Also where class numbers are there, but not their names."""
    paths = [demo_data / "demo" / f"{split}.h5" for split in ("train", "val", "test")]
    for number, path in enumerate(paths):
        own = RegionStore(path)
        with RegionStoreWriter(tmp_path / f"{number}.h5", feature_dim=own.feature_dim) as writer:
            for one in map(own.at, range(len(own))):
                classes = one.classes if number else None
                size = {"width": one.width, "height": one.height}
                writer.add(Regions(one.image_id, one.features, one.boxes, classes, **size))  # type: ignore[arg-type]
    stores = [str(tmp_path / f"{number}.h5") for number in range(3)]
    assert RegionStore(stores).verify() == []
    told = r"0\.h5 and 2 more.* has no names of classes, so its images have no tags: pass data.use_tags=false, or"
    data = retrieval_data(demo_data, regions=stores)
    data.prepare_data()
    with pytest.warns(UserWarning, match=told):
        data.setup("fit")
    assert data.region_text.tags.text(0, 50) == "" and not data.region_text.tags.counts(np.arange(9), 50).any()
    for remedy in ({"use_tags": False}, {"tags": [str(path) for path in paths]}):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*no names of classes")
            retrieval_data(demo_data, regions=stores, **remedy).setup("fit")
