"""Pictures → region features: `python -m vinvl.extract images=DIR weights=FILE output=features.h5`."""

import sys

from omegaconf import DictConfig

from vinvl.run.door import door, enter


def extract(config: DictConfig) -> None:
    """Composed configuration → the store at `config.output`; see `vinvl.extraction.run`."""
    from vinvl.extraction import run

    run.extract(config)


main = door(extract, "extract")


if __name__ == "__main__":
    enter(main, "extract", sys.argv[1:])
