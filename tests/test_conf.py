"""Every file under conf/ composes, and what it names exists and takes the arguments it is given."""

import functools
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, MissingMandatoryValue
from transformers import BertConfig, PretrainedConfig

from vinvl.captioning.constraints import ConstraintOptions
from vinvl.models import VinVLConfig
from vinvl.models.decoding import DecodingOptions
from vinvl.pretrain_finetune import as_overrides
from vinvl.run.folders import config_directory, register_resolvers
from vinvl.run.options import leaves
from vinvl.zoo import zoo

CONF = Path(config_directory())
GROUPS = {  # names with an underscore are what choices have in common, no choices themselves
    folder.name: sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))
    for folder in CONF.iterdir()
    if folder.is_dir()
}
# Composed elsewhere.
NO_CHOICE_OF_ITS_OWN = {"download", "hydra", "paths", "objective", "detector", "detection_data", "detection_recipe"}
EXPERIMENTS = GROUPS["experiment"]
DOORS = ("train", "evaluate", "predict")
# What one must say of one's own data, and the base of all VQA datasets, before they are whole.
REQUIRED = {
    "vqa_jsonl": ["data.splits.train=train.jsonl", "data.splits.val=val.jsonl", "data.regions=regions.h5"],
    "vqa": ["data.splits={train:train.jsonl,val:val.jsonl}", "data.regions=regions.h5", "data.answers=answers.json"],
    "oscarplus_corpus": ["data.splits={train:train.jsonl,val:val.jsonl}", "data.regions=regions.h5"],
    "captions": ["data.splits={train:{jsonl:train.jsonl},val:{jsonl:val.jsonl}}", "data.regions=regions.h5"],
    "retrieval": ["data.splits={train:{jsonl:train.jsonl},val:{jsonl:val.jsonl}}", "data.regions=regions.h5"],
}
# Recipes that start from weights of one's own.
STARTS_FROM = {
    name: ["model.init=FILE"]
    for name in EXPERIMENTS
    if re.search(r"init: (\?\?\?|\$\{vinvl.required:model.init\})", (CONF / "experiment" / f"{name}.yaml").read_text())
}
TASKS = (
    "vqa.task.VQATask",
    "gqa.task.GQATask",
    "nlvr2.task.NLVR2Task",
    "retrieval.task.RetrievalTask",
    "captioning.task.CaptioningTask",
    "pretraining.task.PretrainingTask",
)
# Arguments that the doors give when they instantiate, or that a `_partial_` is called with later.
GIVEN_LATER = {
    "pytorch_lightning.Trainer": ("callbacks", "logger"),
    **{f"vinvl.{name}.build": ("datamodule",) for name in TASKS},
    "torch.optim.AdamW": ("params",),
    "torch.optim.SGD": ("params",),
    "vinvl.detector.task.DetectorTask.build": ("datamodule",),
    "vinvl.schedules.multistep_schedule": ("optimizer", "total_steps"),
    "vinvl.schedules.linear_schedule": ("optimizer", "total_steps"),
    "vinvl.schedules.cosine_schedule": ("optimizer", "total_steps"),
    "vinvl.schedules.constant_schedule": ("optimizer", "total_steps"),
}


