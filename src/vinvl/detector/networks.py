"""The detector's networks: the residual body up to C4, where something may be, and what each region is.

Parameters have the names of the published checkpoints.
"""

from collections import OrderedDict
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vinvl.detector.boxes import (
    RPN_WEIGHTS,
    AnchorGenerator,
    at_places,
    box_bins,
    clip,
    decode,
    full_precision,
    nms_of_sorted,
)
from vinvl.detector.config import Architecture, DetectorConfig
from vinvl.run.errors import UserError

RegionMaps = tuple[Tensor, Tensor]  # what boxes are read off: see `RegionFeatures.projections`


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation by constants: a scale weight / √running_var, without the usual epsilon, and a shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(channels,) each: the output is input · scale + shift."""
        scale = self.get_buffer("weight") * self.get_buffer("running_var").rsqrt()
        return scale, self.get_buffer("bias") - self.get_buffer("running_mean") * scale

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        scale, shift = self.scale_and_shift()
        return features * scale[:, None, None] + shift[:, None, None]


Norm = FrozenBatchNorm2d | nn.BatchNorm2d  # the latter while it is trained (`vinvl.detector.task`)


def normalised_convolution(features: Tensor, convolution: nn.Conv2d, norm: Norm) -> Tensor:
    """Convolution and the normalisation after it in one: the scale goes into the weights, the shift is the bias.

    Features (B, C, H, W) of any float type, which the result has too; the scale is taken in float32. A norm that is
    being trained takes its turn after the convolution.
    """
    if isinstance(norm, nn.BatchNorm2d):
        normalised: Tensor = norm(convolution(features))
        return normalised
    scale, shift = norm.scale_and_shift()
    weight = (convolution.weight * scale[:, None, None, None]).to(features.dtype)
    at = {"stride": convolution.stride, "padding": convolution.padding, "groups": convolution.groups}
    return functional.conv2d(features, weight, shift.to(features.dtype), **at)  # type: ignore[arg-type]


class Stem(nn.Module):
    """Images (B, 3, H, W) → (B, stem channels, H/4, W/4)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = FrozenBatchNorm2d(channels)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.relu_(normalised_convolution(images, self.conv1, self.bn1))
        return functional.max_pool2d(features, kernel_size=3, stride=2, padding=1)


class Bottleneck(nn.Module):
    """1×1, grouped 3×3 with the stride, 1×1, and the way around them."""

    def __init__(self, in_channels: int, inner_channels: int, out_channels: int, groups: int, stride: int) -> None:
        super().__init__()
        self.downsample: nn.Sequential | None = None
        if in_channels != out_channels or stride != 1:
            projection = nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, FrozenBatchNorm2d(out_channels))
        self.conv1 = nn.Conv2d(in_channels, inner_channels, kernel_size=1, bias=False)
        self.bn1 = FrozenBatchNorm2d(inner_channels)
        self.conv2 = nn.Conv2d(
            inner_channels, inner_channels, kernel_size=3, stride=stride, padding=1, groups=groups, bias=False
        )
        self.bn2 = FrozenBatchNorm2d(inner_channels)
        self.conv3 = nn.Conv2d(inner_channels, out_channels, kernel_size=1, bias=False)
        self.bn3 = FrozenBatchNorm2d(out_channels)

    def forward(self, features: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / stride, W / stride)."""
        around = features if self.downsample is None else normalised_convolution(features, *self.way_around())
        through = functional.relu_(normalised_convolution(features, self.conv1, self.bn1))
        return self.after_projection(through, around)

    def way_around(self) -> tuple[nn.Conv2d, Norm]:
        """Convolution and norm of `downsample`, where there is one."""
        assert self.downsample is not None
        projection, norm = self.downsample
        assert isinstance(projection, nn.Conv2d) and isinstance(norm, Norm)
        return projection, norm

    def after_projection(self, through: Tensor, around: Tensor) -> Tensor:
        """The block behind its first convolutions: (B, inner, H, W) and (B, out, H/stride, W/stride) → the latter."""
        through = functional.relu_(normalised_convolution(through, self.conv2, self.bn2))
        through = normalised_convolution(through, self.conv3, self.bn3)
        return functional.relu_(through.add_(around))


def stage(architecture: Architecture, number: int) -> nn.Sequential:
    """Stage 1 to 4: all except the first halve the map's height and width in their first block."""
    widths = (architecture.groups * architecture.width_per_group, architecture.first_stage_channels)
    inner, out = (channels * 2 ** (number - 1) for channels in widths)
    first = architecture.stem_channels if number == 1 else out // 2
    blocks = [Bottleneck(first, inner, out, architecture.groups, stride=1 if number == 1 else 2)]
    for _ in range(architecture.blocks[number - 1] - 1):
        blocks.append(Bottleneck(out, inner, out, architecture.groups, stride=1))
    return nn.Sequential(*blocks)


