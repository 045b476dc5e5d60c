"""Scenes of the demo world: objects sampled from a seed, their pictures, annotations and region features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {"red": (214, 40, 40), "green": (36, 160, 60), "blue": (40, 80, 215), "yellow": (238, 205, 30)}
PAINTS = {**COLOURS, "purple": (140, 50, 170)}  # more than the world's own: other sets for detectors have other classes
TEXTURES = ("plain", "striped", "dotted")
SIZE_RADII = {"small": (9.0, 11.0), "medium": (16.0, 18.5), "large": (25.0, 28.0)}  # half the side, in pixels

WIDTH, HEIGHT = 200, 150
OBJECT_COUNT_WEIGHTS = {3: 36, 4: 26, 5: 15, 6: 9, 7: 6, 8: 4, 9: 2, 10: 2}
# How unevenly shapes and colours are spread inside one scene (Dirichlet concentration): uneven scenes hold both
# groups of three or four equal things to count and single things that a question can name.
SPREAD = 0.9
MAX_OVERLAP = 0.30  # of the smaller box
PLACEMENT_TRIES = 80


@dataclass(frozen=True)
class SceneObject:
    """One thing in a picture; centre and radius in pixels, turn in degrees."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    turn: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Absolute x1 y1 x2 y2 in pixels."""
        return (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)


@dataclass(frozen=True)
class Scene:
    """Everything that is true of one picture; later objects are drawn over earlier ones."""

    image_id: int
    objects: tuple[SceneObject, ...]
    background: tuple[int, int]  # grey level at the top and at the bottom
    width: int = WIDTH
    height: int = HEIGHT


Kind = tuple[str, str]  # shape and colour


def sample_scene(image_id: int, rng: np.random.Generator, kinds: Mapping[Kind, float] | None = None) -> Scene:
    """Sample a scene of 3 to 10 objects whose boxes overlap by at most `MAX_OVERLAP` of the smaller one.

    kinds: how often each kind of thing is drawn, relative to the others; None: unevenly, in each scene otherwise.
    """
    weights = np.array(list(OBJECT_COUNT_WEIGHTS.values()), dtype=np.float64)
    wanted = int(rng.choice(np.array(list(OBJECT_COUNT_WEIGHTS)), p=weights / weights.sum()))
    while len(objects := _place_objects(wanted, rng, kinds)) < wanted:
        pass
    top, bottom = rng.integers(218, 240, size=2)
    return Scene(image_id, tuple(objects), (int(top), int(bottom)))


def _place_objects(wanted: int, rng: np.random.Generator, kinds: Mapping[Kind, float] | None) -> list[SceneObject]:
    draw = _uneven_kinds(rng) if kinds is None else _kinds_of(kinds, rng)
    placed: list[SceneObject] = []
    for _ in range(wanted):
        shape, colour = draw()
        texture = TEXTURES[int(rng.integers(len(TEXTURES)))]
        size = list(SIZE_RADII)[int(rng.integers(len(SIZE_RADII)))]
        radius = float(rng.uniform(*SIZE_RADII[size]))
        turn = float(rng.uniform(-8.0, 8.0))
        for _ in range(PLACEMENT_TRIES):
            x = float(rng.uniform(radius + 1, WIDTH - radius - 1))
            y = float(rng.uniform(radius + 1, HEIGHT - radius - 1))
            candidate = SceneObject(shape, colour, texture, size, round(x, 2), round(y, 2), round(radius, 2), turn)
            if all(overlap(candidate.box, other.box) <= MAX_OVERLAP for other in placed):
                placed.append(candidate)
                break
    return placed


def _uneven_kinds(rng: np.random.Generator) -> Callable[[], Kind]:
    colours = list(COLOURS)
    shape_weights = rng.dirichlet(np.full(len(SHAPES), SPREAD))
    colour_weights = rng.dirichlet(np.full(len(colours), SPREAD))
    return lambda: (
        SHAPES[int(rng.choice(len(SHAPES), p=shape_weights))],
        colours[int(rng.choice(len(colours), p=colour_weights))],
    )


