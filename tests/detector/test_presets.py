"""conf/detector: each file is the published pipeline that it is named for."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from vinvl.detector import DetectorConfig
from vinvl.run.folders import config_directory

FOLDER = Path(config_directory()) / "detector"
PIPELINES = {  # of the published demo, MMF's extraction script, the published README, and the released files' names
    "x152c4": DetectorConfig(),
    "x152c4_mmf": DetectorConfig(pad_multiple=32),
    "x152c4_readme": DetectorConfig(boxes="proposals"),
    "x152c4_released": DetectorConfig(boxes="proposals", nms_filter=2),
}


def composed(name: str, *overrides: str) -> DetectorConfig:
    with initialize_config_dir(config_dir=str(FOLDER), version_base="1.3"):
        config = instantiate(compose(name, overrides=list(overrides)))
    assert isinstance(config, DetectorConfig)
    return config


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "demo"))
def test_each_file_is_its_pipeline(name: str) -> None:
    assert composed(name) == PIPELINES[name]


def test_every_setting_is_shown_and_can_be_given() -> None:
    shown = OmegaConf.load(FOLDER / "x152c4.yaml")
    assert isinstance(shown.architecture.num_classes, int)
    assert {str(key) for key in shown} - {"_target_"} == set(DetectorConfig.__dataclass_fields__)
    config = composed("x152c4", "max_boxes=36", "architecture.blocks=[3,4,6,3]")
    assert config.max_boxes == 36 and config.architecture.blocks == (3, 4, 6, 3)
