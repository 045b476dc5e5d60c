"""The data section of a checkpoint: overrides on top of it, and what a forged one cannot do."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tests.door_in_process import composed
from vinvl.restore import check_splits, data_config, decoding_options
from vinvl.run.errors import UserError
from vinvl.run.options import open_sections
from vinvl.run.overrides import given_values, replacing

CHECKPOINT = Path("run/checkpoints/best.ckpt")
TARGET = "vinvl.vqa.data.VQADataModule"
OF_RUN: dict[str, Any] = {
    "data": {
        "_target_": TARGET,
        "splits": {"train": "train.jsonl", "test": [{"questions": "q.json", "annotations": "a.json"}]},
        "regions": ["one.h5", "two.h5"],
        "use_tags": True,
        "batch_size": 16,
        "predict_split": "test",
        "prepare": {"_target_": "vinvl.demo.ensure_demo_world", "_partial_": True, "seed": 3},
    },
    "seed": 1,
}


def restored(config: DictConfig, run_config: dict[str, Any], overrides: list[str]) -> DictConfig:
    return data_config(config, run_config, given_values(overrides), CHECKPOINT)


def test_an_option_that_the_checkpoint_does_not_know_yet(tmp_path: Path) -> None:
    """It was written by an earlier version; what no version knows is still refused."""
    carried = {"_target_": "vinvl.gqa.data.GQADataModule", "splits": {"val": "q.json"}, "test_split": "val"}
    given = ["++data.choices.val=c.json", "++data.attention=true"]
    with composed("evaluate", tmp_path, tmp_path, *given) as config:
        data = restored(config, {"data": carried}, given)
    assert (data.choices, data.attention, data.splits) == ({"val": "c.json"}, True, {"val": "q.json"})
    with pytest.raises(UserError, match=r"has no 'choice\.val'"):
        restored(config, {"data": carried}, ["data.choice.val=c.json"])


def of_command(**values: Any) -> DictConfig:
    """What Hydra composed for the command: its own default data, with the command's overrides in it."""
    section = {"use_tags": False, "batch_size": 64, "regions": ["own.h5"], "splits": {"test": [{"annotations": None}]}}
    return OmegaConf.create({"data": section | values, "trainer": {"devices": 2}})


def test_overrides_replace_just_their_keys() -> None:
    before = copy.deepcopy(OF_RUN)
    data = restored(of_command(), OF_RUN, ["trainer.devices=2", "ckpt_path=best", "name=data"])
    assert OmegaConf.to_container(data) == OF_RUN["data"] == before["data"]
    overrides = ["data.use_tags=false", "data.regions=[own.h5]", "data.splits.test.0.annotations=null"]
    expected = copy.deepcopy(OF_RUN["data"]) | {"use_tags": False, "regions": ["own.h5"]}
    expected["splits"]["test"][0]["annotations"] = None
    assert OmegaConf.to_container(restored(of_command(), OF_RUN, overrides)) == expected
    assert before == OF_RUN
    config = of_command()
    for run, chosen in ((OF_RUN, ["data=vqa2", "data.use_tags=false"]), ({}, [])):  # the command's own; no run at all
        assert restored(config, run, chosen) is config.data


def test_parts_of_a_split_are_held_against_the_checkpoint_and_not_the_default_dataset(tmp_path: Path) -> None:
    """Of the default dataset, VQA, a split is a list; of captions it is none."""
    run = copy.deepcopy(OF_RUN)
    three = [{"questions": "q"} for _ in range(3)]
    run["data"]["splits"] = {"train": {"karpathy": "a.json", "splits": ["train"]}, "test": three}
    words = replacing(open_sections(["data.splits.train.karpathy=b.json", "data.splits.test.2.annotations=c.json"]))
    with composed("evaluate", tmp_path, tmp_path / "run", *words) as config:
        data = restored(config, run, words)
    assert data.splits.train == {"karpathy": "b.json", "splits": ["train"]}
    assert data.splits.test == [{"questions": "q"}, {"questions": "q"}, {"questions": "q", "annotations": "c.json"}]


