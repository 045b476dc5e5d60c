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

CONF = Path(config_directory())
GROUPS = {  # names with an underscore are what choices have in common, no choices themselves
    folder.name: sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))
    for folder in CONF.iterdir()
    if folder.is_dir()
}
# Composed elsewhere.
NO_CHOICE_OF_ITS_OWN = {"hydra", "paths", "objective", "detector", "detection_data", "detection_recipe"}
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
        assert config["name"] == data  # runs go to a folder of that name
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


# The published recipes. Oscar's VinVL_MODEL_ZOO.md for base and large (seed 88, evaluation batch 256 and linear head
# are stated there); MMF's projects/vinvl/configs/vqa2/defaults.yaml for mmf. Not stated in either, hence defaults of
# Oscar's scripts: clipping at 1, attention dropout 0.1 of BERT.
# What several of them have in common.
FINE_TUNING: dict[str, Any] = {
    "optim.optimizer._target_": "torch.optim.AdamW", "optim.weight_decay": 0.05, "trainer.gradient_clip_val": 1.0,
    "optim.scheduler._target_": "vinvl.schedules.linear_schedule", "trainer.max_steps": -1, "seed": 88,
    "trainer.accumulate_grad_batches": 1, "model.config.img_feature_dim": 2054,
    "model.config.attention_probs_dropout_prob": 0.1,
}  # fmt: skip
PAIRS: dict[str, Any] = {
    **FINE_TUNING, "optim.optimizer.lr": 3e-5, "trainer.max_epochs": 20, "model.config.hidden_dropout_prob": 0.3,
    "data.max_tokens": 55, "data.max_regions": 40, "data.use_tags": False, "model.config.classifier": "mlp",
    "model.config.loss_type": "ce", "data.train_split": "train", "data.val_split": "dev", "data.test_split": "test1",
    "task._target_": "vinvl.nlvr2.task.NLVR2Task.build",
}  # fmt: skip
RETRIEVAL: dict[str, Any] = {
    **FINE_TUNING, "data.batch_size": 16, "trainer.devices": 8, "trainer.max_epochs": 30, "data.max_tokens": 70,
    "optim.scheduler.warmup_steps": 0, "model.config.hidden_dropout_prob": 0.1, "data.max_regions": 70,
    "model.config.classifier": "linear", "model.config.loss_type": "ce", "model.config.use_img_layernorm": True,
    "task._target_": "vinvl.retrieval.task.RetrievalTask.build",
}  # fmt: skip
CAPTIONS: dict[str, Any] = {
    **FINE_TUNING, "optim.scheduler.warmup_steps": 0, "trainer.devices": 8, "model.config.hidden_dropout_prob": 0.1,
    "data.max_tokens": 70, "data.max_caption_tokens": 40, "data.max_regions": 50, "decoding.num_beams": 5,
    "decoding.max_length": 20, "model.config.tie_word_embeddings": True, "task.options.freeze_embedding": True,
    "data.mask_probability": 0.15, "data.max_masked_tokens": 3, "data.test_split": "test",
    "task._target_": "vinvl.captioning.task.CaptioningTask.build",
}  # fmt: skip
WORDS: dict[str, Any] = {  # cross-entropy over hidden words
    "data.training_items": "captions", "data.batch_size": 64, "trainer.max_epochs": 60,
    "task.options.label_smoothing": 0.1, "task.options.drop_worst_ratio": 0.2, "task.options.drop_worst_after": 20_000,
}  # fmt: skip
PRETRAINING: dict[str, Any] = {
    "optim.optimizer.lr": 5e-5, "optim.weight_decay": 0.01, "optim.scheduler.warmup_steps": 0,
    "optim.scheduler.first_step": 0, "trainer.gradient_clip_val": 10.0, "trainer.max_steps": 2_000_000,
    "trainer.max_epochs": -1, "trainer.devices": 8, "data.max_tokens": 35, "data.max_regions": 50,
    "model.config.use_img_layernorm": True, "model.config.hidden_dropout_prob": 0.1, "data.variant": "oscar",
    "data.mask_probability": 0.15, "task._target_": "vinvl.pretraining.task.PretrainingTask.build",
}  # fmt: skip
RECIPES: dict[str, dict[str, Any]] = {
    "oscarplus_base": {
        **PRETRAINING, "data.batch_size": 64, "trainer.accumulate_grad_batches": 2, "model.config.hidden_size": 768,
        "data.textb_sample_mode": 1, "data.texta_false_prob": 0.25,
    },
    "oscarplus_large": {
        **PRETRAINING, "data.batch_size": 32, "trainer.accumulate_grad_batches": 4, "model.config.hidden_size": 1024,
        "data.textb_sample_mode": 1, "data.texta_false_prob": 0.25,
    },
    "oscar_base": {
        **PRETRAINING, "data.batch_size": 64, "trainer.accumulate_grad_batches": 2, "model.config.hidden_size": 768,
        "data.textb_sample_mode": 0, "data.texta_false_prob": 0.0,
    },
    "vqa2_base": {
        "optim.optimizer._target_": "torch.optim.AdamW", "optim.optimizer.lr": 5e-5, "data.batch_size": 32,
        "data.eval_batch_size": 256, "trainer.max_epochs": 25, "trainer.max_steps": -1, "optim.weight_decay": 0.05,
        "optim.scheduler._target_": "vinvl.schedules.linear_schedule", "optim.scheduler.warmup_steps": 0,
        "model.config.hidden_dropout_prob": 0.3, "model.config.attention_probs_dropout_prob": 0.1,
        "data.max_tokens": 128, "data.max_regions": 50, "model.config.classifier": "linear",
        "model.config.loss_type": "bce", "data.train_split": "train", "seed": 88, "trainer.gradient_clip_val": 1.0,
        "model.config.hidden_size": 768, "model.config.num_hidden_layers": 12, "model.config.img_feature_dim": 2054,
        "model.config.use_img_layernorm": False, "data.target_rule": "leave_one_out", "data.min_answer_count": 9,
        "model.init": "bert-base-uncased",
    },
    "vqa2_large": {
        "optim.optimizer._target_": "torch.optim.AdamW", "optim.optimizer.lr": 3e-5, "data.batch_size": 24,
        "trainer.max_epochs": 25, "trainer.max_steps": -1, "optim.weight_decay": 0.05,
        "optim.scheduler._target_": "vinvl.schedules.linear_schedule", "optim.scheduler.warmup_steps": 0,
        "model.config.hidden_dropout_prob": 0.3, "model.config.attention_probs_dropout_prob": 0.1,
        "data.max_tokens": 128, "data.max_regions": 50, "model.config.classifier": "linear",
        "model.config.cls_hidden_scale": 3, "model.config.loss_type": "bce", "data.train_split": "trainval",
        "trainer.gradient_clip_val": 1.0, "model.config.hidden_size": 1024, "model.config.num_hidden_layers": 24,
        "model.config.num_attention_heads": 16, "model.config.intermediate_size": 4096,
        "model.config.img_feature_dim": 2054, "model.init": "bert-large-uncased",
    },
    "gqa_base": {
        "optim.optimizer._target_": "torch.optim.AdamW", "optim.optimizer.lr": 5e-5, "data.batch_size": 48,
        "trainer.max_epochs": 5, "optim.weight_decay": 0.05, "trainer.gradient_clip_val": 1.0, "seed": 88,
        "optim.scheduler._target_": "vinvl.schedules.linear_schedule", "optim.scheduler.warmup_steps": 0,
        "model.config.hidden_dropout_prob": 0.3, "model.config.attention_probs_dropout_prob": 0.1,
        "data.max_tokens": 165, "data.max_regions": 45, "model.config.classifier": "linear",
        "model.config.loss_type": "ce", "data.train_split": "train_all", "data.val_split": "val",
        "data.test_split": "testdev", "model.config.hidden_size": 768, "model.config.img_feature_dim": 2054,
        "task._target_": "vinvl.gqa.task.GQATask.build", "data._target_": "vinvl.gqa.data.GQADataModule",
    },
    "nlvr2_base": {
        **PAIRS, "data.batch_size": 72, "optim.scheduler.warmup_steps": 10_000, "model.config.cls_hidden_scale": 3,
        "model.config.hidden_size": 768, "model.init": "bert-base-uncased",
    },
    "nlvr2_large": {
        **PAIRS, "data.batch_size": 24, "optim.scheduler.warmup_steps": 5000, "model.config.cls_hidden_scale": 2,
        "model.config.hidden_size": 1024, "model.config.num_hidden_layers": 24, "model.init": "bert-large-uncased",
    },
    "coco_ir_base": {
        **RETRIEVAL, "optim.optimizer.lr": 2e-5, "model.config.hidden_size": 768, "model.init": "bert-base-uncased",
        "data.test_candidates": "5k",
    },
    "coco_ir_large": {
        **RETRIEVAL, "optim.optimizer.lr": 7.5e-6, "model.config.hidden_size": 1024,
        "model.init": "bert-large-uncased", "data.test_candidates": "5k",
    },
    "flickr_ir_base": {
        **RETRIEVAL, "optim.optimizer.lr": 2e-5, "model.config.hidden_size": 768, "model.init": "bert-base-uncased",
        "data.test_candidates": "1k",
    },
    "coco_caption_base_xe": {
        **CAPTIONS, **WORDS, "optim.optimizer.lr": 3e-5, "model.config.hidden_size": 768,
        "model.init": "bert-base-uncased", "decoding.constraints": None,
    },
    "coco_caption_large_xe": {
        **CAPTIONS, **WORDS, "optim.optimizer.lr": 1e-5, "model.config.hidden_size": 1024,
        "model.config.num_hidden_layers": 24, "model.config.num_attention_heads": 16,
        "model.config.intermediate_size": 4096, "model.init": "bert-large-uncased", "decoding.constraints": None,
    },
    "coco_caption_base_scst": {
        **CAPTIONS, "data.training_items": "images", "optim.optimizer.lr": 3e-6, "data.batch_size": 16,
        "trainer.max_epochs": 75, "model.config.hidden_size": 768, "task.options.label_smoothing": 0.0,
    },
    "coco_caption_large_scst": {
        **CAPTIONS, "data.training_items": "images", "optim.optimizer.lr": 8e-7, "data.batch_size": 6,
        "trainer.max_epochs": 25, "model.config.hidden_size": 1024, "task.options.label_smoothing": 0.0,
    },
    "nocaps_base": {
        **CAPTIONS, **WORDS, "optim.optimizer.lr": 1e-4, "trainer.max_epochs": 30, "trainer.devices": 4,
        "task.options.label_smoothing": 0.0, "task.options.drop_worst_ratio": 0.0, "task.options.drop_worst_after": 0,
        "model.config.hidden_size": 768, "model.init": "bert-base-uncased", "decoding.constraints.max_constraints": 3,
        "decoding.min_constraints": 2, "data.test_split": "nocaps_val",
    },
    "nocaps_base_scst": {
        **CAPTIONS, "data.training_items": "images", "optim.optimizer.lr": 5e-6, "data.batch_size": 14,
        "trainer.max_epochs": 50, "model.config.hidden_size": 768, "data.test_split": "nocaps_val",
        "optim.scheduler._target_": "vinvl.schedules.constant_schedule", "decoding.min_constraints": 2,
    },
    "vqa2_mmf": {
        "optim.optimizer._target_": "torch.optim.AdamW", "optim.optimizer.lr": 1e-4, "optim.weight_decay": 0.01,
        "optim.scheduler._target_": "vinvl.schedules.cosine_schedule", "optim.scheduler.warmup_steps": 4400,
        "trainer.max_steps": 44_000, "trainer.max_epochs": -1, "trainer.gradient_clip_val": None,
        "trainer.val_check_interval": 4000, "trainer.check_val_every_n_epoch": None, "trainer.strategy": "ddp",
        "model.config.hidden_dropout_prob": 0.1, "data.max_tokens": 70, "data.max_regions": 70,
        "model.config.classifier": "mlp_gelu", "model.config.hidden_size": 768, "model.config.loss_type": "bce",
        "model.config.cls_hidden_layers": 1,
    },
}  # fmt: skip


