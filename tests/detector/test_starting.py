"""What training starts from, how batch norm becomes constants, and that a detector learns a picture by heart."""

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.detector.samples import SMALL, SMALL_WEIGHTS, network_input, small_detector, small_images
from vinvl.detector import Architecture, Detector, DetectorConfig, load_detector
from vinvl.detector.boxes import iou
from vinvl.detector.config import TrainingSettings
from vinvl.detector.losses import Objects, detector_losses
from vinvl.detector.networks import FrozenBatchNorm2d
from vinvl.detector.starting import freeze_batch_norm, freeze_stages, initialise, load_what_fits, train_batch_norm
from vinvl.detector.weights import save_detector
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def detected(detector: Detector) -> list[Tensor]:
    """Everything that a detector says of two pictures; without a threshold that rounding could carry a value over."""
    found = []
    detector.config = replace(detector.config, attribute_threshold=0.0)
    for regions in detector.eval().detect(small_images("batch")):
        found += [regions.boxes, regions.labels.float(), regions.scores, regions.features, regions.attribute_scores]
    return found


def assert_says_the_same(one: list[Tensor], other: list[Tensor]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_training_batch_norm_and_back_changes_nothing() -> None:
    detector = small_detector()
    before, state = detected(detector), {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    frozen = sum(isinstance(module, FrozenBatchNorm2d) for module in detector.modules())
    train_batch_norm(detector)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in detector.modules()) == frozen > 0
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in detector.modules())
    assert_says_the_same(detected(detector), before)
    freeze_batch_norm(detector)
    assert detector.state_dict().keys() == state.keys()
    for name, tensor in detector.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0, atol=1e-7)  # an epsilon taken off and added again
    assert_says_the_same(detected(detector), before)
    assert detector.attribute.feature_extractor is detector.roi_heads.box.feature_extractor


def test_trained_batch_norm_is_folded_exactly() -> None:
    trained = nn.BatchNorm2d(6)
    with torch.no_grad():
        for tensor in (trained.weight, trained.bias, trained.running_mean, trained.running_var):
            assert tensor is not None
            tensor.uniform_(1e-7, 2, generator=generator(1))
        assert trained.running_var is not None
        trained.running_var[:2] = torch.tensor([0.0, 1e-6])  # where the epsilon is all there is
    holder = nn.Sequential(trained)
    freeze_batch_norm(holder)
    images = torch.randn(2, 6, 5, 4, generator=generator(2))
    assert isinstance(holder[0], FrozenBatchNorm2d)
    torch.testing.assert_close(holder(images), trained.eval()(images), rtol=1e-6, atol=1e-5)
    scale, _ = holder[0].scale_and_shift()
    assert torch.equal(scale, trained.weight * (trained.running_var + trained.eps).rsqrt())


def test_random_weights_are_those_of_the_generator() -> None:
    states = []
    for seed in (1, 1, 2):
        detector = Detector(SMALL)
        initialise(detector, generator(seed))
        states.append(detector.state_dict())
    name = "roi_heads.box.predictor.bbox_pred.weight"
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0][name], states[2][name])
    assert float(states[0][name].std()) == pytest.approx(0.001, rel=0.02)
    assert states[0]["rpn.head.conv.bias"].eq(0).all()


def named(classes: Sequence[str], attributes: Sequence[str]) -> LabelMap:
    return LabelMap(("__background__", *classes), ("__no_attribute__", *attributes))


THEIRS = named([f"thing {number}" for number in range(1, 81)], [f"kind {number}" for number in range(1, 41)])
CLASSIFIER, REGRESSOR, EMBEDDING, ATTRIBUTES = (
    "roi_heads.box.predictor.cls_score.weight",
    "roi_heads.box.predictor.bbox_pred.weight",
    "attribute.predictor.cls_embedding.weight",
    "attribute.predictor.attr_score.weight",
)


