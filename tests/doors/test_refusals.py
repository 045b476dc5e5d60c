"""Bad input at the doors: one sentence, exit code 1, nothing half-written."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from tests.conftest import TINY_DEMO, Door, refusal
from tests.door_in_process import refused_in_process, run_in_process

pytestmark = pytest.mark.slow


@pytest.fixture
def own_world(demo_data: Path, tmp_path: Path) -> Path:
    """A copy of the demo world that a test may spoil."""
    return Path(shutil.copytree(demo_data / "demo", tmp_path / "world"))


def spoilt(world: Path) -> list[str]:
    """Overrides that read the spoilt copy as it is, without generating anything."""
    return [*TINY_DEMO, "data.prepare=null", *(
        f"data.{key}={value}" for key, value in {
            "splits.train.0.questions": world / "v2_OpenEnded_mscoco_train2014_questions.json",
            "splits.train.0.annotations": world / "v2_mscoco_train2014_annotations.json",
            "splits.val.0.questions": world / "v2_OpenEnded_mscoco_val2014_questions.json",
            "splits.val.0.annotations": world / "v2_mscoco_val2014_annotations.json",
            "regions": f"[{world / 'train.h5'},{world / 'val.h5'}]",
            "tokenizer": world / "tokenizer",
            "answers": world / "answers.json",
        }.items()
    ), "data.splits.test=null"]  # fmt: skip


def refused(data: Path, folder: Path, *overrides: str, door: str = "train") -> str:
    return refused_in_process(door, data, folder / "run", *overrides)


def test_help_helps(door: Door) -> None:
    result = door("train", "--help")
    assert result.returncode == 0
    for word in ("python -m vinvl.train", "experiment", "vqa2_base", "use_tags", "max_epochs"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ckpt_path=last", ["no run under"]),
        ("data.splits.train.0.questions=nowhere.json", ["nowhere.json does not exist"]),
        ("model.config.img_feature_dim=1030", ["2048", "1024"]),  # numbers of a feature, in the store and the model
        pytest.param(
            "logger=wandb",
            ["vinvl[logging]"],
            marks=pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed"),
        ),
    ],
)
def test_what_does_not_fit(override: str, words: list[str], demo_data: Path, tmp_path: Path) -> None:
    sentence = refused(demo_data, tmp_path, *TINY_DEMO, override)
    assert all(word in sentence for word in words)


def test_empty_split(demo_data: Path, own_world: Path, tmp_path: Path) -> None:
    path = own_world / "v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"questions": []}))
    assert path.name in refused(demo_data, tmp_path, *spoilt(own_world))


def test_nan_in_features_names_file_and_image(door: Door, own_world: Path) -> None:
    """Of a worker's process too."""
    with h5py.File(own_world / "train.h5", "r+") as file:
        file["features"][5, 7] = np.nan
    sentence = refusal(door("train", *spoilt(own_world), "data.num_workers=1"))
    assert "train.h5" in sentence and "image" in sentence


def test_image_without_regions_in_the_store_and_skipping_it(demo_data: Path, own_world: Path, tmp_path: Path) -> None:
    path, notes = (own_world / f"v2_{name}.json" for name in (
        "OpenEnded_mscoco_train2014_questions", "mscoco_train2014_annotations"
    ))  # fmt: skip
    content = json.loads(path.read_text())
    content["questions"].append({"image_id": 424242, "question": "what is this?", "question_id": 424242000})
    path.write_text(json.dumps(content))
    content = json.loads(notes.read_text())
    content["annotations"].append(dict(content["annotations"][0], image_id=424242, question_id=424242000))
    notes.write_text(json.dumps(content))
    sentence = refused(demo_data, tmp_path, *spoilt(own_world))
    assert "424242" in sentence and path.name in sentence and "on_missing=skip" in sentence
    brief = ["data.on_missing=skip", "trainer.max_steps=1", "test_after_fit=false"]
    run_in_process("train", demo_data, tmp_path / "run", *spoilt(own_world), *brief)


def test_checkpoints_that_do_not_fit(demo_data: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained"
    run_in_process("train", demo_data, trained, *TINY_DEMO, "trainer.max_steps=1", "test_after_fit=false")
    checkpoint = trained / "checkpoints" / "last.ckpt"
    answers = json.loads((demo_data / "demo" / "answers.json").read_text())
    (tmp_path / "fewer.json").write_text(json.dumps(answers[:-1]))
    fewer = f"data.answers={tmp_path / 'fewer.json'}"
    sentence = refused(demo_data, tmp_path, f"ckpt_path={checkpoint}", f"++{fewer}", door="evaluate")
    assert str(len(answers)) in sentence and str(len(answers) - 1) in sentence
    (tmp_path / "foreign.ckpt").write_bytes(b"PK not a checkpoint")
    assert "foreign.ckpt" in refused(demo_data, tmp_path, f"ckpt_path={tmp_path / 'foreign.ckpt'}", door="predict")
    content = torch.load(checkpoint, weights_only=True)
    content["vinvl"]["task_class"] = "os.system"
    torch.save(content, tmp_path / "other.ckpt")
    assert "os.system" in refused(demo_data, tmp_path, f"ckpt_path={tmp_path / 'other.ckpt'}", door="evaluate")
