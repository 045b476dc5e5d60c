"""`python -m vinvl.pretrain_finetune`: both stages."""

import csv
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests import door_runs
from tests.conftest import TINY_MODEL, TINY_WORLD
from tests.door_in_process import composed, run_in_process
from tests.door_runs import door_environment
from vinvl import pretrain_finetune
from vinvl.pretrain_finetune import check_stage, figures, of_features, replaced_keys, same_stage, train_stage
from vinvl.regions import Regions, RegionStore, RegionStoreWriter
from vinvl.run.checkpoint import read_checkpoint
from vinvl.run.errors import UserError
from vinvl.run.folders import config_directory
from vinvl.run.options import checked_arguments
from vinvl.run.overrides import as_overrides, given_values, replacing
from vinvl.run.signals import run_passing_signals_on

TINY = [
    *(f"data.prepare.{name}={value}" for name, value in TINY_WORLD.items()),
    *TINY_MODEL,
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    *(f"trainer.limit_{stage}_batches=2" for stage in ("train", "val", "test")),
]
STAGES = [*(f"pretrain.{one}" for one in TINY), *(f"finetune.{one}" for one in TINY), "tags=false"]
TASKS = {
    "pretraining": "vinvl.pretraining.task.PretrainingTask.build",
    "finetuning": "vinvl.vqa.task.VQATask.build",
}


