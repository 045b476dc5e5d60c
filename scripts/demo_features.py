"""Features × pre-training on the demo world, the ablation of the VinVL paper: three stores, one multirun, one table.

    python scripts/demo_features.py [OVERRIDES of vinvl.pretrain_finetune …] [--detector OVERRIDES of its training …]

Called by `make demo-features`. The stores are of the same pictures: the regions that the demo world comes with,
rendered from the objects themselves; those of the detector of `make demo-detector`; and those of one that was trained
badly, for 60 updates. Detectors are trained if they are missing.
"""

from datetime import datetime
from pathlib import Path

from demo_detector import ensure_demo_detector, read_stamp
from demo_images import extract
from doors import call, two_lists

from vinvl.demo import DemoWorld
from vinvl.run.folders import data_root
from vinvl.run.progress import grid, job_rows, print_results

TITLE = "VQA on the demo world's held-out pictures, official accuracy, %"
OBJECTIVES = "objective=none,three_way"
BADLY = ("trainer.max_epochs=1", "trainer.max_steps=60", "optim.scheduler.warmup_steps=10")


def ensure_stores(world: DemoWorld, data_dir: Path, folder: Path, of_detector: list[str]) -> dict[str, str]:
    """Each detector's mean average precision at IoU 0.5, for a person; the stores lie in the folder."""
    precision = {}
    for name, place, badly in (("detector", "demo_detector", ()), ("badly_trained", "demo_detector_badly", BADLY)):
        weights = ensure_demo_detector(data_dir, [*of_detector, *badly], place)
        extract(world, weights, folder / f"{name}.h5")
        precision[name] = f"{read_stamp(weights.with_name('stamp.json'))['scores']['map_50']:.2f}"
    return precision


def main(overrides: list[str], of_detector: list[str]) -> None:
    data_dir, folder = Path(data_root()), Path("runs") / "demo_features" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    world = DemoWorld(data_dir / "demo")
    precision = ensure_stores(world, data_dir, folder, of_detector)
    rendered = ",".join(str(world.folder / f"{split}.h5") for split in ("train", "val", "test"))
    stores = [f"stores.rendered=[{rendered}]", *(f"stores.{name}={folder / f'{name}.h5'}" for name in precision)]
    features = f"features={','.join(['rendered', *precision])}"
    sweep = ["--multirun", features, OBJECTIVES, *stores, f"hydra.sweep.dir={folder / 'multirun'}"]
    call("pretrain_finetune", [*sweep, *overrides])
    crossed = grid(job_rows(folder / "multirun"))
    assert crossed is not None  # the multirun has ended well
    columns = [crossed.columns[0], "its mAP", *crossed.columns[1:]]
    rows = [(name, precision.get(name, ""), *figures) for name, *figures in crossed.rows]
    print_results(TITLE, rows, {"runs and stores": folder}, columns)


if __name__ == "__main__":
    main(*two_lists(__doc__, "pretrain_finetune"))
