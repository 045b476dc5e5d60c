"""What the detector may be told: its configurations compose, are what is published, and are refused out of range."""

import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from tests.test_conf import GROUPS, assert_callable_as_written, composed
from vinvl.detector import Architecture, DetectorConfig
from vinvl.detector.config import TrainingSettings
from vinvl.detector.data import DetectionDataModule
from vinvl.detector.task import DetectorTask
from vinvl.run.errors import UserError
from vinvl.run.folders import config_directory
from vinvl.task import Recipe

OWN = [f"data.splits.{split}={{annotations: a.json, pictures: folder}}" for split in ("train", "val")]
FOLDER = Path(config_directory()) / "detector"
PIPELINES = {  # of the published demo, MMF's extraction script, the published README, and the released files' names
    "x152c4": DetectorConfig(),
    "x152c4_mmf": DetectorConfig(pad_multiple=32),
    "x152c4_readme": DetectorConfig(boxes="proposals"),
    "x152c4_released": DetectorConfig(boxes="proposals", nms_filter=2),
    "x152c4_foursets": DetectorConfig(Architecture(num_classes=1849, num_attributes=0), score_threshold=0.05),
    "x152c4_objects365": DetectorConfig(Architecture(num_classes=366, num_attributes=0), score_threshold=0.05),
}
INIT = {name: ["start.init=FILE"] for name in GROUPS["detection_recipe"] if name != "demo"}


def of_detector(*overrides: str) -> Any:
    return composed("train_detector", *overrides)


@pytest.mark.parametrize("recipe", GROUPS["detection_recipe"])
@pytest.mark.parametrize("data", GROUPS["detection_data"])
def test_every_recipe_takes_every_data(recipe: str, data: str) -> None:
    own = OWN if data in ("coco_json", "sets") else []
    config = of_detector(f"detection_recipe={recipe}", f"detection_data={data}", *INIT.get(recipe, []), *own)
    assert_callable_as_written(config)
    assert config["name"] == f"detector_{data}"
    assert {config["data"][f"{stage}_split"] for stage in ("train", "val", "test")} <= set(config["data"]["splits"])
    assert isinstance(instantiate(config["data"]), DetectionDataModule)
    assert isinstance(instantiate(config["training"]), TrainingSettings)


@pytest.mark.parametrize("trainer", GROUPS["trainer"])
def test_every_trainer_is_taken(trainer: str) -> None:
    assert_callable_as_written(of_detector(f"trainer={trainer}"))


def test_every_setting_is_shown() -> None:
    config = of_detector()
    assert set(config["training"]) - {"_target_"} == {field.name for field in fields(TrainingSettings)}
    assert set(config["data"]) - {"_target_"} == set(inspect.signature(DetectionDataModule).parameters)
    taken = set(inspect.signature(DetectorTask).parameters) - {"recipe"} | set(Recipe.__annotations__)
    taken -= {"undecayed"}  # its groups are its own: biases at another rate and without decay
    assert set(config["task"]) - {"_target_"} | {"config", "label_map"} == taken


SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "momentum": 0.9}