@functools.cache
def composed(door: str, *overrides: str) -> Any:
    """A door's configuration in plain types, everything resolved, nothing missing; not to be changed."""
    register_resolvers()
    chosen = dict(override.split("=", 1) for override in overrides)
    needed = [*REQUIRED.get(chosen.get("data", ""), []), *STARTS_FROM.get(chosen.get("experiment", ""), [])]
    if any(choice.endswith("_published") for choice in chosen.values()):
        needed.append("published.root=/published")
    given = [*overrides, *needed, "hydra.runtime.output_dir=/runs/here"]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose(door, overrides=given, return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # for ${hydra:…}
    try:
        own = DictConfig({name: node for name, node in config.items() if name != "hydra"})
        plain = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
        assert OmegaConf.select(config, "hydra.run.dir", throw_on_missing=True)
        assert OmegaConf.select(config, "hydra.sweep.dir", throw_on_missing=True)
    finally:
        HydraConfig.instance().cfg = None
    return plain


def targets(value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every `_target_` at any depth, with the arguments beside it."""
    if isinstance(value, dict):
        if "_target_" in value:
            own = ("_target_", "_partial_", "_convert_")
            yield value["_target_"], {key: item for key, item in value.items() if key not in own}
        for item in value.values():
            yield from targets(item)
    elif isinstance(value, list):
        for item in value:
            yield from targets(item)


@functools.cache
def located(name: str) -> Any:
    return get_object(name)


def assert_callable_as_written(config: Any) -> None:
    """Every `_target_` exists and can be called with its keys and those given later, no more and no fewer.

    WandbLogger is located although wandb is optional: Lightning looks for it when the logger is made.
    """
    for name, arguments in targets(config):
        later = {key: None for key in GIVEN_LATER.get(name, ())}
        signature = inspect.signature(located(name))
        try:
            signature.bind(**arguments, **later)
        except TypeError as error:
            pytest.fail(f"{name}: {error}")


def assert_fields_of_the_model(config: Any) -> None:
    """VinVLConfig takes anything, so a misspelt field would pass unseen."""
    known = {
        name for kind in (VinVLConfig, BertConfig, PretrainedConfig) for name in inspect.signature(kind).parameters
    }
    assert set(config["model"]["config"]) <= known | {"attn_implementation"}
    VinVLConfig(**config["model"]["config"] | {"vocab_size": 30, "num_labels": 2})


CHOICES = [
    (group, choice) for group, choices in GROUPS.items() if group not in NO_CHOICE_OF_ITS_OWN for choice in choices
]


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_of_every_group_can_be_trained_with(group: str, choice: str) -> None:
    config = composed("train", *(["task=captioning"] if group == "decoding" else []), f"{group}={choice}")
    assert_callable_as_written(config)
    assert_fields_of_the_model(config)
    assert ("decoding" in config) == ("CaptioningTask" in config["task"]["_target_"])


@pytest.mark.parametrize(("number", "data"), list(enumerate(GROUPS["data"])))
def test_every_door_takes_every_dataset(number: int, data: str) -> None:
    """And every trainer; doors other than train, and trainers, in turns."""
    for door in ("train", DOORS[1 + number % 2]):
        trainer = GROUPS["trainer"][number % len(GROUPS["trainer"])]
        config = composed(door, f"data={data}", *([] if door == "train" else [f"trainer={trainer}"]))
        assert_callable_as_written(config)
        assert config["name"] == (data if door == "train" else None)  # runs go to a folder of that name
        split_names = set(config["data"]["splits"])
        assert {config["data"][f"{stage}_split"] for stage in ("train", "val", "test", "predict")} <= split_names


@pytest.mark.parametrize("choice", [f"{group}={one}" for group in ("detector", "trainer") for one in GROUPS[group]])
def test_extraction_composes_with_every_detector_and_trainer(choice: str) -> None:
    assert_callable_as_written(composed("extract", "images=DIR", "weights=FILE", "output=FILE", choice))


@pytest.mark.parametrize("objective", GROUPS["objective"])
def test_both_stages_of_every_objective_compose(objective: str) -> None:
    config = composed("pretrain_finetune", f"objective={objective}", "tags=false")
    ways = [("pretrain", "true", "with_tags"), ("pretrain", "false", "without_tags"), ("finetune", "false", "")]
    for stage, tags, own in ways:
        words = as_overrides(OmegaConf.create(config[stage]))
        words += as_overrides(OmegaConf.create(config["objective"][own])) if own else []
        trained = composed("train", *words, f"data.use_tags={tags}", "seed=3")
        assert_callable_as_written(trained)
        assert trained["name"] == config[stage]["experiment"]


def test_doors_that_need_only_to_be_told_from_where_and_to_where() -> None:
    config = composed("convert", "weights=FILE", "to=FOLDER")
    assert (config["weights"], config["to"]) == ("FILE", "FOLDER")
    assert composed("report", "store=FILE")["count"] == 60
    assert_callable_as_written(composed("evaluate_detector", "weights=FILE"))


@pytest.mark.parametrize("experiment", EXPERIMENTS[::12])
def test_experiments_give_way_to_overrides(experiment: str) -> None:
    config = composed("train", f"experiment={experiment}", "trainer.devices=1", "data.batch_size=3", "model=tiny")
    assert config["trainer"]["devices"] == 1 and config["data"]["batch_size"] == 3
    assert config["model"]["config"]["hidden_size"] == composed("train")["model"]["config"]["hidden_size"] < 768
    assert config["name"] == experiment


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_what_an_experiment_names_can_be_made(experiment: str) -> None:
    """All but the task, which needs the data read, and the trainer, which may need GPUs."""
    config = composed("train", f"experiment={experiment}")
    written = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    assert config["name"] == experiment and OmegaConf.select(written, "model.config.hidden_size") is None
    weight = torch.nn.Parameter(torch.zeros(2))
    optimizer = instantiate(config["optim"]["optimizer"])([{"params": [weight]}])
    schedule = instantiate(config["optim"]["scheduler"])(optimizer, total_steps=20_000)
    assert optimizer.defaults["lr"] == config["optim"]["optimizer"]["lr"]
    assert 0 <= schedule.get_last_lr()[0] <= optimizer.defaults["lr"]
    instantiate(config["data"])
    if "decoding" in config:
        decoding = dict(config["decoding"])
        constraints = decoding.pop("constraints")
        assert DecodingOptions(**decoding).max_length == decoding["max_length"]
        assert constraints is None or ConstraintOptions(**constraints).max_constraints >= 1


def test_doors_agree_on_what_they_share() -> None:
    train, evaluate, predict = (composed(door) for door in DOORS)
    assert train["data"] == evaluate["data"] == predict["data"]
    assert train["trainer"] == evaluate["trainer"] == predict["trainer"]
    assert train["seed"] == evaluate["seed"] == predict["seed"] == 88


# The published recipes: conf/_zoo.yaml.
RECIPES = zoo()["recipes"]
NOT_OF_A_RECIPE = {"name", "torch_threads", "defaults"}


def test_every_experiment_has_its_published_numbers_in_the_table() -> None:
    assert {name for name in EXPERIMENTS if not name.startswith("demo_")} == set(RECIPES)


@pytest.mark.parametrize("experiment", STARTS_FROM)
def test_recipes_that_start_from_weights_of_ones_own_take_no_others(experiment: str) -> None:
    """Where nobody names the weights they are asked for: a recipe must not fall back on those of its model size."""
    register_resolvers()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("train", overrides=[f"experiment={experiment}"])
    with pytest.raises((MissingMandatoryValue, InterpolationResolutionError), match=r"model\.init"):
        print(config.model.init)


@pytest.mark.parametrize("experiment", RECIPES)
def test_experiments_carry_the_published_numbers(experiment: str) -> None:
    """Key by key; what differs on purpose, or is not published, is in the table too, with its value and a reason."""
    published, here = RECIPES[experiment]["published"], RECIPES[experiment].get("here", {})
    config = OmegaConf.create(composed("train", f"experiment={experiment}"))
    wanted = published | {key: one["is"] for key, one in here.items()}
    assert {key: OmegaConf.select(config, key, default="(no such key)") for key in wanted} == wanted
    assert all(one["because"] for one in here.values())
    assert not [key for key in published.keys() & here.keys() if published[key] == here[key]["is"]]


@pytest.mark.parametrize("experiment", RECIPES)
def test_what_a_recipe_writes_is_in_the_table(experiment: str) -> None:
    files = [OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")]
    while (base := str(files[-1].defaults[0])) in EXPERIMENTS:
        files.append(OmegaConf.load(CONF / "experiment" / f"{base}.yaml"))
    known = {*RECIPES[experiment]["published"], *RECIPES[experiment].get("here", {})}
    own = {
        key
        for file in files
        for key, _ in leaves(OmegaConf.to_container(file))
        if key.split(".")[0] not in NOT_OF_A_RECIPE
    }
    starts = {"model.init"} if experiment in STARTS_FROM else set()
    assert {re.sub(r"\.\d+$", "", key) for key in own} - starts <= known


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_states_its_limits_itself(experiment: str) -> None:
    """One file tells the experiment: these numbers are written in it, and they are the ones that count."""
    written = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    config = OmegaConf.create(composed("train", f"experiment={experiment}"))
    keys = ["data.max_tokens", "data.max_regions"]
    if not experiment.startswith("demo_"):
        length = "max_epochs" if OmegaConf.select(config, "trainer.max_steps") == -1 else "max_steps"
        keys += ["data.batch_size", "optim.optimizer.lr", f"trainer.{length}"]
    for key in keys:
        assert OmegaConf.select(written, key) == OmegaConf.select(config, key) is not None, key
