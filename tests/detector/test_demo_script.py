"""scripts/demo_detector.py: trains once, and again only for another recipe or where it did not finish."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.detector.runs import TINY

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMAND = [*TINY, "trainer.max_epochs=1", "seed=4"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("demo_detector")


def test_it_is_trained_once(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it is trained at all is seen in the demo of pictures."""
    trained: list[Path] = []

    def fake(door: str, overrides: list[str]) -> None:
        run = next(Path(one.removeprefix("hydra.run.dir=")) for one in overrides if one.startswith("hydra.run.dir="))
        trained.append(run)
        run.mkdir(parents=True, exist_ok=True)
        (run / "detector.pth").write_bytes(b"weights %d" % len(trained))
        (run / "results.json").write_text('{"scores": {}}')

    monkeypatch.setattr(script, "call", fake)
    weights = tmp_path / "demo_detector" / "detector.pth"
    for overrides, runs in ((COMMAND, 1), (COMMAND, 1), ([*COMMAND, "seed=5"], 2), (COMMAND, 3)):
        # What the third leaves there is of another recipe than the fourth's.
        assert script.ensure_demo_detector(tmp_path, overrides) == weights and len(trained) == runs
        assert weights.read_bytes() == b"weights %d" % runs
    assert trained[0] == trained[2] != trained[1]
    assert json.loads(weights.with_name("stamp.json").read_text())["recipe"] == trained[2].name.removeprefix("run-")
    assert sorted(path.name for path in weights.parent.glob(".*")) == []


def test_the_recipe_is_what_counts(script: ModuleType) -> None:
    plain = script.recipe_of([])
    assert len(plain) == 12 and script.recipe_of(["trainer.accelerator=cpu", "data.splits.val.pictures=x"]) == plain
    for other in ("seed=1", "training.region_samples=9", "detector.min_size=99", "data.prepare.num_train_images=9"):
        assert script.recipe_of([other]) != plain


def test_a_run_that_fails_ends_with_its_code(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(SystemExit) as exited:
        script.ensure_demo_detector(tmp_path, [])
    assert exited.value.code == 1 and not (tmp_path / "demo_detector" / "stamp.json").exists()


@pytest.mark.parametrize(("merged", "sampled", "words"), [(60.0, 70.0, "win"), (40.0, 30.0, "do NOT win")])
def test_the_recipe_says_whether_the_rare_classes_gain(
    merged: float,
    sampled: float,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    recipe = importlib.import_module("demo_detector_recipe")
    names = [recipe.ALONE, *recipe.STAGES]
    scores = {
        name: {f"class_50/{recipe.class_name(kind)}": rare if kind in recipe.RARE else 90.0 for kind in recipe.VG_KINDS}
        | {"attributes": 50.0}
        for name, rare in zip(names, (50.0, merged, sampled), strict=True)
    }
    recipe.print_table(scores, dict.fromkeys(names, tmp_path))
    printed = capsys.readouterr().out
    rare = next(line for line in printed.splitlines() if "rare classes" in line)
    assert [float(one) for one in rare.split("│")[2:5]] == [50, merged, sampled]
    everything = next(line for line in printed.splitlines() if "all classes" in line)
    assert [float(one) for one in everything.split("│")[2:5]] == [70, (90 + merged) / 2, (90 + sampled) / 2]
    assert f"On the rare classes four sets {words} against one set alone: {merged - 50:+.2f}." in printed
    assert printed.count(words) == 3