class Backbone(nn.Module):
    """Images (B, 3, H, W) → C4 features (B, c4_channels, H/16, W/16)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        stages = OrderedDict[str, nn.Module](stem=Stem(architecture.stem_channels))
        self.body = nn.Sequential(stages | {f"layer{number}": stage(architecture, number) for number in (1, 2, 3)})

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images)
        return features


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


class Proposals(NamedTuple):
    """What may be something in each image of a batch, by descending objectness."""

    boxes: list[Tensor]  # (n, 4) each, pixels of the network's input
    objectness: list[Tensor]  # (n,) each
    counts: Tensor  # (B,) int64; where the host does not wait n is the most that there may be, boxes behind are 0
    settled: Tensor  # (B,) bool, as `Kept`


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
        logits: Tensor,
        deltas: Tensor,
        anchors: Tensor,
        image_sizes: list[tuple[int, int]],
        config: DetectorConfig,
        waiting: bool = True,
    ) -> Proposals:
        """The boxes to look at.

        Args:
            logits, deltas, anchors: (B, N), (B, N, 4) and (N, 4), from `forward`.
            image_sizes: (height, width) of each image without the padding; proposals are clipped to it.
            config: the rpn_ settings are read.
            waiting: whether the host may wait for the device.
        """
        objectness, best = logits.sigmoid().topk(min(config.rpn_candidates, logits.shape[1]))
        decoded = decode(at_places(deltas, best), anchors[best], RPN_WEIGHTS)
        boxes = torch.stack([clip(one, size) for one, size in zip(decoded, image_sizes, strict=True)])
        kept = nms_of_sorted(boxes, config.rpn_nms_threshold, config.rpn_proposals, waiting)
        there = kept.places < boxes.shape[1]
        boxes = at_places(boxes, kept.places).masked_fill(~there[..., None], 0)
        objectness = at_places(objectness[..., None], kept.places).squeeze(2).masked_fill(~there, 0)
        ends = kept.counts.tolist() if waiting else [boxes.shape[1]] * len(boxes)
        cut = [[one[:end] for one, end in zip(rows, ends, strict=True)] for rows in (boxes, objectness)]
        return Proposals(cut[0], cut[1], kept.counts, kept.settled)


class RegionFeatures(nn.Module):
    """Boxes on C4 features → feature vectors, by the C5 head; one module that the box and the attribute heads share.

    The first convolutions of C5 and pooling are both linear, and the former look at single cells, so either may come
    first. A map has fewer cells than the regions of a picture have bins: here the convolutions do.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.head = nn.Sequential(OrderedDict(layer4=stage(architecture, 4)))
        self.size = architecture.c5_channels

    def forward(self, c4: Tensor, boxes: list[Tensor], boxes_per_pass: int | None = None) -> Tensor:
        """(sum of boxes, c5_channels) of maps (B, c4_channels, H, W), images in turn; see `of_boxes`."""
        return self.of_boxes(self.projections(c4), boxes, boxes_per_pass)

    def projections(self, c4: Tensor) -> RegionMaps:
        """What the first block's 1×1 convolutions make of every cell of maps (B, c4_channels, H, W), without stride.

        The shifts of their norms are left to `after_pooling`, because a bin outside of the map is zero and not the mean
        of shifts; norms that are being trained are left to it whole.

        Returns:
            (B, inner channels, H, W) on the way through the block, (B, c5_channels, H, W) on the way around it.
        """
        maps = []
        for convolution, norm in self._ways():
            weight = convolution.weight
            if isinstance(norm, FrozenBatchNorm2d):
                weight = weight * norm.scale_and_shift()[0][:, None, None, None]
            maps.append(functional.conv2d(c4, weight.to(c4.dtype)))
        return maps[0], maps[1]

    def of_boxes(
        self, maps: RegionMaps, boxes: list[Tensor], boxes_per_pass: int | None = None, waiting: bool = True
    ) -> Tensor:
        """(sum of boxes, c5_channels), images in turn.

        Args:
            maps: from `projections`.
            boxes: for each image (n, 4) in pixels of the network's input.
            boxes_per_pass: how many are held in memory at once; None for all, which norms that are being trained see as
                one batch.
            waiting: whether the host may wait for the device; if not, the caller looks whether boxes are of numbers.

        Raises:
            UserError: a box is not of numbers.
        """
        if waiting and not all(of_image.isfinite().all() for of_image in boxes):
            raise UserError("The detector finds boxes of NaN or infinite size: its weights are damaged or diverged.")
        everything = torch.cat(boxes)
        images = torch.cat([torch.full((len(one),), i, device=one.device) for i, one in enumerate(boxes)])
        size = boxes_per_pass or max(1, len(everything))
        passes = zip(everything.split(size), images.split(size), strict=True)
        vectors = [self._of_one_pass(maps, part, of_part, waiting) for part, of_part in passes if len(part)]
        return torch.cat(vectors) if vectors else maps[0].new_zeros(0, self.size)

    def _of_one_pass(self, maps: RegionMaps, boxes: Tensor, images: Tensor, waiting: bool) -> Tensor:
        """(n, c5_channels) of boxes (n, 4) of the images (n,)."""
        through, around = maps
        bins = box_bins(boxes, images, through, waiting=waiting)
        return self.after_pooling(bins.pool(through), bins.every_second().pool(around))

    def after_pooling(self, through: Tensor, around: Tensor) -> Tensor:
        """Feature vectors (n, c5_channels) of pooled `projections`, which are changed.

        Args:
            through: (n, inner channels, 14, 14).
            around: (n, c5_channels, 7, 7), every second bin, because the block halves its map.
        """
        (_, norm), (_, norm_around) = self._ways()
        through, around = _shifted(through, norm), _shifted(around, norm_around)
        first, *others = self._blocks()
        features = first.after_projection(functional.relu_(through), around)
        for block in others:
            features = block(features)
        return features.mean(dim=(2, 3))

    def _blocks(self) -> list[Bottleneck]:
        return list(self.head.get_submodule("layer4"))  # type: ignore[call-overload]

    def _ways(self) -> tuple[tuple[nn.Conv2d, Norm], tuple[nn.Conv2d, Norm]]:
        """The 1×1 convolutions at the beginning of the first block's two ways, with their norms."""
        first = self._blocks()[0]
        return (first.conv1, first.bn1), first.way_around()


def _shifted(pooled: Tensor, norm: Norm) -> Tensor:
    """What `RegionFeatures.projections` has left of a norm."""
    if isinstance(norm, FrozenBatchNorm2d):
        return pooled.add_(norm.scale_and_shift()[1][:, None, None].to(pooled.dtype))
    normalised: Tensor = norm(pooled)
    return normalised


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


class RoIHeads(nn.Module):
    """`roi_heads` of published checkpoints."""

    def __init__(self, box: Head[BoxPredictor]) -> None:
        super().__init__()
        self.box = box
