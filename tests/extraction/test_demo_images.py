"""scripts/demo_images.py: the whole way from pictures to an answer, on a tiny world with a tiny detector."""

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from tests.detector.runs import TINY_DETECTOR
from tests.door_in_process import TINY, run_in_process
from vinvl.regions import RegionStore

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("demo_images")


@pytest.mark.slow
def test_from_pictures_to_an_answer(
    script: ModuleType,
    demo_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    called: list[str] = []
    in_own_process = script.call

    def call(door: str, overrides: Sequence[str]) -> None:
        called.append(door)
        if door == "predict":  # its command line is its own to read
            return in_own_process(door, [*overrides, "trainer.accelerator=cpu"])
        output = [one.partition("=")[2] for one in overrides if one.startswith("hydra.run.dir=")]
        others = [one for one in overrides if not one.startswith(("hydra.run.dir=", "paths.data_dir="))]
        run_in_process(door, demo_data, Path(output[0]) if output else tmp_path / "none", *others)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VINVL_DATA", str(demo_data))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(script, "call", call)
    monkeypatch.setattr(sys.modules["demo_detector"], "call", call)
    brief = ["data.num_workers=0", "trainer.limit_train_batches=2", "trainer.max_epochs=1"]
    of_detector = [*TINY_DETECTOR, "data.batch_size=4", "trainer.accelerator=cpu", "seed=9"]
    script.main([*TINY, *brief], [*of_detector, *brief])

    assert called == ["train_detector", "extract", "report", "train", "train", "predict"]
    (run,) = (tmp_path / "runs" / "demo_images").iterdir()
    store = RegionStore(run / "features.h5")
    questions = demo_data / "demo" / "v2_OpenEnded_mscoco_test2014_questions.json"
    first = json.loads(questions.read_text())["questions"][0]
    assert store[str(first["image_id"])].features.shape[1] == store.feature_dim
    assert len(store) == len(list((demo_data / "demo" / "images").iterdir()))
    printed = capfd.readouterr().out
    assert f"{first['image_id']:012d}.png" in printed and first["question"] in printed
    detector = json.loads((demo_data / "demo_detector" / "stamp.json").read_text())["scores"]
    seen, rendered = (script.scores_of(run / name) for name in ("detectors_regions", "rendered_regions"))
    (row,) = (line for line in printed.splitlines() if "mAP at IoU 0.5" in line)
    assert f"{detector['map_50']:.2f}" in row
    (row,) = (line for line in printed.splitlines() if "VQA accuracy, overall" in line)
    assert f"{seen['accuracy/overall']:.2f}" in row and f"{rendered['accuracy/overall']:.2f}" in row
    assert (run / "features.html").is_file()


def test_what_makes_the_world_goes_to_the_detector_too(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def ensure(data_dir: Path, overrides: list[str]) -> Path:
        given.append(overrides)
        raise SystemExit

    monkeypatch.setattr(script, "ensure_demo_detector", ensure)
    with pytest.raises(SystemExit):
        script.main(["data.prepare.seed=3", "model.init=x"], ["seed=4"])
    assert given == [["data.prepare.seed=3", "seed=4"]]
