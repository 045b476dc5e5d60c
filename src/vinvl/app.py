"""A page in the browser to ask pictures: `python -m vinvl.app model=runs/NAME/TIME detector=detector.pth`."""

from __future__ import annotations

import re
import sys

from omegaconf import DictConfig

from vinvl.run.door import door, enter
from vinvl.run.errors import UserError


def app(config: DictConfig) -> None:
    """Composed configuration → the page, served until the process is told to end."""
    if not config.models or config.weights is None:
        missing = "detector=FILE" if config.models else "model=RUN, or model=[RUN,RUN] for several side by side"
        raise UserError(f"Pass {missing}: the page asks trained models, about what a detector sees in a picture.")
    for key, least in (("most_examples", 0), ("most_megabytes", 1), ("max_pixels", 1), ("port", 1)):
        free = key == "port" and config.port is None
        if not free and (type(config[key]) is not int or config[key] < least):
            raise UserError(f"{key}={config[key]!r} must be a whole number from {least}.")
    from vinvl.asking.given import examples_of, models_of
    from vinvl.asking.page import serve

    examples = examples_of(config)
    serve(models_of(config), examples, host=str(config.host), port=config.port, most_megabytes=config.most_megabytes)


def models_and_detector(arguments: list[str]) -> list[str]:
    """Command-line arguments, `model=` as `models=` and so on: Hydra has groups of files of these names."""
    groups = {"model=": "models=", "detector=": "weights=", "task=": "task_name="}
    return [re.sub("^(model|detector|task)=", lambda found: groups[found[0]], one) for one in arguments]


main = door(app, "app")


if __name__ == "__main__":
    enter(main, "app", models_and_detector(sys.argv[1:]))
