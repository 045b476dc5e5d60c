"""`vinvl.evaluate` and `vinvl.predict` on the checkpoint of one short run."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.conftest import TINY_DEMO
from tests.door_in_process import checkpoint, refused_in_process, run_in_process, scored_alike
from tests.door_runs import call_door, ranks_succeed
from vinvl.compare import main as compare_main
from vinvl.data.words import commonest_for
from vinvl.run.checkpoint import read_checkpoint

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Trained:
    """A run, and the folder that the commands of this file are called from."""

    folder: Path
    data: Path
    run: Path

    def told(self, door: str, output: str, *overrides: str) -> str:
        """What a door says that is given the best checkpoint and writes to a folder."""
        return run_in_process(door, self.data, self.folder / output, checkpoint(self.run), "trainer=cpu", *overrides)

    def results(self, output: str) -> Any:
        return json.loads((self.folder / output / "results.json").read_text())

    def question_ids(self, split: str) -> list[int]:
        path = self.data / "demo" / f"v2_OpenEnded_mscoco_{split}2014_questions.json"
        return [question["question_id"] for question in json.loads(path.read_text())["questions"]]


@pytest.fixture(scope="module")
def trained(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    run = folder / "runs" / "my_experiment" / "chosen"  # among the runs, so that ckpt_path=best finds it
    run_in_process("train", demo_data, run, *TINY_DEMO, "data.num_workers=0")
    return Trained(folder, demo_data, run)


@pytest.fixture(scope="module")
def predicted(trained: Trained) -> Path:
    """The output folder of a prediction of the test split."""
    assert str(trained.folder / "predicted" / "results.json") in trained.told("predict", "predicted")
    return trained.folder / "predicted"


def test_evaluate_repeats_the_scores_that_training_ended_with(trained: Trained) -> None:
    printed = trained.told("evaluate", "again")
    assert str(trained.folder / "again" / "results.json") in printed and "VQA accuracy" in printed
    own, training = trained.results("again"), trained.results(str(trained.run))
    assert own["scores"] == training["scores"]  # to the last digit
    assert own["split"] == training["split"] == "test"
    assert own["checkpoint"] == str(trained.run / "checkpoints" / "best.ckpt")


def test_evaluate_without_a_checkpoint_scores_the_newest_run_of_any_name_and_says_which(trained: Trained) -> None:
    told = call_door(trained.folder, trained.data, "evaluate", "data.test_split=val", "hydra.run.dir=on_val")
    assert told.returncode == 0, told.stderr
    assert "The newest run that has a best checkpoint: runs/my_experiment/chosen/checkpoints/best.ckpt" in told.stderr
    on_val, on_test = trained.results("on_val"), trained.results(str(trained.run))
    assert on_val["split"] == "val"
    assert Path(on_val["checkpoint"]).name == "best.ckpt"
    assert (trained.folder / on_val["checkpoint"]).samefile(trained.run / "checkpoints" / "best.ckpt")
    assert on_val["scores"]["loss"] != on_test["scores"]["loss"]
    # The best checkpoint was chosen by this very figure.
    lines = (trained.run / "csv" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("val/score")
    logged = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert on_val["scores"]["accuracy/overall"] == pytest.approx(max(logged), rel=1e-6)


@pytest.mark.parametrize("name", ["results.json", "predictions.jsonl"])
def test_what_predict_writes_is_scored_as_the_checkpoint(trained: Trained, predicted: Path, name: str) -> None:
    printed = scored_alike(trained.data, trained.folder / name, predicted / name, trained.run, "data=demo_vqa")
    assert "VQA accuracy" in printed and "they count as wrong" not in printed


def test_data_overrides_go_on_top_of_the_data_of_the_run(trained: Trained) -> None:
    trained.told("evaluate", "no_tags", "data.use_tags=false")
    without, training = trained.results("no_tags"), trained.results(str(trained.run))
    assert without["split"] == training["split"]
    assert without["scores"]["loss"] != training["scores"]["loss"]
    majority = "most_frequent_answer/overall"  # the same questions, whatever the model sees of them
    assert without["scores"][majority] == training["scores"][majority]
    assert (
        compare_main([*map(str, (trained.run, trained.folder / "no_tags")), f"--output={trained.folder / 'two'}"]) == 0
    )
    told = json.loads((trained.folder / "two" / "compare.json").read_text())["differences"][0]
    figures = [one["scores"]["accuracy/overall"] for one in (training, without)]
    assert [told["first"], told["second"]] == pytest.approx(figures)


def test_a_tokenizer_of_other_words_is_refused(trained: Trained, tmp_path: Path) -> None:
    content = json.loads((trained.data / "demo" / "tokenizer" / "tokenizer.json").read_text())
    numbers = content["model"]["vocab"]
    numbers["red"], numbers["blue"] = numbers["blue"], numbers["red"]
    shutil.copytree(trained.data / "demo" / "tokenizer", tmp_path / "swapped")
    (tmp_path / "swapped" / "tokenizer.json").write_text(json.dumps(content))
    given = [f"data.tokenizer={tmp_path / 'swapped'}", checkpoint(trained.run)]
    sentence = refused_in_process("evaluate", trained.data, tmp_path / "no", *given)
    assert (
        "was trained with other words than the tokenizer has: 2 of " in sentence and "'blue' and is 'red'" in sentence
    )


def test_features_of_another_detector_are_warned_of(trained: Trained) -> None:
    shutil.copyfile(trained.data / "demo" / "test.h5", trained.folder / "other.h5")
    with h5py.File(trained.folder / "other.h5", "r+") as file:
        file.attrs["detector"] = "another network"
    told = trained.told("evaluate", "other", f"data.regions={trained.folder / 'other.h5'}")
    assert "trained on features of 'vinvl demo detector'" in told and "'another network'" in told
    assert trained.results("other")["scores"] == trained.results(str(trained.run))["scores"]


def test_predict_writes_the_official_result_file(trained: Trained, predicted: Path) -> None:
    results = json.loads((predicted / "results.json").read_text())
    assert [one["question_id"] for one in results] == trained.question_ids("test")
    assert all(one.keys() == {"question_id", "answer"} and isinstance(one["answer"], str) for one in results)
    vocabulary = json.loads((trained.data / "demo" / "answers.json").read_text())
    assert {one["answer"] for one in results} <= set(vocabulary)
    lines = [json.loads(line) for line in (predicted / "predictions.jsonl").read_text().splitlines()]  # the five best
    for line, result in zip(lines, results, strict=True):
        scores = [one["score"] for one in line["top"]]
        assert len({one["answer"] for one in line["top"]}) == 5
        assert scores == sorted(scores, reverse=True) and all(0 <= score <= 1 for score in scores)
        assert (line["question_id"], line["top"][0]["answer"]) == (result["question_id"], result["answer"])


def test_questions_about_images_without_regions_are_answered_too(
    trained: Trained, predicted: Path, tmp_path: Path
) -> None:
    content = json.loads((trained.data / "demo" / "v2_OpenEnded_mscoco_test2014_questions.json").read_text())
    for place in (3, 7):
        content["questions"][place]["image_id"] = 999999
    (tmp_path / "some.json").write_text(json.dumps(content))
    split = f"data.splits.some=[{{questions: {tmp_path / 'some.json'}, annotations: null}}]"
    given = [checkpoint(trained.run), "data.predict_split=some", "data.on_missing=skip", "trainer=cpu", f"+{split}"]
    told = run_in_process("predict", trained.data, tmp_path / "out", *given)
    assert "36 predictions" in told and "official result file" in told and "2 of them, of images without" in told
    results, before = (json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "out", predicted))
    assert [one["question_id"] for one in results] == trained.question_ids("test")
    filled = [json.loads(line).get("filled_in", False) for line in (tmp_path / "out" / "predictions.jsonl").open()]
    assert np.flatnonzero(filled).tolist() == [3, 7]
    assert [one for one, new in zip(results, filled, strict=True) if not new] == [
        one for one, new in zip(before, filled, strict=True) if not new
    ]
    commonest = read_checkpoint(trained.run / "checkpoints" / "best.ckpt")["vinvl"]["commonest"]
    for place in (3, 7):
        assert results[place]["answer"] == commonest_for(content["questions"][place]["question"], commonest)
    # Not all of them, for whatever reason: nothing that a server would take.
    told = run_in_process("predict", trained.data, tmp_path / "few", *given, "trainer.limit_predict_batches=0")
    assert "official" not in told and "34 of the split's records have none" in told


def test_two_ranks_predict_what_one_does(trained: Trained, predicted: Path) -> None:
    ranks_succeed(trained.folder, trained.data, "predict", checkpoint(trained.run), "hydra.run.dir=two_ranks")
    for name in ("results.json", "predictions.jsonl"):
        assert (trained.folder / "two_ranks" / name).read_bytes() == (predicted / name).read_bytes()


def test_a_split_without_annotations_is_predicted_but_not_scored(trained: Trained, predicted: Path) -> None:
    bare = "data.splits.test.0.annotations=null"
    trained.told("predict", "bare", bare)
    assert (trained.folder / "bare" / "results.json").read_bytes() == (predicted / "results.json").read_bytes()
    given = [checkpoint(trained.run), "trainer=cpu", bare]
    sentence = refused_in_process("evaluate", trained.data, trained.folder / "refused", *given)
    assert "'test' has no annotations" in sentence
