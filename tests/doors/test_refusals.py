"""Bad input at the doors: one sentence, exit code 1, nothing half-written."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.conftest import TINY_DEMO, Door, refusal

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


def nothing_left_behind(folder: Path) -> bool:
    return not any(path.is_file() for path in folder.glob("runs/**/*"))


def test_misspelt_override_gets_hydras_suggestion(door: Door) -> None:
    result = door("train", "trainr.max_epochs=1")
    assert result.returncode == 1 and "trainr" in result.stderr and "Traceback" not in result.stderr


def test_unknown_experiment_lists_those_there_are(door: Door) -> None:
    result = door("train", "experiment=vqa3")
    assert result.returncode == 1 and "vqa2_base" in result.stderr and "Traceback" not in result.stderr


def test_missing_question_file(door: Door, tmp_path: Path) -> None:
    sentence = refusal(door("train", *TINY_DEMO, "data.splits.train.0.questions=nowhere.json"))
    assert "nowhere.json does not exist" in sentence
    assert nothing_left_behind(tmp_path)


def test_feature_dimension_of_store_and_model(door: Door, tmp_path: Path) -> None:
    sentence = refusal(door("train", *TINY_DEMO, "model.config.img_feature_dim=1030"))
    assert "2048" in sentence and "1024" in sentence
    assert nothing_left_behind(tmp_path)


def test_empty_split(door: Door, own_world: Path) -> None:
    path = own_world / "v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"questions": []}))
    assert path.name in refusal(door("train", *spoilt(own_world)))


def test_nan_in_features_names_file_and_image(door: Door, own_world: Path) -> None:
    with h5py.File(own_world / "train.h5", "r+") as file:
        file["features"][5, 7] = np.nan
    sentence = refusal(door("train", *spoilt(own_world), "data.num_workers=1"))
    assert "train.h5" in sentence and "image" in sentence


def test_image_without_regions_in_the_store_and_skipping_it(door: Door, own_world: Path) -> None:
    path = own_world / "v2_OpenEnded_mscoco_train2014_questions.json"
    content = json.loads(path.read_text())
    content["questions"].append({"image_id": 424242, "question": "what is this?", "question_id": 424242000})
    path.write_text(json.dumps(content))
    notes = own_world / "v2_mscoco_train2014_annotations.json"
    content = json.loads(notes.read_text())
    content["annotations"].append(dict(content["annotations"][0], image_id=424242, question_id=424242000))
    notes.write_text(json.dumps(content))
    sentence = refusal(door("train", *spoilt(own_world)))
    assert "424242" in sentence and path.name in sentence and "on_missing=skip" in sentence
    skipped = door("train", *spoilt(own_world), "data.on_missing=skip", "trainer.max_steps=1", "test_after_fit=false")
    assert skipped.returncode == 0, skipped.stderr


def test_checkpoints_that_do_not_fit(door: Door, tmp_path: Path, demo_data: Path) -> None:
    trained = door("train", *TINY_DEMO, "trainer.max_steps=1", "test_after_fit=false")
    assert trained.returncode == 0, trained.stderr
    (checkpoint,) = tmp_path.glob("runs/*/*/checkpoints/last.ckpt")
    answers = json.loads((demo_data / "demo" / "answers.json").read_text())
    (tmp_path / "fewer.json").write_text(json.dumps(answers[:-1]))
    sentence = refusal(door("evaluate", f"ckpt_path={checkpoint}", f"data.answers={tmp_path / 'fewer.json'}"))
    assert str(len(answers)) in sentence and str(len(answers) - 1) in sentence
    (tmp_path / "foreign.ckpt").write_bytes(b"PK not a checkpoint")
    assert "foreign.ckpt" in refusal(door("predict", f"ckpt_path={tmp_path / 'foreign.ckpt'}"))
    import torch

    content = torch.load(checkpoint, weights_only=True)
    content["vinvl"]["task_class"] = "os.system"
    torch.save(content, tmp_path / "other.ckpt")
    assert "os.system" in refusal(door("evaluate", f"ckpt_path={tmp_path / 'other.ckpt'}"))
    assert not (tmp_path / "runs" / "predict").exists() or nothing_left_behind(tmp_path / "runs" / "predict")


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_logger_whose_package_is_missing(door: Door) -> None:
    assert "vinvl[logging]" in refusal(door("train", *TINY_DEMO, "logger=wandb"))


def test_nothing_to_resume(door: Door) -> None:
    assert "no run under" in refusal(door("train", *TINY_DEMO, "ckpt_path=last"))


def test_help_helps(door: Door) -> None:
    result = door("train", "--help")
    assert result.returncode == 0
    for word in ("python -m vinvl.train", "experiment", "vqa2_base", "use_tags", "max_epochs"):
        assert word in result.stdout
