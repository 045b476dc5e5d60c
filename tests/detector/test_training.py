"""What a step of training depends on: the batches that its pictures come in, and the precision of its networks."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vinvl.detector import Architecture, Detector, DetectorConfig
from vinvl.detector.config import TrainingSettings
from vinvl.detector.losses import Objects, detector_losses
from vinvl.detector.starting import initialise

CONFIG = DetectorConfig(
    Architecture(
        blocks=(1, 1, 1, 1), stem_channels=8, first_stage_channels=16, groups=2, width_per_group=4,
        anchor_sizes=(16, 32), anchor_ratios=(1.0,), num_classes=5, num_attributes=7,
        class_embedding_size=4, attribute_hidden_size=8,
    ),
    rpn_nms_threshold=1.0,
)  # fmt: skip
# Nothing is left to chance, and every picture has as many samples: all anchors, and all of as many proposals.
FULL = TrainingSettings(
    straddle=-1, rpn_foreground_iou=0.5, rpn_background_iou=0.5, rpn_samples=1000, rpn_positive_fraction=1.0,
    rpn_candidates=20, rpn_proposals=20, foreground_iou=0.1, region_samples=100, region_positive_fraction=1.0,
    attribute_loss_weight=1.0,
)  # fmt: skip
SIZE = (64, 96)
TARGETS = [
    Objects(
        torch.tensor([[4.0, 4, 35, 35], [40, 8, 71, 50]]), torch.tensor([1, 2]), torch.tensor([[1, 3], [2, 0]])
    ),
    Objects(torch.tensor([[50.0, 20, 90, 60], [0, 0, 6, 6]]), torch.tensor([4, 3]), torch.tensor([[5, 0], [0, 0]])),
]  # fmt: skip


def tiny_detector() -> Detector:
    detector = Detector(CONFIG)
    initialise(detector, torch.Generator().manual_seed(0))
    for name, buffer in detector.named_buffers():  # constants under which a random network keeps its signal
        if name.endswith("running_var"):
            buffer.fill_(0.3)
    return detector


def losses_and_gradients(
    detector: Detector, pictures: Tensor, targets: list[Objects], settings: TrainingSettings
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draws = torch.Generator().manual_seed(1)
    losses = detector_losses(detector, pictures, [SIZE] * len(targets), targets, settings, draws)
    detector.zero_grad()
    sum(losses.values(), torch.zeros(())).backward()
    gradients = {name: one.grad.clone() for name, one in detector.named_parameters() if one.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3)) * 50


def test_batches_accumulated_are_one_large_batch_but_for_the_attributes(pictures: Tensor) -> None:
    """As on several devices: losses are means over the anchors and regions of a batch, of which each picture has as
    many; those of attributes are over the regions that show objects, of which some pictures have more.
    """
    detector = tiny_detector()
    whole, _ = losses_and_gradients(detector, pictures, TARGETS, FULL)
    parts = [losses_and_gradients(detector, pictures[n : n + 1], TARGETS[n : n + 1], FULL)[0] for n in (0, 1)]
    for name in ("objectness", "rpn_box", "classes", "box"):
        assert float(whole[name]) > 0
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, whole[name], rtol=1e-5, atol=0)
    mean = (parts[0]["attributes"] + parts[1]["attributes"]) / 2
    assert abs(float(mean / whole["attributes"]) - 1) > 0.01
    settings = replace(FULL, attribute_loss_weight=0.0)
    _, wanted = losses_and_gradients(detector, pictures, TARGETS, settings)
    halves = [losses_and_gradients(detector, pictures[n : n + 1], TARGETS[n : n + 1], settings)[1] for n in (0, 1)]
    for name, gradient in wanted.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, gradient, rtol=1e-3, atol=1e-4 * scale)


def test_half_precision_gives_nearly_the_same_losses(pictures: Tensor) -> None:
    detector = tiny_detector()
    wanted, gradients = losses_and_gradients(detector, pictures, TARGETS, FULL)
    with torch.autocast("cpu", torch.bfloat16):
        found, in_half = losses_and_gradients(detector, pictures, TARGETS, FULL)
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, wanted[name], rtol=0.03, atol=1e-3)
    assert any(not torch.equal(found[name], wanted[name]) for name in found)  # it was in half precision
    for name in ("backbone.body.layer3.0.conv1.weight", "roi_heads.box.predictor.cls_score.weight"):
        likeness = torch.cosine_similarity(in_half[name].flatten(), gradients[name].flatten(), dim=0)
        assert float(likeness) > 0.98