def fresh_detector(labels: LabelMap, **architecture: Any) -> tuple[Detector, dict[str, Tensor]]:
    """A random detector of the recorded architecture for other names, and its weights."""
    numbers = {"num_classes": len(labels.classes), "num_attributes": len(labels.attributes)}
    detector = Detector(replace(SMALL, architecture=replace(SMALL.architecture, **numbers, **architecture)))
    initialise(detector, generator(0))
    return detector, {name: tensor.clone() for name, tensor in detector.state_dict().items()}


def label_file(folder: Path, labels: LabelMap = THEIRS) -> str:
    (folder / "labels.json").write_text(labels.to_json())
    return str(folder / "labels.json")


def test_rows_are_taken_over_by_name(tmp_path: Path) -> None:
    """A detector for other classes starts from everything, and from what is said of the classes that both know."""
    ours = named(["dog", "thing_7", "Thing 2"], ["kind 9", "loud", "kind 1"])
    detector, fresh = fresh_detector(ours)
    report = load_what_fits(detector, SMALL_WEIGHTS, ours, label_file(tmp_path))
    assert report.random == report.unused == report.other_shape == ()
    assert "; 2 of 3 classes by name, 1 learnt anew (dog); 2 of 3 attributes by name, 1 learnt anew (loud)" in str(
        report
    )
    after, theirs = detector.state_dict(), load_file(SMALL_WEIGHTS)
    for name, of_each in ((CLASSIFIER, 1), (CLASSIFIER.replace("weight", "bias"), 1), (REGRESSOR, 4), (EMBEDDING, 1)):
        rows, sources = (tensors[name].unflatten(0, (-1, of_each)) for tensors in (after, theirs))
        assert torch.equal(rows[[0, 2, 3]], sources[[0, 7, 2]]), name
        assert torch.equal(rows[1], fresh[name].unflatten(0, (-1, of_each))[1])
    assert torch.equal(after[ATTRIBUTES][[0, 1, 3]], theirs[ATTRIBUTES][[0, 9, 1]])
    assert torch.equal(after[ATTRIBUTES][2], fresh[ATTRIBUTES][2])
    for name in after.keys() & theirs.keys() - fresh_layers():
        assert torch.equal(after[name], theirs[name]), name


def fresh_layers() -> set[str]:
    return {name for layer in (CLASSIFIER, REGRESSOR, EMBEDDING, ATTRIBUTES) for name in (layer, layer[:-6] + "bias")}


def without_attributes(path: Path, rows: int = 81) -> str:
    """A published file of the four sets: no attribute head, a classifier of more classes."""
    state = {name: tensor for name, tensor in load_file(SMALL_WEIGHTS).items() if not name.startswith("attribute.")}
    for name in (CLASSIFIER, REGRESSOR):
        for layer in (name, name.replace("weight", "bias")):
            state[layer] = state[layer][: rows * (4 if "bbox" in layer else 1)]
    torch.save({"model": {f"module.{name}": tensor for name, tensor in state.items()}, "iteration": 300_000}, path)
    return str(path)


def test_a_file_of_four_sets_gives_its_first_rows_and_no_attributes(tmp_path: Path) -> None:
    weights = without_attributes(tmp_path / "model_final.pth")
    ours = named([f"thing {number}" for number in range(1, 61)], ["red"])
    theirs, taken = load_file(SMALL_WEIGHTS), []
    flat = tmp_path / "class2ind.json"
    flat.write_text(json.dumps({name: row for row, name in enumerate(THEIRS.classes) if row > 0}))
    for given in ("by_index", str(flat)):
        detector, fresh = fresh_detector(ours)
        report = load_what_fits(detector, weights, ours, given)
        assert "it has no attributes, so their head is learnt anew; 60 of 60 classes by" in str(report)
        assert set(report.random) == {name for name in fresh if name.startswith("attribute.predictor.")}
        taken.append(detector.state_dict())
        assert torch.equal(taken[-1][CLASSIFIER], theirs[CLASSIFIER][:61])
        assert torch.equal(taken[-1][REGRESSOR], theirs[REGRESSOR][:244])
        assert torch.equal(taken[-1][EMBEDDING], fresh[EMBEDDING])
    assert all(torch.equal(taken[0][name], taken[1][name]) for name in taken[0])
    detector, fresh = fresh_detector(ours)
    report = load_what_fits(detector, weights, ours, "anew")
    assert "its classes are not taken over" in str(report)
    assert torch.equal(detector.state_dict()[CLASSIFIER], fresh[CLASSIFIER])


