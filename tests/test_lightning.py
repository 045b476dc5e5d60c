"""Lightning by hand: data modules, tasks and a Trainer without Hydra."""

import inspect
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pytest
import pytorch_lightning as pl
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from nbclient import NotebookClient
from omegaconf import OmegaConf

import vinvl
from tests.conftest import TINY_DEMO, TINY_WORLD
from tests.door_in_process import refused_in_process, run_in_process
from tests.door_in_process import scores as evaluated
from tests.door_runs import call
from vinvl.data.text import load_tokenizer
from vinvl.demo.world import ensure_demo_corpus
from vinvl.models import VinVLConfig, VinVLForAnswering
from vinvl.regions import LabelMap, RegionStore, RegionStoreWriter
from vinvl.run.errors import UserError
from vinvl.vqa.data import VQADataModule
from vinvl.vqa.task import VQATask

QUIET: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def files_of(demo: Path) -> dict[str, Any]:
    """What is one's own of the demo's VQA."""

    questions, annotations = "v2_OpenEnded_mscoco_{}2014_questions.json", "v2_mscoco_{}2014_annotations.json"
    splits = {
        split: {"questions": str(demo / questions.format(split)), "annotations": str(demo / annotations.format(split))}
        for split in ("train", "val")
    }
    regions = [str(demo / f"{split}.h5") for split in ("train", "val")]
    return {
        "splits": splits, "answers": str(demo / "answers.json"), "regions": regions,
        "tokenizer": str(demo / "tokenizer"),
    }  # fmt: skip


def test_it_trains_tests_saves_and_loads(demo_data: Path, tmp_path: Path) -> None:
    data = VQADataModule(**files_of(demo_data / "demo"), num_workers=0)
    task = VQATask(data, init=None, model_config=SIZES)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, logger=False, enable_progress_bar=False
    )
    trainer.fit(task, data)
    (scores,) = trainer.test(task, data, verbose=False)
    assert scores["test/score"] == scores["test/accuracy/overall"]
    (path,) = tmp_path.rglob("*.ckpt")
    again = VQATask.load_from_checkpoint(path)
    assert torch.equal(again.model.bert.pooler.dense.weight, task.model.bert.pooler.dense.weight)
    (scored,) = trainer.test(again, data, verbose=False)
    assert scored == scores
    run_in_process("evaluate", demo_data, tmp_path / "evaluated", f"ckpt_path='{path}'", "trainer.accelerator=cpu")
    assert evaluated(tmp_path / "evaluated")["accuracy/overall"] == pytest.approx(scores["test/score"], abs=1e-4)
    store = demo_data / "demo" / "val.h5"
    model, number = vinvl.load(path, features=str(store)), int(RegionStore(store).at(0).image_id)
    said = model.ask(number, "what is it?")
    assert said == model.ask(str(number), "what is it?") == model.ask([number], "what is it?")[0]