def results(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


def run_both(data: Path, folder: Path, objective: str) -> float:
    opened = [f"++{one}" for one in STAGES[:-1]]  # as the door does, for Hydra knows no key of a stage
    with composed("pretrain_finetune", data, folder, f"objective={objective}", *opened, STAGES[-1]) as config:
        return pretrain_finetune.pretrain_finetune(config)


@pytest.mark.slow
def test_pretrained_and_finetuned(demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_process(command: list[str]) -> int:
        checked_arguments("train", command[3:])  # as a stage's own door does
        run_in_process("train", demo_data, Path(command[3].removeprefix("hydra.run.dir=")), *command[4:])
        return 0

    monkeypatch.setattr(pretrain_finetune, "run_passing_signals_on", in_process)
    score = run_both(demo_data, tmp_path, "two_way")
    given = {stage: OmegaConf.load(tmp_path / stage / ".hydra" / "config.yaml") for stage in TASKS}
    for stage, task in TASKS.items():
        assert given[stage].task._target_ == task and given[stage].data.use_tags is False and given[stage].seed == 88
    assert given["pretraining"].data.texta_false_prob == 0.5  # without tags it is the caption that is wrong
    assert given["finetuning"].model.init == str(tmp_path / "pretraining" / "checkpoints" / "last.ckpt")
    summary, found = results(tmp_path)["summary"], results(tmp_path / "finetuning")
    assert list(summary) == ["pretraining test", "pretraining val", "finetuning test", "finetuning val"]
    assert summary["finetuning test"] == found["scores"]["accuracy/overall"]
    assert summary["finetuning val"] == found["validation"]["score"] == score


def test_without_an_objective_there_is_one_stage(
    demo_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []

    def stage(command: list[str]) -> int:
        told.append(command[3:])
        (tmp_path / "finetuning").mkdir()
        (tmp_path / "finetuning" / "results.json").write_text('{"headline": "loss", "scores": {"loss": 2.5}}')
        return 0

    monkeypatch.setattr(pretrain_finetune, "run_passing_signals_on", stage)
    assert run_both(demo_data, tmp_path, "none") == 2.5
    assert len(told) == 1 and told[0][0] == f"hydra.run.dir={tmp_path / 'finetuning'}"
    assert not any(word.startswith("model.init=/") for word in told[0]) and "data.use_tags=false" in told[0]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_misspelt_key_of_a_stage_is_told_before_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(pretrain_finetune, "run_passing_signals_on", pytest.fail)
    told = rf"{stage}, .*: There is no trainer.max_epoch; did you mean trainer.max_epochs"
    with (
        composed("pretrain_finetune", tmp_path, tmp_path, f"+{stage}.trainer.max_epoch=3") as config,
        pytest.raises(UserError, match=told),
    ):
        pretrain_finetune.pretrain_finetune(config)


def test_a_stage_is_checked_while_hydra_is_at_work() -> None:
    """Which goes on afterwards, whether the stage is sound or refused."""
    with initialize_config_dir(config_dir=config_directory(), version_base="1.3"):
        at_work = GlobalHydra.instance().hydra
        check_stage("pretrain", ["experiment=demo_pretraining", "data.batch_size=3"])
        assert at_work is not None and GlobalHydra.instance().hydra is at_work
        told = (
            r"pretrain, whose keys are those of vinvl.train: There is no data.batchsize; did you mean data.batch_size"
        )
        with pytest.raises(UserError, match=told):
            check_stage("pretrain", ["experiment=demo_pretraining", "data.batchsize=3"])
        assert GlobalHydra.instance().hydra is at_work


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["two_way_answers", "two_way_captions", "three_way_answers", "two_way_oscar"])
def test_every_objective_trains(objective: str, demo_data: Path, tmp_path: Path) -> None:
    with composed("pretrain_finetune", demo_data, tmp_path, f"objective={objective}") as config:
        own = as_overrides(config.objective.with_tags)
    run_in_process(
        "train", demo_data, tmp_path / "run", "experiment=demo_pretraining", "data.variant=oscar", *own, *TINY
    )
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    (classes,) = [len(values) for name, values in state.items() if name.endswith("seq_relationship.bias")]
    assert classes == {"two": 2, "three": 3}[objective.split("_")[0]]


def store_of(path: Path, ids: Sequence[str], feature_dim: int) -> Path:
    with RegionStoreWriter(path, feature_dim=feature_dim) as writer:
        for image_id in ids:
            features, boxes = np.zeros((1, feature_dim), np.float16), np.array([[0, 0, 5, 5]], np.float32)
            writer.add(Regions(image_id, features, boxes, width=9, height=9))
    return path


def test_both_stages_read_the_features_that_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And get a model as wide as these; what other stores have more is told."""
    stores = {"a": str(store_of(tmp_path / "a.h5", "12", 8)), "b": [str(store_of(tmp_path / "b.h5", "2", 16))]}
    config = OmegaConf.create({"features": "a", "stores": stores})
    assert given_values(of_features(config)) == {"data.regions": stores["a"], "model.config.img_feature_dim": 14}
    assert capsys.readouterr().err == ""
    config.features = "b"
    assert given_values(of_features(config)) == {"data.regions": stores["b"], "model.config.img_feature_dim": 22}
    assert "warning: the store 'b' lacks 1 images of 'a', such as 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("features", "stores", "sentence"),
    [
        ("c", {"a": "a.h5"}, r"features=c: stores names a; give stores.c=STORE with it"),
        ("a", {}, r"features=a: stores names none"),
        ("a", {"a": "a.h5", "b": "gone.h5"}, r"gone\.h5"),  # of a later job, but told in the first
    ],
)
def test_features_that_are_not_there(tmp_path: Path, features: str, stores: dict[str, str], sentence: str) -> None:
    store_of(tmp_path / "a.h5", "12", 8)
    places = {name: str(tmp_path / path) for name, path in stores.items()}
    with pytest.raises(UserError, match=sentence):
        of_features(OmegaConf.create({"features": features, "stores": places}))


@pytest.mark.parametrize(
    ("stores", "sentence"),
    [
        (3, r"stores=3 names no stores: give stores.NAME=STORE for each"),
        (None, r"stores=missing or null names no stores"),
        (["a.h5"], r"stores=\['a.h5'\] names no stores"),
        ({"a": 5}, r"stores.a=5: give a file, a folder of shards or a list of these"),
        ({"a": None}, r"stores.a=missing or null: give a file"),
        ({"a": {"x": "a.h5"}}, r"stores.a=\{'x': 'a.h5'\}: give a file"),
        ({1: ["a.h5", 2]}, r"stores.1=\['a.h5', 2\]: give a file"),
    ],
)
def test_stores_that_are_none(stores: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        of_features(OmegaConf.create({"features": "a", "stores": stores}))


def test_without_features_those_of_the_data_are_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert of_features(OmegaConf.create({"features": None, "stores": {}})) == []
    assert capsys.readouterr().err == ""
    assert of_features(OmegaConf.create({"features": None, "stores": {"a": "gone.h5"}})) == []
    assert "features=NAME chooses none of them" in capsys.readouterr().err


@pytest.mark.slow
def test_stores_beside_each_other(demo_data: Path, tmp_path: Path) -> None:
    """Features of one width beside those of another."""
    demo = [RegionStore(demo_data / "demo" / f"{split}.h5") for split in ("train", "val", "test")]
    with RegionStoreWriter(tmp_path / "narrow.h5", label_map=demo[0].label_map, feature_dim=8) as writer:
        for one in (store.at(index) for store in demo for index in range(len(store))):
            few = np.ascontiguousarray(one.features[:, :8])
            writer.add(replace(one, features=few, attributes=None, attribute_scores=None))
    wide = ",".join(str(demo_data / "demo" / f"{split}.h5") for split in ("train", "val", "test"))
    stores = [f"stores.wide=[{wide}]", f"stores.narrow={tmp_path / 'narrow.h5'}"]
    given = ["--multirun", "features=wide,narrow", "objective=none", *stores, *STAGES, "finetune.trainer.max_steps=1"]
    done = door_runs.call(tmp_path, "vinvl.pretrain_finetune", *given, environment=door_environment(demo_data))
    assert done.returncode == 0, done.stderr
    (sweep,) = (tmp_path / "runs" / "multirun").iterdir()
    columns, *table = csv.reader((sweep / "multirun.csv").open())
    assert columns[:2] == ["job", "features"] and [line[1] for line in table] == ["wide", "narrow"]
    assert columns[-1] == "only of" and all(re.search(r"^finetuning test 2 of \d+ b", line[-1]) for line in table)
    whole, stage = (
        [line[21:] for line in (sweep / "0" / name).read_text().splitlines()]
        for name in ("pretrain_finetune.log", "finetuning/train.log")
    )
    place = whole.index(stage[0])  # after the command of the stage
    assert any("Training " in line for line in stage) and whole[place : place + len(stage)] == stage
    runs = [OmegaConf.load(sweep / job / "finetuning/.hydra/config.yaml") for job in ("0", "1")]
    assert [run.model.config.img_feature_dim for run in runs] == [2054, 14]
    assert [run.data.regions for run in runs] == [wide.split(","), str(tmp_path / "narrow.h5")]


@pytest.mark.slow
def test_the_door_takes_any_key_of_a_stage(demo_data: Path, tmp_path: Path) -> None:
    given = ["--cfg", "job", "objective=two_way", "finetune.trainer.max_epochs=3"]
    shown = door_runs.call(tmp_path, "vinvl.pretrain_finetune", *given, environment=door_environment(demo_data))
    config = OmegaConf.create(shown.stdout)
    assert shown.returncode == 0 and config.finetune.trainer.max_epochs == 3 and config.objective.pretrain


def test_a_dict_for_a_split_reaches_the_stage_as_one() -> None:
    words = replacing(["++finetune.data.splits.train={questions:q.json}", "++finetune.trainer={max_epochs:2}"])
    given = given_values(words)
    config = OmegaConf.create({"data": {"splits": {"train": {"questions": "q.json"}}}, "trainer": {"max_epochs": 2}})
    assert replaced_keys(given) == {"pretrain": set(), "finetune": {"data.splits.train"}}
    stage = as_overrides(config, replaced_keys(given)["finetune"])
    assert stage == ["data.splits.train={questions:q.json}", "trainer.max_epochs=2"]
    assert given_values(stage)["data.splits.train"] == {"questions": "q.json"}


def test_a_folder_of_both_stages_may_be_moved() -> None:
    start = "model.init=/old/run/pretraining/checkpoints/last.ckpt"
    assert same_stage(["seed=1", start], ["seed=1", start.replace("/old/run", "/new/place")])
    assert not same_stage(["seed=1", start], ["seed=1"])
    assert not same_stage(["seed=1", start], ["seed=1", start.replace("last", "best")])


def test_a_stage_is_called_until_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands, code, folder = [], 1, tmp_path / "stage"

    def stage(command: list[str]) -> int:
        """Writes what a run of `vinvl.train` leaves."""
        commands.append(command[3:])
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(command[4:]), folder / ".hydra" / "overrides.yaml")
        if code == 0:
            (folder / "results.json").write_text('{"headline": "loss", "scores": {"loss": 2.5}}')
        return code

    monkeypatch.setattr(pretrain_finetune, "run_passing_signals_on", stage)
    with pytest.raises(UserError, match=r"the run in .*stage failed"):
        train_stage(folder, ["seed=1"])
    for code in (75, 130):
        with pytest.raises(SystemExit) as exited:
            train_stage(folder, ["seed=1"])
        assert exited.value.code == code  # a launcher's sign to start it again
    code = 0
    for _ in range(2):
        assert figures("finetuning", train_stage(folder, ["seed=1"])) == {"finetuning loss": 2.5}  # of earlier versions
    assert commands == [[f"hydra.run.dir={folder}", "seed=1", "ckpt_path=auto"]] * 4
    settings = r"stage holds a run of other settings \(seed=1 .*\): choose another hydra.run.dir"
    with pytest.raises(UserError, match=settings):
        train_stage(folder, ["seed=2"])


WAITING = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.signal(signal.SIGINT, signal.default_int_handler)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


def test_a_signal_is_passed_on_to_the_stage(tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def ask_to_stop() -> None:
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)  # a terminal would send it to the stage too: it is not sent twice
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=ask_to_stop).start()
    assert run_passing_signals_on([sys.executable, "-c", WAITING, str(ready)]) == 75
    assert signal.getsignal(signal.SIGTERM) == before


NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
TEXT = st.characters(exclude_characters="$", codec="utf-8")  # of interpolations
NUMBERS = st.booleans() | st.integers(-9999, 9999) | st.floats(0.001, 1000)
LEAVES = st.none() | NUMBERS | st.text(TEXT, max_size=8) | st.lists(NAMES)


@settings(deadline=None, max_examples=40)
@given(st.dictionaries(NAMES, LEAVES | st.dictionaries(NAMES, LEAVES, min_size=1), max_size=4))
def test_sections_become_overrides_that_hydra_reads_back(section: dict[str, Any]) -> None:
    flat = {}
    for key, value in section.items():
        inner = value if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): leaf for name, leaf in inner.items()}
    parsed = OverridesParser.create().parse_overrides(as_overrides(OmegaConf.create(section)))
    assert {one.key_or_group: one.value() for one in parsed} == flat
