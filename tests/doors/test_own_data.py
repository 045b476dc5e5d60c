"""Questions of one's own in JSONL, through all doors with no code."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_MODEL
from tests.door_in_process import checkpoint, examples, refused_in_process, run_in_process
from tests.door_runs import succeed
from vinvl.run.errors import UserError

pytestmark = pytest.mark.slow


def own_lines(world: Path, split: str) -> list[dict[str, Any]]:
    """A split of the demo world the way somebody would write down questions of their own."""
    questions = json.loads((world / f"v2_OpenEnded_mscoco_{split}2014_questions.json").read_text())["questions"]
    notes = json.loads((world / f"v2_mscoco_{split}2014_annotations.json").read_text())["annotations"]
    answers = {note["question_id"]: [answer["answer"] for answer in note["answers"]] for note in notes}
    return [
        {"image_id": one["image_id"], "question": one["question"], "answers": answers[one["question_id"]]}
        for one in questions
    ]


def failing(*_: Any) -> None:
    raise UserError("This failed in training.")


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@dataclass(frozen=True)
class OwnData:
    """A folder with one's own JSONL files and the run that trained on them."""

    folder: Path
    data: Path
    run: Path

    def predict(self, monkeypatch: pytest.MonkeyPatch, output: str, *overrides: str) -> None:
        monkeypatch.chdir(self.folder)  # which the checkpoint's files are relative to
        run_in_process("predict", self.data, self.folder / output, checkpoint(self.run), *overrides)

    def read(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text())