def test_a_detector_that_was_trained_without_attributes_has_no_head_for_them(tmp_path: Path) -> None:
    """Ours of four sets, whose head has the one row of no attribute, and was never taught anything."""
    without = named(["cat", "dog"], [])
    save_detector(tmp_path / "detector.pth", fresh_detector(without)[0], without)
    ours = named(["dog"], ["red"])
    detector, fresh = fresh_detector(ours)
    detector.attribute.predictor.fc_attr.weight.data.add_(1)
    report = load_what_fits(detector, tmp_path / "detector.pth", ours)
    assert report.rows == ("it has no attributes, so their head is learnt anew", "1 of 1 classes by name")
    assert {name for name in fresh if name.startswith("attribute.predictor.")} == set(report.random)
    assert torch.equal(detector.attribute.predictor.fc_attr.weight, fresh["attribute.predictor.fc_attr.weight"] + 1)
    report = load_what_fits(fresh_detector(without)[0], tmp_path / "detector.pth", without)
    assert report.rows == ("2 of 2 classes by name",)


def test_an_index_map_says_the_row_of_each_name(tmp_path: Path) -> None:
    """Names of another data set, of which two may be one class: `coco_vgoiv6_class2ind.json`."""
    index_map = tmp_path / "coco_class2ind.json"
    index_map.write_text(json.dumps({"hot dog": 40, "sausage": 40, "skis": 12}))
    ours = named(["sausage", "skis", "hot dog"], [])
    detector, _ = fresh_detector(ours)
    load_what_fits(detector, SMALL_WEIGHTS, ours, str(index_map))
    assert torch.equal(detector.state_dict()[CLASSIFIER], load_file(SMALL_WEIGHTS)[CLASSIFIER][[0, 40, 12, 40]])


def test_our_files_and_published_ones_beside_their_labels_say_what_rows_are(tmp_path: Path) -> None:
    ours = named(["thing 3", "dog"], ["kind 2"])
    own, published = tmp_path / "detector.pth", tmp_path / "vinvl_vg_x152c4.pth"
    save_detector(own, small_detector(), THEIRS)
    torch.save({"model": load_file(SMALL_WEIGHTS)}, published)
    (tmp_path / "VG-SGG-dicts-vgoi6-clipped.json").write_text(THEIRS.to_json())
    for path in (own, published):
        detector, _ = fresh_detector(ours)
        report = load_what_fits(detector, path, ours)
        assert "1 of 2 classes by name, 1 learnt anew (dog); 1 of 1 attributes by name" in str(report)
        assert torch.equal(detector.state_dict()[CLASSIFIER][1], load_file(SMALL_WEIGHTS)[CLASSIFIER][3])
    with pytest.raises(UserError, match=r"row 1 of .*detector\.pth is 'thing 1' among its classes, and 'thing 3' here"):
        load_what_fits(fresh_detector(ours)[0], own, ours, "by_index")


def test_rows_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    """Even if there are as many: what they stand for is not taken by position in silence."""
    detector, fresh = fresh_detector(THEIRS)
    few = label_file(tmp_path, named(["cat"], ["red"]))
    alone = without_attributes(tmp_path / "model_final.pth", rows=41)
    (tmp_path / "beyond.json").write_text(json.dumps({"cat": 3, "dog": 81}))
    (tmp_path / "list.tsv").write_text("".join(f"{name}\t1\n" for name in THEIRS.classes[1:]))
    for path, given, words in (
        (SMALL_WEIGHTS, None, "does not say what the 81 rows of its classifier stand for: give start.init_labels=FILE"),
        (SMALL_WEIGHTS, few, "names 1 classes, and .* has 80"),
        (SMALL_WEIGHTS, str(tmp_path / "beyond.json"), "names 81 classes, and .* has 80"),
        (alone, str(tmp_path / "list.tsv"), "list.tsv names 80 classes, and .*model_final.pth has 40"),
        (SMALL_WEIGHTS, str(tmp_path / "none.json"), "none.json"),
    ):
        with pytest.raises(UserError, match=words):
            load_what_fits(detector, path, THEIRS, given)
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in detector.state_dict().items())


