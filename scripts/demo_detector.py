"""The demo's detector: train it on the generated world's pictures unless it is there, print how good it is.

Called by `make demo-detector`; overrides given to it go to the training run. The weight file gets a place that stays,
for whoever wants features of the demo's pictures: `demo_detector/detector.pth` in the folder of data.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from doors import call, scores_of
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vinvl.run.files import atomic_write, write_text_atomically
from vinvl.run.folders import config_directory, data_root, register_resolvers
from vinvl.run.progress import print_results

DEPENDS_ON = ("seed", "detector", "training", "start", "optim", "data", "trainer.max_epochs", "trainer.max_steps")
ROWS = {
    "mean average precision at IoU 0.5": "map_50",
    "mean average precision, IoU 0.5 to 0.95": "map",
    "attributes named, of all objects": "attributes",
}


def ensure_demo_detector(data_dir: Path, overrides: list[str], name: str = "demo_detector") -> Path:
    """The weight file of the demo's detector; it is trained if there is none of this recipe in the folder `name`.

    Killed training continues where it was. A detector of another recipe is replaced when the new one is trained.

    Args:
        data_dir: the folder of data.
        overrides: of `python -m vinvl.train_detector`.
    """
    folder = data_dir / name
    weights, stamp = folder / "detector.pth", folder / "stamp.json"
    recipe = recipe_of(overrides)
    if read_stamp(stamp).get("recipe") == recipe and weights.is_file():
        return weights
    run = folder / f"run-{recipe}"
    call("train_detector", [f"paths.data_dir={data_dir}", f"hydra.run.dir={run}", "ckpt_path=auto", *overrides])
    with atomic_write(weights, "wb") as file:
        file.write((run / weights.name).read_bytes())
        stamp.unlink(missing_ok=True)  # so that it never stands beside the weights of another recipe
    content = {"recipe": recipe, "run": run.name, "scores": scores_of(run)}
    write_text_atomically(stamp, json.dumps(content, indent=2) + "\n")
    return weights


def recipe_of(overrides: list[str]) -> str:
    """A word of 12 letters and digits that any other recipe has otherwise; where files lie does not count."""
    register_resolvers()
    with initialize_config_dir(config_dir=config_directory(), version_base="1.3"):
        config = compose("train_detector", overrides=overrides)
    values: dict[str, Any] = {}
    for key in DEPENDS_ON:
        value = OmegaConf.select(config, key)
        values[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    values["data"].pop("splits")
    (values["data"]["prepare"] or {}).pop("folder", None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def read_stamp(path: Path) -> dict[str, Any]:
    """What is written beside a finished detector; nothing if there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def main(overrides: list[str]) -> None:
    data_dir = Path(data_root())
    weights = ensure_demo_detector(data_dir, overrides)
    scores = read_stamp(weights.with_name("stamp.json"))["scores"]
    rows = [(what, f"{scores[name]:.2f} %") for what, name in ROWS.items()]
    print_results("The demo's detector, on the pictures of the test split", rows, {"weight file": weights})


if __name__ == "__main__":
    main(sys.argv[1:])
