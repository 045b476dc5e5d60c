"""scripts/demo_detector.py: trains once, and again only for another recipe or where it did not finish."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.detector.runs import TINY
from vinvl.detector import load_detector
from vinvl.detector.weights import read_settings

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMAND = [*TINY, "trainer.max_epochs=1", "seed=4"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("demo_detector")


@pytest.mark.slow
def test_it_is_trained_once(
    script: ModuleType, demo_data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VINVL_DATA", str(demo_data))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    script.main(COMMAND)
    weights = demo_data / "demo_detector" / "detector.pth"
    printed = capfd.readouterr().out
    assert "mean average precision at IoU 0.5" in printed and f"weight file:      {weights}" in printed
    settings = read_settings(weights)
    assert settings is not None and settings.label_map.classes[1] == "circle"
    load_detector(weights, settings.config)
    monkeypatch.setattr(script, "call", lambda *arguments: pytest.fail("trained again"))
    script.main(COMMAND)
    assert "mean average precision at IoU 0.5" in capfd.readouterr().out
    trained: list[Path] = []

    def fake(door: str, overrides: list[str]) -> None:
        run = next(Path(one.removeprefix("hydra.run.dir=")) for one in overrides if one.startswith("hydra.run.dir="))
        trained.append(run)
        run.mkdir(parents=True, exist_ok=True)
        (run / "detector.pth").write_bytes(b"new")
        (run / "results.json").write_text('{"scores": {}}')

    monkeypatch.setattr(script, "call", fake)
    assert script.ensure_demo_detector(demo_data, [*COMMAND, "seed=5"]) == weights and weights.read_bytes() == b"new"
    assert len(trained) == 1
    script.ensure_demo_detector(demo_data, COMMAND)  # what is there now is of another recipe
    assert len(trained) == 2 and trained[0] != trained[1]
    assert json.loads(weights.with_name("stamp.json").read_text())["recipe"] == trained[1].name.removeprefix("run-")
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
