"""The residual networks of the detector: the body up to C4 and the C5 head that looks at single regions."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from vinvl.detection.config import Architecture


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation by constants: a scale weight / √running_var, without the usual epsilon, and a shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(channels,) each: the output is input · scale + shift."""
        scale = self.get_buffer("weight") * self.get_buffer("running_var").rsqrt()
        return scale, self.get_buffer("bias") - self.get_buffer("running_mean") * scale

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, H, W) → the same shape."""
        scale, shift = self.scale_and_shift()
        return features * scale[:, None, None] + shift[:, None, None]


def normalised_convolution(features: Tensor, convolution: nn.Conv2d, norm: FrozenBatchNorm2d) -> Tensor:
    """Convolution and the normalisation after it in one: the scale goes into the weights, the shift is the bias.

    Features (B, C, H, W) of any float type, which the result has too; the scale is taken in float32.
    """
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
        around = features
        if self.downsample is not None:
            projection, norm = self.downsample
            assert isinstance(projection, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d)
            around = normalised_convolution(features, projection, norm)
        through = functional.relu_(normalised_convolution(features, self.conv1, self.bn1))
        through = functional.relu_(normalised_convolution(through, self.conv2, self.bn2))
        through = normalised_convolution(through, self.conv3, self.bn3)
        return functional.relu_(through.add_(around))


def stage(architecture: Architecture, number: int) -> nn.Sequential:
    """Stage 1 to 4: all but the first halve the map's height and width in their first block."""
    factor = 2 ** (number - 1)
    inner_channels = architecture.groups * architecture.width_per_group * factor
    out_channels = architecture.first_stage_channels * factor
    in_channels = architecture.stem_channels if number == 1 else out_channels // 2
    first = Bottleneck(in_channels, inner_channels, out_channels, architecture.groups, stride=1 if number == 1 else 2)
    rest = [
        Bottleneck(out_channels, inner_channels, out_channels, architecture.groups, stride=1)
        for _ in range(architecture.blocks[number - 1] - 1)
    ]
    return nn.Sequential(first, *rest)


class Body(nn.Module):
    """Images (B, 3, H, W) → C4 features (B, c4_channels, H/16, W/16)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.stem = Stem(architecture.stem_channels)
        self.layer1 = stage(architecture, 1)
        self.layer2 = stage(architecture, 2)
        self.layer3 = stage(architecture, 3)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layer3(self.layer2(self.layer1(self.stem(images))))
        return features


class RegionHead(nn.Module):
    """Pooled regions (n, c4_channels, 14, 14) → their feature vectors (n, c5_channels)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.layer4 = stage(architecture, 4)

    def forward(self, pooled: Tensor) -> Tensor:
        features: Tensor = self.layer4(pooled)
        return features.mean(dim=(2, 3))
