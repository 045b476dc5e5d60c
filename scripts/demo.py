"""The demo: train VQA on the generated world with and without seeing the pictures, and print one table.

Called by `make demo`; overrides given to it go to both runs.
"""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

from vinvl.report.table import print_results

RUNS = {
    "full model": [],
    # A model that sees the question alone learns what can be guessed; two epochs are enough for that.
    "question only": ["data.use_regions=false", "data.use_tags=false", "trainer.max_epochs=2"],
}


def train(folder: Path, overrides: list[str]) -> dict[str, float]:
    """One training run in a process of its own; its scores on the held-out split."""
    command = [sys.executable, "-m", "vinvl.train", f"hydra.run.dir={folder}", *overrides]
    print("\n$ python " + " ".join(command[1:]), flush=True)
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"error: the run in {folder} failed; its own message stands above.")
    scores: dict[str, float] = json.loads((folder / "results.json").read_text())["scores"]
    return scores


def main(overrides: list[str]) -> None:
    folder = Path("runs") / "demo" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folders = {title: folder / title.replace(" ", "_") for title in RUNS}
    scores = {title: train(folders[title], [*overrides, *RUNS[title]]) for title in RUNS}
    rows = []
    for key, kind in (("overall", "overall"), ("yes/no", "yes/no"), ("number", "number"), ("other", "other")):
        full, blind = (scores[title][f"accuracy/{key}"] for title in RUNS)
        rows.append((f"full model, {kind}" if key == "overall" else f"  {kind}", f"{full:.2f}"))
        rows.append((f"question only, {kind}", f"{blind:.2f}"))
    rows.append(("most frequent answer", f"{scores['full model']['most_frequent_answer/overall']:.2f}"))
    files = {"checkpoint": folders["full model"] / "checkpoints" / "best.ckpt"}
    files |= {title: folders[title] for title in RUNS}
    print_results("Demo world, held-out test split: official VQA accuracy in percent", rows, files)


if __name__ == "__main__":
    main(sys.argv[1:])
