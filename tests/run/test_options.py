"""Options that nobody knows, values of another type, and names of files that mean something to Hydra."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from vinvl import convert, evaluate, extract, pretrain_finetune, train, train_detector
from vinvl.run.door import enter
from vinvl.run.errors import UserError
from vinvl.run.folders import config_directory, register_resolvers
from vinvl.run.options import THE_BEST, as_text, checked, checked_arguments, fits, readable


@cache
def base(door: str, *choices: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(config_directory(), version_base="1.3"):
        return compose(door, overrides=list(choices), return_hydra_config=True)


def held_against(word: str, door: str, *choices: str) -> str:
    return checked(OverridesParser.create().parse_override(word), [base(door, *choices)])


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize(
    ("door", "word", "sentence"),
    [
        ("convert", "features.class_ofset=1", "There is no features.class_ofset; did you mean features.class_offset?"),
        ("extract", "reading.exif=apply", "There is no reading.exif; did you mean reading.exif_orientation?"),
        ("extract", "reading.colours=3", "There is no reading.colours; reading has "),
        ("extract", "detector.min_sizes=600", "did you mean detector.min_size?"),
        ("report", "coutn=3", "There is no coutn; did you mean count?"),
        ("train", "data.foo=1", "There is no data.foo; data has "),
        ("train", "trainer.max_epoch=3", "did you mean trainer.max_epochs?"),
        ("train", "max_epochs=3", "There is no max_epochs; did you mean trainer.max_epochs?"),
        ("train", "typo=1", "There is no typo; there are callbacks, "),
        ("train", "experimnt=vqa2_base", "There is no experimnt; did you mean experiment?"),
        ("train", "exp=vqa2_base", "There is no exp; did you mean experiment?"),
        ("train", "hydra/swepper=optuna", "There is no hydra/swepper; did you mean hydra/sweeper?"),
        ("train", "hydra.swep.dir=x", "There is no hydra.swep.dir; did you mean hydra.sweep.dir?"),
        ("predict", "qestion=why", "There is no qestion; did you mean question?"),
        ("evaluate_detector", "wieghts=x", "There is no wieghts; did you mean weights?"),
        ("train", "model.config.hiden_size=3", "did you mean model.config.hidden_size?"),
        ("train", "optim.optimizer.lrr=1", "did you mean optim.optimizer.lr?"),
        ("train", "callbacks.best.monitr=x", "did you mean callbacks.best.monitor?"),
        ("evaluate", "decoding.num_beam=3", "did you mean decoding.num_beams?"),
        ("train", "decoding.num_beams=3", "There is no decoding.num_beams; there are "),
        ("train", "model={config:{hiden_size:3}}", "did you mean model.config.hidden_size?"),
        ("train", "data.regions.first=a.h5", "data.regions is a list."),
        ("train_detector", "training.rpn_sample=3", "did you mean training.rpn_samples?"),
        ("pretrain_finetune", "tag=false", "did you mean tags?"),
        ("pretrain_finetune", "reading.exif=apply", "There is no reading.exif; there are "),
        ("train", "task.optimizer.lr=1", "task.optimizer is optim.optimizer: give optim.optimizer.lr in place of"),
    ],
)
def test_an_option_that_nobody_knows(plus: str, door: str, word: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        held_against(plus + word, door)
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("door", "word", "kind"),
    [
        ("train", "trainer.max_epochs=abc", "give a whole number or null."),
        ("train", "trainer.max_epochs=1.5", "give a whole number or null."),
        ("train", "trainer.precision=bf17", "bf16-mixed"),
        ("train", "data.batch_size=x", "give a whole number."),
        ("train", "data.use_tags=yes", "give true or false."),
        ("train", "seed=abc", "give a whole number."),
        ("train", "tags=one", "give a list."),
        ("train", "seed={}", "give a whole number."),
        ("train", "data.pin_memory={}", "data.pin_memory={…} does not fit: give true or false."),
        ("train", "trainer.max_epochs=1.0", "trainer.max_epochs=1.0 does not fit"),
        ("train", "optim.optimizer.lr=fast", "give a number."),
        ("train", "model.config.hidden_size=[3]", "give a whole number."),
        ("convert", "features.clip_boxes=ja", "give true or false."),
        ("convert", "features=3", "features is a section"),
        ("train_detector", "data.flip_probability=often", "give a number."),
    ],
)
def test_a_value_of_another_type(door: str, word: str, kind: str) -> None:
    with pytest.raises(UserError) as refused:
        held_against(word, door)
    assert kind in str(refused.value)


@pytest.mark.parametrize(
    ("door", "word", "now"),
    [
        ("convert", "+features.class_offset=1", "features.class_offset=1"),
        ("train", "trainer.fast_dev_run=true", "+trainer.fast_dev_run=true"),  # Lightning's, and not in conf/
        ("train", "+trainer.fast_dev_run=true", "+trainer.fast_dev_run=true"),
        ("train", "++trainer.max_epochs=3", "++trainer.max_epochs=3"),
        ("train", "model.config.layer_norm_eps=1e-5", "+model.config.layer_norm_eps=1e-5"),
        ("train", "data.splits.mine=[a.jsonl]", "+data.splits.mine=[a.jsonl]"),
        ("train", "data.splits.train.0.questions=a.json", "data.splits.train.0.questions=a.json"),
        ("train", "callbacks.mine={_target_:my.Callback}", "+callbacks.mine={_target_:my.Callback}"),
        ("train", "trainer.devices=[0,1]", "trainer.devices=[0,1]"),
        ("train", "trainer.val_check_interval=100", "trainer.val_check_interval=100"),
        ("train", "data.regions=[a.h5,b.h5]", "data.regions=[a.h5,b.h5]"),
        ("train", "data.regions=${paths.data_dir}/x", "data.regions=${paths.data_dir}/x"),
        ("train", "name=123", "name=123"),
        ("train", "torch_threads=null", "torch_threads=null"),
        ("train", "~logger.tensorboard", "~logger.tensorboard"),
        ("train", "hydra.job.env_set.A=b", "+hydra.job.env_set.A=b"),
        ("pretrain_finetune", "pretrain.trainer.max_epochs=3", "+pretrain.trainer.max_epochs=3"),
        ("train_detector", "data.min_sizes=[480,600]", "data.min_sizes=[480,600]"),
        ("convert", "from=123", "from=123"),
    ],
)
def test_what_a_door_knows_goes_through_with_and_without_plus(door: str, word: str, now: str) -> None:
    assert held_against(word, door) == now


def test_options_of_a_task_are_those_of_its_class() -> None:
    with pytest.raises(UserError, match=r"did you mean task\.options\.scst_samples"):
        held_against("+task.options.scst_sample=3", "train", "task=captioning")
    assert held_against("task.options.scst_samples=3", "train", "task=captioning") == "task.options.scst_samples=3"


def test_a_split_may_have_official_files_that_no_configuration_names() -> None:
    assert held_against("data.choices.mine=a.json", "train", "task=gqa") == "+data.choices.mine=a.json"
    with pytest.raises(UserError, match=r"There is no data\.choice\.mine"):
        held_against("data.choice.mine=a.json", "train", "task=gqa")


@pytest.mark.parametrize(
    ("door", "words", "sentence"),
    [
        ("train", ["data=vqa3"], "There is no data=vqa3; did you mean vqa or vqa2?"),
        ("train", ["experiment=foo"], "There is no experiment=foo; choose one of coco_caption_base_scst, "),
        ("train", ["--multirun", "data=vqa2,vqa9"], "There is no data=vqa9"),
        ("train", ["trainer={max_epochs:3}"], "trainer.KEY=VALUE"),
        ("train", ["trainer"], "trainer cannot be read: give KEY=VALUE"),
        ("train", ["data.splits.train={jsonl:"], "cannot be read"),
        ("train", ["seed=1,2"], "for a run of each add --multirun"),
        ("train", ["-m", "optim.optimizer.lr=interval(1e-4,1e-3)"], "is to be searched: add hydra/sweeper=optuna"),
        ("train", ["objective=none"], "vinvl.train leaves nothing of that kind to choose"),
        ("evaluate", ["data=vqa2", "data.foo=1"], "There is no data.foo"),
    ],
)
def test_command_lines_that_cannot_be_used(door: str, words: list[str], sentence: str) -> None:
    register_resolvers()
    with pytest.raises(UserError) as refused:
        checked_arguments(door, words, ("data",) if door == "evaluate" else ())
    assert sentence in str(refused.value)


def test_command_lines_that_can() -> None:
    register_resolvers()
    found = checked_arguments("train", ["+experiment=vqa2_base", "+plan=true", "-m", "seed=1,2"])
    assert found == ["-m", "experiment=vqa2_base", "+plan=true", "seed=1,2"]
    assert checked_arguments("evaluate", ["++data.foo=1"], ("data",)) == ["++data.foo=1"]  # vinvl.restore knows
    assert checked_arguments("train", ["plan=true"]) == ["+plan=true"]


def test_a_search_is_for_the_greatest_score() -> None:
    register_resolvers()
    words = ["-m", "hydra/sweeper=optuna", "optim.optimizer.lr=interval(1e-4,1e-3)"]
    assert checked_arguments("train", words) == [*words, THE_BEST]
    directed = [*words, "hydra.sweeper.direction=minimize"]
    assert checked_arguments("train", directed) == directed
    search = base("train", "hparams_search=optuna", "callbacks.best.mode=min", THE_BEST).hydra
    assert (search.mode.name, search.sweeper.direction, search.sweeper.n_jobs) == ("MULTIRUN", "minimize", 1)
    for door, chosen in (("train", "hparams_search=optuna"), ("pretrain_finetune", "hydra/sweeper=optuna")):
        assert base(door, chosen, THE_BEST).hydra.sweeper.direction == "maximize"


# --- names that mean something to Hydra ---


def value_of(word: str) -> str:
    return str(OverridesParser.create().parse_override(word).value())


@pytest.mark.parametrize(
    "name", ["epoch=0-step=25.ckpt", "a b,c (1)[x].ckpt", "a$b.ckpt", "{a}.ckpt", "it's.ckpt", "größe=1.ckpt", "[1].h5"]
)
def test_the_name_of_a_file_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    for given_name in (str(tmp_path / name), f"~/{name}"):
        assert value_of(readable(f"ckpt_path={given_name}", sweeping=False)) == given_name
    assert readable(readable(f"k={tmp_path / name}", False), False) == readable(f"k={tmp_path / name}", False)


def test_what_hydra_reads_stays_hydras() -> None:
    for word in ("a=[1,2]", "a={b:1}", "a='x=y'", "a=null", "a=1e-3", "~a", "a=${b}", "a="):
        assert readable(word, sweeping=False) == word
    assert readable("a=1,2", sweeping=True) == "a=1,2"
    assert value_of(readable("a=nowhere=3.ckpt", sweeping=False)) == "nowhere=3.ckpt"


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(lambda text: text.strip() == text))
def test_any_text_in_quotes_is_that_text(text: str) -> None:
    quoted = as_text(text)
    assert quoted == text or value_of(f"a={quoted}").replace("\\${", "${") == text or "\\" in text


def test_what_fits_an_annotation() -> None:
    assert fits(3, int | None) and fits(None, int | None) and not fits(None, int) and not fits(True, int)
    assert (
        fits(3, float) and not fits("3", float) and fits(3, str) and fits(["a"], list[str]) and not fits("a", list[str])
    )
    assert fits({"a": 1}, Path) is False and fits({"_target_": "x"}, Callable[[], object]) and fits("x", "unresolved")


# --- errors of Hydra and of the system, at the door itself ---


@pytest.fixture
def at_the_door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Enters a door as a command does, in an empty folder, and returns its sentence."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["door"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr("logging.raiseExceptions", True)
    environment = dict(os.environ)
    doors = {"convert": convert, "train": train, "evaluate": evaluate, "extract": extract}
    doors |= {"train_detector": train_detector, "pretrain_finetune": pretrain_finetune}

    def sentence(name: str, *words: str) -> str:
        with pytest.raises(SystemExit) as left:
            enter(doors[name].main, name, words)
        said = left.value.code
        assert isinstance(said, str) and said.startswith("error: ") and "\n" not in said
        return said

    yield sentence
    os.environ.clear()
    os.environ.update(environment)


def test_a_place_that_cannot_be_written(at_the_door: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "file/run cannot be written (Not a directory)" in at_the_door("evaluate", "hydra.run.dir=file/run")
    assert "hydra.run.dir=FOLDER" in at_the_door("train", "hydra.run.dir=/proc/run")
    assert "hydra.sweep.dir=FOLDER" in at_the_door("train", "hydra.sweep.dir=file/sweep", "--multirun", "seed=1,2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("train", ["data.regions=${nowhere}"], "Interpolation key 'nowhere' not found"),
        ("train", ["data._target_=vinvl.data.Nothing"], "vinvl.data.Nothing"),
        ("train", ["hydra.run.dirr=x"], "did you mean hydra.run.dir?"),
        ("convert", ["from=x", "to=o.h5", "+features.class_ofset=1"], "did you mean features.class_offset?"),
    ],
)
def test_errors_of_hydra_are_sentences(at_the_door: Callable[..., str], name: str, words: list[str], told: str) -> None:
    assert told in at_the_door(name, *words)


def test_a_key_that_is_taken_away_may_be_given_anew() -> None:
    words = ["~data.splits.train", "+data.splits.train=own.jsonl"]
    assert checked_arguments("train", words) == words
    assert checked_arguments("train", ["~data.splits", words[1]])[1] == words[1]
    assert checked_arguments("train", words[1:]) == [words[1].lstrip("+")]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("logger=null", "logger=null is no choice: choose one of default, "),
        ("--\x1bfo", r"unrecognized arguments: --\x1bfo. Options are given as KEY=VALUE"),
        ("--multirn", "unrecognized arguments: --multirn; did you mean --multirun? Options are"),
    ],
)
def test_what_hydra_and_argparse_would_tell_in_their_way(word: str, sentence: str) -> None:
    with pytest.raises(UserError) as refused:
        checked_arguments("train", [word])
    assert sentence in str(refused.value)
