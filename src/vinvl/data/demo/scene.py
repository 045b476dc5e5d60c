"""Scenes of the demo world: which objects a picture holds, sampled from a seed before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (214, 40, 40),
    "green": (36, 160, 60),
    "blue": (40, 80, 215),
    "yellow": (238, 205, 30),
}
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


def sample_scene(image_id: int, rng: np.random.Generator) -> Scene:
    """Sample a scene of 3 to 10 objects whose boxes overlap by at most `MAX_OVERLAP` of the smaller one."""
    counts = np.array(list(OBJECT_COUNT_WEIGHTS), dtype=np.int64)
    weights = np.array(list(OBJECT_COUNT_WEIGHTS.values()), dtype=np.float64)
    wanted = int(rng.choice(counts, p=weights / weights.sum()))
    while True:
        objects = _place_objects(wanted, rng)
        if len(objects) == wanted:
            break
    top, bottom = rng.integers(218, 240, size=2)
    return Scene(image_id, tuple(objects), (int(top), int(bottom)))


def _place_objects(wanted: int, rng: np.random.Generator) -> list[SceneObject]:
    colours = list(COLOURS)
    shape_weights = rng.dirichlet(np.full(len(SHAPES), SPREAD))
    colour_weights = rng.dirichlet(np.full(len(colours), SPREAD))
    placed: list[SceneObject] = []
    for _ in range(wanted):
        shape = SHAPES[int(rng.choice(len(SHAPES), p=shape_weights))]
        colour = colours[int(rng.choice(len(colours), p=colour_weights))]
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


def overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    """Shared area of two x1 y1 x2 y2 boxes as a fraction of the smaller box."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / min(areas)