@pytest.fixture(scope="module")
def own(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> OwnData:
    """One epoch on train.jsonl with val.jsonl; unanswered.jsonl is to be predicted."""
    folder, world = tmp_path_factory.mktemp("own"), demo_data / "demo"
    write_lines(folder / "train.jsonl", own_lines(world, "train"))
    write_lines(folder / "val.jsonl", own_lines(world, "val"))
    unanswered = [{key: line[key] for key in ("image_id", "question")} for line in own_lines(world, "test")]
    write_lines(folder / "unanswered.jsonl", unanswered)
    write_lines(folder / "named.jsonl", [line | {"question_id": f"q{i}"} for i, line in enumerate(unanswered[:9])])
    succeed(
        folder, demo_data, "train", "data=vqa_jsonl", "name=mine",
        "data.splits.train=train.jsonl", "data.splits.val=val.jsonl", "data.splits.predict=unanswered.jsonl",
        f"data.regions=[{world / 'train.h5'},{world / 'val.h5'},{world / 'test.h5'}]",
        f"data.tokenizer={world / 'tokenizer'}", "data.min_answer_count=2", "data.batch_size=16", "data.num_workers=0",
        "data.pin_memory=false", "trainer.accelerator=cpu", "trainer.max_epochs=1", *TINY_MODEL,
    )  # fmt: skip
    (run,) = (folder / "runs" / "mine").iterdir()
    return OwnData(folder, demo_data, run)


def test_own_data_train_and_evaluate(own: OwnData) -> None:
    training = json.loads((own.run / "results.json").read_text())
    assert {"accuracy/overall", "accuracy/yes/no", "accuracy/number", "accuracy/other"} <= training["scores"].keys()
    assert training["split"] == "val"
    assert json.loads((own.run / "answers.json").read_text())  # built from the training answers
    succeed(own.folder, own.data, "evaluate", "ckpt_path=best", "name=mine", "hydra.run.dir=evaluated")
    assert own.read("evaluated/results.json")["scores"] == training["scores"]


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_run_that_fails_leaves_no_answers(
    when: str, own: OwnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, built = own.data / "demo", tmp_path / "answers.json"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text("{}")
    given, expected = [f"model.init={tmp_path / 'weights'}"], "weights"
    if when == "within":
        given, expected = [*TINY_MODEL, "trainer.accelerator=cpu", "data.num_workers=0"], "in training"
        given += ["logger.csv=null", "logger.tensorboard=null", "callbacks.learning_rate=null"]
        monkeypatch.setattr("vinvl.task.VinVLTask.on_train_batch_start", failing)
    sentence = refused_in_process(
        "train", own.data, tmp_path / "run", "data=vqa_jsonl", f"data.splits.train={own.folder / 'train.jsonl'}",
        f"data.splits.val={own.folder / 'val.jsonl'}", f"data.regions=[{world / 'train.h5'},{world / 'val.h5'}]",
        f"data.tokenizer={world / 'tokenizer'}", f"data.answers={built}", *given,
    )  # fmt: skip
    assert expected in sentence and not built.exists()


def test_own_questions_without_answers_are_predicted(own: OwnData, monkeypatch: pytest.MonkeyPatch) -> None:
    own.predict(monkeypatch, "predicted")
    lines = (own.folder / "unanswered.jsonl").read_text().splitlines()
    results = own.read("predicted/results.json")
    assert [one["question_id"] for one in results] == list(range(1, len(lines) + 1))  # line numbers


def test_another_file_of_questions_with_ids_of_their_own(own: OwnData, monkeypatch: pytest.MonkeyPatch) -> None:
    own.predict(monkeypatch, "named", "++data.splits.predict=named.jsonl")
    assert [one["question_id"] for one in own.read("named/results.json")] == [f"q{index}" for index in range(9)]
    top = [json.loads(line) for line in (own.folder / "named" / "predictions.jsonl").read_text().splitlines()]
    assert [one["question_id"] for one in top] == [f"q{index}" for index in range(9)]


def vizwiz(lines: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The same questions as VizWiz writes them, some of whose answers are blank; in files of those names."""
    told = {"answer_type": "unanswerable", "answerable": 0}
    return [
        {"image": name.format(line["image_id"]), "question": line["question"]}
        | ({"answers": [{"answer": one, "answer_confidence": "maybe"} for one in line["answers"]], **told})
        for line in lines
    ]


def test_vizwiz_is_scored_and_predicted_as_it_is(own: OwnData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by content: one list, file names of pictures; the result file is the one that its server takes."""
    lines = own_lines(own.data / "demo", "val")
    lines = [line | {"answers": [*line["answers"][:-2], "", "  "]} for line in lines]
    write_lines(own.folder / "blank.jsonl", lines)
    (own.folder / "val.json").write_text(json.dumps(vizwiz(lines, "{}.jpg")))
    (own.folder / "long.json").write_text(json.dumps(vizwiz(lines, "val/VizWiz_val_{:08}.jpg")))
    monkeypatch.chdir(own.folder)
    scores = []
    for given in ("blank.jsonl", "val.json", r"[{questions:long.json,id_pattern:'_0*(\d+)$'}]"):
        run_in_process(
            "evaluate",
            own.data,
            own.folder / "viz",
            checkpoint(own.run),
            f"++data.splits.val={given}",
            "data.test_split=val",
        )
        scores.append(own.read("viz/results.json")["scores"])
    assert scores[1] == scores[2] and scores[0]["accuracy/overall"] == scores[1]["accuracy/overall"] > 0
    assert scores[1]["accuracy/unanswerable"] == scores[1]["accuracy/overall"]
    rows = examples(own.folder / "viz")
    assert {row["kind"] for row in rows} == {"unanswerable"} and [row["text"] for row in rows] == [
        line["question"] for line in lines
    ]

    asked = [
        {"image": f"{one['image_id']}.jpg", "question": one["question"]} for one in own_lines(own.data / "demo", "test")
    ]
    (own.folder / "test.json").write_text(json.dumps(asked))
    own.predict(monkeypatch, "predicted")
    own.predict(monkeypatch, "viz", "++data.splits.predict=test.json")
    expected = [one["answer"] for one in own.read("predicted/results.json")]
    images = [one["image"] for one in asked]
    assert own.read("viz/results.json") == [
        {"image": image, "answer": answer} for image, answer in zip(images, expected, strict=True)
    ]
    top = [json.loads(line) for line in (own.folder / "viz" / "predictions.jsonl").read_text().splitlines()]
    assert [(one["question_id"], one["image"]) for one in top] == [*enumerate(images, start=1)]