KARPATHY = {split: {"karpathy": "dataset_demo.json", "splits": [split]} for split in ("train", "val", "test")}
OTHERS: dict[str, dict[str, Any]] = {
    "GQA": {
        "splits": {
            "train_balanced": "gqa_train_balanced_questions.json", "val": "gqa_val_balanced_questions.json",
            "testdev": "gqa_testdev_balanced_questions.json",
        },
    },
    "NLVR2": {"splits": {split: f"nlvr2_{split}.json" for split in ("train", "dev", "test1")}},
    "Retrieval": {"splits": KARPATHY, "val_images": 4, "val_fold_images": 2},
    "Captioning": {"splits": KARPATHY},
    "Pretraining": {"splits": {split: f"pretraining/{split}.jsonl" for split in ("train", "val")}, "index_workers": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_every_task_is_made_of_its_data(
    name: str, demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of nothing but files: all else has defaults, and every setting is in the signature."""
    monkeypatch.chdir(demo_data / "demo")
    kinds = getattr(vinvl, f"{name}DataModule"), getattr(vinvl, f"{name}Task")
    for kind in kinds:
        taken = inspect.signature(kind).parameters.values()
        assert not [one.name for one in taken if one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL)] and len(taken) > 10
    regions = [Path(f"{split}.h5") for split in ("train", "val", "test")]
    given = {**OTHERS[name], "regions": regions, "tokenizer": Path("tokenizer"), "num_workers": 0}
    if name == "GQA":
        given["answers"] = tmp_path / "answers.json"
    if name == "Pretraining":
        given["prepare"] = partial(ensure_demo_corpus, demo_data / "demo", seed=0, **TINY_WORLD)
    data = kinds[0](**given)
    own = {"java_metrics": False} if name == "Captioning" else {}
    task = kinds[1](data, init=None, model_config=SIZES, **own)
    trainer = pl.Trainer(fast_dev_run=1, default_root_dir=tmp_path, enable_model_summary=False, **QUIET)
    trainer.fit(task, data)
    trainer.test(task, data, verbose=False)
    assert task.headline in task.scores


def test_a_configuration_is_composed_and_trained_with_twice(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = vinvl.compose(f"paths.data_dir={demo_data}", *TINY_DEMO, "data.num_workers=0", "name=by_hand")
    assert not (GlobalHydra.instance().is_initialized() or HydraConfig.initialized() or (tmp_path / "runs").exists())
    config.trainer.max_epochs = 1
    with pytest.raises(Exception, match="max_epoch"):
        config.trainer.max_epoch = 1
    first, second = vinvl.train(config), vinvl.train(config)
    assert first.folder != second.folder and first.folder.parent == tmp_path / "runs" / "by_hand"
    assert (first.score, first.scores) == (second.score, second.scores) and "accuracy/overall" in first.scores
    assert first.checkpoint == first.folder / "checkpoints" / "best.ckpt" and first.checkpoint.is_file()
    used = OmegaConf.load(first.folder / ".hydra" / "config.yaml")
    assert used.trainer.max_epochs == 1 and used.paths.output_dir == str(first.folder) and "hydra" not in used
    assert "data.batch_size=16" in OmegaConf.load(first.folder / ".hydra" / "overrides.yaml")
    assert {path.name for path in first.folder.iterdir()} >= {"results.json", "checkpoints", "csv", "tensorboard"}
    assert len(vinvl.load(first.folder, features=str(demo_data / "demo/test.h5")).ask(300001, "what is it?").top) == 5


def test_what_cannot_be_composed_or_trained_is_told_and_leaves_nothing(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {
        "data.batch_sise=3": "did you mean data.batch_size", "experiment=vqa2_bas": "did you mean vqa2_base",
        "--multirun": "takes KEY=VALUE", "data.splits.validation=x.jsonl": "nothing reads it",
        "trainer.max_epochs=many": "give a whole number",
    }  # fmt: skip
    for word, told in wrong.items():
        with pytest.raises(UserError, match=told):
            vinvl.compose(word)
    with pytest.raises(UserError, match="nowhere"):
        vinvl.train(vinvl.compose(f"paths.data_dir={demo_data}", *TINY_DEMO, "data.regions=nowhere.h5"))
    with pytest.raises(UserError, match="get it from vinvl"):
        vinvl.train({"seed": 1})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


ORDERS = """
import {first}
import {second}
import vinvl, vinvl.train
from vinvl.train import main
assert callable(vinvl.train) and vinvl.train.main is main and vinvl.train.__name__ == "vinvl.train"
print(vinvl.compose("experiment=vqa2_base", "model=tiny").trainer.max_epochs)
"""


@pytest.mark.parametrize("first", ["vinvl", "vinvl.train"])
def test_the_module_and_the_function_have_one_name(first: str, tmp_path: Path) -> None:
    second = {"vinvl": "vinvl.train", "vinvl.train": "vinvl"}[first]
    program = ORDERS.format(first=first, second=second)
    done = call(tmp_path, "-c", program, environment=dict(os.environ))
    assert (done.returncode, done.stdout) == (0, "25\n"), done.stderr
    assert not list(tmp_path.iterdir())


NOTEBOOK = Path(__file__).parents[1] / "docs" / "lightning.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(demo_data: Path, tmp_path: Path) -> None:
    """With the tests' world in place of its own; the parts that are counted in lines have no more of them."""
    book = nbformat.read(NOTEBOOK, 4)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    lines = [len([line for line in cell.source.splitlines() if line.strip()]) for cell in code]
    (by_hand,) = [n for n, cell in enumerate(code) if "trainer.test(" in cell.source]
    (composed,) = [n for n, cell in enumerate(code) if "vinvl.compose(" in cell.source]
    assert lines[by_hand] <= 12 and lines[composed] <= 6
    code[0].source = re.sub(r"SIZES = .*", f"SIZES = {{'seed': 0, **{TINY_WORLD}}}", code[0].source)
    (tmp_path / "data").symlink_to(demo_data)
    NotebookClient(book, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    shown = ["".join(one.get("text", "") for one in cell.outputs) for cell in code]
    assert "Test metric" in str(code[by_hand].outputs) and "One example of 'train'" in "".join(shown)
    assert str(tmp_path / "runs" / "demo_vqa") in shown[composed] and "Results on" in str(code[composed].outputs)


def test_sizes_come_from_the_weights_and_the_store(demo_data: Path, tmp_path: Path) -> None:
    """Whatever model is composed; a size that somebody names is held against the weights."""
    start = VinVLForAnswering(VinVLConfig(**SIZES, vocab_size=len(load_tokenizer(str(demo_data / "demo/tokenizer")))))
    start.save_pretrained(tmp_path / "start")
    narrow = tmp_path / "narrow.h5"
    with RegionStoreWriter(narrow, feature_dim=16, detector="x", label_map=LabelMap(("thing",))) as writer:
        for split in ("train", "val", "test"):
            store = RegionStore(demo_data / "demo" / f"{split}.h5")
            for one in (store.at(index) for index in range(len(store))):
                few = {name: getattr(one, name)[:, :0] for name in ("attributes", "attribute_scores")}
                writer.add(replace(one, features=one.features[:, :16], classes=0 * one.classes, **few))
    words = [f"paths.data_dir={demo_data}", *TINY_DEMO[:7], "data.num_workers=0", "trainer.max_steps=1"]
    given = [word for word in words if not word.startswith("model.")] + [f"model.init={tmp_path / 'start'}"]
    told = run_in_process("train", demo_data, tmp_path / "run", *given, "model=large")
    assert f"those of {tmp_path / 'start'}: 2 layers of 32." in told
    kept = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    used = kept["vinvl"]["run_config"]["model"]["config"]
    assert {name: used[name] for name in SIZES} == SIZES and used["img_feature_dim"] == 2054
    assert kept["hyper_parameters"]["model_config"]["hidden_size"] == 32
    sentence = refused_in_process("train", demo_data, tmp_path / "no", *given, "model.config.hidden_size=64")
    assert "hidden_size is 32 there and 64 here" in sentence
    run_in_process("train", demo_data, tmp_path / "narrow", *given[:-1], "model=tiny", f"data.regions={narrow}")
    kept = torch.load(tmp_path / "narrow/checkpoints/last.ckpt", weights_only=True)
    assert kept["hyper_parameters"]["model_config"]["img_feature_dim"] == 22
