"""Pictures → region features: `python -m vinvl.extract images=DIR weights=FILE output=features.h5`."""

import sys

import hydra
from omegaconf import DictConfig

from vinvl.extraction.run import extract
from vinvl.run.door import enter
from vinvl.run.folders import config_directory, register_resolvers, run_door

register_resolvers()


@hydra.main(version_base="1.3", config_path=config_directory(), config_name="extract")
def main(config: DictConfig) -> None:
    run_door(extract, config)


if __name__ == "__main__":
    enter(main, "extract", sys.argv[1:])
