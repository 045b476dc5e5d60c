"""The recorded detectors: their configurations, weights, images and outputs."""

import zlib
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from tests import golden
from vinvl.detector import Architecture, DetectedRegions, Detector, DetectorConfig
from vinvl.detector.boxes import box_bins
from vinvl.detector.detector import normalised, resized_pixels
from vinvl.extraction.run import store_regions

SMALL_WEIGHTS = golden.whole("detector/small_state_dict.safetensors")
SMALL = DetectorConfig(
    architecture=Architecture(
        blocks=(3, 4, 6, 3),
        stem_channels=16,
        first_stage_channels=32,
        groups=8,
        width_per_group=4,
        num_classes=81,
        num_attributes=41,
        class_embedding_size=32,
        attribute_hidden_size=64,
    ),
    min_size=256,
    max_size=427,
    pad_multiple=32,
    rpn_candidates=1500,
    rpn_proposals=100,
)
IMAGES = {"a": 1, "b": 1, "batch": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "": {},
    "ignore_regression.": {"boxes": "proposals"},
    "ignore_regression_filter2.": {"boxes": "proposals", "nms_filter": 2},
}


@cache
def recorded(name: str) -> dict[str, Tensor]:
    """The tensors of one recording."""
    return golden.tensors(f"detector/{name}")


def recorded_json(name: str) -> Any:
    return golden.facts(f"detector/{name}")


def small_config(case: str, variant: str = "") -> DetectorConfig:
    """The settings of one case of the small network."""
    fewer = {"rpn_candidates": 300, "rpn_proposals": 30} if case == "batch" else {}
    return replace(SMALL, **fewer, **VARIANTS[variant])


def small_images(case: str) -> list[Image.Image]:
    return [Image.open(golden.whole(f"detector/small_{case}_{index}.png")) for index in range(IMAGES[case])]


def small_detector() -> Detector:
    """The small network with its recorded weights, put in by torch alone."""
    detector = Detector(SMALL)
    missing, unexpected = detector.load_state_dict(load_file(SMALL_WEIGHTS), strict=False)
    assert not unexpected and all(name.startswith("attribute.feature_extractor.") for name in missing)
    return detector.eval()


def network_input(image: Image.Image, config: DetectorConfig) -> Tensor:
    """Float32 (3, height, width) of a picture."""
    return normalised(resized_pixels(image, config))


def roi_align(features: Tensor, boxes: list[Tensor], **options: Any) -> Tensor:
    """Pooled features (sum of boxes, C, bins, bins) of maps (B, C, H, W) and the boxes of each."""
    images = torch.tensor([image for image, own in enumerate(boxes) for _ in own], dtype=torch.int64)
    return box_bins(torch.cat(boxes), images, features, **options).pool(features)


def full_state_dict(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """The weights of the recorded ResNeXt-152, each drawn by a generator that its name seeds."""
    seed = recorded_json("full_x152")["recipe_seed"]
    overrides = recorded("full_x152")
    state = {}
    for name, shape in shapes.items():
        known = name.replace("attribute.feature_extractor.", "roi_heads.box.feature_extractor.")
        if known in state:
            state[name] = state[known]
        elif "cell_anchors" not in name:
            generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + (seed << 32)))
            drawn = torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))
            scaled = _scaled(name, drawn) * overrides.get(f"override_scale.{name}", torch.ones(1))
            state[name] = overrides.get(f"override.{name}", scaled)
    return state


def _scaled(name: str, drawn: Tensor) -> Tensor:
    if "bn" in name or "downsample.1" in name:
        if name.endswith("running_var"):
            return torch.exp(0.1 * drawn)
        if name.endswith("weight"):
            return (0.3 if "bn3" in name else 0.02 if "stem" in name else 1.0) * (1 + 0.1 * drawn)
        return 0.1 * drawn
    if name.endswith("bias"):
        return 0.01 * drawn
    if drawn.dim() == 4:
        return drawn * (2 / drawn[0].numel()) ** 0.5
    return drawn if "cls_embedding" in name else drawn / drawn.shape[1] ** 0.5


def assert_regions_as_recorded(regions: DetectedRegions, expected: dict[str, Tensor], prefix: str) -> None:
    """The same classes in the same order, everything within the recordings' tolerances.

    Boxes under a cell wide and high are pooled alike: of those with one class and one score either may come first.
    """
    wanted = {name.removeprefix(prefix): value for name, value in expected.items() if name.startswith(prefix)}
    assert regions.labels.tolist() == wanted["labels"].tolist()
    torch.testing.assert_close(regions.scores, wanted["scores"], rtol=0, atol=1e-4)
    ours = _ordered_as(regions, wanted["boxes_network"])
    torch.testing.assert_close(regions.network_boxes[ours], wanted["boxes_network"], rtol=0, atol=1e-2)
    torch.testing.assert_close(regions.boxes[ours], wanted["boxes_image"], rtol=0, atol=1e-2)
    geometry = torch.from_numpy(store_regions("an id", regions, torch.float32).box_geometry())
    torch.testing.assert_close(geometry[ours], wanted["region_geometry"], rtol=0, atol=1e-4)
    torch.testing.assert_close(regions.features[ours], wanted["box_features"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(regions.attribute_scores[ours], wanted["attr_scores"], rtol=0, atol=1e-4)
    named = wanted["attr_scores"] > 0
    assert regions.attribute_labels[ours][named].tolist() == wanted["attr_labels"][named].tolist()


def _ordered_as(regions: DetectedRegions, boxes: Tensor) -> list[int]:
    """Our order, with those of equal class and score sorted as the recorded boxes are."""
    order: list[int] = []
    for index, box in enumerate(boxes):
        tied = (regions.labels == regions.labels[index]) & ((regions.scores - regions.scores[index]).abs() < 1e-6)
        free = [other for other in tied.nonzero().flatten().tolist() if other not in order]
        order.append(min(free, key=lambda other: float((regions.network_boxes[other] - box).abs().max())))
    return order
