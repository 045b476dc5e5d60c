"""Weight files and label maps of the detector: what is taken, and what is refused in one sentence."""

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from tests.detector.samples import SMALL, SMALL_WEIGHTS, recorded, recorded_json, small_detector, small_images
from tests.hub_server import Hub
from vinvl.detector import Architecture, Detector, DetectorConfig, load_detector
from vinvl.detector.starting import load_what_fits
from vinvl.detector.weights import (
    PUBLISHED_LABELS,
    PUBLISHED_WEIGHTS,
    detector_files,
    find_weights,
    labels_beside,
    match_names,
    open_detector,
    read_label_map,
    read_settings,
    save_detector,
)
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError

SHARED_NAME, OTHER_NAME = "roi_heads.box.feature_extractor.", "attribute.feature_extractor."


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(SMALL_WEIGHTS)


def saved(folder: Path, content: object) -> Path:
    path = folder / "detector.pth"
    torch.save(content, path)
    return path


def assert_refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as refusal:
        load_detector(path, SMALL)
    sentence = str(refusal.value)
    assert str(path) in sentence and "\n" not in sentence
    for word in words:
        assert word in sentence


def same_weights(path: Path) -> None:
    ours, theirs = load_detector(path, SMALL)[0].state_dict(), small_detector().state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
        assert tensor.device.type == "cpu"


@pytest.mark.parametrize(
    "form", ["bare", "model", "module", "both names", "other name", "no anchors", "suffix", "safetensors"]
)
def test_forms_of_published_files(tmp_path: Path, weights: dict[str, Tensor], form: str) -> None:
    other = {name.replace(SHARED_NAME, OTHER_NAME): tensor for name, tensor in weights.items()}
    content: dict[str, object] = {
        "bare": weights,
        "model": {"model": weights, "optimizer": {"lr": 0.1}, "iteration": 5},
        "module": {"model": {f"module.{name}": tensor for name, tensor in weights.items()}},
        "both names": {"model": weights | other},
        "other name": other,
        "no anchors": {name: tensor for name, tensor in weights.items() if "cell_anchors" not in name},
        "suffix": {name.removeprefix("backbone.body."): tensor for name, tensor in weights.items()},
        "safetensors": weights,
    }[form]  # type: ignore[assignment]
    same_weights(SMALL_WEIGHTS if form == "safetensors" else saved(tmp_path, content))


def test_a_loaded_detector_is_ready(tmp_path: Path) -> None:
    detector, report = load_detector(SMALL_WEIGHTS, SMALL)
    assert not detector.training and all(parameter.requires_grad for parameter in detector.parameters())
    assert detector.backbone.body.stem.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    assert detector.roi_heads.box.feature_extractor is detector.attribute.feature_extractor
    assert detector.detect(small_images("b"))[0].labels.tolist() == recorded("small_b")["out0.labels"].tolist()
    assert len(report.loaded) == len(detector.state_dict()) and report.unused == ()


# Weights of other data sets: FourSets and Objects365, of which the tensors are inferred from the published names.

WITHOUT = replace(SMALL.architecture, num_attributes=0)


def other_weights(classes: int, prefix: str = "module.") -> dict[str, object]:
    """As the published trainer saves them, without a head for attributes; of a small network."""
    torch.manual_seed(1)
    state = Detector(DetectorConfig(replace(WITHOUT, num_classes=classes))).state_dict()
    assert not any(name.startswith("attribute") for name in state)
    tensors = {f"{prefix}{name}": tensor for name, tensor in state.items()}
    return {"model": tensors, "optimizer": {}, "scheduler": {"last_epoch": 3}, "iteration": 740_000}


