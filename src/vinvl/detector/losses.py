"""A batch of pictures with their objects → the losses that train the detector."""

from dataclasses import replace
from typing import NamedTuple

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
from vinvl.detector.config import ONCE, TrainingSettings
from vinvl.detector.detector import Detector, ImageSize

BOX_BETA, REGION_BOX_BETA = 1 / 9, 1.0  # where the published box losses turn from a square into a line


class Objects(NamedTuple):
    """The annotated objects of one picture, n of them; none is possible.

    Boxes count their last pixel in, as the box coder and the clipping do: an object 10 pixels wide at the left border
    has x1 = 0, x2 = 9.
    """

    boxes: Tensor  # (n, 4) float32 x1 y1 x2 y2, pixels of the network's input, with x1 < x2 and y1 < y2
    labels: Tensor  # (n,) int64, class from 1
    attributes: Tensor  # (n, K) int64, attributes from 1; 0 fills up the rows of objects with fewer


def rpn_losses(
    logits: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    sizes: list[ImageSize],
    targets: list[Objects],
    settings: TrainingSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Losses of objectness and of boxes, scalars, both divided by the number of anchors learnt from.

    Args:
        logits, deltas, anchors: (B, N), (B, N, 4) and (N, 4), of `RPN`.
        sizes: (height, width) of each image without the padding.
        settings: the rpn_ settings and straddle are read.
    """
    objectness, box, learnt_from = logits.new_zeros(()), logits.new_zeros(()), 0
    thresholds = {"foreground": settings.rpn_foreground_iou, "background": settings.rpn_background_iou}
    number, fraction = settings.rpn_samples, settings.rpn_positive_fraction
    for image, objects in enumerate(targets):
        matched = match(anchors, objects.boxes, **thresholds, best_of_each=True)
        visible = inside(anchors, sizes[image], settings.straddle)
        showing = (matched >= 0) & visible
        positives, negatives = sample(showing, (matched == BACKGROUND) & visible, number, fraction, generator)
        drawn = torch.cat([positives, negatives])
        truth = (matched[drawn] >= 0).float()
        logit = logits[image, drawn]
        objectness = objectness + functional.binary_cross_entropy_with_logits(logit, truth, reduction="sum")
        wanted = encode(objects.boxes[matched[positives]], anchors[positives], RPN_WEIGHTS)
        box = box + functional.smooth_l1_loss(deltas[image, positives], wanted, beta=BOX_BETA, reduction="sum")
        learnt_from += len(drawn)
    return objectness / max(1, learnt_from), box / max(1, learnt_from)


class SampledRegions(NamedTuple):
    """Regions of one or more images that are learnt from: n in all, p of them, those with a label, show objects."""

    boxes: Tensor  # (n, 4) pixels of the network's input
    labels: Tensor  # (n,) int64, 0 background
    deltas: Tensor  # (p, 4): what moves those that show objects onto them
    attributes: Tensor  # (p, K) int64, of their objects, 0 fills up

    @property
    def positives(self) -> Tensor:
        """(p,) int64: which of the n show objects."""
        return self.labels.nonzero().squeeze(1)


def sample_regions(
    proposals: Tensor, objects: Objects, settings: TrainingSettings, generator: torch.Generator
) -> SampledRegions:
    """Regions of one image, drawn from the RPN's proposals (P, 4) and the objects' own boxes.

    settings: foreground_iou, region_samples and region_positive_fraction are read.
    """
    candidates = torch.cat([proposals, objects.boxes])
    threshold, number, fraction = settings.foreground_iou, settings.region_samples, settings.region_positive_fraction
    matched = match(candidates, objects.boxes, foreground=threshold, background=threshold)
    positives, negatives = sample(matched >= 0, matched == BACKGROUND, number, fraction, generator)
    found = matched[positives]
    return SampledRegions(
        boxes=candidates[torch.cat([positives, negatives])],
        labels=torch.cat([objects.labels[found], torch.zeros_like(negatives)]),
        deltas=encode(objects.boxes[found], candidates[positives], BOX_HEAD_WEIGHTS),
        attributes=objects.attributes[found],
    )


def joined(regions: list[SampledRegions]) -> SampledRegions:
    """The regions of several images as one; each has room for as many attributes."""
    return SampledRegions(*(torch.cat(parts) for parts in zip(*regions, strict=True)))


def region_losses(logits: Tensor, deltas: Tensor, regions: SampledRegions) -> tuple[Tensor, Tensor]:
    """Cross entropy of the classes, and smooth L1 of the positives' boxes for their true class, per region; scalars.

    Args:
        logits: (n, C), background first.
        deltas: (n, C, 4), for every class.
    """
    own = deltas[regions.positives, regions.labels[regions.positives]]
    classes = functional.cross_entropy(logits, regions.labels, reduction="sum")
    boxes = functional.smooth_l1_loss(own, regions.deltas, beta=REGION_BOX_BETA, reduction="sum")
    return classes / max(1, len(regions.labels)), boxes / max(1, len(regions.labels))


def attribute_targets(attributes: Tensor, number: int, repeated: str) -> Tensor:
    """What the attributes' softmax is to say of each region, float32 (p, number): its attributes, all equally likely.

    Args:
        attributes: (p, K) int64, 0 for none, which is never a target.
        repeated: of an attribute that an object lists twice; see `TrainingSettings.repeated_attributes`.
    """
    named = torch.zeros(len(attributes), number, device=attributes.device).scatter_(1, attributes, 1.0)
    named[:, 0] = 0
    counts = named.sum(dim=1) if repeated == ONCE else (attributes > 0).sum(dim=1)
    return named / counts.clamp(min=1)[:, None]


def attribute_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Softmax cross entropy against `attribute_targets`; the mean over p regions.

    As published, a region without attributes adds nothing, but counts in the mean.

    Args:
        logits, targets: (p, A), "no attribute" first.
    """
    return -(targets * logits.log_softmax(dim=1)).sum() / max(1, len(logits))


def detector_losses(
    detector: Detector,
    images: Tensor,
    sizes: list[ImageSize],
    targets: list[Objects],
    settings: TrainingSettings,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The losses of a batch by name: scalars, float32, with their weights; their sum, in turn, is what is minimised.

    All sampled regions go through the C5 head as one batch: its statistics, where batch norm is trained, are theirs.

    Args:
        detector: `detector.config` says how proposals are suppressed, the settings how many there are.
        images: (B, 3, H, W) float32, from `pad_batch`.
        sizes: (height, width) of each image without the padding.
        targets, generator: on the device of the images; all that is random comes from the generator.
    """
    c4 = detector.backbone(images.contiguous(memory_format=torch.channels_last))
    logits, deltas, anchors = detector.rpn(c4)
    objectness, rpn_box = rpn_losses(logits, deltas, anchors, sizes, targets, settings, generator)
    config = replace(detector.config, rpn_candidates=settings.rpn_candidates, rpn_proposals=settings.rpn_proposals)
    parts = []
    with torch.no_grad():  # no gradient reaches the RPN through the boxes of regions
        proposed = detector.rpn.propose(logits, deltas, anchors, sizes, config).boxes
        for proposals, objects in zip(proposed, targets, strict=True):
            parts.append(sample_regions(proposals, objects, settings, generator))
    regions = joined(parts)
    vectors = detector.roi_heads.box.feature_extractor(c4, [part.boxes for part in parts]).float()
    predictor, found = detector.roi_heads.box.predictor, regions.positives
    with full_precision(vectors):
        classes, box = region_losses(predictor.class_logits(vectors), predictor.box_deltas(vectors), regions)
        losses = {"objectness": objectness, "rpn_box": rpn_box, "classes": classes, "box": box}
        if detector.attribute is not None:
            described = detector.attribute.predictor(vectors[found], regions.labels[found])
            wanted = attribute_targets(regions.attributes, described.shape[1], settings.repeated_attributes)
            losses["attributes"] = settings.attribute_loss_weight * attribute_loss(described, wanted)
    return losses
