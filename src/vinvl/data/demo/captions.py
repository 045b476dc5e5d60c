"""Five captions a picture."""

from __future__ import annotations

from collections import Counter

import numpy as np

from vinvl.data.demo.question_kinds import plural
from vinvl.data.demo.scene import Scene, SceneObject

CAPTIONS_PER_IMAGE = 5
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def describe(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five different sentences that are all true of the scene."""
    order = [scene.objects[int(index)] for index in rng.permutation(len(scene.objects))]
    shape, count = Counter(thing.shape for thing in scene.objects).most_common(1)[0]
    many = f"{_NUMBERS[count]} {plural(shape) if count > 1 else shape}"
    total = _NUMBERS[len(scene.objects)]
    return [
        f"a {_short(order[0])} and a {_short(order[1])} on a light background",
        f"a picture of {many} among {total} objects",
        f"a {order[0].size} {_short(order[0])} {_relation(order[0], order[2])} a {_short(order[2])}",
        f"there are {total} objects, one of them is a {order[1].texture} {_short(order[1])}",
        f"a {order[2].size} {order[2].texture} {order[2].shape} with a {_short(order[0])} and a {_short(order[1])}",
    ]


def _short(thing: SceneObject) -> str:
    return f"{thing.colour} {thing.shape}"


def _relation(first: SceneObject, second: SceneObject) -> str:
    if abs(first.x - second.x) > abs(first.y - second.y):
        return "to the left of" if first.x < second.x else "to the right of"
    return "above" if first.y < second.y else "below"
