"""A host that stays ahead of its device finds the same regions, and asks the device for nothing in between."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tests.detector.samples import VARIANTS, small_config, small_detector, small_images
from vinvl.detector import DetectedRegions, Detector, selection
from vinvl.detector import boxes as boxes_module
from vinvl.detector import detector as detector_module
from vinvl.detector.detector import resized_pixels
from vinvl.run.errors import UserError


@pytest.fixture(scope="module")
def detector() -> Detector:
    return small_detector()


def inputs(case: str, detector: Detector) -> tuple[list[Tensor], list[tuple[int, int]]]:
    images = small_images(case)
    return [resized_pixels(image, detector.config) for image in images], [image.size for image in images]


def assert_the_same(
    found: list[DetectedRegions] | None, expected: list[DetectedRegions], tolerance: float = 0.0
) -> None:
    """Bit for bit, or but for the last digits and the order of those that differ in no other."""
    assert found is not None and len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        nearest = (ours.boxes[:, None] - theirs.boxes).abs().amax(dim=2).argmin(dim=0)
        assert sorted(nearest.tolist()) == list(range(len(ours))) and len(ours) == len(theirs)
        for name, value in vars(theirs).items():
            own = getattr(ours, name)
            if isinstance(value, Tensor):
                own = own[nearest] if tolerance else own
                torch.testing.assert_close(own, value, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)
            else:
                assert own == value, name


@pytest.mark.parametrize("most", [30, 60])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_regions_are_the_same(detector: Detector, monkeypatch: pytest.MonkeyPatch, variant: str, most: int) -> None:
    """Also where suppression leaves fewer proposals than there may be."""
    config, fewest = small_config("batch", variant), 50 if "filter2" in variant else 10
    detector.config = replace(config, rpn_candidates=2 * most, rpn_proposals=most, min_boxes=fewest, max_boxes=50)
    given, propose, proposed = inputs("batch", detector), detector.propose, []
    monkeypatch.setattr(detector, "propose", lambda *rest: proposed.append(propose(*rest)) or proposed[-1])
    first, found = detector.detect_ahead(*given, every_class=True)
    assert first is None and bool((proposed[0].counts < most).any()) == (most == 60)
    # Convolutions of 50 regions and of 60 differ in their last bits.
    assert_the_same(found, detector.detect_pixels(*given, every_class=True), tolerance=1e-3 if most == 60 else 0)
    assert len(proposed) == 2


def test_given_boxes_and_the_other_filter_come_at_once(detector: Detector) -> None:
    detector.config = small_config("batch")
    given, boxes = inputs("batch", detector), [[[3, 4, 30, 40]], [[0, 0, 9, 9], [1, 2, 30, 40], [5, 5, 5, 5]]]
    (found,) = detector.detect_ahead(*given, boxes)
    assert_the_same(found, detector.detect_pixels(*given, boxes))
    detector.config = replace(detector.config, nms_filter=0)
    (found,) = detector.detect_ahead(*given)
    assert_the_same(found, detector.detect_pixels(*given))


@pytest.mark.parametrize("short", ["ROUNDS", "SHORTLIST"])
def test_what_did_not_suffice_is_done_again(detector: Detector, monkeypatch: pytest.MonkeyPatch, short: str) -> None:
    """Too few rounds of suppression; too few scores to choose from."""
    detector.config = small_config("batch")
    given = inputs("batch", detector)
    expected, again = detector.detect_pixels(*given), []
    monkeypatch.setattr(boxes_module if short == "ROUNDS" else selection, short, 1)
    forward = Detector.forward
    monkeypatch.setattr(Detector, "forward", lambda *rest, **more: again.append(1) or forward(*rest, **more))
    _, found = detector.detect_ahead(*given)
    assert again == [1]
    assert_the_same(found, expected)


def test_boxes_of_nan_are_told(detector: Detector) -> None:
    broken = small_detector()
    broken.config = small_config("a")
    torch.nn.init.constant_(broken.roi_heads.box.predictor.bbox_pred.bias, float("nan"))
    steps = broken.detect_ahead(*inputs("a", broken))
    assert next(steps) is None
    with pytest.raises(UserError, match="NaN or infinite"):
        next(steps)


class ToldNumbers:
    """Instead of `HostCopy`: what the device would say."""

    def __init__(self, _: Tensor) -> None:
        pass

    def read(self) -> Any:
        return SimpleNamespace(tolist=lambda: [3, 0])


@pytest.mark.parametrize("variant", ["", "ignore_regression_filter2."])
def test_the_host_asks_for_nothing(monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    """Tensors without contents raise where a number is read or a shape follows from contents."""
    monkeypatch.setattr(detector_module, "HostCopy", ToldNumbers)
    monkeypatch.setattr(boxes_module, "ROUNDS", 2)
    with FakeTensorMode():
        detector = Detector(small_config("batch", variant)).eval()
        given = [torch.zeros(64, 96, 3, dtype=torch.uint8)] * 2, [(192, 128)] * 2
        with pytest.raises(DataDependentOutputException):
            detector.detect_pixels(*given)
        first, found = detector.detect_ahead(*given, every_class=True)
        assert first is None and found is not None
        assert [one.features.shape for one in found] == [(3, 256), (0, 256)]
        boxes = [torch.ones(2, 4)] * 2
        with torch.no_grad():
            (found,) = detector._look(*detector._input(given[0]), given[1], boxes, True, waiting=False)
        assert found is not None and [len(one) for one in found] == [2, 2]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="without a GPU there is nothing to wait for")
def test_the_host_does_not_wait_for_a_gpu() -> None:
    """As CUDA itself tells it; the other test does not see copies of numbers to the device."""
    detector = small_detector().cuda()
    detector.config = small_config("batch")
    pixels, sizes = inputs("batch", detector)
    given = [one.pin_memory() for one in pixels], sizes
    expected = list(detector.detect_ahead(*given))[1]
    try:
        torch.cuda.set_sync_debug_mode("error")
        steps = [detector.detect_ahead(*given) for _ in range(2)]
        assert [next(one) for one in steps] == [None, None]
        found = [next(one) for one in steps]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for one in found:
        assert_the_same(one, expected or [])
