"""What is learnt from single regions: their class, box and attributes."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vinvl.detection.boxes import BOX_HEAD_WEIGHTS, encode
from vinvl.detection.training.matching import BACKGROUND, match
from vinvl.detection.training.sampling import sample
from vinvl.detection.training.settings import TrainingSettings
from vinvl.detection.training.targets import Objects

BOX_BETA = 1.0  # where the published box loss turns from a square into a line


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
        objects: what is to be seen.
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
    loss = functional.smooth_l1_loss(own, regions.deltas, beta=BOX_BETA, reduction="sum")
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
