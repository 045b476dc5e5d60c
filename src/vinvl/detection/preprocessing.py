"""From a picture to the network's input, exactly as the published extractor does it."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vinvl.detection.config import DetectorConfig

COLOUR_ORDER = "BGR"
MEAN = (103.530, 116.280, 123.675)  # of blue, green and red, 0 to 255; the standard deviation is not divided by


def resized_size(width: int, height: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(width, height) that an image of this (width, height) is resized to.

    The shorter side becomes min_size, or less where the longer would exceed max_size; the longer is truncated to a
    whole pixel. Both roundings are the published ones, which leave the longer side a little off max_size.
    """
    short, long = min(width, height), max(width, height)
    size = min_size
    if long / short * min_size > max_size:
        size = max(1, round(max_size * short / long))
    other = int(size * long / short)
    return (size, other) if width <= height else (other, size)


def padded_size(width: int, height: int, config: DetectorConfig) -> tuple[int, int]:
    """(width, height) of the batch that an image of this (width, height) makes alone: resized, then padded."""
    resized = resized_size(width, height, config.min_size, config.max_size)
    across, down = (-(-side // config.pad_multiple) * config.pad_multiple for side in resized)
    return across, down


def resized_pixels(image: Image.Image, config: DetectorConfig) -> Tensor:
    """Uint8 (height, width, 3) of a picture, red-green-blue, resized; the part that needs no device.

    Args:
        image: of any mode that Pillow converts to RGB; an EXIF orientation is not looked at (`rgb_picture` turns
            it).
        config: min_size and max_size are read.
    """
    size = resized_size(image.width, image.height, config.min_size, config.max_size)
    resized = image.convert("RGB").resize(size, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized))


def normalised(pixels: Tensor) -> Tensor:
    """Float32 (3, height, width), blue-green-red less the mean, of `resized_pixels`, on their device."""
    return (pixels.flip(-1).float() - pixels.new_tensor(MEAN, dtype=torch.float32)).permute(2, 0, 1).contiguous()


def network_input(image: Image.Image, config: DetectorConfig) -> Tensor:
    """Float32 (3, height, width) of a picture: resized, blue-green-red, 0 to 255 less the mean."""
    return normalised(resized_pixels(image, config))


def pad_batch(images: list[Tensor], multiple: int = 1) -> tuple[Tensor, list[tuple[int, int]]]:
    """(B, 3, H, W), zero at the bottom and right of smaller images, and each image's (height, width) in it.

    Args:
        images: each (3, height, width), from `network_input`.
        multiple: H and W are rounded up to a multiple of it.
    """
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = (-(-max(side) // multiple) * multiple for side in zip(*sizes, strict=True))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes
