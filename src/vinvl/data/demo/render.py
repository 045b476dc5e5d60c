"""Scenes to pictures, with Pillow."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from vinvl.data.demo.scene import COLOURS, Scene, SceneObject

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
    dark = tuple(int(0.55 * channel) for channel in COLOURS[thing.colour])
    ImageDraw.Draw(fill).polygon(outline, outline=dark, width=SUPERSAMPLING)
    mask = Image.new("L", (large, large), 0)
    ImageDraw.Draw(mask).polygon(outline, fill=255)
    return fill.resize((side, side), Image.Resampling.BOX), mask.resize((side, side), Image.Resampling.BOX)


def _textured(thing: SceneObject, side: int) -> Image.Image:
    colour = COLOURS[thing.colour]
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
    elif shape == "diamond":
        corners = [(0.0, -1.0), (0.8, 0.0), (0.0, 1.0), (-0.8, 0.0)]
    elif shape == "star":
        outer, inner = _regular(5, -90.0), [(0.42 * x, 0.42 * y) for x, y in _regular(5, -54.0)]
        corners = [corner for pair in zip(outer, inner, strict=True) for corner in pair]
    elif shape == "cross":
        arm = 0.34
        corners = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm),
                   (arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)]  # fmt: skip
    else:
        raise ValueError(f"There is no shape called {shape!r}.")
    cosine, sine = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    return [(cosine * x - sine * y, sine * x + cosine * y) for x, y in corners]


def _regular(corners: int, start: float) -> list[tuple[float, float]]:
    angles = [math.radians(start + 360.0 * index / corners) for index in range(corners)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]
