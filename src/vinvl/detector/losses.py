"""A batch of pictures with their objects → the losses that train the detector."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional

from vinvl.detector.boxes import (
    BACKGROUND,
    BOX_HEAD_WEIGHTS,
    RPN_WEIGHTS,
    encode,
    full_precision,
    inside,
    match,
    sample,
)
from vinvl.detector.config import TrainingSettings
from vinvl.detector.detector import Detector

# What is truly to be seen in a picture.


@dataclass(frozen=True)
class Objects:
    """The annotated objects of one picture, n of them; none is possible.

    Boxes count their last pixel in, as the box coder and the clipping do: an object 10 pixels wide at the left border
    has x1 = 0, x2 = 9.
    """

    boxes: Tensor  # (n, 4) float32 x1 y1 x2 y2, pixels of the network's input, with x1 < x2 and y1 < y2
    labels: Tensor  # (n,) int64, class from 1
    attributes: Tensor  # (n, K) int64, attributes from 1; 0 fills up the rows of objects with fewer

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Objects":
        """The same on a device."""
        return Objects(*(tensor.to(device, non_blocking=non_blocking) for tensor in self._tensors()))

    def pin_memory(self) -> "Objects":
        """The same in page-locked memory."""
        return Objects(*(tensor.pin_memory() for tensor in self._tensors()))

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.boxes, self.labels, self.attributes


# What the region proposal network is trained with.


BOX_BETA = 1 / 9  # where the published box loss turns from a square into a line


def rpn_losses(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    sizes: list[tuple[int, int]],
    targets: list[Objects],
    settings: TrainingSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Losses of objectness and of boxes, scalars, both divided by the number of anchors learnt from.

    Args:
        logits: (B, N), deltas: (B, N, 4), anchors: (N, 4), of `RPN`.
        sizes: (height, width) of each image without the padding.
        targets: the objects of each image.
        settings: the rpn_ settings and straddle are read.
        generator: draws the anchors.
    """
    objectness, box, learnt_from = logits.new_zeros(()), logits.new_zeros(()), 0
    for image, objects in enumerate(targets):
        matched = match(
            anchors,
            objects.boxes,
            foreground=settings.rpn_foreground_iou,
            background=settings.rpn_background_iou,
            best_of_each=True,
        )
        visible = inside(anchors, sizes[image], settings.straddle)
        positives, negatives = sample(
            (matched >= 0) & visible,
            (matched == BACKGROUND) & visible,
            settings.rpn_samples,
            settings.rpn_positive_fraction,
            generator,
        )
        drawn = torch.cat([positives, negatives])
        truth = (matched[drawn] >= 0).float()
        objectness = objectness + functional.binary_cross_entropy_with_logits(
            logits[image, drawn], truth, reduction="sum"
        )
        wanted = encode(objects.boxes[matched[positives]], anchors[positives], RPN_WEIGHTS)
        box = box + functional.smooth_l1_loss(deltas[image, positives], wanted, beta=BOX_BETA, reduction="sum")
        learnt_from += len(drawn)
    return objectness / max(1, learnt_from), box / max(1, learnt_from)


# What is learnt from single regions: their class, box and attributes.


REGION_BOX_BETA = 1.0  # where the published box loss turns from a square into a line


@dataclass(frozen=True)
class SampledRegions:
    """Regions of one or more images that are learnt from: n in all, p of them show objects."""

    boxes: Tensor  # (n, 4) pixels of the network's input
    labels: Tensor  # (n,) int64, 0 background
    positives: Tensor  # (p,) int64: which of the n show objects
    deltas: Tensor  # (p, 4): what moves those onto their objects
    attributes: Tensor  # (p, K) int64, of their objects, 0 fills up


def sample_regions(
    proposals: Tensor, objects: Objects, settings: TrainingSettings, generator: torch.Generator
) -> SampledRegions:
    """Regions of one image; the objects' own boxes are among those that are drawn from.

    Args:
        proposals: (P, 4), of the RPN.
        objects: the annotated ones.
        settings: foreground_iou, region_samples and region_positive_fraction are read.
        generator: draws the regions.
    """
    candidates = torch.cat([proposals, objects.boxes])
    threshold = settings.foreground_iou
    matched = match(candidates, objects.boxes, foreground=threshold, background=threshold)
    positives, negatives = sample(
        matched >= 0, matched == BACKGROUND, settings.region_samples, settings.region_positive_fraction, generator
    )
    found = matched[positives]
    boxes = candidates[torch.cat([positives, negatives])]
    return SampledRegions(
        boxes=boxes,
        labels=torch.cat([objects.labels[found], torch.zeros_like(negatives)]),
        positives=torch.arange(len(positives), device=boxes.device),
        deltas=encode(objects.boxes[found], candidates[positives], BOX_HEAD_WEIGHTS),
        attributes=objects.attributes[found],
    )


def joined(regions: list[SampledRegions]) -> SampledRegions:
    """The regions of several images as one."""
    starts = torch.tensor([0, *(len(part.labels) for part in regions[:-1])]).cumsum(0).tolist()
    most = max(part.attributes.shape[1] for part in regions)
    padded = [functional.pad(part.attributes, (0, most - part.attributes.shape[1])) for part in regions]
    return SampledRegions(
        boxes=torch.cat([part.boxes for part in regions]),
        labels=torch.cat([part.labels for part in regions]),
        positives=torch.cat([part.positives + start for part, start in zip(regions, starts, strict=True)]),
        deltas=torch.cat([part.deltas for part in regions]),
        attributes=torch.cat(padded),
    )


def class_loss(logits: Tensor, regions: SampledRegions) -> Tensor:
    """Cross entropy of the classes, the mean over all regions; a scalar.

    logits: (n, C), background first.
    """
    return functional.cross_entropy(logits, regions.labels, reduction="sum") / max(1, len(regions.labels))


def box_loss(deltas: Tensor, regions: SampledRegions) -> Tensor:
    """Smooth L1 of the boxes for their true class, summed over the p positives, divided by all n regions; a scalar.

    deltas: (n, C, 4), for every class.
    """
    own = deltas[regions.positives, regions.labels[regions.positives]]
    loss = functional.smooth_l1_loss(own, regions.deltas, beta=REGION_BOX_BETA, reduction="sum")
    return loss / max(1, len(regions.labels))


def attribute_loss(logits: Tensor, attributes: Tensor) -> Tensor:
    """Softmax cross entropy against the attributes of each region, all equally likely; the mean over p regions.

    As published, a region without attributes adds nothing, but counts in the mean; "no attribute" is never a target.

    Args:
        logits: (p, A), "no attribute" first.
        attributes: (p, K) int64, 0 for none; one that is named twice counts once.
    """
    targets = torch.zeros_like(logits, dtype=torch.float32).scatter_(1, attributes, 1.0)
    targets[:, 0] = 0
    targets = targets / targets.sum(dim=1, keepdim=True).clamp(min=1)
    return -(targets * logits.log_softmax(dim=1)).sum() / max(1, len(logits))


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
    """The regions of each image that are learnt from; no gradient reaches the RPN through their boxes."""
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
