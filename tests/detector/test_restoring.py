"""A detector out of a training checkpoint, for its evaluation; and what a forged checkpoint cannot do."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from vinvl.detector.config import DetectorConfig
from vinvl.detector.data import DetectionDataModule
from vinvl.detector.scores import MORE
from vinvl.detector.task import DetectorTask
from vinvl.regions.regions import LabelMap
from vinvl.restore import check_calls, data_config, task_class
from vinvl.run.checkpoint import read_checkpoint
from vinvl.run.errors import UserError

PATH = Path(__file__).parents[1] / "data/earlier/detector/best.ckpt"
CHECKPOINT = read_checkpoint(PATH)


def test_a_checkpoint_of_an_earlier_version_is_scored_as_its_pictures_were_read() -> None:
    assert task_class(CHECKPOINT, PATH, "test") is DetectorTask
    task = DetectorTask.from_checkpoint(CHECKPOINT, PATH)
    assert task.labels.classes[1:] == ("circle", "square", "triangle", "star")
    assert task.scoring.proposals and task.scoring.visual_genome and len(MORE) == 2
    assert task.detector.config.score_threshold == 0.05 and task.detector.config.min_boxes == 0
    run_config = copy.deepcopy(CHECKPOINT["vinvl"]["run_config"])
    del run_config["data"]["reading"]  # as still earlier ones
    run_config = DetectorTask.as_now(run_config)
    config = OmegaConf.create({"data": {}, "paths": {"data_dir": "data"}})
    data = data_config(config, run_config, {}, PATH)
    assert data.reading == {"_target_": "vinvl.pictures.ReadingOptions", "exif_orientation": "ignore"}
    assert data.prepare.folder == "data/demo"  # of this command, not of the machine that the checkpoint comes from


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": None}, "has no settings"),
        ({"label_map": 3}, "has no label map"),
        ({"config.architecture.blocks": [2**20] * 4}, "cannot be that of the file's"),
        ({"config.architecture.first_stage_channels": 2**20}, "has the shape"),
        ({"config.architecture.num_classes": 2**20}, "names 5 classes"),
        ({"config.unheard_of": 1}, "the setting 'unheard_of', unknown to this version"),
        ({"batch_norm": "none"}, "batch_norm='none'"),
        ({"scoring_threshold": "much"}, "score_threshold='much'"),
        ({"init": "/etc/passwd"}, "has 'init', unknown to this version"),
    ],
)
def test_a_forged_checkpoint_is_refused(changes: dict[str, Any], words: str) -> None:
    forged = {**CHECKPOINT, "hyper_parameters": copy.deepcopy(CHECKPOINT["hyper_parameters"])}
    for key, value in changes.items():
        *parents, last = key.split(".")
        place = forged["hyper_parameters"]
        for parent in parents:
            place = place[parent]
        place[last] = value
    with pytest.raises(UserError, match=r"best\.ckpt") as refused:
        DetectorTask.from_checkpoint(forged, PATH)
    assert words in str(refused.value)


def test_a_checkpoint_without_a_weight_is_refused() -> None:
    tensors = dict(CHECKPOINT["state_dict"])
    del tensors["detector.rpn.head.conv.weight"]
    with pytest.raises(UserError, match="lacks 1 of the detector's"):
        DetectorTask.from_checkpoint({**CHECKPOINT, "state_dict": tensors}, PATH)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prepare._target_", "vinvl.run.files.write_json"),
        ("detector._target_", "vinvl.detector.weights.save_detector"),
        ("reading._target_", "os.system"),
        ("_target_", "vinvl.detector.data.learnable"),
        ("label_map", "${oc.env:HOME}"),
    ],
)
def test_its_data_call_nothing_else(key: str, value: str) -> None:
    data = copy.deepcopy(DetectorTask.as_now(CHECKPOINT["vinvl"]["run_config"])["data"])
    check_calls(data, PATH)
    *parents, last = key.split(".")
    place = data
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(UserError, match="pass data=NAME"):
        check_calls(data, PATH)


def data_module(label_map: str | None = None) -> DetectionDataModule:
    return DetectionDataModule(
        splits={},
        detector=DetectorConfig(),
        label_map=label_map,
        train_split="train",
        val_split="val",
        test_split="test",
        empty_pictures="keep",
        bad_boxes="refuse",
        on_missing="error",
        flip_probability=0.0,
        min_sizes=None,
        batch_size=1,
        eval_batch_size=1,
        num_workers=0,
        pin_memory=False,
        seed=0,
        prepare=None,
    )


def test_a_label_map_of_other_names_than_the_detectors_is_told(tmp_path: Path) -> None:
    labels, file = LabelMap(("", "cat", "dog"), ("", "red")), tmp_path / "labels.json"
    for classes, told in ((("", "dog", "cat"), True), (("__background__", "cat", "dog"), False)):
        file.write_text(LabelMap(classes, labels.attributes).to_json())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            data_module(str(file)).use_labels(labels, "the detector")
        assert ["has other names than the detector" in str(one.message) for one in caught] == [True] * told
    data_module(str(tmp_path / "of another machine.json")).use_labels(labels, "the detector")


def test_a_detectors_classes_need_no_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_module()
    read: list[str] = []
    monkeypatch.setattr(data, "_dataset_of", lambda name: read.append(name) or name)
    data.setup("none")
    assert read == []
    data.setup("test")
    assert read == ["train", "test"]
    data.datasets.clear()
    data.use_labels(LabelMap(("", "cat")), "the detector")
    data.setup("test")
    assert read == ["train", "test", "test"]