def test_every_experiment_has_its_published_numbers_here() -> None:
    assert {name for name in EXPERIMENTS if not name.startswith("demo_")} == set(RECIPES)


@pytest.mark.parametrize("experiment", STARTS_FROM)
def test_recipes_that_start_from_weights_of_ones_own_take_no_others(experiment: str) -> None:
    """Where nobody names the weights they are asked for: a recipe must not fall back on those of its model size."""
    register_resolvers()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = compose("train", overrides=[f"experiment={experiment}"])
    with pytest.raises((MissingMandatoryValue, InterpolationResolutionError), match=r"model\.init"):
        print(config.model.init)


@pytest.mark.parametrize(("experiment", "recipe"), RECIPES.items())
def test_experiments_carry_the_published_numbers(experiment: str, recipe: dict[str, Any]) -> None:
    config = OmegaConf.create(composed("train", f"experiment={experiment}"))
    found = {key: OmegaConf.select(config, key, default="(no such key)") for key in recipe}
    assert found == recipe


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


@pytest.mark.parametrize("experiment", RECIPES)
def test_biases_and_layer_norms_decay_as_in_mmf_alone(experiment: str) -> None:
    expected = [] if experiment == "vqa2_mmf" else ["bias", "LayerNorm.weight"]
    assert composed("train", f"experiment={experiment}")["task"]["undecayed"] == expected


def test_the_mmf_recipe_has_256_questions_in_a_batch_and_1536_units_in_its_head() -> None:
    config = composed("train", "experiment=vqa2_mmf")
    trainer, model = config["trainer"], config["model"]["config"]
    processes = trainer["devices"] * trainer["num_nodes"] * trainer["accumulate_grad_batches"]
    assert processes * config["data"]["batch_size"] == 256
    assert model["hidden_size"] * model["cls_hidden_scale"] == 1536