def _kinds_of(kinds: Mapping[Kind, float], rng: np.random.Generator) -> Callable[[], Kind]:
    names, weights = list(kinds), np.array(list(kinds.values()))
    return lambda: names[int(rng.choice(len(names), p=weights / weights.sum()))]


def overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Shared area of two x1 y1 x2 y2 boxes as a fraction of the smaller box."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))


# What a detector would report on a picture of the demo world: mostly right, at stated rates wrong.

CLASSES = ("__background__", *SHAPES)
ATTRIBUTES = ("__no_attribute__", *COLOURS, *TEXTURES)
NUM_ATTRIBUTES = 2  # a colour and a texture for every region
NUM_LABELS = (len(SHAPES), len(COLOURS), len(TEXTURES))

MISSED_RATE = 0.02  # objects without a region
WRONG_RATE = 0.06  # regions of objects whose class is another one; the same for colour and texture
SPURIOUS_RATE = 0.25  # expected regions a picture that show background only
BOX_JITTER = 0.03  # standard deviation of each box edge, as a share of the object's side
SPURIOUS_TRIES = 20


class Detections(NamedTuple):
    """Regions of one picture, by falling class score."""

    boxes: np.ndarray  # (R, 4) float32 x1 y1 x2 y2
    labels: np.ndarray  # (R, 3) int32: class, colour, texture
    scores: np.ndarray  # (R, 3) float32, of each


def detect(scene: Scene, rng: np.random.Generator) -> Detections:
    """What a detector might report of a scene: one region at least."""
    kept = [thing for thing in scene.objects if rng.random() >= MISSED_RATE] or [scene.objects[-1]]
    rows: list[tuple[np.ndarray, list[int], list[float]]] = []
    for thing in kept:
        edges = np.array(thing.box) + rng.normal(0, BOX_JITTER * 2 * thing.radius, size=4)
        places = (SHAPES.index(thing.shape), list(COLOURS).index(thing.colour), TEXTURES.index(thing.texture))
        numbers = [_maybe_wrong(place, size, rng) for place, size in zip(places, NUM_LABELS, strict=True)]
        rows.append((edges, numbers, _scores(rng, low=0.55)))
    for _ in range(int(rng.poisson(SPURIOUS_RATE))):
        if (empty := _empty_box(scene, rng)) is not None:
            colour, texture, shape = (int(rng.integers(NUM_LABELS[kind])) for kind in (1, 2, 0))
            rows.append((empty, [shape, colour, texture], _scores(rng, low=0.2, high=0.6)))
    rows.sort(key=lambda row: -row[2][0])
    boxes, numbers_of, scores = (np.array(column) for column in zip(*rows, strict=True))
    boxes = np.clip(boxes, 0, [scene.width, scene.height] * 2).astype(np.float32)
    labels = np.add(numbers_of, (1, 1, 1 + len(COLOURS)))  # after the background, and textures after the colours
    return Detections(boxes, labels.astype(np.int32), scores.astype(np.float32))


def _maybe_wrong(index: int, size: int, rng: np.random.Generator) -> int:
    """`index`, or at `WRONG_RATE` one of the other `size - 1`."""
    return index if rng.random() >= WRONG_RATE else int((index + rng.integers(1, size)) % size)


def _scores(rng: np.random.Generator, low: float, high: float = 0.99) -> list[float]:
    """Class, colour and texture scores."""
    return [float(low + (high - low) * rng.beta(3, 1.2)) for _ in range(3)]


def _empty_box(scene: Scene, rng: np.random.Generator) -> np.ndarray | None:
    """A box that shows (almost) only background, or None if the picture is too full."""
    for _ in range(SPURIOUS_TRIES):
        width, height = rng.uniform(18, 55, size=2)
        x, y = rng.uniform(0, scene.width - width), rng.uniform(0, scene.height - height)
        box = (float(x), float(y), float(x + width), float(y + height))
        if all(overlap(box, thing.box) < 0.1 for thing in scene.objects):
            return np.array(box)
    return None


# Scenes to pictures, with Pillow.

SUPERSAMPLING = 2  # drawn this many times larger, then averaged down, for smooth edges
LIGHTENING = 0.62  # how far the second shade of stripes and dots lies from the colour towards white


