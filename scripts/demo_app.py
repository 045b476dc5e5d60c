"""The page to ask pictures (`vinvl.app`) with what `make demo-images` has made: its newest model for VQA, its detector.

    python scripts/demo_app.py [--more] [OVERRIDES of python -m vinvl.app …]

Called by `make app`. With --more, models that write captions and that score sentences are trained on the same regions,
unless they are there; from then on the page has them too.
"""

import os
import sys
from pathlib import Path

from demo_images import on_regions
from doors import call

from vinvl.demo import DemoWorld
from vinvl.run.folders import data_root

OTHERS = {"captioning": "demo_captioning", "retrieval": "demo_retrieval"}  # folder of a run → its experiment
EXAMPLES = 12
BEST = "checkpoints/best.ckpt"


def app_arguments(data_dir: Path, runs: Path, more: bool) -> list[str]:
    """The command line of `vinvl.app`; ends the process with a sentence if something is not made yet."""
    weights = data_dir / "demo_detector" / "detector.pth"
    folders = sorted(path.parents[2] for path in (runs / "demo_images").glob(f"*/detectors_regions/{BEST}"))
    if not folders or not weights.is_file():
        sys.exit("error: The demo has no model and detector yet: make demo-images trains both (9 minutes).")
    folder = folders[-1]
    for name, experiment in OTHERS.items() if more else ():
        if not (folder / name / BEST).is_file():
            regions = on_regions(folder / "features.h5", weights)
            call("train", [f"experiment={experiment}", f"hydra.run.dir={folder / name}", "ckpt_path=auto", *regions])
    models = [folder / name for name in ("detectors_regions", *OTHERS) if (folder / name / BEST).is_file()]
    pictures = sorted(DemoWorld(data_dir / "demo").images.glob("0000003*.png"))[:EXAMPLES]  # of the test split
    return [
        f"model=[{','.join(map(str, models))}]", f"detector={weights}", f"examples=[{','.join(map(str, pictures))}]"
    ]  # fmt: skip


def main(arguments: list[str]) -> None:
    given = [one for one in arguments if one != "--more"]
    door = ["-m", "vinvl.app", *app_arguments(Path(data_root()), Path("runs"), "--more" in arguments), *given]
    os.execv(sys.executable, [sys.executable, *door])  # so that Ctrl-C is for the page alone


if __name__ == "__main__":
    main(sys.argv[1:])
