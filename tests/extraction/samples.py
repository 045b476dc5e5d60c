"""Pictures, a small detector and the door of extraction, for the tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from PIL import Image

from tests import golden
from tests.detector.samples import SMALL, SMALL_WEIGHTS
from tests.picture_samples import gradient, save
from vinvl.extraction.run import extract
from vinvl.run.door import run_door
from vinvl.run.folders import config_directory

USED = replace(SMALL, rpn_proposals=20, min_size=128, max_size=214)
"""How the detector is used: in smaller pictures than those recorded."""
LABELS = {
    "label_to_idx": {f"class {i}": i for i in range(1, SMALL.architecture.num_classes)},
    "attribute_to_idx": {f"attribute {i}": i for i in range(1, SMALL.architecture.num_attributes)},
}


def overrides(folder: Path) -> list[str]:
    """What makes the recorded small network the detector; its label map goes into `folder`."""
    labels = folder / "labels.json"
    labels.write_text(json.dumps(LABELS))
    return [
        f"weights={SMALL_WEIGHTS}",
        f"labels={labels}",
        *(f"detector.architecture.{name}={_text(value)}" for name, value in vars(USED.architecture).items()),
        *(f"detector.{name}={value}" for name, value in vars(USED).items() if name != "architecture"),
        "trainer.accelerator=cpu",
        "workers=0",
    ]


def _text(value: object) -> str:
    return str(list(value)).replace(" ", "") if isinstance(value, tuple) else str(value)


def pictures(folder: Path, count: int = 4) -> Path:
    """Recorded pictures and others, in two nested folders; sizes repeat, so that batches can be made."""
    names = ["small_a_0", "small_b_0", "small_batch_0", "small_batch_1"]
    for index in range(count):
        place = folder / ("first" if index % 2 else "second/deep")
        recorded = golden.whole(f"detector/{names[index]}.png") if index < len(names) else None
        image = gradient(60 + 40 * (index % 3), 100) if recorded is None else Image.open(recorded)
        save(place / f"picture_{index:04d}.png", image)
    return folder


def compose_extract(*given: str) -> DictConfig:
    with initialize_config_dir(config_dir=config_directory(), version_base="1.3"):
        config = compose("extract", overrides=list(given), return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    return DictConfig({name: node for name, node in config.items() if name != "hydra"})


def run_extract(folder: Path, *given: str) -> None:
    """The door within this process; a UserError ends it as `SystemExit` with its sentence."""
    place = [f"hydra.runtime.output_dir={folder}"]
    try:
        run_door(extract, compose_extract(*overrides(folder), *place, *given))
    finally:
        HydraConfig.instance().cfg = None
