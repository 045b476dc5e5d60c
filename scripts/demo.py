"""The demo: train VQA on the generated world with and without seeing the pictures, and print one table.

Called by `make demo`; overrides given to it go to both runs.
"""

import sys
from datetime import datetime
from pathlib import Path

from doors import call, scores_of

from vinvl.demo import DemoWorld
from vinvl.demo.baselines import question_type_prior
from vinvl.run.folders import data_root
from vinvl.run.progress import print_results
from vinvl.vqa.files import read_official

RUNS = {
    "full model": [],
    # A model that sees only the question learns what can be guessed; two epochs are enough for that.
    "question only": ["data.use_regions=false", "data.use_tags=false", "trainer.max_epochs=2"],
}


def main(overrides: list[str]) -> None:
    folder = Path("runs") / "demo" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folders = {title: folder / title.replace(" ", "_") for title in RUNS}
    for title, of_run in RUNS.items():
        call("train", [f"hydra.run.dir={folders[title]}", *overrides, *of_run])
    scores = {title: scores_of(run) for title, run in folders.items()}
    seen, blind = scores["full model"], scores["question only"]
    world = DemoWorld(Path(data_root()) / "demo")
    train_split, test_split = (read_official(world.questions(s), world.annotations(s)) for s in ("train", "test"))
    prior = question_type_prior(train_split, test_split)
    rows = [
        (
            kind,
            f"{seen[f'accuracy/{kind}']:.2f}",
            f"{blind[f'accuracy/{kind}']:.2f}",
            f"{prior[kind]:.2f}",
            f"{seen[f'most_frequent_answer/{kind}']:.2f}",
        )
        for kind in ("overall", "yes/no", "number", "other")
    ]
    files = {"checkpoint": folders["full model"] / "checkpoints" / "best.ckpt"}
    files |= {title: folders[title] for title in RUNS}
    columns = ("official VQA accuracy, %", *RUNS, "most frequent of its type", "most frequent of all")
    print_results("Demo world, held-out test split", rows, files, columns)


if __name__ == "__main__":
    main(sys.argv[1:])
