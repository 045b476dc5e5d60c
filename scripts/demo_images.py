"""From pictures to answers on the demo world: a detector, its features of all pictures, VQA on them, a question.

    python scripts/demo_images.py [OVERRIDES of both VQA runs …] [--detector OVERRIDES of its training …]

Called by `make demo-images`. The detector is the one of `make demo-detector`, trained if it is missing. VQA is
trained on its features and, beside that, on the regions that the demo world comes with, which were rendered from the
objects themselves. One table says how good both are.
"""

from datetime import datetime
from pathlib import Path

from demo_detector import ensure_demo_detector, read_stamp
from doors import call, scores_of, two_lists

from vinvl.demo import DemoWorld
from vinvl.detector.weights import read_settings
from vinvl.run.folders import data_root
from vinvl.run.progress import print_results
from vinvl.vqa.files import read_official

TITLE = "Demo world, held-out test split, %"
COLUMNS = ("", "detector's regions", "rendered regions")
BOX_NUMBERS = 6  # of a region, beside its feature
KINDS = ("overall", "yes/no", "number", "other")


def extract(world: DemoWorld, weights: Path, store: Path) -> None:
    """Makes the store of all pictures' regions."""
    where = [f"images={world.images}", f"weights={weights}", f"output={store}"]
    call("extract", [*where, "batch_size=16", r"id.pattern='0*(\d+)$'"])  # 000000100001.png is image 100001


def on_regions(store: Path, weights: Path) -> list[str]:
    """Overrides of a training on the regions that the detector of these weights has found."""
    settings = read_settings(weights)
    assert settings is not None  # written by our own training
    size = settings.config.architecture.c5_channels + BOX_NUMBERS
    return [f"data.regions={store}", f"model.config.img_feature_dim={size}"]


def train_both(store: Path, weights: Path, folder: Path, overrides: list[str]) -> tuple[Path, Path]:
    """The runs of VQA on the detector's regions and on those that come with the world."""
    runs = folder / "detectors_regions", folder / "rendered_regions"
    for run, regions in zip(runs, (on_regions(store, weights), []), strict=True):
        call("train", [f"hydra.run.dir={run}", *regions, *overrides])
    return runs


def ask(world: DemoWorld, model: Path, weights: Path) -> Path:
    """The first question about a test picture, asked as one would about a picture of your own; the picture."""
    records = read_official(world.questions("test"), world.annotations("test"))
    picture = world.images / f"{int(records.image_ids[0]):012d}.png"
    call(
        "predict",
        [f"ckpt_path={model}", f"weights={weights}", f"image={picture}", f"question='{records['question'][0]}'"],
    )
    return picture


def rows(detector: dict[str, float], seen: dict[str, float], rendered: dict[str, float]) -> list[tuple[str, ...]]:
    """Of the table."""
    first = ("objects found, mAP at IoU 0.5", f"{detector['map_50']:.2f}", "–")
    accuracies = [
        (f"VQA accuracy, {kind}", *(f"{of[f'accuracy/{kind}']:.2f}" for of in (seen, rendered))) for kind in KINDS
    ]
    return [first, *accuracies]


def main(overrides: list[str], detector_overrides: list[str]) -> None:
    data_dir = Path(data_root())
    world = DemoWorld(data_dir / "demo")
    of_world = [one for one in overrides if one.startswith("data.prepare.")]
    weights = ensure_demo_detector(data_dir, [*of_world, *detector_overrides])
    folder = Path("runs") / "demo_images" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    store, page = folder / "features.h5", folder / "features.html"
    extract(world, weights, store)
    call("report", [f"store={store}", f"images={world.images}", f"output={page}"])
    on_detector, on_rendered = train_both(store, weights, folder, overrides)
    model = on_detector / "checkpoints" / "best.ckpt"
    picture = ask(world, model, weights)
    scores = read_stamp(weights.with_name("stamp.json"))["scores"]
    files = {"detector": weights, "regions": store, "look at them": page}
    files |= {"model": model, "picture asked": picture}
    print_results(TITLE, rows(scores, scores_of(on_detector), scores_of(on_rendered)), files, COLUMNS)


if __name__ == "__main__":
    main(*two_lists(__doc__, "train"))