@pytest.mark.parametrize(
    ("recipe", "pictures", "lr", "decay", "steps", "falls", "warm_up"),
    [
        ("faster_rcnn_c4", 8, 0.01, 1e-4, 180_000, [120_000, 160_000], 500),
        ("detector_foursets", 16, 0.005, 5e-5, 300_000, [200_000, 260_000], 4000),
        ("detector_vg_attributes", 16, 0.005, 1e-4, 90_000, [49_000, 65_000], 500),
    ],
)
def test_the_published_recipes_are_those_published(
    recipe: str, pictures: int, lr: float, decay: float, steps: int, falls: list[int], warm_up: int
) -> None:
    """maskrcnn-benchmark's defaults and R-50-C4 1x, the four-set config, and vinvl_x152c4.yaml with the paper."""
    config = of_detector(f"detection_recipe={recipe}", "start.init=FILE", "detection_data=coco2017")
    assert config["start"]["batch_norm"] == "frozen" and config["start"]["frozen_stages"] == 2
    assert config["optim"]["optimizer"] == SGD | {"lr": lr}
    assert config["optim"]["weight_decay"] == decay and config["optim"]["bias_lr_factor"] == 2
    trainer, data, schedule = config["trainer"], config["data"], config["optim"]["scheduler"]
    assert data["batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"] == pictures
    assert data["flip_probability"] == 0.5 and data["group_by"] == "orientation"
    assert trainer["max_steps"] == steps and trainer["gradient_clip_val"] is None
    assert [round(share * steps) for share in schedule["milestones"]] == falls
    assert (schedule["warmup_steps"], schedule["gamma"]) == (warm_up, 0.1)
    assert schedule["warmup_factor"] == pytest.approx(1 / 3)
    if recipe == "faster_rcnn_c4":
        assert instantiate(config["training"]) == TrainingSettings()
        return
    assert data["min_sizes"] == [448, 512, 576, 640, 704, 768, 800] and data["max_size"] == 1333
    training = TrainingSettings(region_samples=384, region_positive_fraction=0.5)
    if recipe == "detector_foursets":
        assert instantiate(config["detector"]) == DetectorConfig(pad_multiple=32, score_threshold=0.05)
        assert instantiate(config["training"]) == training
    else:
        assert instantiate(config["detector"]) == DetectorConfig()
        expected = replace(training, attribute_loss_weight=1.25, repeated_attributes="as_published")
        assert instantiate(config["training"]) == expected


@pytest.mark.parametrize(
    ("recipe", "files"),
    [
        ("detector_foursets", ["visual_genome", "coco", "objects365", "open_images"]),
        ("detector_vg_attributes", ["visual_genome"]),
    ],
)
def test_a_recipe_names_the_data_that_it_was_made_for(recipe: str, files: list[str]) -> None:
    config = of_detector(f"detection_recipe={recipe}", "start.init=FILE")
    train = config["data"]["splits"]["train"]
    named = [Path(entry["annotations"]).stem for entry in (train if isinstance(train, list) else [train])]
    assert named == files


def preset(name: str, *overrides: str) -> DetectorConfig:
    with initialize_config_dir(config_dir=str(FOLDER), version_base="1.3"):
        config = instantiate(compose(name, overrides=list(overrides)))
    assert isinstance(config, DetectorConfig)
    return config


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "demo"))
def test_each_preset_is_its_pipeline(name: str) -> None:
    assert preset(name) == PIPELINES[name]


def test_every_setting_of_use_is_shown_and_can_be_given() -> None:
    shown = OmegaConf.load(FOLDER / "x152c4.yaml")
    assert isinstance(shown.architecture.num_classes, int)
    assert {str(key) for key in shown} - {"_target_"} == set(DetectorConfig.__dataclass_fields__)
    config = preset("x152c4", "max_boxes=36", "architecture.blocks=[3,4,6,3]")
    assert config.max_boxes == 36 and config.architecture.blocks == (3, 4, 6, 3)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        (DetectorConfig, {"boxes": "refined"}, "regressed or proposals"),
        (DetectorConfig, {"nms_filter": 3}, "nms_filter=3"),
        (DetectorConfig, {"nms_filter": 2}, "boxes=proposals"),
        (DetectorConfig, {"min_boxes": 101}, "min_boxes=101 must not exceed max_boxes=100"),
        (DetectorConfig, {"rpn_proposals": 0}, "rpn_proposals=0"),
        (DetectorConfig, {"min_size": 1200}, "min_size=1200"),
        (DetectorConfig, {"pad_multiple": 0}, "pad_multiple=0"),
        (TrainingSettings, {"rpn_samples": 0}, "rpn_samples=0"),
        (TrainingSettings, {"foreground_iou": 0.0}, "foreground_iou=0.0"),
        (TrainingSettings, {"region_positive_fraction": 1.5}, "region_positive_fraction=1.5"),
        (TrainingSettings, {"rpn_background_iou": 0.8}, "rpn_background_iou=0.8"),
        (TrainingSettings, {"attribute_loss_weight": -1.0}, "attribute_loss_weight=-1.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(kind: type[Any], changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replace(kind(), **changes)
