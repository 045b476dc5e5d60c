"""The page "Add your own task": its very blocks, put where it says, train, evaluate and refuse a bad file."""

import json
import re
import shutil
import subprocess
from pathlib import Path

from tests.conftest import TINY_MODEL
from tests.door_runs import call_copy, door_environment

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own-task.md").read_text(encoding="utf-8")


def blocks() -> dict[str, str]:
    """File → its content, in the order of the page."""
    names = re.findall(r"^`((?:src|conf)/[\w/.]+)`", PAGE, re.MULTILINE)
    contents = re.findall(r"```(?:python|yaml)\n(.*?)```", PAGE, re.DOTALL)
    return dict(zip(names, contents, strict=True))


def own_copy(folder: Path) -> None:
    """A clone with the three files added."""
    shutil.copytree(ROOT / "src" / "vinvl", folder / "src" / "vinvl", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", folder / "conf")
    for name, content in blocks().items():
        assert not (folder / name).exists()
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)


def write_data(folder: Path, demo: Path) -> None:
    """Yes-or-no questions of the demo world as texts with a label."""
    for split in ("train", "val"):
        questions = json.loads((demo / f"gqa_{split}_balanced_questions.json").read_text()).values()
        rows = [
            {"image_id": one["imageId"], "text": one["question"], "label": int(one["answer"] == "yes")}
            for one in questions
            if one["answer"] in ("yes", "no")
        ]
        (folder / f"memes_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(door: str, folder: Path, demo_data: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    environment = door_environment(demo_data) | {"PYTHONPATH": str(folder / "src")}
    return call_copy(folder, folder / "src", f"vinvl.{door}", *overrides, environment=environment)


def test_a_task_of_ones_own_takes_sixty_lines_of_python_and_a_config() -> None:
    python = [
        line
        for name, content in blocks().items()
        if name.endswith(".py")
        for line in content.splitlines()
        if line.strip() and not line.startswith(('"""', "import", "from"))
    ]
    assert len(python) <= 60
    assert len(blocks()) == 3


def test_the_blocks_train_evaluate_and_refuse(tmp_path: Path, demo_data: Path) -> None:
    own_copy(tmp_path)
    demo = demo_data / "demo"
    write_data(tmp_path, demo)
    stores = ",".join(str(demo / f"{split}.h5") for split in ("train", "val"))
    data = [f"data.regions=[{stores}]", f"data.tokenizer={demo / 'tokenizer'}", "data.num_workers=0"]
    trained = run(
        "train", tmp_path, demo_data, "experiment=memes", *data, *TINY_MODEL, "trainer.max_epochs=1",
        "trainer.accelerator=cpu",
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert "accuracy" in trained.stdout and "tokens    [CLS]" in trained.stdout
    (results,) = (tmp_path / "runs" / "memes").glob("*/results.json")
    scores = json.loads(results.read_text())["scores"]
    scored = run("evaluate", tmp_path, demo_data, "name=memes", "ckpt_path=best", "trainer.accelerator=cpu")
    assert scored.returncode == 0, scored.stderr
    (again,) = (tmp_path / "runs" / "evaluate").glob("*/results.json")
    assert json.loads(again.read_text())["scores"] == scores

    with (tmp_path / "memes_train.jsonl").open("a") as file:
        file.write(json.dumps({"image_id": "unknown", "text": "what?", "label": 1}) + "\n")
    refused = run("train", tmp_path, demo_data, "experiment=memes", *data, *TINY_MODEL)
    assert refused.returncode == 1 and "Traceback" not in refused.stderr
    assert "has no image unknown (asked for by memes_train.jsonl record" in refused.stderr