def test_another_network_is_refused_and_other_heads_are_learnt_anew(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has the shape .* it is another network\. Choose the detector of the weights"):
        load_what_fits(fresh_detector(THEIRS, stem_channels=8)[0], SMALL_WEIGHTS, THEIRS, "by_index")
    detector, fresh = fresh_detector(THEIRS, attribute_hidden_size=32, class_embedding_size=8, anchor_sizes=(16, 20))
    report = load_what_fits(detector, SMALL_WEIGHTS, THEIRS, "by_index")
    assert "its anchors are others" in str(report) and f"its {EMBEDDING} has the shape (81, 32)" in str(report)
    after = detector.state_dict()
    new = {name for name, tensor in after.items() if name not in report.loaded and torch.equal(tensor, fresh[name])}
    assert {name.rpartition(".")[0] for name in new} == {
        "rpn.anchor_generator.cell_anchors", "rpn.head.cls_logits", "rpn.head.bbox_pred",
        "attribute.predictor.cls_embedding", "attribute.predictor.fc_attr", "attribute.predictor.attr_score",
    }  # fmt: skip
    same, fresh = fresh_detector(THEIRS, anchor_sizes=(16, 20, 128, 256, 512))  # as many, of other sizes
    load_what_fits(same, SMALL_WEIGHTS, THEIRS, "by_index")
    for name in ("rpn.anchor_generator.cell_anchors.0", "rpn.head.bbox_pred.weight"):
        assert torch.equal(same.state_dict()[name], fresh[name])


def whole_picture_network() -> dict[str, Tensor]:
    """A residual network of the detector's stages, in the names and with the batch norm of torchvision's."""
    state = {}
    for name, tensor in load_file(SMALL_WEIGHTS).items():
        for prefix in ("backbone.body.stem.", "backbone.body.", "roi_heads.box.feature_extractor.head."):
            if name.startswith(prefix):
                short = name.removeprefix(prefix)
                state[short] = tensor - 1e-5 if name.endswith("running_var") else tensor
                if name.endswith("running_var"):
                    state[short.replace("running_var", "num_batches_tracked")] = torch.tensor(7)
                break
    return state | {"fc.weight": torch.ones(1000, 256), "fc.bias": torch.ones(1000)}


def test_a_network_for_whole_pictures_gives_its_stages(tmp_path: Path) -> None:
    path = tmp_path / "resnext.pth"
    torch.save(whole_picture_network(), path)
    detector = Detector(SMALL)
    initialise(detector, generator(0))
    report = load_what_fits(detector, path, THEIRS)
    assert report.unused == ("fc.weight", "fc.bias") and report.other_shape == ()
    assert all(name.startswith(("rpn.", "roi_heads.box.predictor.", "attribute.predictor.")) for name in report.random)
    expected = load_file(SMALL_WEIGHTS)
    for name in report.loaded:
        source = name.replace("attribute.feature_extractor.", "roi_heads.box.feature_extractor.")
        torch.testing.assert_close(detector.state_dict()[name], expected[source], rtol=0, atol=1e-7)
    assert any(name.startswith("attribute.feature_extractor.head.layer4") for name in report.loaded)


def as_caffe2(state: dict[str, Tensor]) -> dict[str, Any]:
    """A residual network as Detectron published its own: statistics of norms in their scales and shifts."""
    blobs: dict[str, Any] = {"lr": 0.1, "pred_w": np.ones((1000, 256), np.float32)}
    for name, tensor in state.items():
        *place, what = name.split(".")
        if name.startswith("fc.") or "running" in what or what == "num_batches_tracked":
            continue
        parts = dict(zip(("layer", "block", "part"), place, strict=False)) if len(place) > 1 else {"part": place[0]}
        is_norm = ".".join(place[2:]) == "downsample.1" or parts["part"].startswith("bn")
        branch = "1" if parts["part"] == "downsample" else "2" + "abc"[int(parts["part"][-1]) - 1]
        stem = f"res{int(parts['layer'][5:]) + 1}_{parts['block']}_branch{branch}" if len(place) > 1 else "conv1"
        value = tensor
        if is_norm:
            norm = name.removesuffix(what)
            deviation = (state[f"{norm}running_var"] + 1e-5).sqrt()
            value = state[f"{norm}weight"] / deviation
            if what == "bias":
                value = tensor - state[f"{norm}running_mean"] * value
            stem = ("res_" if stem == "conv1" else "") + f"{stem}_bn"
        ending = ("b" if what == "bias" else "s") if is_norm else "w"
        blobs[f"{stem}_{ending}"] = value.numpy()
        blobs[f"{stem}_{ending}_momentum"] = np.zeros(3, np.float32)
    return {"blobs": blobs}


def test_a_network_of_caffe2_is_the_same_network(tmp_path: Path) -> None:
    """Which the published detector started from, X-152-32x8d-IN5k.pkl; a pickle of Python 2."""
    state = whole_picture_network()
    torch.save(state, tmp_path / "resnext.pth")
    (tmp_path / "X-152.pkl").write_bytes(pickle.dumps(as_caffe2(state), protocol=2))
    pictures = torch.randn(1, 3, 64, 96, generator=generator(5)) * 50
    maps = []
    for path in (tmp_path / "resnext.pth", tmp_path / "X-152.pkl"):
        detector, _ = fresh_detector(THEIRS)
        report = load_what_fits(detector, path, THEIRS)
        assert all(name.startswith(("rpn.", "roi_heads.box.pred", "attribute.pred")) for name in report.random)
        c4 = detector.backbone(pictures)
        maps.append((c4, *detector.roi_heads.box.feature_extractor.projections(c4)))
    for wanted, found in zip(*maps, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert report.unused == ("pred_w",)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"res2_0_branch2a_bn_riv": np.ones(16, np.float32)}, "'res2_0_branch2a_bn_riv', which is neither"),
        ({"res2_0_branch2a_w": np.array([np.nan])}, "'res2_0_branch2a_w' holds no finite numbers"),
        ({"conv1_w": 1.0}, "is no residual network of Caffe2"),
        ({"conv1_w": Path()}, "wants to"),
    ],
)
def test_other_pickles_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = tmp_path / "X-152.pkl"
    content = as_caffe2(whole_picture_network())
    path.write_bytes(pickle.dumps({"blobs": content["blobs"] | changes}, protocol=2))
    with pytest.raises(UserError, match=words):
        load_what_fits(Detector(SMALL), path, THEIRS)