@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_overrides_may_add_a_split(sign: str) -> None:
    config = of_command(splits={"more": "more.jsonl"}, predict_split="more")
    data = restored(config, OF_RUN, [f"{sign}data.splits.more=more.jsonl", "data.predict_split=more"])
    assert data.splits.more == "more.jsonl" and data.splits.train == "train.jsonl" and data.predict_split == "more"


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        (["++data.splits.train={jsonl: own.jsonl}"], "splits.train", {"jsonl": "own.jsonl"}),
        (["++data.splits.train={jsonl: own.jsonl}"], "splits.test", OF_RUN["data"]["splits"]["test"]),
        (["++data.splits.test={coco: own.json}"], "splits.test", {"coco": "own.json"}),  # a list before
        (["++data.splits.own.jsonl=own.jsonl"], "splits.own", {"jsonl": "own.jsonl"}),
        (["++data.splits={test: own.jsonl}"], "splits", {"test": "own.jsonl"}),
        (["+data.regions=['${seed}.h5']"], "regions", ["7.h5"]),
        (["data.regions.1=own.h5"], "regions", ["one.h5", "own.h5"]),
        (["++data.prepare={seed: 5}"], "prepare", OF_RUN["data"]["prepare"] | {"seed": 5}),
        (["data.prepare=null"], "prepare", None),
    ],
)
def test_what_is_given_replaces_what_is_there(words: list[str], key: str, expected: object) -> None:
    config = OmegaConf.create({"data": {"regions": ["1.h5", "2.h5", "3.h5"], "prepare": {"seed": 0}}, "seed": 7})
    for override in OverridesParser.create().parse_overrides(replacing(words)):  # as Hydra does
        OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
    data = restored(config, OF_RUN, replacing(words))
    found = OmegaConf.select(data, key)
    assert (OmegaConf.to_container(found) if OmegaConf.is_config(found) else found) == expected
    others = OmegaConf.to_container(data)
    assert isinstance(others, dict) and others["batch_size"] == 16  # of the run, not of the command's default


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("data.prepare.sed=1", "has no 'prepare.sed'; did you mean data.prepare.seed?"),
        ("++data.prepare={sed: 1}", "has no 'prepare.sed'; did you mean data.prepare.seed?"),
        ("data.regions.2=x.h5", "has no 'regions.2'"),
        ("data.batch_size.x=1", "has no 'batch_size.x'"),
        ("data.split.own=x", "has no 'split.own'; did you mean data.splits.own?"),
        ("++data.bath_size=3", "has no 'bath_size'; did you mean data.batch_size?"),
        ("~data.splits.test", "nothing can be taken away"),
    ],
)
def test_what_would_have_no_effect_is_refused(word: str, words: str) -> None:
    config = of_command(prepare={"sed": 1}, regions=["a", "b", "c"], split={"own": "x"}, bath_size=3)
    with pytest.raises(UserError, match=words):
        restored(config, OF_RUN, [word])


def test_a_split_that_the_door_does_not_read_is_refused() -> None:
    data = OmegaConf.create({"train_split": "train", "val_split": "val", "test_split": "test", "predict_split": "own"})
    check_splits(given_values(["data.splits.val=a", "data.splits.test=a"]), data, "test")
    check_splits(given_values(["data.splits.own=a"]), data, "predict")
    for given, told in (("val", "is given, and data.test_split is test, which is"), ("tset", "mean data.splits.test?")):
        with pytest.raises(UserError, match=re.escape(told)):
            check_splits(given_values([f"data.splits.{given}=a"]), data, "test")


def test_sections_are_opened_unless_the_command_names_them() -> None:
    given = ["ckpt_path=a", "data.splits.predict=x", "decoding.num_beams=2", "+data.y=1"]
    opened = ["++data.splits=null", "ckpt_path=a", "++data.splits.predict=x", "++decoding.num_beams=2", "+data.y=1"]
    assert open_sections(given) == opened
    assert open_sections(["data=gqa", "data.use_tags=false"]) == ["data=gqa", "data.use_tags=false"]
    assert open_sections(["decoding=caption", "data.a=1"]) == ["decoding=caption", "++data.a=1"]


def test_what_a_checkpoint_names_for_writing_is_not_taken_over(tmp_path: Path) -> None:
    """A forged one: its data come from where it says, and what is made for them goes where this command says."""
    forged = copy.deepcopy(OF_RUN)
    home = str(tmp_path / "home" / "demo")
    forged["data"] |= {
        "token_cache": f"{home}/../cache",
        "scores_dir": f"{home}/../.ssh",
        "regions": [f"{home}/train.h5", f"{home}er/other.h5"],
        "answers": f"{home}/answers.json",
    }
    forged["data"]["prepare"]["folder"] = home
    own = OmegaConf.merge(of_command(token_cache="own"), {"paths": {"data_dir": str(tmp_path / "data")}})
    data = restored(own, forged, [])
    assert data.token_cache == "own" and data.scores_dir is None
    assert data.prepare.folder == str(tmp_path / "data" / "demo")
    assert list(data.regions) == [str(tmp_path / "data" / "demo" / "train.h5"), f"{home}er/other.h5"]
    assert data.answers == str(tmp_path / "data" / "demo" / "answers.json")
    own = OmegaConf.merge(own, {"data": {"scores_dir": "here", "prepare": {"folder": "there"}, "token_cache": "x"}})
    keys = ["++data.scores_dir=here", "++data.prepare.folder=there", "++data.token_cache=x"]
    data = restored(own, forged, keys)
    assert (data.scores_dir, data.prepare.folder, data.token_cache) == ("here", "there", "x")
    forged["data"]["token_cache"] = None  # it went without
    assert restored(own, forged, []).token_cache is None