@pytest.mark.parametrize(
    ("classes", "name", "content"),
    [
        (1849, "vgcocooiobjects_v1_class2ind.json", json.dumps({f"class {i}": i for i in range(1848, 0, -1)})),
        (366, "train.labelmap.tsv", "".join(f"class {i}\t{7 * i}\n" for i in range(1, 366))),
    ],
)
def test_other_published_weights_find_their_names(tmp_path: Path, classes: int, name: str, content: str) -> None:
    path = saved(tmp_path, other_weights(classes))
    config = DetectorConfig(replace(WITHOUT, num_classes=classes), min_size=64, max_size=100, rpn_proposals=20)
    with pytest.raises(UserError, match=f"is called {re.escape(name)}"):
        open_detector(path, configure=lambda _: config)
    (tmp_path / name).write_text(content)
    opened = open_detector(path, configure=lambda _: config)
    assert opened.label_map.classes[1:] == tuple(f"class {i}" for i in range(1, classes)) and not opened.report.unused
    (found,) = opened.detector.detect(small_images("b"))
    assert len(found) >= 10 and found.attribute_labels.shape == found.attribute_scores.shape == (len(found), 0)
    (tmp_path / "own.json").write_text(label_map(classes, 41))  # as users made: a dictionary with attributes of others
    assert open_detector(path, tmp_path / "own.json", lambda _: config).label_map.attributes == ()
    save_detector(tmp_path / "ours.pth", opened.detector, opened.label_map)
    assert read_settings(tmp_path / "ours.pth") == (config, opened.label_map)