def test_a_network_for_red_green_blue_takes_our_pictures(tmp_path: Path) -> None:
    path = tmp_path / "resnext.pth"
    weight = torch.randn(16, 3, 7, 7, generator=generator(4))
    torch.save(whole_picture_network() | {"conv1.weight": weight}, path)
    detector = Detector(SMALL)
    load_what_fits(detector, path, THEIRS, colours="rgb")
    picture = small_images("a")[0].convert("RGB")
    ours = network_input(picture, replace(SMALL, min_size=64, max_size=64))[None]
    mean, deviation = (torch.tensor(three)[:, None, None] for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    back = (ours.flip(1) + torch.tensor([123.675, 116.28, 103.53])[:, None, None]) / 255  # red, green, blue, 0 to 1
    theirs = nn.functional.conv2d((back - mean) / deviation, weight, stride=2, padding=3)
    torch.testing.assert_close(detector.backbone.body.stem.conv1(ours), theirs, rtol=1e-4, atol=1e-3)


def test_what_nothing_can_start_from_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pth"
    torch.save({"encoder.weight": torch.ones(3)}, path)
    with pytest.raises(UserError, match="no tensor that fits"):
        load_what_fits(Detector(SMALL), path, THEIRS)
    with pytest.raises(UserError, match=r"missing\.pth"):
        load_what_fits(Detector(SMALL), tmp_path / "missing.pth", THEIRS)
    with pytest.raises(UserError, match="init_colours='grey'"):
        load_what_fits(Detector(SMALL), SMALL_WEIGHTS, THEIRS, colours="grey")


def test_the_first_stages_stay_as_they_are() -> None:
    detector = Detector(SMALL)
    freeze_stages(detector, 2)
    frozen = {name.split(".")[2] for name, tensor in detector.named_parameters() if not tensor.requires_grad}
    assert frozen == {"stem", "layer1"}
    with pytest.raises(UserError, match="frozen_stages=5"):
        freeze_stages(detector, 5)


def overfitted() -> tuple[Detector, list[float], Objects, Tensor]:
    """A detector that has seen nothing but one picture with two things in it, and its losses."""
    architecture = Architecture(
        blocks=(1, 1, 1, 1), stem_channels=8, first_stage_channels=16, groups=1, width_per_group=8,
        anchor_sizes=(24, 40), anchor_ratios=(1.0,), num_classes=3, num_attributes=4,
        class_embedding_size=4, attribute_hidden_size=16,
    )  # fmt: skip
    config = DetectorConfig(
        architecture, min_size=64, max_size=96, rpn_candidates=100, rpn_proposals=20, min_boxes=0, score_threshold=0.5
    )
    picture = torch.full((64, 96, 3), 220, dtype=torch.uint8)
    picture[10:36, 8:34] = torch.tensor([200, 20, 20], dtype=torch.uint8)
    picture[20:52, 50:82] = torch.tensor([20, 20, 200], dtype=torch.uint8)
    objects = Objects(
        torch.tensor([[8.0, 10, 33, 35], [50, 20, 81, 51]]), torch.tensor([1, 2]), torch.tensor([[1, 3], [2, 3]])
    )
    detector = Detector(config)
    initialise(detector, generator(0))
    train_batch_norm(detector)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.02, momentum=0.9)
    plan = TrainingSettings(region_samples=16, region_positive_fraction=0.5, rpn_samples=32, attribute_loss_weight=1.0)
    images = (picture.flip(-1).float() - 110).permute(2, 0, 1)[None]
    draws, losses = generator(1), []
    for _ in range(150):
        loss = sum(detector_losses(detector, images, [(64, 96)], [objects], plan, draws).values(), torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return detector, losses, objects, picture


def test_one_picture_is_learnt_by_heart() -> None:
    detector, losses, objects, picture = overfitted()
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    freeze_batch_norm(detector)
    (found,) = detector.eval().detect_pixels([picture], [(96, 64)])
    assert sorted(found.labels.tolist()) == [1, 2]
    order = found.labels.argsort()
    assert iou(found.boxes[order], objects.boxes).diagonal().min() > 0.75
    named = [set(row[:2].tolist()) for row in found.attribute_labels[order]]
    assert named == [{1, 3}, {2, 3}]


def test_frozen_norm_stays_frozen_in_training() -> None:
    detector = small_detector()
    before = {name: tensor.clone() for name, tensor in detector.named_buffers()}
    detector.train()
    plan = TrainingSettings(region_samples=16)
    objects = Objects(torch.tensor([[40.0, 40, 120, 100]]), torch.tensor([3]), torch.tensor([[5]]))
    images = network_input(small_images("a")[0], SMALL)[None]
    sizes = [(images.shape[2], images.shape[3])]
    sum(detector_losses(detector, images, sizes, [objects], plan, generator(0)).values(), torch.zeros(())).backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.named_buffers())
    assert load_detector(SMALL_WEIGHTS, SMALL)[0].state_dict().keys() == detector.state_dict().keys()
