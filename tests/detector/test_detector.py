"""The whole detector against recordings of the published one: a small network, and the real architecture."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests import golden
from tests.detector.samples import (
    IMAGES,
    VARIANTS,
    assert_regions_as_recorded,
    full_state_dict,
    network_input,
    recorded,
    recorded_json,
    roi_align,
    small_config,
    small_detector,
    small_images,
)
from vinvl.detector import Detector, DetectorConfig
from vinvl.detector.detector import pad_batch
from vinvl.detector.networks import RegionFeatures


@pytest.fixture(scope="module")
def detector() -> Detector:
    return small_detector()


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("case", IMAGES)
def test_regions_as_recorded(detector: Detector, case: str, variant: str) -> None:
    detector.config = small_config(case, variant)
    found = detector.detect(small_images(case))
    assert len(found) == IMAGES[case]
    for index, regions in enumerate(found):
        assert_regions_as_recorded(regions, recorded(f"small_{case}"), f"{variant}out{index}.")
        assert regions.features.shape == (len(regions), 256)


@pytest.mark.parametrize("case", IMAGES)
def test_every_stage_as_recorded(detector: Detector, case: str) -> None:
    detector.config = config = small_config(case)
    expected = recorded(f"small_{case}")
    images = small_images(case)
    batch, sizes = pad_batch([network_input(image, config) for image in images], config.pad_multiple)
    assert [list(size) for size in sizes] == expected["image_sizes_hw"].tolist()
    assert [list(image.size) for image in images] == expected["original_sizes_wh"].tolist()
    numbers = range(len(sizes))
    with torch.no_grad():
        c4 = detector.backbone(batch)
        logits, deltas = detector.rpn.head(c4)
        assert_proposals(detector, c4, sizes, expected)
        given = [expected[f"rpn{index}.proposals"] for index in numbers]
        vectors = detector.roi_heads.box.feature_extractor(c4, given, 7)
        predictor = detector.roi_heads.box.predictor
        class_logits, box_deltas = predictor.class_logits(vectors), predictor.box_deltas(vectors)
        boxes, labels = ([expected[f"out{index}.{name}"] for index in numbers] for name in ("boxes_network", "labels"))
        described = detector.attribute.feature_extractor(c4, boxes, 100)
        attribute_logits = detector.attribute.predictor(described, torch.cat(labels))
    if case != "batch":  # of which the published run kept less
        close(c4, expected["c4"])
        close(logits, expected["rpn_logits"])
        close(deltas, expected["rpn_deltas"])
        close(box_deltas.flatten(1), expected["box_deltas"])
    close(class_logits, expected["class_logits"])
    close(attribute_logits, expected["attr_logits"])


def assert_proposals(
    detector: Detector, c4: Tensor, sizes: list[tuple[int, int]], expected: Mapping[str, Tensor]
) -> None:
    """The same set of boxes, each with its objectness."""
    proposed = detector.propose(c4, sizes)
    for index, (boxes, objectness) in enumerate(zip(proposed.boxes, proposed.objectness, strict=True)):
        theirs = expected[f"rpn{index}.proposals"]
        distance = (boxes[:, None] - theirs).abs().amax(dim=-1)
        assert boxes.shape == theirs.shape
        assert distance.min(dim=0).values.max() < 1e-2 and distance.min(dim=1).values.max() < 1e-2
        close(objectness, expected[f"rpn{index}.objectness"])  # in falling order


def test_the_published_architecture_end_to_end() -> None:
    """ResNeXt-152 32×8d C4 with recorded weights, 60 proposals."""
    facts, expected = recorded_json("full_x152"), recorded("full_x152")
    config = DetectorConfig(
        min_size=facts["min_size"],
        max_size=facts["max_size"],
        pad_multiple=32,
        rpn_proposals=facts["rpn_post_nms_top_n"],
    )
    with torch.device("meta"):
        detector = Detector(config).eval()
    wanted = detector.state_dict()
    state = full_state_dict({name: tensor.shape for name, tensor in wanted.items()})
    for name, values in facts["recipe_first_values"].items():
        assert state[name].flatten()[:4].tolist() == pytest.approx(values)
    detector.load_state_dict(state | {name: wanted[name] for name in wanted.keys() - state.keys()}, assign=True)
    seen: list[tuple[Tensor, Tensor]] = []
    detector.backbone.register_forward_hook(lambda _, given, c4: seen.append((given[0], c4)))
    with Image.open(golden.whole("detector/full_x152.png")) as image:
        assert list(image.size) == facts["image_wh"]
        regions = detector.detect([image])[0]
        _, sizes = pad_batch([network_input(image, config)], config.pad_multiple)
    ((batch, c4),) = seen
    assert list(batch.shape) == facts["network_input"] and list(sizes[0]) == facts["resized_hw"]
    assert_regions_as_recorded(regions, expected, "out0.")
    assert regions.features.shape == (facts["detections"], 2048)
    with torch.no_grad():
        close(c4[0].mean(dim=(1, 2)), expected["c4.mean_per_channel"])
        close(c4[0, :64, :4, :4], expected["c4.crop_4x4_ch0_63"])
        assert_proposals(detector, c4, sizes, expected)
        vectors = detector.roi_heads.box.feature_extractor(c4, [expected["rpn0.proposals"][:20]], 20)
        close(detector.roi_heads.box.predictor.class_logits(vectors), expected["class_logits_first20"])


def test_all_tensors_of_the_published_model_have_a_place() -> None:
    contract = recorded_json("x152c4_state_dict_contract")
    with torch.device("meta"):
        detector = Detector(DetectorConfig())
    ours = [
        [name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for name, tensor in detector.state_dict().items()
    ]
    assert len(ours) == 841
    assert ours == contract["state_dict"]
    assert sum(parameter.numel() for parameter in detector.parameters()) == contract["parameters"]


def test_bfloat16_finds_nearly_the_same_and_answers_in_float32(detector: Detector) -> None:
    detector.config = small_config("a", "ignore_regression_filter2.")
    exact = detector.detect(small_images("a"))[0]
    with torch.autocast("cpu", torch.bfloat16):
        regions = detector.detect(small_images("a"))[0]
        logits, _ = detector.rpn.head(torch.randn(1, 128, 4, 4).bfloat16())
    assert not torch.equal(logits, logits.bfloat16().float())  # ranked in finer steps than bfloat16 has
    for field in ("boxes", "network_boxes", "scores", "features", "attribute_scores"):
        assert getattr(regions, field).dtype == torch.float32
    # The best regions are of the same things: each has one in full precision with its class, nearby.
    found = 0
    for box, label in zip(regions.network_boxes[:20], regions.labels[:20], strict=True):
        near = (exact.network_boxes - box).abs().amax(dim=1) < 8
        found += bool((near & (exact.labels == label)).any())
    assert found >= 15
    assert not torch.equal(regions.scores[:10], exact.scores[:10])


def test_an_image_alone_and_in_a_batch_of_its_size(detector: Detector) -> None:
    detector.config = replace(small_config("a"), pad_multiple=1)
    image = small_images("a")[0]
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    alone, together = detector.detect([image])[0], detector.detect([mirrored, image])[1]
    assert alone.labels.tolist() == together.labels.tolist()
    close(together.features, alone.features)


def test_boxes_per_pass_bounds_memory_only(detector: Detector) -> None:
    detector.config = small_config("a")
    whole = detector.detect(small_images("a"))[0]
    detector.config = replace(detector.config, boxes_per_pass=9)
    parts = detector.detect(small_images("a"))[0]
    assert whole.labels.tolist() == parts.labels.tolist()
    close(parts.features, whole.features)


def test_attributes_of_proposals_cost_no_second_look(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, look = [], RegionFeatures.of_boxes

    def counted(self: RegionFeatures, *arguments: Any) -> torch.Tensor:
        calls.append(1)
        return look(self, *arguments)

    monkeypatch.setattr(RegionFeatures, "of_boxes", counted)
    for variant, expected in (("", 2), ("ignore_regression.", 1)):
        calls.clear()
        detector.config = small_config("a", variant)
        detector.detect(small_images("a"))
        assert len(calls) == expected


def test_convolving_first_and_pooling_first_are_the_same(detector: Detector) -> None:
    """Also where a box lies partly or wholly outside of the map, and its samples there count as nothing."""
    features = detector.roi_heads.box.feature_extractor
    c4 = torch.randn(2, 128, 9, 13, generator=torch.Generator().manual_seed(0))
    boxes = [
        torch.tensor([[0.0, 0, 207, 143], [30, 20, 31, 60], [-100, -50, 60, 90]]),
        torch.tensor([[150.0, 100, 400, 300], [500, 500, 600, 600]]),
    ]
    torch.testing.assert_close(
        features(c4, boxes, 2), features.head.layer4(roi_align(c4, boxes)).mean(dim=(2, 3)), rtol=1e-4, atol=1e-4
    )


def test_an_image_of_one_pixel_has_regions(detector: Detector) -> None:
    detector.config = small_config("a")
    regions = detector.detect([Image.new("L", (1, 1))])[0]
    assert len(regions) >= 1 and bool(regions.boxes.isfinite().all()) and bool(regions.features.isfinite().all())
