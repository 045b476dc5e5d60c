"""Train a detector: `python -m vinvl.train_detector [overrides]`. Without overrides: on the demo world."""

import sys

import hydra
from omegaconf import DictConfig

from vinvl.run.door import enter
from vinvl.run.folders import config_directory, register_resolvers, run_door
from vinvl.train import train

register_resolvers()


@hydra.main(version_base="1.3", config_path=config_directory(), config_name="train_detector")
def main(config: DictConfig) -> float | None:
    """A run of `vinvl.train` whose task is the detector's; it also writes detector.pth."""
    return run_door(train, config)


if __name__ == "__main__":
    enter(main, "train_detector", sys.argv[1:])
