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
    commonest = Counter(thing.shape for thing in scene.objects).most_common(1)[0][0]
    return _sentences(scene, order, counted=commonest, singled_out=order[1])


def describe_shape(scene: Scene, shape: str, more_of_it: bool, rng: np.random.Generator) -> list[str]:
    """Five different true sentences that all name a shape of which the scene holds at least one.

    Args:
        scene: what the picture shows.
        shape: the shape to name.
        more_of_it: whether the other objects named are of that shape too, as far as there are more; if not, they are
            of other shapes as far as there are any.
        rng: decides which objects are named.
    """
    drawn = [scene.objects[int(index)] for index in rng.permutation(len(scene.objects))]
    first = next(thing for thing in drawn if thing.shape == shape)
    others = [thing for thing in drawn if thing is not first]
    others.sort(key=lambda thing: (thing.shape == shape) != more_of_it)  # stable: the drawn order otherwise
    return _sentences(scene, [first, *others], counted=shape, singled_out=first)


def _sentences(scene: Scene, order: list[SceneObject], counted: str, singled_out: SceneObject) -> list[str]:
    count = sum(thing.shape == counted for thing in scene.objects)
    many = f"{_NUMBERS[count]} {plural(counted) if count > 1 else counted}"
    total = _NUMBERS[len(scene.objects)]
    return [
        f"a {_short(order[0])} and a {_short(order[1])} on a light background",
        f"a picture of {many} among {total} objects",
        f"a {order[0].size} {_short(order[0])} {_relation(order[0], order[2])} a {_short(order[2])}",
        f"there are {total} objects, one of them is a {singled_out.texture} {_short(singled_out)}",
        f"a {order[2].size} {order[2].texture} {order[2].shape} with a {_short(order[0])} and a {_short(order[1])}",
    ]


def _short(thing: SceneObject) -> str:
    return f"{thing.colour} {thing.shape}"


def _relation(first: SceneObject, second: SceneObject) -> str:
    if abs(first.x - second.x) > abs(first.y - second.y):
        return "to the left of" if first.x < second.x else "to the right of"
    return "above" if first.y < second.y else "below"
