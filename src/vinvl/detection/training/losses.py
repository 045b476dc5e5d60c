"""A batch of pictures with their objects → the losses that train the detector."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vinvl.detection.detector import Detector
from vinvl.detection.precision import full_precision
from vinvl.detection.training.region_losses import (
    SampledRegions,
    attribute_loss,
    box_loss,
    class_loss,
    joined,
    sample_regions,
)
from vinvl.detection.training.rpn_losses import rpn_losses
from vinvl.detection.training.settings import TrainingSettings
from vinvl.detection.training.targets import Objects


@dataclass(frozen=True)
class DetectorLosses:
    """Scalars, float32; their sum is what is minimised."""

    objectness: Tensor
    rpn_box: Tensor
    classes: Tensor
    box: Tensor
    attributes: Tensor  # with its weight

    def by_name(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def total(self) -> Tensor:
        return self.objectness + self.rpn_box + self.classes + self.box + self.attributes


def detector_losses(
    detector: Detector,
    images: Tensor,
    sizes: list[tuple[int, int]],
    targets: list[Objects],
    settings: TrainingSettings,
    generator: torch.Generator,
) -> DetectorLosses:
    """The losses of a batch.

    All sampled regions go through the C5 head as one batch: its statistics, where batch norm is trained, are theirs.

    Args:
        detector: `detector.config` says how proposals are suppressed, the settings how many there are.
        images: (B, 3, H, W) float32, from `pad_batch`.
        sizes: (height, width) of each image without the padding.
        targets: the objects of each image; on the device of the images.
        settings: see there.
        generator: on the same device; all that is random comes from it.
    """
    c4 = detector.backbone(images.contiguous(memory_format=torch.channels_last))
    logits, deltas = detector.rpn(c4)
    anchors = detector.rpn.anchors(c4)
    objectness, rpn_box = rpn_losses(logits, deltas, anchors, sizes, targets, settings, generator)
    regions = _sampled(detector, logits.detach(), deltas.detach(), anchors, sizes, targets, settings, generator)
    extractor = detector.roi_heads.box.feature_extractor
    vectors = extractor.in_one_pass(c4, [of_image.boxes for of_image in regions]).float()
    everything = joined(regions)
    found = everything.positives
    with full_precision(vectors):
        predictor = detector.roi_heads.box.predictor
        classes = class_loss(predictor.class_logits(vectors), everything)
        box = box_loss(predictor.box_deltas(vectors), everything)
        attribute_logits = detector.attribute.predictor(vectors[found], everything.labels[found])
        attributes = settings.attribute_loss_weight * attribute_loss(attribute_logits, everything.attributes)
    return DetectorLosses(objectness, rpn_box, classes, box, attributes)


@torch.no_grad()
def _sampled(
    detector: Detector,
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    sizes: list[tuple[int, int]],
    targets: list[Objects],
    settings: TrainingSettings,
    generator: torch.Generator,
) -> list[SampledRegions]:
    """Of each image the regions that are learnt from; no gradient reaches the RPN through their boxes."""
    config = replace(detector.config, rpn_candidates=settings.rpn_candidates, rpn_proposals=settings.rpn_proposals)
    return [
        sample_regions(
            detector.rpn.propose(logits[image], deltas[image], anchors, sizes[image], config).boxes,
            objects,
            settings,
            generator,
        )
        for image, objects in enumerate(targets)
    ]
