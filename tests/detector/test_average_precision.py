"""Average precision against COCO's own evaluation, and the recall of attributes against counting."""

import contextlib
import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.detector.average_precision import AttributeRecall, AveragePrecision, FoundBoxes, TrueBoxes

NUM_CLASSES = 5
NONE = np.zeros((1000, 0), np.int64)  # attributes
Picture = tuple[FoundBoxes, TrueBoxes]


def boxes_near(centres: np.ndarray, rng: np.random.Generator, spread: int) -> np.ndarray:
    """Boxes with whole-number corners, so that both evaluations compute the same overlaps."""
    low = centres + rng.integers(-spread, spread + 1, size=centres.shape)
    high = low + rng.integers(8, 20, size=centres.shape)
    return np.concatenate([low, high], axis=1).astype(np.float64)


def random_picture(rng: np.random.Generator, objects: int, found: int) -> Picture:
    """Boxes crowded around few places, with few different scores, so that there are ties of every kind."""
    places = rng.integers(0, 60, size=(max(1, objects // 2), 2))
    true = TrueBoxes(
        boxes_near(places[rng.integers(len(places), size=objects)], rng, 3),
        rng.integers(1, NUM_CLASSES - 1, size=objects),  # the last class has no objects
        rng.random(objects) < 0.2,
        NONE[:objects],
    )
    said = FoundBoxes(
        boxes_near(places[rng.integers(len(places), size=found)], rng, 3),
        rng.integers(1, NUM_CLASSES, size=found),
        rng.integers(1, 9, size=found) / 8,
        NONE[:found],
        NONE[:found].astype(np.float64),
    )
    return said, true


def cocos_figures(pictures: list[Picture]) -> tuple[np.ndarray, list[float]]:
    """(classes, 10) average precision and [map, map_50, map_75] of pycocotools; -1 where it has none."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, said = [], []
    for number, (found, true) in enumerate(pictures):
        for box, label, crowd in zip(true.boxes, true.labels, true.crowd, strict=True):
            truth.append({"id": len(truth) + 1, "image_id": number, "category_id": int(label), "iscrowd": int(crowd)})
            truth[-1] |= {"bbox": xywh(box), "area": float((box[2] - box[0]) * (box[3] - box[1]))}
        for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True):
            said.append({"image_id": number, "category_id": int(label), "bbox": xywh(box), "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": number} for number in range(len(pictures))],
            "annotations": truth,
            "categories": [{"id": label, "name": str(label)} for label in range(1, NUM_CLASSES)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(said), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # (10, 101, classes), all areas, 100 boxes
    return precision.mean(axis=1).T, [float(value) for value in evaluation.stats[:3]]


def xywh(box: np.ndarray) -> list[float]:
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]


def computed(pictures: list[Picture], numbers: list[int] | None = None) -> dict[str, torch.Tensor]:
    metric = AveragePrecision(NUM_CLASSES)
    for number in numbers if numbers is not None else range(len(pictures)):
        metric.update(number, *pictures[number])
    result: dict[str, torch.Tensor] = metric.compute()
    return result


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), counts=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 25)), min_size=1))
def test_it_is_cocos_own_evaluation(seed: int, counts: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(seed)
    pictures = [random_picture(rng, objects, found) for objects, found in counts[:8]]
    pictures.append(random_picture(rng, 6, 12))  # COCO's code takes no empty list of boxes
    by_class, means = cocos_figures(pictures)
    ours = computed(pictures)
    np.testing.assert_allclose(np.nan_to_num(ours["by_class"][1:].numpy(), nan=-1), by_class, rtol=0, atol=1e-12)
    np.testing.assert_allclose([float(ours[name]) for name in ("map", "map_50", "map_75")], means, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("order", "map_50"), [([0, 1], 1.0), ([1, 0], 0.5)])
def test_of_two_objects_overlapped_alike_the_last_is_taken(order: list[int], map_50: float) -> None:
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10.0]])[order]
    true = TrueBoxes(boxes, np.ones(2, dtype=np.int64), np.zeros(2, dtype=bool), NONE[:2])
    between = np.array([[2, 0, 12, 10], [0, 0, 10, 10.0]])
    found = FoundBoxes(between, np.ones(2, dtype=np.int64), np.array([0.9, 0.5]), NONE[:2], NONE[:2])
    assert float(computed([(found, true)])["map_50"]) == pytest.approx(cocos_figures([(found, true)])[1][1])
    assert float(computed([(found, true)])["map_50"]) == pytest.approx(map_50, abs=0.01)


def test_more_boxes_than_count() -> None:
    rng = np.random.default_rng(5)
    pictures = [random_picture(rng, 30, 700) for _ in range(2)]
    by_class, _ = cocos_figures(pictures)
    np.testing.assert_allclose(np.nan_to_num(computed(pictures)["by_class"][1:].numpy(), nan=-1), by_class, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_nothing_seen_is_no_figure() -> None:
    result = AveragePrecision(NUM_CLASSES).compute()
    assert all(math.isnan(float(result[name])) for name in ("map", "map_50", "map_75"))
    nothing = TrueBoxes(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool), NONE[:0])
    found = random_picture(np.random.default_rng(0), 3, 4)[0]
    assert math.isnan(float(computed([(found, nothing)])["map"]))


def attribute_counts(metric: AttributeRecall, rng: np.random.Generator, counts: dict[str, int]) -> None:
    """Updates a metric with a random picture, and plain counts in the slowest way."""
    found, true = random_picture(rng, int(rng.integers(0, 6)), int(rng.integers(0, 9)))
    said = rng.permuted(np.tile(np.arange(0, 6), (len(found.labels), 1)), axis=1)[:, :4]
    there = np.array([rng.permutation(6)[:3] for _ in true.labels]).reshape(-1, 3)
    metric.update(replace(found, attributes=said), replace(true, attributes=there))
    for box, attributes, crowd in zip(true.boxes, there, true.crowd, strict=True):
        wanted = {int(one) for one in attributes if one > 0}
        if crowd:
            continue
        counts["all"] += len(wanted)
        areas = [(shared_area(box, other), other, index) for index, other in enumerate(found.boxes)]
        ious = [(area / (size(box) + size(other) - area), -index) for area, other, index in areas]
        if ious and max(ious)[0] >= 0.5:
            counts["found"] += len(wanted)
            counts["named"] += len({int(one) for one in said[-max(ious)[1]][: len(wanted)]} & wanted)


def size(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def shared_area(one: np.ndarray, other: np.ndarray) -> float:
    width, height = (min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1))
    return float(max(0, width) * max(0, height))


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_attribute_recall_is_what_counting_gives() -> None:
    metric, counts, rng = AttributeRecall(), {"all": 0, "found": 0, "named": 0}, np.random.default_rng(4)
    assert math.isnan(float(metric.compute()["all"]))
    for _ in range(60):
        attribute_counts(metric, rng, counts)
    metric._computed = None
    assert 0 < counts["named"] < counts["found"] < counts["all"]
    result = metric.compute()
    assert float(result["all"]) == counts["named"] / counts["all"]
    assert float(result["found"]) == counts["named"] / counts["found"]


def rank_result(pictures: list[Picture], numbers: list[int]) -> dict[str, Any]:
    result: dict[str, Any] = computed(pictures, numbers)
    metric = AttributeRecall()
    for number in numbers:
        attribute_counts(metric, np.random.default_rng(number), {"all": 0, "found": 0, "named": 0})
    return result | metric.compute()


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    shares = [[[], list(range(9))], [[8, 2, 5], [0, 7, 1, 6, 4, 3]]]
    torch.save([rank_result(PICTURES, share[rank]) for share in shares], f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


RNG = np.random.default_rng(11)
PICTURES = [random_picture(RNG, 5, 12) for _ in range(9)]


@pytest.mark.filterwarnings("ignore")
def test_two_ranks_give_the_result_of_one_in_any_order(tmp_path: Path) -> None:
    mp.start_processes(run_rank, args=(str(tmp_path),), nprocs=2, start_method="fork")
    expected = rank_result(PICTURES, list(range(9)))
    for rank in range(2):
        for result in torch.load(tmp_path / f"rank{rank}.pt"):
            assert result.keys() == expected.keys()
            for name in expected:
                torch.testing.assert_close(result[name], expected[name], rtol=0, atol=0, equal_nan=True)
