"""Region features of the demo world: the pixels of a crop, and nothing else, to 2048 numbers.

A crop is described coarsely: how full each of its four quarters is, and a histogram of its colours. That tells colours
surely and most shapes, but hardly a circle from a square: as with a real detector, the tags say something that the
features do not. A fixed random projection with a
threshold then spreads the description over 2048 non-negative, sparse numbers, as the pooled features of a detector
are. Description and projection are small integers, so their products are exact in float32: features are the same on
every machine, in every process and for every batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image

FEATURE_DIM = 2048
SIDE = 24  # every crop is resized to SIDE × SIDE before it is described
LIGHT = 216  # pixels whose darkest channel is above this count as background
CELLS = 2  # fullness is measured in CELLS × CELLS cells
HUES = 12
PART_SIZES = {"fullness": 4, "colours": 14, "central_colours": 14}
TYPICAL_LEVELS = {"fullness": 143, "colours": 24, "central_colours": 20}
PART_WEIGHTS = {"fullness": 6, "colours": 4, "central_colours": 4}
PROJECTION_SEED = 20210102
SPARSITY = 0.35  # share of the description that each feature looks at
THRESHOLD = 0.8  # in standard deviations of a typical pre-activation
TYPICAL_SPREAD = 1000.0
FEATURE_SCALE = 0.45


def crop_pixels(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Cut a box (x1 y1 x2 y2, pixels) from a picture (H, W, 3) uint8; at least one pixel remains."""
    height, width = picture.shape[:2]
    left = int(np.clip(np.floor(box[0]), 0, width - 1))
    top = int(np.clip(np.floor(box[1]), 0, height - 1))
    right = int(np.clip(np.ceil(box[2]), left + 1, width))
    bottom = int(np.clip(np.ceil(box[3]), top + 1, height))
    return picture[top:bottom, left:right]


def crop_features(crops: Sequence[np.ndarray]) -> np.ndarray:
    """Features of crops.

    Args:
        crops: R arrays (h, w, 3) uint8 of RGB pixels, each of its own size.

    Returns:
        (R, 2048) float16, non-negative.
    """
    if not crops:
        return np.zeros((0, FEATURE_DIM), dtype=np.float16)
    described = np.stack([describe_crop(crop) for crop in crops]).astype(np.float32)  # (R, F)
    activations = (described - _typical_description()) @ _projection()  # (R, 2048), exact integers
    scaled = activations / np.float32(TYPICAL_SPREAD) - np.float32(THRESHOLD)
    return (np.maximum(scaled, 0) * np.float32(FEATURE_SCALE)).astype(np.float16)


def describe_crop(crop: np.ndarray) -> np.ndarray:
    """The hand-made description of one crop (h, w, 3) uint8: (F,) uint8."""
    small = Image.fromarray(np.ascontiguousarray(crop)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = np.asarray(small, dtype=np.int32)  # (SIDE, SIDE, 3)
    darkest = pixels.min(axis=2)
    contrast = np.clip(LIGHT - darkest, 0, 90) * 255 // 90  # (SIDE, SIDE): 0 on the background
    fullness = contrast.reshape(CELLS, SIDE // CELLS, CELLS, SIDE // CELLS).mean(axis=(1, 3))  # (CELLS, CELLS)
    centre = slice(SIDE // 4, SIDE - SIDE // 4)
    parts = [
        fullness.ravel(),
        _colour_histogram(pixels, contrast),
        _colour_histogram(pixels[centre, centre], contrast[centre, centre]),
    ]
    return np.concatenate(parts).clip(0, 255).astype(np.uint8)


def _colour_histogram(pixels: np.ndarray, contrast: np.ndarray) -> np.ndarray:
    """Shares of hues, and of dark and light pixels, among the pixels that are not background; 0 … 255."""
    foreground = (contrast > 64).ravel()
    total = max(int(foreground.sum()), 1)
    flat = pixels.reshape(-1, 3)[foreground]
    largest, smallest = flat.max(axis=1), flat.min(axis=1)
    chroma = largest - smallest
    coloured = chroma > 40
    red, green, blue = flat[coloured].T
    spread = chroma[coloured].astype(np.float32)
    hue = np.select(
        [red == largest[coloured], green == largest[coloured]],
        [(green - blue) / spread % 6, (blue - red) / spread + 2],
        (red - green) / spread + 4,
    )
    counts = np.bincount((hue * HUES / 6).astype(np.int64) % HUES, minlength=HUES)
    dark = np.count_nonzero(~coloured & (largest < 90))
    grey = np.count_nonzero(~coloured) - dark
    shares = np.concatenate([counts, [dark, grey]]) / total
    return np.sqrt(shares) * 255


@cache
def _typical_description() -> np.ndarray:
    """A typical description (F,): whole numbers, the middle of what the crops of this world give."""
    return np.repeat(np.array(list(TYPICAL_LEVELS.values())), list(PART_SIZES.values())).astype(np.float32)


@cache
def _projection() -> np.ndarray:
    """The fixed (F, 2048) projection of small whole numbers."""
    rng = np.random.default_rng(PROJECTION_SEED)
    shape = (sum(PART_SIZES.values()), FEATURE_DIM)
    signs = rng.integers(0, 2, size=shape) * 2 - 1
    weights = np.repeat(np.array(list(PART_WEIGHTS.values())), list(PART_SIZES.values()))
    return (signs * (rng.random(shape) < SPARSITY) * weights[:, None]).astype(np.float32)
