"""Which regions are kept as what, against recordings of the published code; and boxes that are given."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests import golden
from tests.detector.samples import small_config, small_detector, small_images
from vinvl.detector import Architecture, Detector, DetectorConfig
from vinvl.detector.detector import checked_boxes
from vinvl.detector.selection import Selection, select_regions
from vinvl.run.errors import UserError

FACTS = golden.facts("detector_training/cases")
RECORDED = golden.tensors("detector_training/post_processing")
SETTINGS = {  # what we call the published options
    "MODEL.ROI_HEADS.NMS_FILTER": "nms_filter",
    "MODEL.ROI_HEADS.SCORE_THRESH": "score_threshold",
    "MODEL.ROI_HEADS.MIN_DETECTIONS_PER_IMG": "min_boxes",
    "MODEL.ROI_HEADS.DETECTIONS_PER_IMG": "max_boxes",
    "TEST.IGNORE_BOX_REGRESSION": "boxes",
    "MODEL.ROI_BOX_HEAD.FORCE_BOXES": "given",
}
TINY = Architecture(
    blocks=(1, 1, 1, 1), stem_channels=4, first_stage_channels=4, groups=1, width_per_group=2, num_classes=12
)


class RecordedPredictor(nn.Module):
    """Says of the proposals what was recorded."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def class_logits(self, vectors: Tensor) -> Tensor:
        return self.logits[: len(vectors)]

    def box_deltas(self, vectors: Tensor) -> Tensor:
        return RECORDED["box_deltas"].unflatten(1, (-1, 4))[: len(vectors)]


def classified(name: str) -> tuple[Selection, DetectorConfig, bool]:
    """What ours makes of a case, with which settings, and whether its boxes are given."""
    options = FACTS["cases"][name].get("options", {})
    given_settings = {SETTINGS[option]: options[option] for option in options}
    given = given_settings.pop("given", "force" in name)
    if "boxes" in given_settings:
        given_settings["boxes"] = "proposals" if given_settings["boxes"] else "regressed"
    if given_settings.get("nms_filter") == 2:
        given_settings["boxes"] = "proposals"  # the published code takes the other for given boxes, and ignores it
    config = DetectorConfig(TINY, **given_settings)
    detector = Detector(config)
    weak = RECORDED["class_logits_weak" if name.endswith("weak") else "class_logits"]
    detector.roi_heads.box.predictor = RecordedPredictor(weak)  # type: ignore[assignment]
    proposals = RECORDED["proposals_outside" if name.endswith("outside") else "proposals"]
    proposals = proposals[:0] if name.endswith("empty") else proposals
    width, height = FACTS["image_wh"]
    if given:
        proposals = torch.minimum(proposals.clamp(min=0), torch.tensor([width - 1.0, height - 1] * 2))
    vectors = RECORDED["features"].mean(dim=(2, 3))[: len(proposals)]
    return detector.classify(vectors, [proposals], [(height, width)], given=given)[0], config, given


MALFORMED = "force_boxes_ignore_regression"  # there the published code repeats each box for every class


@pytest.mark.parametrize("name", [name for name in FACTS["cases"] if name != "force_boxes_empty"])
def test_regions_are_kept_as_recorded(name: str) -> None:
    facts, (chosen, config, given) = FACTS["cases"][name], classified(name)
    assert len(chosen.labels) == facts["detections"] and config.architecture.num_classes == FACTS["num_classes"]
    assert config.score_threshold == facts["threshold_after"]  # halving it is for one image
    assert chosen.labels.tolist() == RECORDED[f"{name}.labels"].tolist()
    every_box = chosen.class_boxes[chosen.proposals]
    if not given:
        every_box = every_box.expand(-1, 12, -1)
    ours = {
        "boxes": (chosen.boxes, 1e-2),
        "boxes_all": (every_box, 1e-2),
        "scores": (chosen.scores, 1e-5),
        "scores_all": (chosen.probabilities[chosen.proposals], 1e-5),
        "box_features": (RECORDED["features"].mean(dim=(2, 3))[chosen.proposals], 1e-5),
    }
    for field, (found, tolerance) in ours.items():
        if f"{name}.{field}" in RECORDED:
            expected = RECORDED[f"{name}.{field}"]
            repeated = len(expected) == facts["rows_in_boxes"] == 12 * len(found)
            assert repeated == (name == MALFORMED and "box" in field and field != "box_features")
            found = found.repeat_interleave(12, dim=0) if repeated else found
            torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def test_no_given_box_is_no_region() -> None:
    assert "reshape" in FACTS["cases"]["force_boxes_empty"]["published_code_fails"]
    chosen, _, given = classified("force_boxes_empty")
    assert given and chosen.boxes.shape == (0, 4) and chosen.labels.shape == chosen.scores.shape == (0,)


def test_several_with_the_score_of_the_last_are_all_kept() -> None:
    """Of boxes far from each other: by class, although that of the second scores most."""
    probabilities = torch.tensor([[0.2, 0.3, 0.5], [0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.98, 0.01, 0.01]])
    boxes = torch.arange(4.0)[:, None, None] * 100 + torch.tensor([0.0, 0, 50, 50])
    chosen = select_regions(probabilities, boxes, DetectorConfig(nms_filter=0, max_boxes=2, min_boxes=0))
    assert list(zip(chosen.labels.tolist(), chosen.proposals.tolist(), strict=True)) == [(1, 0), (1, 1), (1, 2), (2, 0)]
    assert chosen.boxes[:, 0].tolist() == [0, 100, 200, 0]


@pytest.mark.parametrize(("score", "found"), [(0.5 / 1024 * 1.01, 1), (0.5 / 1024, 0)])
def test_the_threshold_is_halved_ten_times_at_most(score: float, found: int) -> None:
    config = DetectorConfig(nms_filter=0, score_threshold=0.5, min_boxes=3)
    chosen = select_regions(torch.tensor([[1 - score, score]]), torch.tensor([[[0.0, 0, 9, 9]]]), config)
    assert len(chosen.labels) == found


# Boxes that are given, through the whole network.


@pytest.fixture(scope="module")
def detector() -> Detector:
    return small_detector()


@pytest.mark.parametrize("boxes", ["regressed", "proposals"])
def test_given_boxes_are_the_regions(detector: Detector, boxes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, equal ones too, nothing refined or left out, and the features are those of the boxes."""
    detector.config = small_config("a", "ignore_regression.")
    (picture,) = small_images("a")
    (found,) = detector.detect([picture])
    detector.config = DetectorConfig(**{**vars(detector.config), "boxes": boxes})
    order = torch.tensor([3, 1, 1, 0])
    outside = torch.tensor([[-20.0, -30, 4 * picture.width, 4 * picture.height]])
    monkeypatch.setattr(detector, "propose", None)
    (given,) = detector.detect([picture], [torch.cat([found.boxes[order], outside])], every_class=True)
    assert len(given) == 5 and given.class_boxes is not None and given.class_probabilities is not None
    torch.testing.assert_close(given.boxes[:4], found.boxes[order], rtol=0, atol=1e-3)
    torch.testing.assert_close(given.features[:4], found.features[order], rtol=1e-3, atol=1e-3)
    assert given.boxes[4].tolist() == pytest.approx([0, 0, *picture.size], abs=2)
    best = given.class_probabilities[:, 1:].max(dim=1)
    assert torch.equal(given.labels, best.indices + 1) and torch.equal(given.scores, best.values)
    assert given.class_boxes.shape == (5, 1, 4) and torch.equal(given.class_boxes[:, 0], given.boxes)
    same = given.labels[:4] == found.labels[order]  # else suppression has left a box another class
    assert same.any()
    torch.testing.assert_close(
        given.attribute_scores[:4][same], found.attribute_scores[order][same], rtol=1e-3, atol=1e-3
    )


def test_a_picture_without_boxes_beside_one_with_some(detector: Detector) -> None:
    detector.config = small_config("batch")
    pictures = small_images("batch")
    none, one = detector.detect(pictures, [[], np.array([[1, 2, 30, 40]])])
    assert len(none) == 0 and none.features.shape == (0, 256) and none.attribute_labels.shape == (0, 16)
    assert len(one) == 1 and one.image_size == pictures[1].size
    (nothing,) = detector.detect(pictures[:1], [np.zeros((0, 4))], every_class=True)
    assert len(nothing) == 0 and nothing.class_boxes is not None and nothing.class_boxes.shape == (0, 1, 4)


def test_every_class_of_what_is_found(detector: Detector) -> None:
    detector.config = small_config("batch")
    for found in detector.detect(small_images("batch"), every_class=True):
        assert found.class_boxes is not None and found.class_probabilities is not None
        regions = torch.arange(len(found))
        assert found.class_boxes.shape == (len(found), 81, 4) and len(found) > 5
        torch.testing.assert_close(found.class_boxes[regions, found.labels], found.boxes)
        assert torch.equal(found.class_probabilities[regions, found.labels], found.scores)
        torch.testing.assert_close(found.class_probabilities.sum(dim=1), torch.ones(len(found)))
    assert detector.detect(small_images("batch"))[0].class_boxes is None


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([], "boxes of 0 pictures"),
        ([[1, 2, 3, 4]], "picture 0"),
        ([[[1, 2, 3]]], "picture 0"),
        ([[[1, 2, "a", 4]]], "picture 0"),
        ([[[1, 2, float("nan"), 4]]], "finite"),
        ([[[5, 2, 4, 4]]], "x1, y1, x2, y2"),
    ],
)
def test_what_is_no_box_is_refused(detector: Detector, boxes: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        detector.detect([Image.new("RGB", (40, 30))], boxes)
    assert checked_boxes([[[1, 2, 3, 4]]], 1)[0].dtype == torch.float32
