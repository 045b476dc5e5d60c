"""The detector's task: what its steps draw, what it scores, how fast its parts learn."""

import base64
import io
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vinvl.detector import Architecture, DetectedRegions, DetectorConfig
from vinvl.detector.average_precision import FoundBoxes, TrueBoxes
from vinvl.detector.config import TrainingSettings
from vinvl.detector.data import DetectionBatch, DetectionExample
from vinvl.detector.losses import Objects
from vinvl.detector.networks import Proposals
from vinvl.detector.scores import MORE
from vinvl.detector.task import DetectorTask, config_for, found_boxes
from vinvl.examples import read_boxes
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError

LABELS = LabelMap(("__background__", "cat", "dog"), ("__no_attribute__", "black"))
SMALL = DetectorConfig(
    Architecture(blocks=(1, 1, 1, 1), stem_channels=4, first_stage_channels=8, groups=1, width_per_group=4)
)


def task(**changes: Any) -> DetectorTask:
    arguments: dict[str, Any] = {
        "config": config_for(SMALL, LABELS),
        "label_map": LABELS.to_json(),
        "training": TrainingSettings(),
        "batch_norm": "trained",
        "frozen_stages": 0,
    }
    return DetectorTask(**{**arguments, **changes})


def test_settings_are_plain_and_fit_the_names() -> None:
    config = config_for(SMALL, LABELS)
    assert config == json.loads(json.dumps(config))
    assert config["architecture"]["num_classes"] == 3 and config["architecture"]["num_attributes"] == 2
    made = task()
    assert made.settings.architecture.num_classes == 3 and made.settings.min_boxes == SMALL.min_boxes
    assert made.detector.config.min_boxes == 0 and made.detector.config.score_threshold == 0.05


def test_every_step_and_every_run_draws_its_own_numbers() -> None:
    made, other = task(seed=1), task(seed=2)
    drawn = set()
    for one in (made, other):
        for one.batches_seen in (1, 2):
            drawn.add(int(torch.randint(2**40, (), generator=one._generator())))
    assert len(drawn) == 4
    made.batches_seen = 1
    assert int(torch.randint(2**40, (), generator=made._generator())) in drawn
    weight = "roi_heads.box.predictor.cls_score.weight"
    assert torch.equal(task(seed=1).detector.state_dict()[weight], made.detector.state_dict()[weight])
    assert not torch.equal(other.detector.state_dict()[weight], made.detector.state_dict()[weight])


def test_contradictions_are_refused() -> None:
    with pytest.raises(UserError, match="frozen_stages=1 with batch_norm=trained"):
        task(frozen_stages=1)
    with pytest.raises(UserError, match="batch_norm='off'"):
        task(batch_norm="off")
    frozen = task(batch_norm="frozen", frozen_stages=4).detector.backbone.body
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


class FakeTrainer:
    estimated_stepping_batches = 10


def test_biases_learn_faster_and_norms_do_not_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    made = task(
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        scheduler=lambda optimizer, total_steps: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5),
        weight_decay=0.01,
        bias_lr_factor=2.0,
    )
    monkeypatch.setattr(DetectorTask, "trainer", FakeTrainer())
    groups = made.configure_optimizers()["optimizer"].param_groups
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.05, 0.01), (0.05, 0), (0.1, 0)]
    everything = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(everything) == sorted({id(parameter) for parameter in made.detector.parameters()})


def test_scores_are_percent_and_leave_out_what_is_not_there() -> None:
    made = task()
    boxes = torch.tensor([[10.0, 10, 29, 29], [40, 40, 49, 69]])
    regions = DetectedRegions(
        boxes=boxes, network_boxes=boxes, labels=torch.tensor([1, 1]), scores=torch.tensor([0.9, 0.8]),
        features=torch.zeros(2, 64), attribute_labels=torch.tensor([[1], [1]]),
        attribute_scores=torch.tensor([[0.5], [0.0]]), image_size=(100, 100),
    )  # fmt: skip
    found = found_boxes(regions)
    assert found.boxes.tolist() == [[10, 10, 30, 30], [40, 40, 50, 70]]  # the last pixel no longer counted in
    assert found.attributes.tolist() == [[1], [0]]
    truth = TrueBoxes(found.boxes[:1], np.array([1]), np.zeros(1, dtype=bool), np.array([[1]]))
    made.scoring.update(0, found, truth)
    made.scores = made.compute_scores()
    names = ("map_50", "map_75", "map", "attributes_of_found", "attributes", "class_50/cat")
    assert made.scores == pytest.approx(dict.fromkeys(names, 100.0))
    assert ("mean average precision at IoU 0.5", "100.00 %") in made.result_rows()
    made.scores["attributes"] = float("nan")
    assert not any(what.startswith("attributes named, of all") for what, _ in made.result_rows())