def test_no_answers_are_built_where_a_checkpoint_says(tmp_path: Path) -> None:
    forged = copy.deepcopy(OF_RUN)
    forged["data"]["answers"] = str(tmp_path / "home" / "answers.json")
    own = OmegaConf.merge(of_command(), {"paths": {"data_dir": str(tmp_path / "data")}})
    with pytest.raises(UserError, match=r"names .*home/answers.json as its answers, .* data.answers="):
        restored(own, forged, [])
    forged["data"]["answers"] = str(tmp_path / "data" / "new" / "answers.json")
    assert restored(own, forged, []).answers == forged["data"]["answers"]


def test_no_stores_are_made_where_a_checkpoint_says(tmp_path: Path) -> None:
    config = of_command()
    config.paths = {"data_dir": str(tmp_path / "data")}
    for place, key in (("regions", None), ("stores", "test"), ("corpus", None)):
        for folder, refused in (("data", False), ("elsewhere", True)):
            made = [{"from": "features.tsv", "to": str(tmp_path / folder / "regions.h5")}]
            run = copy.deepcopy(OF_RUN)
            run["data"][place] = made if key is None else {key: made}
            if not refused:
                restored(config, run, [])
                continue
            with pytest.raises(UserError, match=r"best\.ckpt would have .*elsewhere/regions\.h5 made of feat"):
                restored(config, run, [])


def test_decoding_of_a_checkpoint_takes_overrides_and_refuses_others() -> None:
    parameters = {"decoding": {"num_beams": 5, "max_length": 20, "constraints": None}}
    config = OmegaConf.create({"decoding": {"num_beams": 2, "constraints": {"max_constraints": 1}, "x": 1}})
    own = ["decoding.num_beams=2", "++decoding.constraints.max_constraints=1"]
    found = decoding_options(config, parameters, given_values(own), CHECKPOINT)["decoding"]
    assert found == {"num_beams": 2, "max_length": 20, "constraints": {"max_constraints": 1}}
    assert decoding_options(config, parameters, given_values(["data.x=1"]), CHECKPOINT) == {}
    with pytest.raises(UserError, match="has no 'x'"):
        decoding_options(config, parameters, given_values(["++decoding.x=1"]), CHECKPOINT)
    with pytest.raises(UserError, match="writes no captions"):
        decoding_options(config, {}, given_values(own), CHECKPOINT)


SHELL = {"_target_": "os.system", "command": "touch owned"}


@pytest.mark.parametrize(
    "forged",
    [
        SHELL,
        {"_target_": "vinvl.data.text.os.system", "command": "touch owned"},  # a path through our own module
        {"_target_": "vinvl.run.files.write_text_atomically", "path": "owned", "text": ""},
        {"_target_": "vinvl.data.nothing_there"},
        {"_target_": 3},
        {"_target_": TARGET, "prepare": SHELL | {"_partial_": True}},
        {"_target_": TARGET, "splits": {"train": [{"questions": SHELL}]}},
        {"_target_": TARGET, "splits": "${oc.create:${oc.decode:'{_target_:os.system,command:touch owned}'}}"},
        {"_target_": TARGET, "splits": {"train": ["${oc.env:HOME}"]}},
        {"_target_": TARGET, "splits": {"train": (SHELL,)}},
        {"_target_": TARGET, "${oc.env:HOME}": 1},
        {"_target_": TARGET, "prepare": {"_target_": "vinvl.demo.os.system"}},
        {"use_tags": True},
        ["_target_"],
        None,
    ],
)
def test_a_forged_checkpoint_has_nothing_called(forged: object) -> None:
    with pytest.raises(UserError, match="pass data=NAME") as refused:
        restored(of_command(), {"data": forged}, [])
    assert str(CHECKPOINT) in str(refused.value) and "\n" not in str(refused.value)
