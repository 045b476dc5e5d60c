"""The configuration of `python -m vinvl.predict` → a predictor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from vinvl.errors import UserError, say
from vinvl.extraction.options import detector_config, section
from vinvl.overrides import command_overrides
from vinvl.predictor.loading import load
from vinvl.predictor.predictor import Predictor
from vinvl.predictor.same_features import OtherFeatures
from vinvl.runs import NAMED_CHECKPOINTS, resolve_checkpoint
from vinvl.trained.usage import Usage

DEVICES = {"auto": None, "cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}
DTYPES = {"32-true": "float32", "32": "float32", "bf16-mixed": "bfloat16"}


def predictor_of(config: DictConfig) -> Predictor:
    """The model with the settings that the command has given."""
    overrides = command_overrides()
    named = {override.split("=", 1)[0].lstrip("+~") for override in overrides if "=" in override}
    name = str(config.ckpt_path)
    if name in NAMED_CHECKPOINTS:
        name = str(resolve_checkpoint(name, config.paths.runs_dir, config.name))
    data, decoding = _given(config, named, "data"), _given(config, named, "decoding")
    others = {key: data.pop(key) for key in ("tokenizer", "answers") if f"data.{key}" in named}
    if "data" in named:  # a whole section: what of it is no business of pictures is left alone
        data = {field.name: data[field.name] for field in fields(Usage) if field.name in data}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", OtherFeatures)
        model = load(
            name,
            detector=None if config.weights is None else str(config.weights),
            labels=None if config.labels is None else str(config.labels),
            detector_config=partial(detector_config, config.detector, overrides),
            features=None if config.features is None else paths_of(config.features),
            task=config.task_name,
            inputs=data,
            decoding=decoding,
            reading={key: value for key, value in section(config, "reading").items() if value is not None},
            device=_of(DEVICES, config.trainer.accelerator, "trainer.accelerator"),
            dtype=str(_of(DTYPES, config.trainer.precision, "trainer.precision")),
            **others,
        )
    for one in told:
        if issubclass(one.category, OtherFeatures):
            say(f"warning: {one.message}", error=True)
    return model


def _given(config: DictConfig, named: set[str], part: str) -> dict[str, Any]:
    """Of a part of the configuration what the command has said; all of it where it has chosen the part."""
    whole = OmegaConf.to_container(config[part], resolve=part in named)
    assert isinstance(whole, dict)
    keys = {name.split(".")[1] for name in named if name.startswith(f"{part}.")}
    return {str(key): value for key, value in whole.items() if part in named or key in keys}


def paths_of(features: Any) -> str | list[str]:
    return [str(one) for one in features] if isinstance(features, ListConfig) else str(features)


def _of(known: Mapping[str, str | None], value: object, key: str) -> str | None:
    if str(value) not in known:
        raise UserError(f"{key}={value} is not for pictures one by one: give {', '.join(known)}.")
    return known[str(value)]
