"""The residual networks of the detector: the body up to C4 and the C5 head that looks at single regions."""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from vinvl.detector.config import Architecture


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


Norm = FrozenBatchNorm2d | nn.BatchNorm2d  # the latter while it is trained (`vinvl.detector.weights`)


def normalised_convolution(features: Tensor, convolution: nn.Conv2d, norm: Norm) -> Tensor:
    """Convolution and the normalisation after it in one: the scale goes into the weights, the shift is the bias.

    Features (B, C, H, W) of any float type, which the result has too; the scale is taken in float32. A norm that is
    being trained takes its turn after the convolution.
    """
    if isinstance(norm, nn.BatchNorm2d):
        normalised: Tensor = norm(convolution(features))
        return normalised
    scale, shift = norm.scale_and_shift()
    weight = convolution.weight * scale[:, None, None, None]
    return functional.conv2d(
        features,
        weight.to(features.dtype),
        shift.to(features.dtype),
        stride=convolution.stride,
        padding=convolution.padding,
        groups=convolution.groups,
    )


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
    inner, out = (
        channels * 2 ** (number - 1)
        for channels in (architecture.groups * architecture.width_per_group, architecture.first_stage_channels)
    )
    first = architecture.stem_channels if number == 1 else out // 2
    stride = 1 if number == 1 else 2
    blocks = [Bottleneck(first, inner, out, architecture.groups, stride)]
    for _ in range(architecture.blocks[number - 1] - 1):
        blocks.append(Bottleneck(out, inner, out, architecture.groups, stride=1))
    return nn.Sequential(*blocks)


class Backbone(nn.Module):
    """`backbone` of published checkpoints: images (B, 3, H, W) → C4 features (B, c4_channels, H/16, W/16)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        stages = OrderedDict[str, nn.Module](stem=Stem(architecture.stem_channels))
        self.body = nn.Sequential(stages | {f"layer{number}": stage(architecture, number) for number in (1, 2, 3)})

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(images)
        return features


class RegionHead(nn.Module):
    """Regions of a C4 map → their feature vectors (n, c5_channels): the C5 head, its first convolutions before pooling.

    Both they and pooling are linear, and the first look at single cells, so either may come first. A map has fewer
    cells than the regions of a picture have bins: here the convolutions do.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.layer4 = stage(architecture, 4)

    def projections(self, c4: Tensor) -> tuple[Tensor, Tensor]:
        """What the first block's 1×1 convolutions make of every cell of a map, without their stride.

        The shifts of their norms are left to `after_pooling`, because a bin outside of the map is zero and not the mean
        of shifts; norms that are being trained are left to it whole.

        Args:
            c4: (B, c4_channels, H, W).

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

    def after_pooling(self, through: Tensor, around: Tensor) -> Tensor:
        """Feature vectors (n, c5_channels) of pooled `projections`, which are changed.

        Args:
            through: (n, inner channels, 14, 14).
            around: (n, c5_channels, 7, 7), every second bin, because the block halves its map.
        """
        (_, norm), (_, norm_around) = self._ways()
        through, around = _shifted(through, norm), _shifted(around, norm_around)
        features = self._first().after_projection(functional.relu_(through), around)
        for block in list(self.layer4)[1:]:
            features = block(features)
        return features.mean(dim=(2, 3))

    def _ways(self) -> tuple[tuple[nn.Conv2d, Norm], tuple[nn.Conv2d, Norm]]:
        """The 1×1 convolutions at the beginning of the first block's two ways, with their norms."""
        first = self._first()
        return (first.conv1, first.bn1), first.way_around()

    def _first(self) -> Bottleneck:
        first = self.layer4[0]
        assert isinstance(first, Bottleneck)
        return first


def _shifted(pooled: Tensor, norm: Norm) -> Tensor:
    """What `RegionHead.projections` has left of a norm."""
    if isinstance(norm, FrozenBatchNorm2d):
        return pooled.add_(norm.scale_and_shift()[1][:, None, None].to(pooled.dtype))
    normalised: Tensor = norm(pooled)
    return normalised
