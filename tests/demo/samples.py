"""Scenes, and what is true of them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vinvl.demo.scene import COLOURS, SHAPES, Scene, SceneObject, sample_scene


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def sampled(count: int, seed: int) -> list[Scene]:
    return [sample_scene(index, np.random.default_rng([seed, index])) for index in range(count)]


def named(scene: Scene, phrase: str) -> list[SceneObject]:
    """Objects that a phrase such as "red object", "stars" or "red circle" may mean."""
    words = {re.sub("(?<=s)es$|(?<=[a-rt-z])s$", "", word) for word in phrase.split()} - {"object"}
    return [thing for thing in scene.objects if words <= {thing.shape, thing.colour}]


def yes_no(truth: bool) -> str:
    return "yes" if truth else "no"


def assert_five_true_sentences(scene: Scene, sentences: Sequence[str]) -> None:
    """As far as they name things by colour and shape."""
    assert len(set(sentences)) == 5
    pairs = {(thing.colour, thing.shape) for thing in scene.objects}
    for sentence in sentences:
        assert set(re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", sentence)) <= pairs
