"""What a detector would report on a picture of the demo world: mostly right, at stated rates wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vinvl.data.demo.scene import COLOURS, SHAPES, TEXTURES, Scene, overlap

CLASSES = ("__background__", *SHAPES)
ATTRIBUTES = ("__no_attribute__", *COLOURS, *TEXTURES)
NUM_ATTRIBUTES = 2  # a colour and a texture for every region

MISSED_RATE = 0.02  # objects without a region
WRONG_RATE = 0.06  # regions of objects whose class is another one; the same for colour and texture
SPURIOUS_RATE = 0.25  # expected regions a picture that show background only
BOX_JITTER = 0.03  # standard deviation of each box edge, as a share of the object's side
SPURIOUS_TRIES = 20


@dataclass(frozen=True)
class Detections:
    """Regions of one picture, by falling class score."""

    boxes: np.ndarray  # (R, 4) float32 x1 y1 x2 y2
    classes: np.ndarray  # (R,) int32
    class_scores: np.ndarray  # (R,) float32
    attributes: np.ndarray  # (R, 2) int32
    attribute_scores: np.ndarray  # (R, 2) float32


def detect(scene: Scene, rng: np.random.Generator) -> Detections:
    """Simulate a detector on a scene; at least one region is reported."""
    kept = [thing for thing in scene.objects if rng.random() >= MISSED_RATE] or [scene.objects[-1]]
    rows: list[tuple[np.ndarray, list[int], list[float]]] = []
    for thing in kept:
        edges = np.array(thing.box) + rng.normal(0, BOX_JITTER * 2 * thing.radius, size=4)
        labels = [
            1 + _maybe_wrong(SHAPES.index(thing.shape), len(SHAPES), rng),
            1 + _maybe_wrong(list(COLOURS).index(thing.colour), len(COLOURS), rng),
            1 + len(COLOURS) + _maybe_wrong(TEXTURES.index(thing.texture), len(TEXTURES), rng),
        ]
        rows.append((edges, labels, _scores(rng, low=0.55)))
    for _ in range(int(rng.poisson(SPURIOUS_RATE))):
        empty = _empty_box(scene, rng)
        if empty is not None:
            rows.append((empty, _random_labels(rng), _scores(rng, low=0.2, high=0.6)))
    rows.sort(key=lambda row: -row[2][0])
    boxes = np.array([row[0] for row in rows])
    boxes = np.clip(boxes, 0, [scene.width, scene.height] * 2).astype(np.float32)
    labels_array = np.array([row[1] for row in rows], dtype=np.int32)
    scores = np.array([row[2] for row in rows], dtype=np.float32)
    return Detections(boxes, labels_array[:, 0], scores[:, 0], labels_array[:, 1:], scores[:, 1:])


def _maybe_wrong(index: int, size: int, rng: np.random.Generator) -> int:
    """`index`, or at `WRONG_RATE` one of the other `size - 1`."""
    if rng.random() >= WRONG_RATE:
        return index
    return int((index + rng.integers(1, size)) % size)


def _scores(rng: np.random.Generator, low: float, high: float = 0.99) -> list[float]:
    """Class, colour and texture scores."""
    return [float(low + (high - low) * rng.beta(3, 1.2)) for _ in range(3)]


def _random_labels(rng: np.random.Generator) -> list[int]:
    colour = 1 + int(rng.integers(len(COLOURS)))
    texture = 1 + len(COLOURS) + int(rng.integers(len(TEXTURES)))
    return [1 + int(rng.integers(len(SHAPES))), colour, texture]


def _empty_box(scene: Scene, rng: np.random.Generator) -> np.ndarray | None:
    """A box that shows (almost) only background, or None where the picture is too full."""
    for _ in range(SPURIOUS_TRIES):
        width, height = rng.uniform(18, 55, size=2)
        x, y = rng.uniform(0, scene.width - width), rng.uniform(0, scene.height - height)
        box = (float(x), float(y), float(x + width), float(y + height))
        if all(overlap(box, thing.box) < 0.1 for thing in scene.objects):
            return np.array(box)
    return None
