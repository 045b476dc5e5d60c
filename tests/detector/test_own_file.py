"""Weight files of our own: what is written is what is read, and damaged settings are refused in one sentence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.detector.samples import SMALL, SMALL_WEIGHTS, small_detector, small_images
from vinvl.detector import Architecture, Detector, DetectorConfig, load_detector
from vinvl.detector.weights import OUR_KEY, read_settings, save_detector
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError

NAMES = LabelMap(
    ("__background__", *(f"thing {index}" for index in range(80))),
    ("__no_attribute__", *(f"Größe {index}" for index in range(40))),
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "folder" / "detector.pth"
    save_detector(path, small_detector(), NAMES)
    return path


def test_what_is_written_is_read(saved: Path) -> None:
    found = read_settings(saved)
    assert found is not None and found.config == SMALL and found.label_map == NAMES
    detector, report = load_detector(saved, found.config)
    assert report.unused == ()
    for name, tensor in small_detector().state_dict().items():
        assert torch.equal(detector.state_dict()[name], tensor), name
    images = small_images("b")
    expected = small_detector().to(memory_format=torch.channels_last).detect(images)[0]  # type: ignore[call-overload]
    assert torch.equal(detector.detect(images)[0].boxes, expected.boxes)


def test_it_is_a_plain_torch_file_with_the_published_names(saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    assert set(content) == {"model", OUR_KEY} and set(content["model"]) == set(small_detector().state_dict())
    assert isinstance(content[OUR_KEY]["config"]["architecture"]["blocks"], list)
    parameters = sum(tensor.nbytes for tensor in small_detector().roi_heads.state_dict().values())
    assert saved.stat().st_size < 1.1 * SMALL_WEIGHTS.stat().st_size + parameters / 10  # the C5 head is there once


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_detector(tmp_path / "file" / "detector.pth", small_detector(), NAMES)
    with pytest.raises(UserError, match=r"names 2 classes.*has 81"):
        save_detector(tmp_path / "detector.pth", small_detector(), LabelMap(NAMES.classes[:2], NAMES.attributes))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_other_files_have_no_settings(tmp_path: Path) -> None:
    assert read_settings(SMALL_WEIGHTS) is None
    assert read_settings(tmp_path / "missing.pth") is None
    path = tmp_path / "published.pth"
    for content in ({"model": small_detector().state_dict(), "iteration": 3}, [3], small_detector().state_dict()):
        torch.save(content, path)
        assert read_settings(path) is None
        torch.save(content, path, _use_new_zipfile_serialization=False)
        assert read_settings(path) is None
    path.write_bytes(b"PK\x03\x04 no zip file")
    assert read_settings(path) is None


def settings_of(saved: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(saved, weights_only=True)
    return content


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("", 3, "has no settings"),
        ("config", [1], "has no settings"),
        ("label_map", {"label_to_idx": {}}, "has no label map"),
        ("label_map", "[]", "got `array` at $"),
        ("label_map", "{", "not valid JSON"),
        ("label_map", '{"label_to_idx": {"cat": 1}}', "names 2 classes"),
        ("config.architecture", 3, "no architecture"),
        ("config.min_size", "big", "min_size='big'"),
        ("config.min_size", 0, "min_size=0"),
        ("config.min_size", True, "min_size=True"),
        ("config.min_size", 10**400, "min_size=1000"),
        ("config.min_size", torch.ones(3, 30), "min_size=a Tensor"),
        ("config.score_threshold", float("nan"), "score_threshold=nan"),
        ("config.boxes", "none", "boxes='none'"),
        ("config.boxes", [["regressed"]], "boxes=a list"),
        ("config.colour", "red", "'colour'"),
        ("config.architecture.blocks", [1, 2, 3], "blocks=(1, 2, 3)"),
        ("config.architecture.blocks", [10**6, 4, 6, 3], "cannot be that of the file's"),
        ("config.architecture.blocks", [0, 4, 6, 3], "blocks=(0, 4, 6, 3)"),
        ("config.architecture.groups", 0, "groups=0"),
        ("config.architecture.blocks", "3463", "blocks="),
        ("config.architecture.anchor_sizes", [32.5], "anchor_sizes=(32.5,)"),
        ("config.architecture.anchor_ratios", [], "anchor_ratios=()"),
    ],
)
def test_damaged_settings_are_refused(saved: Path, tmp_path: Path, key: str, value: Any, words: str) -> None:
    content = settings_of(saved)
    place, names = content, [OUR_KEY, *key.split(".")] if key else [OUR_KEY]
    for name in names[:-1]:
        place = place[name]
    place[names[-1]] = value
    path = tmp_path / "damaged.pth"
    torch.save(content, path)
    with pytest.raises(UserError) as refusal:
        read_settings(path)
    sentence = str(refusal.value)
    assert str(path) in sentence and words in sentence and "\n" not in sentence, sentence


def test_a_setting_that_the_file_lacks_has_its_default(saved: Path, tmp_path: Path) -> None:
    content = settings_of(saved)
    del content[OUR_KEY]["config"]["min_boxes"]
    torch.save(content, tmp_path / "older.pth")
    found = read_settings(tmp_path / "older.pth")
    assert found is not None and found.config == replace(SMALL, min_boxes=DetectorConfig().min_boxes)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)
FIELDS = st.sampled_from([*DetectorConfig.__dataclass_fields__, *Architecture.__dataclass_fields__])


@settings(max_examples=100, deadline=None)
@given(field=FIELDS, value=ANYTHING)
def test_any_value_is_taken_or_refused(tmp_path_factory: pytest.TempPathFactory, field: str, value: Any) -> None:
    config = {"architecture": {"blocks": [1, 1, 1, 1], "num_classes": 1, "num_attributes": 1}}
    (config if field in DetectorConfig.__dataclass_fields__ else config["architecture"])[field] = value  # type: ignore
    path = tmp_path_factory.getbasetemp() / "any.pth"
    label_map = LabelMap(("background",), ("none",)).to_json()
    torch.save({"model": small_detector_names(), OUR_KEY: {"config": config, "label_map": label_map}}, path)
    try:
        found = read_settings(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert found is not None
        with torch.device("meta"):
            Detector(found.config)


def small_detector_names() -> dict[str, torch.Tensor]:
    return {str(index): torch.zeros(1) for index in range(9)}
