"""For the images of a store the predictor gives what `vinvl.predict` and `vinvl.evaluate` give, task by task."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vinvl
from tests.predictor.samples import close, door_opened, predictions, store_of, train
from vinvl.retrieval.task import RetrievalTask
from vinvl.run.files import json_lines
from vinvl.vqa.answers import AnswerVocabulary

pytestmark = pytest.mark.slow


def load(path: Path, data: Path, **given: Any) -> vinvl.Predictor:
    return vinvl.load(path, features=store_of(data), device="cpu", **given)


def test_answers_to_the_questions_of_vqa(runs: dict[str, Path], demo_data: Path, tmp_path: Path) -> None:
    path = runs["vqa"]
    expected = predictions(path, demo_data, tmp_path / "door")
    asked = json.loads((demo_data / "demo/v2_OpenEnded_mscoco_test2014_questions.json").read_text())["questions"]
    model = load(path, demo_data)
    found = model.ask([str(one["image_id"]) for one in asked], [one["question"] for one in asked])
    assert len(found) == len(expected) > 30
    for one, door in zip(found, expected, strict=True):
        assert tuple(text for text, _ in one.top) == door.answers and one.answer == door.answers[0]
        close([score for _, score in one.top], door.probabilities)
        assert one.score == one.top[0][1]
    pickled = tmp_path / "trainval_label2ans.pkl"
    pickled.write_bytes(pickle.dumps(dict(enumerate(AnswerVocabulary.load(demo_data / "demo/answers.json").answers))))
    assert predictions(path, demo_data, tmp_path / "door", f"++data.answers={pickled}") == expected
    assert len({one.answer for one in found}) + len({round(one.score, 4) for one in found}) > 10  # they do differ


def test_answers_to_the_questions_of_gqa(demo_data: Path, tmp_path: Path) -> None:
    path = train("gqa", demo_data, tmp_path / "run")
    split = json.loads((demo_data / "demo/gqa_testdev_balanced_questions.json").read_text())
    expected = predictions(path, demo_data, tmp_path / "door", "data.predict_split=testdev")
    found = load(path.parents[1], demo_data).ask(
        [one["imageId"] for one in split.values()], [one["question"] for one in split.values()]
    )
    for one, door in zip(found, expected, strict=True):
        assert tuple(text for text, _ in one.top) == door.answers
        close([score for _, score in one.top], door.probabilities)


@pytest.mark.parametrize("tags", [True, False])
def test_statements_about_two_pictures(tags: bool, demo_data: Path, tmp_path: Path) -> None:
    path = train("nlvr2", demo_data, tmp_path / "run", f"data.use_tags={str(tags).lower()}")
    with door_opened(path, demo_data, tmp_path / "door") as (restored, _):
        restored.datamodule.setup("predict")
        expected = {}
        for batch in restored.datamodule.predict_dataloader():
            true = restored.task.eval()(batch).softmax(dim=-1)[:, 1].tolist()
            expected |= {record["index"]: value for record, value in zip(batch.records[::2], true, strict=True)}
    lines = [line for _, line in json_lines(demo_data / "demo/nlvr2_test1.json")]
    records = restored.datamodule.datasets["predict"].records
    pairs = [tuple(str(image_id) for image_id in pair) for pair in records.image_ids]
    found = load(path, demo_data).score(pairs, [line["sentence"] for line in lines])
    close(found, [expected[index] for index in range(len(lines))])
    assert [value > 0.5 for value in found] == [one.true for one in predictions(path, demo_data, tmp_path / "again")]
    swapped = load(path, demo_data).score([pair[::-1] for pair in pairs], [line["sentence"] for line in lines])
    assert np.abs(np.array(found) - swapped).max() > 1e-4  # left and right are not the same


@pytest.mark.parametrize("attention", ["CLR", "CR"])
def test_texts_with_pictures(attention: str, runs: dict[str, Path], demo_data: Path, tmp_path: Path) -> None:
    path = runs["retrieval"]  # with CR
    if attention != "CR":
        path = train("retrieval", demo_data, tmp_path / "run", f"data.attention_type={attention}")
    with door_opened(path, demo_data, tmp_path / "door") as (restored, trainer):
        restored.datamodule.setup("predict")
        trainer.predict(restored.task, datamodule=restored.datamodule)
        assert isinstance(restored.task, RetrievalTask) and restored.task._files is not None
        files = restored.task._files
        scores = np.concatenate([files.read(number) for number in range(len(files.blocks))])  # (images, captions)
        records, fold = restored.datamodule.datasets["predict"].records, files.folds[0]
        texts = [records.captions[int(one)] for one in fold.captions]
        ids = [str(records.image_ids[one]) for one in fold.images]
    model = load(path, demo_data)
    for image, row in zip(ids, scores, strict=True):
        close(model.score(image, texts), 1 / (1 + np.exp(-row.astype(np.float64))))
    assert np.abs(np.diff(scores[:, 0])).max() > 1e-4


def test_captions_with_their_log_probabilities(runs: dict[str, Path], demo_data: Path, tmp_path: Path) -> None:
    path = runs["captioning"]
    more = "decoding.num_return_sequences=2"
    for overrides, decoding in (
        ([], {}),
        ([more], {"num_return_sequences": 2}),
        (["decoding.max_length=14"], {"max_length": 14}),
    ):
        expected = predictions(path, demo_data, tmp_path / "door", *overrides)
        found = load(path, demo_data, decoding=decoding).caption([one.image_id for one in expected])
        for one, door in zip(found, expected, strict=True):
            assert tuple(text for text, _ in one.top) == door.captions and one.text == door.captions[0]
            close([score for _, score in one.top], door.scores)
    assert len({one.text for one in found}) > 1


def test_constrained_captions(demo_data: Path, tmp_path: Path) -> None:
    path = train("captioning", demo_data, tmp_path / "run", "decoding=constrained", "decoding.num_beams=2")
    expected = predictions(path, demo_data, tmp_path / "door")
    plain = load(path, demo_data, decoding={"constraints": None, "num_beams": 2})
    found = load(path, demo_data).caption([one.image_id for one in expected])
    assert [one.text for one in found] == [one.captions[0] for one in expected]
    close([one.score for one in found], [one.scores[0] for one in expected])
    assert [one.text for one in found] != [one.text for one in plain.caption([one.image_id for one in expected])]
