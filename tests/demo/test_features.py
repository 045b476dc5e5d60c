"""Pictures, regions and features of the demo world."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.demo.samples import sampled
from vinvl.demo.scene import (
    ATTRIBUTES,
    CLASSES,
    COLOURS,
    FEATURE_DIM,
    MISSED_RATE,
    SHAPES,
    SPURIOUS_RATE,
    WRONG_RATE,
    Scene,
    SceneObject,
    crop_features,
    crop_pixels,
    detect,
    overlap,
    render_scene,
)


def test_the_same_pixels_elsewhere_give_the_same_features() -> None:
    # Two objects of equal looks in different places (with background under them) must not be told apart.
    looks = {"shape": "star", "colour": "red", "texture": "dotted", "size": "medium", "radius": 17.0, "turn": 3.0}
    first = SceneObject(x=40.0, y=40.0, **looks)
    second = SceneObject(x=140.0, y=100.0, **looks)
    pixels = np.asarray(render_scene(Scene(1, (first, second), (230, 230))))
    boxes = [np.array(thing.box) for thing in (first, second)]
    features = crop_features([crop_pixels(pixels, box) for box in boxes])
    assert np.array_equal(features[0], features[1])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6), st.integers(0, 2**31))
def test_features_do_not_depend_on_the_batch(sizes: list[tuple[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    crops = [rng.integers(0, 256, size=(*size, 3), dtype=np.uint8) for size in sizes]
    together = crop_features(crops)
    assert together.shape == (len(crops), FEATURE_DIM)
    assert together.dtype == np.float16
    assert np.isfinite(together).all()
    assert (together >= 0).all()
    for index, crop in enumerate(crops):
        assert np.array_equal(crop_features([crop])[0], together[index])


def test_features_tell_colours_apart() -> None:
    # One nearest neighbour on features of other pictures finds the colour: the pixels hold what questions ask for.
    features, colours = [], []
    for scene in sampled(60, seed=1):
        pixels = np.asarray(render_scene(scene))
        features.append(crop_features([crop_pixels(pixels, np.array(thing.box)) for thing in scene.objects]))
        colours.extend(thing.colour for thing in scene.objects)
    rows = np.concatenate(features).astype(np.float32)
    distances = ((rows[:, None, :64] - rows[None, :, :64]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    assert np.mean([colours[index] == colours[near] for index, near in enumerate(distances.argmin(axis=1))]) > 0.7


def test_pictures_show_the_colour_of_the_object_on_top() -> None:
    for shape in SHAPES:
        for colour, value in COLOURS.items():
            thing = SceneObject(shape, colour, "plain", "large", 100.0, 75.0, 26.0, 0.0)
            picture = render_scene(Scene(1, (thing,), (230, 225)))
            assert picture.size == (200, 150)
            assert picture.getpixel((100, 78)) == value
            assert picture.getpixel((5, 5)) in {(level,) * 3 for level in range(225, 231)}


def test_detections_are_wrong_at_the_stated_rates() -> None:
    objects, spurious, matched, wrong = 0, 0, 0, np.zeros(2)
    scenes = sampled(700, seed=1)
    for scene in scenes:
        found = detect(scene, np.random.default_rng([9, scene.image_id]))
        assert len(found.boxes) >= 1 and (np.diff(found.scores[:, 0]) <= 0).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
        assert (found.boxes >= 0).all() and (found.boxes <= [scene.width, scene.height] * 2).all()
        objects += len(scene.objects)
        for box, labels in zip(found.boxes, found.labels, strict=True):
            away = [float(np.abs(np.array(thing.box) - box).max()) / thing.radius for thing in scene.objects]
            thing = scene.objects[int(np.argmin(away))]
            if min(away) >= 0.2:
                spurious += max(overlap(tuple(box), thing.box) for thing in scene.objects) < 0.15
                continue
            matched += 1
            wrong += (CLASSES[labels[0]] != thing.shape, ATTRIBUTES[labels[1]] != thing.colour)
    assert abs(1 - matched / objects - MISSED_RATE) < 0.012
    assert (np.abs(wrong / matched - WRONG_RATE) < 0.015).all()
    assert 0.6 * SPURIOUS_RATE < spurious / len(scenes) <= 1.2 * SPURIOUS_RATE
