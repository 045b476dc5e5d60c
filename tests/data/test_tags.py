"""Object tags: from the store of the regions, another detector's store, or a file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.test_text import golden_tokenizer
from tests.regions.samples import make_regions, write
from vinvl.data.inputs import FileTags, StoreTags, TagSource, tag_source
from vinvl.regions import LabelMap, RegionStore, RegionStoreWriter
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
    assert isinstance(tags, FileTags)
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
    assert found.text(0, 9) == " ".join(name.strip() for name in names if name.strip())


def test_strangers_are_refused(store: RegionStore, tmp_path: Path) -> None:
    for source in (other_store(tmp_path / "a.h5", ["70", "80"]), written(tmp_path / "a.json", {"70": ["dog"]})):
        with pytest.raises(
            UserError, match=r"a\..* has tags of none of the 3 images of .*ids like '7'.*data\.tags=null"
        ):
            tag_source(source, store, TOKENIZER)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (["dog"], "is not a tag file"),
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