def test_the_first_pictures_of_a_test_are_kept_with_true_and_found_boxes(tmp_path: Path) -> None:
    """Of the found ones as many as there are objects, and more with good scores; one without its class is missed."""
    made, corners = task(), np.array([[1.0, 2, 9, 8], [20, 20, 40, 30], [1, 2, 9, 8], [0, 0, 1, 1]])
    none = np.zeros((4, 1), dtype=np.int64)
    found = FoundBoxes(corners, np.array([1, 2, 2, 2]), np.array([0.01, 0.9, 0.5, 0.05]), none, none.astype(float))
    truth = TrueBoxes(corners[[0, 1, 1]] + [[0], [0], [15]], np.array([1, 2, 2]), np.zeros(3, dtype=bool), none[:3])
    one = TrueBoxes(corners[1:2], np.array([2]), np.zeros(1, dtype=bool), none[:1])
    shown = torch.zeros(20, 30, 3, dtype=torch.uint8), (60, 40), found
    made._first = [(*shown, truth), *[(*shown, one)] * 16]
    assert made.write_examples(tmp_path, "val", "best.ckpt") == {"true and found boxes": tmp_path / "boxes.json"}
    seen = read_boxes(tmp_path / "boxes.json")
    names = made.labels.classes
    assert len(seen) == 16 and (seen[0].width, seen[0].height, seen[0].missed) == (60, 40, 2)
    assert [(box.name, box.score) for box in seen[0].found] == [(names[2], 0.9), (names[2], 0.5), (names[2], 0.05)]
    assert [box.score for box in seen[1].found] == [0.9, 0.5] and seen[1].missed == 0
    assert [(box.name, box.corners) for box in seen[0].true] == [
        (names[1], (1, 2, 9, 8)), (names[2], (20, 20, 40, 30)), (names[2], (35, 35, 55, 45))
    ]  # fmt: skip
    assert Image.open(io.BytesIO(base64.b64decode(seen[0].jpeg))).size == (30, 20)
    made._reset_metrics()
    made.write_examples(tmp_path, "val", "best.ckpt")
    assert read_boxes(tmp_path / "boxes.json") == []


def regions_of(boxes: Any, labels: list[int], attributes: list[int]) -> DetectedRegions:
    """Regions of sure classes and attributes."""
    corners = torch.as_tensor(np.array(boxes), dtype=torch.float32)
    sure = torch.ones(len(labels))
    return DetectedRegions(
        corners, corners, torch.tensor(labels), sure, torch.zeros(len(labels), 64),
        torch.tensor(attributes)[:, None], sure[:, None], (60, 40),
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_more_is_scored_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attributes are also asked of the objects' own boxes, but for crowds, and proposals are scored for themselves."""
    made = task(config=config_for(replace(SMALL, min_size=40, max_size=60), LABELS), more_scores=list(MORE)).eval()
    truth = TrueBoxes(
        np.array([[5.0, 5, 25, 35], [30, 10, 30.5, 30], [0, 0, 60, 40]]), np.array([1, 2, 1]),
        np.array([False, False, True]), np.array([[1], [0], [1]]),
    )  # fmt: skip
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.int64))
    pixels = torch.randint(0, 255, (40, 60, 3), dtype=torch.uint8)
    batch = DetectionBatch.of([DetectionExample(pixels, nothing, truth, 7, (60, 40))])
    asked = []

    def detect(pictures: Any, sizes: Any, boxes: Any = None) -> list[DetectedRegions]:
        asked.append(boxes)
        if boxes is None:  # the first object found as another class, and one that is not there
            return [regions_of([[5, 5, 24, 34], [40, 0, 50, 9]], [2, 1], [0, 0])]
        return [regions_of(boxes[0], [1, 2], [1, 1])]

    monkeypatch.setattr(made.detector, "detect_pixels", detect)
    made.evaluate_batch(batch)
    assert asked[0] is None and asked[1][0].tolist() == [[5, 5, 24, 34], [30, 10, 30, 29]]
    scores = made.compute_scores()
    assert scores["vg_map"] == scores["vg_weighted_map"] == 0 and scores["vg_attributes"] == 100
    assert scores["vg_attributes_of_found"] == 0 and scores["vg_attributes/black"] == 100
    assert scores["vg_map/dog"] == 0 and scores["recall_36"] == scores["recall_99_small"] == 50
    assert 0 <= scores["proposals_100"] <= scores["proposals_1000"] <= 100
    made.scores = scores
    assert ("average recall of 36 boxes", "50.00 %") in made.result_rows()
    made._reset_metrics()
    assert np.isnan(made.compute_scores()["vg_map"])
    with pytest.raises(UserError, match="more_scores has 'coc'"):
        task(more_scores=["coc"])


def test_proposals_are_of_the_original_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    made = task(more_scores=["proposals"]).eval()
    one = torch.ones(1, dtype=torch.int64)
    proposed = Proposals([torch.tensor([[8.0, 4, 47, 39]])], [torch.ones(1)], one, one.bool())
    monkeypatch.setattr(made.detector, "propose", lambda c4, sizes: proposed)
    truth = TrueBoxes(np.array([[16.0, 8, 95, 79]]), np.array([1]), np.array([False]), np.zeros((1, 0), np.int64))
    nothing = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 0, dtype=torch.int64))
    pixels = torch.zeros(40, 60, 3, dtype=torch.uint8)  # half as large as the original
    batch = DetectionBatch.of([DetectionExample(pixels, nothing, truth, 7, (120, 80))])
    [boxes] = made._proposals(batch)
    assert boxes.tolist() == [[16, 8, 95, 79]]
