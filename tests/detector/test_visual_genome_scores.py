"""Visual Genome's scores against the recordings of VinVL's evaluation, and against counting in the slowest way."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import golden
from vinvl.detector.average_precision import FoundBoxes, TrueBoxes, overlaps
from vinvl.detector.visual_genome_scores import (
    AREAS,
    AreaPrecision,
    BoxRecall,
    Labelled,
    area_under,
    attributes_of,
    classes_of,
)

Picture = tuple[FoundBoxes, TrueBoxes]
Part = Callable[[FoundBoxes, TrueBoxes], tuple[Labelled, Labelled]]
LAST_PIXEL = np.array([0.0, 0, 1, 1])  # the recorded boxes count it in, ours do not


def recorded_found(prediction: Mapping[str, Any], scale: np.ndarray) -> FoundBoxes:
    boxes = np.array(prediction["boxes_network"], dtype=np.float64).reshape(-1, 4)
    count = len(boxes)
    return FoundBoxes(
        boxes * scale + LAST_PIXEL,
        np.array(prediction["labels"] if "labels" in prediction else np.ones(count), dtype=np.int64),
        np.array(prediction["scores"] if "scores" in prediction else np.ones(count), dtype=np.float64),
        np.array(prediction["attr_labels"], dtype=np.int64).reshape(count, 16),
        np.array(prediction["attr_scores"], dtype=np.float64).reshape(count, 16),
    )


def recorded_pictures(recording: Mapping[str, Any], predictions: str) -> list[Picture]:
    found = []
    for image in recording["images"]:
        width, height = np.array(image["original_width_height"]) / np.array(image["network_width_height"])
        truth = image["ground_truth"]
        true = TrueBoxes(
            np.array(truth["boxes"], dtype=np.float64).reshape(-1, 4) + LAST_PIXEL,
            np.array(truth["labels"], dtype=np.int64),
            np.zeros(len(truth["labels"]), dtype=bool),
            np.array(truth["attributes"], dtype=np.int64).reshape(-1, 16),
        )
        found.append((recorded_found(image[predictions], np.array([width, height] * 2)), true))
    return found


def all_overlaps(found: FoundBoxes, true: TrueBoxes) -> np.ndarray:
    return overlaps(found.boxes, true.boxes, np.zeros_like(true.crowd))


def precision(pictures: list[Picture], part: Part, num_labels: int, numbers: list[int]) -> dict[str, torch.Tensor]:
    metric = AreaPrecision(num_labels)
    for number in numbers:
        found, true = pictures[number]
        metric.update(number, all_overlaps(found, true), *part(found, true))
    result: dict[str, torch.Tensor] = metric.compute()
    return result


@pytest.mark.parametrize(
    ("result", "predictions", "names", "part"),
    [
        ("objects", "prediction", "classes", classes_of),
        ("attributes_on_detected_boxes", "prediction", "attributes", attributes_of),
        ("attributes_on_ground_truth_boxes", "prediction_on_ground_truth_boxes", "attributes", attributes_of),
    ],
)
def test_area_precision_is_the_recorded_one(result: str, predictions: str, names: str, part: Part) -> None:
    recording = golden.facts("detector_training/vg_eval")
    pictures, expected = recorded_pictures(recording, predictions), recording[result]
    ours = precision(pictures, part, len(recording[names]), list(range(len(pictures))))
    assert float(ours["map"]) == pytest.approx(expected["map"], abs=1e-6)
    assert float(ours["weighted_map"]) == pytest.approx(expected["weighted_map"], abs=1e-6)
    assert list(expected["per_class"]) == recording[names][1:]
    for label, name in enumerate(recording[names][1:], start=1):
        single = expected["per_class"][name]
        assert float(ours["by_label"][label]) == pytest.approx(single["ap"], abs=1e-6), name
        assert int(ours["objects"][label]) == single["positives"]
        if single["positives"]:  # without, the published code does not count what is said
            assert int(ours["said"][label]) == single["detections"]
        else:
            assert single["detections"] == 0


def best_boxes(found: FoundBoxes) -> np.ndarray:
    boxes: np.ndarray = found.boxes[np.argsort(-found.scores, kind="stable")]
    return boxes


def test_recall_is_the_recorded_one() -> None:
    recording = golden.facts("detector_training/vg_eval")
    expected, limits = recording["proposal_recall"], (1, 3, 36, 100)
    metric = BoxRecall(limits)
    for found, true in recorded_pictures(recording, "prediction"):
        metric.update(best_boxes(found), true)
    ours = metric.compute()
    assert set(expected) == {f"{area}@{limit}" for area in AREAS for limit in limits}
    for row, area in enumerate(AREAS):
        for column, limit in enumerate(limits):
            single = expected[f"{area}@{limit}"]
            assert float(ours["average"][row, column]) == pytest.approx(single["ar"], abs=1e-5)
            assert ours["recalls"][row, column].tolist() == pytest.approx(single["recalls_50_to_95"], abs=1e-5)
            assert int(ours["objects"][row]) == single["positives"]


def test_area_under_recorded_curves() -> None:
    for curve in golden.facts("detector_training/vg_eval")["voc_ap_area"]:
        ours = area_under(np.array(curve["recall"]), np.array(curve["precision"]))
        assert ours == pytest.approx(curve["ap"], abs=1e-6)


# Against counting, as the published evaluation is described.

NUM_CLASSES, NUM_ATTRIBUTES = 5, 6


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.integers(0, 12, size=(count, 2)) * 5
    return np.concatenate([low, low + rng.choice([16, 20, 32, 96], size=(count, 2))], axis=1).astype(np.float64)


def random_picture(rng: np.random.Generator, objects: int, found: int) -> Picture:
    """Boxes crowded around few places, with few different scores, so that there are ties of every kind."""
    true = TrueBoxes(
        random_boxes(rng, objects),
        rng.integers(1, NUM_CLASSES - 1, size=objects),  # the last class has no objects
        rng.random(objects) < 0.15,
        rng.integers(0, NUM_ATTRIBUTES - 1, size=(objects, 3)),
    )
    near = true.boxes[rng.integers(objects, size=found)] if objects else random_boxes(rng, found)
    said = FoundBoxes(
        near + rng.integers(-4, 5, size=(found, 4)),
        rng.integers(1, NUM_CLASSES, size=found),
        rng.integers(1, 9, size=found) / 8,
        rng.integers(0, NUM_ATTRIBUTES, size=(found, 3)),
        rng.integers(0, 5, size=(found, 3)) / 4,
    )
    return said, true


def counted_iou(one: np.ndarray, other: np.ndarray) -> float:
    """With the last pixel counted in, as the published code does it."""
    (a, b, c, d), (e, f, g, h) = (one - LAST_PIXEL).tolist(), (other - LAST_PIXEL).tolist()
    width, height = max(min(c, g) - max(a, e) + 1, 0), max(min(d, h) - max(b, f) + 1, 0)
    shared = width * height
    return float(shared / ((c - a + 1) * (d - b + 1) + (g - e + 1) * (h - f + 1) - shared))


def counted_average(pictures: list[Picture], label: int, *, attributes: bool) -> tuple[float, int]:
    """AP of a label, and its objects."""
    objects: dict[int, list[np.ndarray]] = {}
    detections = []
    for number, (found, true) in enumerate(pictures):
        if len(found.labels) == 0:
            continue
        lists = true.attributes.tolist() if attributes else [[one] for one in true.labels.tolist()]
        owned = zip(true.boxes, lists, true.crowd, strict=True)
        objects[number] = [box for box, named, crowd in owned if label in named and not crowd]
        for row, box in enumerate(found.boxes):
            names = found.attributes[row] if attributes else found.labels[row : row + 1]
            scores = found.attribute_scores[row] if attributes else found.scores[row : row + 1]
            named = zip(names.tolist(), scores.tolist(), strict=True)
            detections += [(-score, number, box) for name, score in named if name == label and score != 0]
    total = sum(map(len, objects.values()))
    taken, rights, curve = set(), 0, []
    for rank, (_, number, box) in enumerate(sorted(detections, key=lambda one: one[:2]), start=1):
        ious = [counted_iou(box, other) for other in objects[number]]
        best = max(range(len(ious)), key=lambda place: ious[place], default=-1)
        if best >= 0 and ious[best] > 0.5 and (number, best) not in taken:
            taken.add((number, best))
            rights += 1
        curve.append((rights, rights / rank))
    steps = range(1, total + 1)
    area = sum(max((value for reached, value in curve if reached >= step), default=0.0) / total for step in steps)
    return area, total


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    counts=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 14)), min_size=1, max_size=5),
    attributes=st.booleans(),
)
def test_area_precision_is_what_counting_gives(seed: int, counts: list[tuple[int, int]], attributes: bool) -> None:
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng, *count) for count in counts]
    number = NUM_ATTRIBUTES if attributes else NUM_CLASSES
    part = attributes_of if attributes else classes_of
    ours = precision(pictures, part, number, list(range(len(pictures)))[::-1])
    by_hand = [counted_average(pictures, label, attributes=attributes) for label in range(1, number)]
    values, totals = np.array(by_hand).T
    np.testing.assert_allclose(ours["by_label"][1:].numpy(), values, rtol=0, atol=1e-12)
    assert ours["objects"][1:].tolist() == totals.tolist()
    if totals.sum():
        assert float(ours["map"]) == pytest.approx(values.mean(), abs=1e-12)
        assert float(ours["weighted_map"]) == pytest.approx((values * totals).sum() / totals.sum(), abs=1e-12)
    else:
        assert math.isnan(float(ours["map"])) and math.isnan(float(ours["weighted_map"]))


def counted_recall(pictures: list[Picture], limit: int, least: float, most: float) -> tuple[list[int], int]:
    """How many objects have a box at IoU 0.5, 0.55 …, and how many there are."""
    reached, total = [0] * 10, 0
    for found, true in pictures:
        boxes = list(best_boxes(found))[:limit]
        sizes = [((box[2] - box[0]) * (box[3] - box[1]), box) for box in true.boxes[~true.crowd]]
        objects = [box for size, box in sizes if least <= size <= most]
        total += len(objects)
        pairs = {(b, o): counted_iou(box, one) for b, box in enumerate(boxes) for o, one in enumerate(objects)}
        while pairs:
            box, place = min(pairs, key=lambda pair: (-pairs[pair], pair[1], pair[0]))
            for threshold in range(10):
                reached[threshold] += pairs[box, place] >= np.linspace(0.5, 0.95, 10)[threshold]
            pairs = {pair: iou for pair, iou in pairs.items() if pair[0] != box and pair[1] != place}
    return reached, total


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), counts=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), max_size=3))
def test_recall_is_what_counting_gives(seed: int, counts: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng, *count) for count in [*counts, (3, 4)]]
    metric = BoxRecall((2, 100))
    for found, true in pictures:
        metric.update(best_boxes(found), true)
    ours = metric.compute()
    for row, (least, most) in enumerate(AREAS.values()):
        for column, limit in enumerate((2, 100)):
            reached, total = counted_recall(pictures, limit, least, most)
            assert metric.found[row, column].tolist() == reached and int(ours["objects"][row]) == total
            average = np.mean(reached) / total if total else math.nan
            assert float(ours["average"][row, column]) == pytest.approx(average, abs=1e-12, nan_ok=True)


RNG = np.random.default_rng(11)
PICTURES = [random_picture(RNG, 5, 12) for _ in range(9)]


def rank_result(numbers: list[int]) -> dict[str, torch.Tensor]:
    recall = BoxRecall((3, 100))
    for number in numbers:
        recall.update(best_boxes(PICTURES[number][0]), PICTURES[number][1])
    result: dict[str, torch.Tensor] = recall.compute()
    for name, part, count in (("class", classes_of, NUM_CLASSES), ("attribute", attributes_of, NUM_ATTRIBUTES)):
        found = precision(PICTURES, part, count, numbers)
        result |= {f"{name} {key}": value for key, value in found.items()}
    return result


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    shares = [[[], list(range(9))], [[8, 2, 5], [0, 7, 1, 6, 4, 3]]]
    torch.save([rank_result(share[rank]) for share in shares], f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_give_the_result_of_one_in_any_order(tmp_path: Path) -> None:
    mp.start_processes(run_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    expected = rank_result(list(range(9)))
    assert 0 < float(expected["class map"]) < 1 and 0 < float(expected["attribute map"]) < 1
    for rank in range(2):
        for result in torch.load(tmp_path / f"rank{rank}.pt"):
            assert result.keys() == expected.keys()
            for name in expected:
                torch.testing.assert_close(result[name], expected[name], rtol=0, atol=0, equal_nan=True)
