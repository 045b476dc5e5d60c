"""What the region proposal network is trained with."""

import torch
from torch import Tensor
from torch.nn import functional

from vinvl.detection.boxes import RPN_WEIGHTS, encode
from vinvl.detection.training.matching import BACKGROUND, inside, match
from vinvl.detection.training.sampling import sample
from vinvl.detection.training.settings import TrainingSettings
from vinvl.detection.training.targets import Objects

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
