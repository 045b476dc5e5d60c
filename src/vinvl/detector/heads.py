"""The heads over C4 features: where in the image something may be, and what each region is."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vinvl.detector.backbone import RegionHead
from vinvl.detector.boxes import (
    RPN_WEIGHTS,
    AnchorGenerator,
    box_bins,
    clip,
    decode,
    full_precision,
    nms,
    nms_within_classes,
)
from vinvl.detector.config import Architecture, DetectorConfig
from vinvl.run.errors import UserError


class RPNHead(nn.Module):
    """Objectness and box deltas of every anchor."""

    def __init__(self, channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.cls_logits = nn.Conv2d(channels, num_anchors, kernel_size=1)
        self.bbox_pred = nn.Conv2d(channels, num_anchors * 4, kernel_size=1)

    def forward(self, c4: Tensor) -> tuple[Tensor, Tensor]:
        """C4 features (B, C, H, W) → logits (B, A, H, W) and deltas (B, 4·A, H, W), an anchor's four together; float32.

        Ranking thousands of anchors takes finer steps than half precision has; only the convolution before may use it.
        """
        hidden = functional.relu_(self.conv(c4)).float()
        with full_precision(hidden):
            return self.cls_logits(hidden), self.bbox_pred(hidden)


class RPN(nn.Module):
    """The region proposal network: anchors, the head over them, and the choice of proposals."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.anchor_generator = AnchorGenerator(architecture.anchor_sizes, architecture.anchor_ratios)
        self.head = RPNHead(architecture.c4_channels, architecture.num_anchors)

    def forward(self, c4: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """C4 features (B, C, H, W) → logits (B, H·W·A), deltas (B, H·W·A, 4) and anchors (H·W·A, 4), float32."""
        logits, deltas = self.head(c4)
        batch, _, height, width = logits.shape
        deltas = deltas.view(batch, -1, 4, height, width).permute(0, 3, 4, 1, 2)
        anchors: Tensor = self.anchor_generator(height, width)
        return logits.permute(0, 2, 3, 1).flatten(1), deltas.reshape(batch, -1, 4), anchors

    @staticmethod
    def propose(
        logits: Tensor, deltas: Tensor, anchors: Tensor, image_size: tuple[int, int], config: DetectorConfig
    ) -> tuple[Tensor, Tensor]:
        """What may be something in one image, by descending objectness: boxes (n, 4) in pixels, objectness (n,).

        Args:
            logits, deltas, anchors: (N,), (N, 4) and (N, 4), of the image, from `forward`.
            image_size: (height, width) without the padding; proposals are clipped to it.
            config: the rpn_ settings are read.
        """
        objectness, best = logits.sigmoid().topk(min(config.rpn_candidates, len(logits)))
        boxes = clip(decode(deltas[best], anchors[best], RPN_WEIGHTS), image_size)
        kept = nms(boxes, objectness, config.rpn_nms_threshold, limit=config.rpn_proposals)
        return boxes[kept], objectness[kept]


RegionMaps = tuple[Tensor, Tensor]  # what boxes are read off: see `RegionHead.projections`


class RegionFeatures(nn.Module):
    """Boxes on C4 features → feature vectors; one module that the box and the attribute heads share."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.head = RegionHead(architecture)
        self.size = architecture.c5_channels

    def forward(self, c4: Tensor, boxes: list[Tensor], boxes_per_pass: int | None = None) -> Tensor:
        """(sum of boxes, c5_channels) of maps (B, c4_channels, H, W), images in turn.

        Args:
            boxes: for each image (n, 4) in pixels of the network's input.
            boxes_per_pass: how many are held in memory at once; None for all, which norms that are being trained see as
                one batch.
        """
        return self.of_boxes(self.head.projections(c4), boxes, boxes_per_pass)

    def of_boxes(self, maps: RegionMaps, boxes: list[Tensor], boxes_per_pass: int | None = None) -> Tensor:
        """(sum of boxes, c5_channels), images in turn; arguments as of `forward`.

        Raises:
            UserError: a box is not of numbers.
        """
        if not all(of_image.isfinite().all() for of_image in boxes):
            raise UserError("The detector finds boxes of NaN or infinite size: its weights are damaged or diverged.")
        device = maps[0].device
        counts = torch.tensor([len(of_image) for of_image in boxes], device=device)
        images = torch.arange(len(boxes), device=device).repeat_interleave(counts)
        everything = torch.cat(boxes)
        size = boxes_per_pass or max(1, len(everything))
        passes = zip(everything.split(size), images.split(size), strict=True)
        vectors = [self._of_one_pass(maps, part, of_part) for part, of_part in passes if len(part)]
        return torch.cat(vectors) if vectors else maps[0].new_zeros(0, self.size)

    def _of_one_pass(self, maps: RegionMaps, boxes: Tensor, images: Tensor) -> Tensor:
        """(n, c5_channels) of boxes (n, 4) of the images (n,)."""
        through, around = maps
        bins = box_bins(boxes, images, through)
        return self.head.after_pooling(bins.pool(through), bins.every_second().pool(around))


class BoxPredictor(nn.Module):
    """Class and box of a region from its feature vector."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.cls_score = nn.Linear(architecture.c5_channels, architecture.num_classes)
        self.bbox_pred = nn.Linear(architecture.c5_channels, architecture.num_classes * 4)

    def class_logits(self, vectors: Tensor) -> Tensor:
        """(n, c5_channels) → (n, num_classes), background first."""
        logits: Tensor = self.cls_score(vectors)
        return logits

    def box_deltas(self, vectors: Tensor) -> Tensor:
        """(n, c5_channels) → (n, num_classes, 4), the deltas of a proposal for each class."""
        deltas: Tensor = self.bbox_pred(vectors)
        return deltas.unflatten(1, (-1, 4))


class AttributePredictor(nn.Module):
    """Attributes of a region from its feature vector and its class."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        size = architecture.class_embedding_size
        self.cls_embedding = nn.Embedding(architecture.num_classes, size)
        self.fc_attr = nn.Linear(architecture.c5_channels + size, architecture.attribute_hidden_size)
        self.attr_score = nn.Linear(architecture.attribute_hidden_size, architecture.num_attributes)

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Logits (n, num_attributes), "no attribute" first, of feature vectors (n, c5_channels) and classes (n,)."""
        embedded = self.cls_embedding(labels).to(vectors.dtype)
        logits: Tensor = self.attr_score(functional.relu(self.fc_attr(torch.cat([vectors, embedded], dim=1))))
        return logits


Predictor = TypeVar("Predictor", bound=nn.Module)


class Head(nn.Module, Generic[Predictor]):
    """`roi_heads.box` and `attribute` of published checkpoints, which have one feature_extractor."""

    def __init__(self, features: RegionFeatures, predictor: Predictor) -> None:
        super().__init__()
        self.feature_extractor = features
        self.predictor = predictor


# Which regions and attributes of an image are kept.


@dataclass(frozen=True)
class Selection:
    """The kept regions of an image by descending score: (n,) each."""

    proposals: Tensor  # int64, which of the image's proposals
    labels: Tensor  # int64, class from 1
    scores: Tensor  # float32, probability of that class


def select_regions(probabilities: Tensor, boxes: Tensor, config: DetectorConfig) -> Selection:
    """The regions of one image: all above the score threshold, but at least min_boxes and at most max_boxes.

    Args:
        probabilities: (N, C) of each proposal's classes, background first.
        boxes: (N, C, 4), a box for every class, or (N, 1, 4), the same for all.
        config: nms_filter, thresholds and numbers of boxes are read.
    """
    if config.nms_filter == 1:
        scores, labels = _best_surviving_class(probabilities, boxes, config)
        order = scores.argsort(descending=True, stable=True)
        order = order[: int((scores > 0).sum())]
    else:
        scores, labels = probabilities[:, 1:].max(dim=1)
        order = nms(boxes[:, 0], scores, config.agnostic_nms_threshold, limit=config.max_boxes)
    enough = int((scores[order] >= config.score_threshold).sum())
    chosen = order[: min(max(enough, config.min_boxes), config.max_boxes)]
    return Selection(chosen, labels[chosen] + 1, scores[chosen])


def _best_surviving_class(probabilities: Tensor, boxes: Tensor, config: DetectorConfig) -> tuple[Tensor, Tensor]:
    """Score (0: none) and index among the foreground classes, (N,) each, of each proposal's best class that survived.

    Most of the many classes of a proposal have scores that cannot matter; they are looked at only where better ones do
    not make up the fewest boxes wanted. Scores below the last floor are 0, the others are those of a full search.
    """
    foreground = probabilities[:, 1:]
    own_boxes = boxes[:, 1:] if boxes.shape[1] > 1 else boxes
    for floor in (config.score_threshold, config.score_threshold / 10, 0.0):
        survives = nms_within_classes(own_boxes, foreground, config.class_nms_threshold, floor)
        scores, labels = (foreground * survives).max(dim=1)
        if int((scores > 0).sum()) >= config.min_boxes:
            break
    return scores, labels


def select_attributes(logits: Tensor, config: DetectorConfig) -> tuple[Tensor, Tensor]:
    """Attribute indices, int64, and probabilities (n, attributes_per_box), by descending probability.

    Entries of probability 0 stand for no attribute; their index means nothing. Where the detector knows fewer
    attributes than attributes_per_box, there are as many columns as it knows.

    Args:
        logits: (n, A), "no attribute" first.
        config: attribute_threshold and attributes_per_box are read.
    """
    probabilities = logits.float().softmax(dim=1)
    probabilities[:, 0] = 0
    probabilities = probabilities.masked_fill(probabilities <= config.attribute_threshold, 0)
    scores, labels = probabilities.topk(min(config.attributes_per_box, logits.shape[1]), dim=1)
    return labels, scores