def test_a_head_for_attributes_that_is_not_there_or_not_wanted(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = saved(tmp_path, other_weights(81))
    assert_refused(path, "no head for attributes", "num_attributes=0", "x152c4_foursets")
    detector, report = load_detector(SMALL_WEIGHTS, replace(SMALL, architecture=WITHOUT))
    assert set(report.unused) == {name for name in weights if name.startswith("attribute.")} != set()
    assert "not used" in str(report)
    assert detector.detect(small_images("b"))[0].labels.tolist() == recorded("small_b")["out0.labels"].tolist()


@pytest.mark.parametrize("classes", [1849, 366])
def test_other_published_weights_have_the_names_and_shapes_of_visual_genomes(classes: int) -> None:
    """But for the rows of classes, and without attributes: 1849 are 7396 rows of the regressor."""
    with torch.device("meta"):
        detector = Detector(DetectorConfig(Architecture(num_classes=classes, num_attributes=0)))
    rows = {1595: classes, 4 * 1595: 4 * classes}
    expected = [
        [name, [rows.get(side, side) for side in shape]]
        for name, shape, _ in recorded_json("x152c4_state_dict_contract")["state_dict"]
        if not name.startswith("attribute.")
    ]
    assert [[name, list(tensor.shape)] for name, tensor in detector.state_dict().items()] == expected


def test_extra_tensors_are_told_and_left(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = saved(tmp_path, {"model": weights | {"relation.fc.weight": torch.ones(3), "module.counter": torch.ones(1)}})
    same_weights(path)
    _, report = load_detector(path, SMALL)
    assert report.unused == ("relation.fc.weight", "module.counter")
    assert "2 of it not used (relation.fc.weight, module.counter)" in str(report)


def test_a_missing_tensor_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    without = {name: tensor for name, tensor in weights.items() if "cls_logits" not in name}
    assert_refused(saved(tmp_path, without), "lacks 2 of", "rpn.head.cls_logits.weight, rpn.head.cls_logits.bias")


def test_another_shape_is_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    name = "roi_heads.box.predictor.cls_score.weight"
    assert_refused(saved(tmp_path, weights | {name: torch.ones(80, 256)}), name, "(80, 256)", "(81, 256)")


def test_c5_heads_that_differ_are_refused(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    name = f"{OTHER_NAME}head.layer4.0.conv1.weight"
    assert_refused(saved(tmp_path, weights | {name: torch.ones(256, 128, 1, 1)}), name, "differ")


def odd(kind: str, tensor: Tensor) -> Tensor:
    """A tensor of the same shape, as far as there is such a thing, that no weight file of ours has."""
    match kind:
        case "sparse":
            return tensor.to_sparse()
        case "quantised":
            return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
        case "nested":
            return torch.nested.nested_tensor([tensor[0], tensor[1, :3]])
        case "complex":
            return tensor.to(torch.complex64)
        case "larger than the file":
            return torch.zeros(1).expand(tensor.shape)
        case "without content":
            return torch.empty(tensor.shape, device="meta")
    return tensor * float(kind)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind", ["sparse", "quantised", "nested", "complex", "larger than the file", "without content", "nan", "inf"]
)
def test_tensors_that_are_no_weights_are_refused(tmp_path: Path, weights: dict[str, Tensor], kind: str) -> None:
    name = "roi_heads.box.predictor.cls_score.weight"
    path = saved(tmp_path, {"model": weights | {name: odd(kind, weights[name])}})
    assert_refused(path, name)
    with pytest.raises(UserError, match=name):
        load_what_fits(small_detector(), path, LabelMap())


def test_parameters_and_half_precision_are_taken_for_what_they_are(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    """Parameters also where the detector has a constant."""
    same_weights(saved(tmp_path, {name: torch.nn.Parameter(tensor) for name, tensor in weights.items()}))
    detector, _ = load_detector(tmp_path / "detector.pth", SMALL)
    assert not any("running_var" in name for name, _ in detector.named_parameters())
    detector, _ = load_detector(saved(tmp_path, {name: tensor.half() for name, tensor in weights.items()}), SMALL)
    assert {tensor.dtype for tensor in detector.state_dict().values()} == {torch.float32}


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('ran')",)


@pytest.mark.parametrize("name", ["detector.pth", "detector.safetensors"])
def test_files_that_are_no_weights_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert_refused(path)
    for content in (b"", b"\x00" * 100, pickle.dumps(Hostile()), SMALL_WEIGHTS.read_bytes()[:5000]):
        path.write_bytes(content)
        assert_refused(path)


@pytest.mark.parametrize(
    "content", [[], {}, 3, {"model": {"weight": 3}}, {"lr": 0.1}, {1: torch.ones(1)}, {"model": {}}]
)
def test_contents_that_are_no_weights_are_refused(tmp_path: Path, content: object) -> None:
    assert_refused(saved(tmp_path, content))


NAMES = st.lists(st.text("ab.", min_size=1, max_size=5), max_size=6).map(set)


@settings(max_examples=50, deadline=None)
@given(wanted=NAMES, found=NAMES)
def test_names_match_by_the_longest_suffix(wanted: set[str], found: set[str]) -> None:
    expected = {}
    for name in wanted:
        suffixes = [source for source in found if name.endswith(source)]
        if suffixes:
            expected[name] = max(suffixes, key=len)
    assert match_names(wanted, found) == expected


def label_map(classes: int, attributes: int) -> str:
    return json.dumps(
        {
            "label_to_idx": {f"class {index}": index for index in range(1, classes)},
            "attribute_to_idx": {f"attribute {index}": index for index in range(1, attributes)},
        }
    )


def test_label_map_of_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(label_map(81, 41), encoding="utf-8")
    labels = read_label_map(path, SMALL.architecture)
    assert labels.classes[:2] == ("__background__", "class 1") and len(labels.attributes) == 41


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (label_map(82, 41), "names 82 classes, index 0 included, the detector has 81"),
        (label_map(81, 40), "names 40 attributes, index 0 included, the detector has 41"),
        ('{"label_to_idx": {}}', "names 0 classes"),
        ("[]", r"got `array` at \$"),
        ("{", "not valid JSON"),
    ],
)
def test_other_label_maps_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "labels.json"
    with pytest.raises(UserError, match="does not exist"):
        read_label_map(path, SMALL.architecture)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{sentence}"):
        read_label_map(path, SMALL.architecture)


def test_a_repository_of_weights_with_their_label_map(hub: Hub) -> None:
    published = {PUBLISHED_LABELS: b"{}", PUBLISHED_WEIGHTS: b"w", "README.md": b"", "other.pth": b""}
    commit = hub.add("michelecafagna26/vinvl_vg_x152c4", published).refs["main"]
    path, name = find_weights("michelecafagna26/vinvl_vg_x152c4")
    assert name == f"michelecafagna26/vinvl_vg_x152c4@{commit}" and path.read_bytes() == b"w"
    assert sorted(one.name for one in path.parent.iterdir()) == [PUBLISHED_LABELS, PUBLISHED_WEIGHTS]
    assert labels_beside(path, 1595).is_file() and find_weights(path) == (path, None)
    assert detector_files(["one.pth"]) == ["one.pth"] and detector_files(["one.pth", "two.pth"]) == []