def render_scene(scene: Scene) -> Image.Image:
    """Draw a scene: an RGB picture of `scene.width` × `scene.height` pixels."""
    levels = np.linspace(scene.background[0], scene.background[1], scene.height).round().astype(np.uint8)
    pixels = np.repeat(levels[:, None], scene.width, axis=1)
    picture = Image.fromarray(np.stack([pixels, pixels, pixels], axis=2), mode="RGB")
    for thing in scene.objects:
        patch, mask = _draw_object(thing)
        picture.paste(patch, (round(thing.x - patch.width / 2), round(thing.y - patch.height / 2)), mask)
    return picture


def _draw_object(thing: SceneObject) -> tuple[Image.Image, Image.Image]:
    """The object's colours and its coverage, on a patch a little larger than the object."""
    side = 2 * math.ceil(thing.radius + 1)
    large = side * SUPERSAMPLING
    fill = _textured(thing, large)
    outline = [
        (large / 2 + x * thing.radius * SUPERSAMPLING, large / 2 + y * thing.radius * SUPERSAMPLING)
        for x, y in outline_of(thing.shape, thing.turn)
    ]
    dark = tuple(int(0.55 * channel) for channel in PAINTS[thing.colour])
    ImageDraw.Draw(fill).polygon(outline, outline=dark, width=SUPERSAMPLING)
    mask = Image.new("L", (large, large), 0)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    return fill.resize((side, side), Image.Resampling.BOX), mask.resize((side, side), Image.Resampling.BOX)


def _textured(thing: SceneObject, side: int) -> Image.Image:
    colour = PAINTS[thing.colour]
    light = tuple(int(channel + LIGHTENING * (255 - channel)) for channel in colour)
    fill = Image.new("RGB", (side, side), colour)
    draw = ImageDraw.Draw(fill)
    period = max(4.0, 0.56 * thing.radius * SUPERSAMPLING)
    if thing.texture == "striped":
        for step in range(math.ceil(2 * side / period) + 1):
            start = step * period - side
            draw.line([(start, side), (start + side, 0)], fill=light, width=max(1, round(0.33 * period)))
    elif thing.texture == "dotted":
        dot = 0.27 * period
        for row in range(math.ceil(side / period) + 1):
            for column in range(math.ceil(side / period) + 1):
                x, y = (column + 0.5 * (row % 2)) * period, row * period
                draw.ellipse([x - dot, y - dot, x + dot, y + dot], fill=light)
    return fill


def outline_of(shape: str, turn: float) -> list[tuple[float, float]]:
    """Corners of a shape that touches the square [-1, 1]² when not turned; `turn` in degrees."""
    if shape == "circle":
        corners = _regular(32, 0.0)
    elif shape == "square":
        corners = [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)]
    elif shape == "triangle":
        corners = [(0.0, -1.0), (0.98, 0.85), (-0.98, 0.85)]
    else:  # a star
        outer, inner = _regular(5, -90.0), [(0.42 * x, 0.42 * y) for x, y in _regular(5, -54.0)]
        corners = [corner for pair in zip(outer, inner, strict=True) for corner in pair]
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return [(cosine * x - sine * y, sine * x + cosine * y) for x, y in corners]


def _regular(corners: int, start: float) -> list[tuple[float, float]]:
    angles = [math.radians(start + 360.0 * index / corners) for index in range(corners)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


# Region features of the demo world: the pixels of a crop, and nothing else, to 2048 numbers.
#
# A crop is described by how full each of its quarters is and a histogram of its colours. That tells colours and most
# shapes, but hardly a circle from a square: as with a real detector, the tags say something that the features do not. A
# fixed random projection with a threshold spreads it over 2048 sparse numbers. Description and projection are small
# whole numbers, so that their products are exact in float32: features are the same on every machine.

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
    """R crops (h, w, 3) uint8 of RGB pixels, each of its own size and one at least → (R, 2048) float16 from 0."""
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
    central = _colour_histogram(pixels[centre, centre], contrast[centre, centre])
    parts = [fullness.ravel(), _colour_histogram(pixels, contrast), central]
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
    return np.sqrt(np.concatenate([counts, [dark, grey]]) / total) * 255


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
