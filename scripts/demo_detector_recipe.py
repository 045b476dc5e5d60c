"""VinVL's recipe for a detector, in small: four data sets, one vocabulary, class-aware sampling, then attributes.

Called by `make demo-detector-recipe`; overrides given to it go to all training runs. What it calls is what one calls
with the real sets: vinvl.convert brings files as they are downloaded into one form and merges the names, and
vinvl.train_detector trains in two stages. The table compares that with one set alone, and without the sampling.
"""

import sys
from datetime import datetime
from pathlib import Path

from doors import call, scores_of

from vinvl.demo.detection_sets import RARE, VG_KINDS, SetSizes, class_name, ensure_detection_sets
from vinvl.run.folders import data_root
from vinvl.run.progress import print_results

FIRST, SECOND = 800, 250  # updates of the two stages; one set alone gets as many in all
DICTS, ALIASES = "vocabulary/VG-SGG-dicts.json", "vocabulary/object_alias.txt"
ANNOTATIONS = {  # set → its files and the folder of its pictures
    "coco": "[{0}/coco/instances_train2017.json,{0}/coco/stuff_train2017.json]",
    "objects365": "{0}/objects365/objects365_train.json",
    "open_images": "{0}/open_images",
    **{f"visual_genome{split}": f"{{0}}/visual_genome{split}" for split in ("", "_val", "_test")},
}
VOCABULARY = (
    "coco: [{0}/coco/instances_train2017.json, {0}/coco/stuff_train2017.json], "
    "objects365: {0}/objects365/objects365_train.json, open_images: {0}/open_images/class-descriptions-boxable.csv"
)
ALONE = "one set alone"
STAGES = {"four sets": "four_sets_as_they_are", "four sets, class-aware sampling": "four_sets"}


def make_annotations(data_dir: Path) -> None:
    """The four sets, each in one file, and their vocabulary; what is there already stays."""
    sets, made = data_dir / "demo_detection_sets", data_dir / "demo_detector_recipe"
    ensure_detection_sets(sets, SetSizes())
    for name, files in ANNOTATIONS.items():
        if not (made / f"{name}.arrow").exists():
            own = [f"data.label_map={sets / DICTS}"] if name.startswith("visual_genome") else []
            pictures = [f"pictures={sets / name / 'train'}"] if name == "open_images" else []
            target = made / f"{name}.arrow"
            call("convert", [f"annotations={files.format(sets)}", f"to={target}", *own, *pictures])
    if not (made / "vocabulary").exists():
        names = [f"vocabulary.base={sets / DICTS}", f"vocabulary.aliases={sets / ALIASES}"]
        call("convert", [*names, f"vocabulary.sets={{{VOCABULARY.format(sets)}}}", f"to={made / 'vocabulary'}"])


def main(overrides: list[str]) -> None:
    data_dir = Path(data_root())
    make_annotations(data_dir)
    folder = Path("runs") / "demo_detector_recipe" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    attributes = ["data.train_split=visual_genome", f"data.label_map={data_dir / 'demo_detection_sets' / DICTS}"]

    def train(name: str, steps: int, settings: list[str]) -> Path:
        run = folder / name.replace(",", "").replace(" ", "_")
        ends = [f"trainer.max_steps={steps}", "trainer.max_epochs=-1", "trainer.check_val_every_n_epoch=null"]
        call(
            "train_detector",
            [
                "detection_data=demo_sets",
                f"hydra.run.dir={run}",
                *ends,
                f"trainer.val_check_interval={steps}",
                *settings,
                *overrides,
            ],
        )
        return run

    runs = {ALONE: train(ALONE, FIRST + SECOND, attributes)}
    for name, split in STAGES.items():
        first = train(f"{name}, first stage", FIRST, [f"data.train_split={split}", "test_after_fit=false"])
        start = [f"start.init={first / 'detector.pth'}", "optim.optimizer.lr=0.01"]
        runs[name] = train(name, SECOND, [*attributes, *start])
    print_table({name: scores_of(run) for name, run in runs.items()}, runs)


def print_table(scores: dict[str, dict[str, float]], runs: dict[str, Path]) -> None:
    """Mean average precision at IoU 0.5 over all classes and over the rare ones, and what is said of attributes."""

    def mean(kinds: list[tuple[str, str]], of_run: dict[str, float]) -> float:
        return sum(of_run[f"class_50/{class_name(kind)}"] for kind in kinds) / len(kinds)

    common = [kind for kind in VG_KINDS if kind not in RARE]
    rows = {
        "mAP, all classes": {name: mean(VG_KINDS, one) for name, one in scores.items()},
        "mAP, common classes": {name: mean(common, one) for name, one in scores.items()},
        "mAP, rare classes": {name: mean(RARE, one) for name, one in scores.items()},
        "attributes named, of all objects": {name: one["attributes"] for name, one in scores.items()},
    }
    cells = [(what, *(f"{value:.2f}" for value in row.values())) for what, row in rows.items()]
    title = "Detectors of the demo's four sets, on Visual Genome's test pictures, IoU 0.5, %"
    print_results(title, cells, {name: run / "detector.pth" for name, run in runs.items()}, ("", *scores))
    rare = rows["mAP, rare classes"]
    for better, worse in (("four sets", ALONE), (list(STAGES)[1], ALONE), (list(STAGES)[1], "four sets")):
        gain = rare[better] - rare[worse]
        print(f"On the rare classes {better} {'win' if gain > 0 else 'do NOT win'} against {worse}: {gain:+.2f}.")


if __name__ == "__main__":
    main(sys.argv[1:])
