"""Checkpoints, model folders, stores and corpora that an earlier version has written are read as they were."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vinvl
from tests.data.test_text import golden_tokenizer
from tests.door_in_process import refused_in_process, run_in_process, scores
from tests.door_runs import call, door_environment
from tests.regions.samples import assert_same, make_regions
from vinvl.detector import load_detector
from vinvl.detector.weights import read_settings
from vinvl.models import VinVLForAnswering
from vinvl.pretraining.corpus import Corpus, ensure_index
from vinvl.regions import RegionStore
from vinvl.run.checkpoint import read_checkpoint
from vinvl.run.errors import UserError

EARLIER = Path(__file__).parent / "data" / "earlier"
PREDICTED = {
    "vqa": ("predictions.jsonl", "results.json"),
    "gqa": ("predictions.jsonl", "results.json"),
    "nlvr2": ("predictions.csv",),
    "retrieval": ("image_to_text.jsonl", "text_to_image.jsonl"),
    "captioning": ("predictions.jsonl", "captions.json"),
}


def content(path: Path) -> Any:
    if path.suffix == ".csv":
        return list(csv.reader(path.open()))
    lines = path.read_text().splitlines()
    return [json.loads(line) for line in lines] if path.suffix == ".jsonl" else json.loads(path.read_text())


def close(value: Any) -> Any:
    """With numbers of floating point that another machine may round otherwise."""
    if isinstance(value, dict):
        return {key: close(item) for key, item in value.items()}
    if isinstance(value, list):
        return [close(item) for item in value]
    return pytest.approx(value, rel=1e-4, abs=1e-5) if isinstance(value, float) else value


@pytest.mark.slow
@pytest.mark.parametrize("task", [*PREDICTED, "pretraining"])
def test_a_checkpoint_scores_and_predicts_as_it_did(task: str, demo_data: Path, tmp_path: Path) -> None:
    folder = EARLIER / task
    given, before = [f"ckpt_path={folder / 'best.ckpt'}", "trainer.accelerator=cpu"], sorted(folder.rglob("*"))
    run_in_process("evaluate", demo_data, tmp_path / "scored", *given)
    assert sorted(folder.rglob("*")) == before  # retrieval goes on with the scores of then
    expected, found = content(folder / "expected.json")["scores"], scores(tmp_path / "scored")
    assert {name: found[name] for name in expected} == close(expected)  # later versions compute more
    if task in PREDICTED:
        run_in_process("predict", demo_data, tmp_path / "predicted", *given)
    for name in PREDICTED.get(task, ()):
        assert content(tmp_path / "predicted" / name) == close(content(folder / name)), name


def test_options_that_came_later_can_be_given(demo_data: Path, tmp_path: Path) -> None:
    given = [f"ckpt_path={EARLIER / 'retrieval' / 'best.ckpt'}", "trainer.accelerator=cpu"]
    given.append(f"++data.scores_dir={tmp_path / 'scores'}")
    run_in_process("evaluate", demo_data, tmp_path / "out", *given, "++data.rerank_top=2")
    assert scores(tmp_path / "out")["scored_pairs"] < 90
    sentence = refused_in_process("evaluate", demo_data, tmp_path / "no", *given, "++data.rerank_tip=2")
    assert "has no 'rerank_tip'" in sentence


@pytest.mark.slow
def test_a_model_folder_is_the_model_of_its_checkpoint(tmp_path: Path) -> None:
    model = VinVLForAnswering.from_pretrained(EARLIER / "model")
    own = {name: tensor for name, tensor in model.state_dict().items() if "position_ids" not in name}
    trained = read_checkpoint(EARLIER / "vqa" / "best.ckpt")["state_dict"]
    for name, tensor in own.items():
        torch.testing.assert_close(tensor, trained[f"model.{name}"], rtol=0, atol=0)
    vinvl.load(EARLIER / "model", device="cpu")


def test_a_detector_is_the_detector_of_its_checkpoint() -> None:
    path = EARLIER / "detector" / "detector.pth"
    settings = read_settings(path)
    assert settings is not None and settings.label_map.classes[1:] == ("circle", "square", "triangle", "star")
    detector, _ = load_detector(path, settings.config)
    trained = read_checkpoint(EARLIER / "detector" / "best.ckpt")["state_dict"]
    for name in ("cls_embedding.weight", "fc_attr.weight", "attr_score.bias"):  # batch norm is folded into others
        name = f"attribute.predictor.{name}"
        torch.testing.assert_close(detector.state_dict()[name], trained[f"detector.{name}"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["regions.h5", "shards"])
def test_a_store(name: str) -> None:
    store = RegionStore(EARLIER / "store" / name)
    store.require_sound(contents=True)
    images = [make_regions(key, count, 5, attributes=2, seed=count) for key, count in (("7", 3), ("b é", 0), ("c", 2))]
    assert list(store.image_ids) == ["7", "b é", "c"]
    for image in images:
        assert_same(store[image.image_id], image)


def test_a_corpus_gets_an_index_of_today(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(EARLIER / "corpus", tmp_path / "corpus")
    (earlier,) = (path for path in (tmp_path / "corpus").iterdir() if path.is_dir())
    with pytest.raises(UserError, match=r"is a folder, as indices of earlier versions are; build it again"):
        Corpus(earlier)
    corpus = ensure_index(tmp_path / "corpus" / "rows.jsonl", golden_tokenizer(decoder=False))  # as it was then
    assert "anew, for its index is of an earlier version" in capsys.readouterr().err
    assert corpus.path == earlier and len(list((tmp_path / "corpus").iterdir())) == 3  # it lies where that one lay
    expected = content(EARLIER / "corpus" / "expected.json")
    assert corpus.problems() == [] and len(corpus) == len(expected) == 12
    rows = np.arange(len(corpus))
    texts = [corpus.texts(rows, np.full(len(rows), side)) for side in (0, 1)]
    for row, one in enumerate(expected):
        found = {"image_id": corpus.image_id(row), "kind": int(corpus.kinds[row])}
        assert found | {"texts": [side[row].tolist() for side in texts]} == one


def test_code_that_names_modules_as_they_were_called(tmp_path: Path) -> None:
    program = (
        "from vinvl.errors import UserError; from vinvl.data.store import RegionStore; import vinvl.regions;"
        "import vinvl.run.errors;"
        "from vinvl.data.detection.coco_instances import read_instances; from vinvl.data.pictures import read_picture;"
        "from vinvl.data.features_in import convert_features;"
        "assert UserError is vinvl.run.errors.UserError and RegionStore is vinvl.regions.RegionStore;"
        "assert vinvl.regions.__spec__.name == 'vinvl.regions'; from vinvl.data.nothing import it"
    )
    environment = door_environment(tmp_path)
    done = call(tmp_path, "-c", program, environment=environment)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'vinvl.data.nothing'"
    asked = (("store", "verify", "store/regions.h5"), ("corpus", "info", "corpus/rows.jsonl"))
    said = [call(tmp_path, f"vinvl.data.{one}", word, str(EARLIER / file), environment=environment)
            for one, word, file in asked]  # fmt: skip
    assert "sound, 3 images" in said[0].stdout and "is a folder, as indices of earlier" in said[1].stderr
