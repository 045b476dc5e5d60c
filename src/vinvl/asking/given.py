"""What a command gives the page: models with their detector, and pictures to begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from PIL import Image

from vinvl.pictures import ReadingOptions, look_for, name_of, read_picture
from vinvl.predictor import Predictor, load
from vinvl.predictor.command import warnings_told
from vinvl.run.errors import UserError, say

THUMBNAIL = 240  # pixels of the longer side


@dataclass(frozen=True, eq=False)
class ExamplePicture:
    """A picture that the page offers: its place, its bare name, and a small copy."""

    place: str
    name: str
    small: Image.Image


def models_of(config: DictConfig) -> list[Predictor]:
    """The models of a command; those that find the same regions share one detector.

    Raises UserError if none is given, one cannot be opened, or one cannot be asked anything.
    """
    names = _listed(config.models)
    each = {key: _for_each(config, key, len(names)) for key in ("task_name", "answers", "tokenizer")}
    models = list[Predictor]()
    for number, name in enumerate(names):
        with warnings_told():
            model = load(
                name,
                detector=str(config.weights),
                labels=None if config.labels is None else str(config.labels),
                task=each["task_name"][number],
                answers=each["answers"][number],
                tokenizer=each["tokenizer"][number],
                reading={"max_pixels": config.max_pixels},
                device=None if config.device is None else str(config.device),
                dtype=str(config.dtype),
            )
        if model.trained.usage is None:
            raise UserError(
                f"{name} is a model for {model.trained.task}, which answers nothing: give a fine-tuned one."
            )
        _ = any(model.share_detector(one) for one in models)
        models.append(model)
    return models


def examples_of(config: DictConfig) -> list[ExamplePicture]:
    """The first of the pictures that the command offers; a warning names those that cannot be read.

    Raises UserError for a source without pictures.
    """
    if config.examples is None:
        return []
    places = [one.place for source in _listed(config.examples) for one in look_for(source)[0] if not one.problem]
    found, reading = list[ExamplePicture](), ReadingOptions(max_pixels=config.max_pixels)
    for place in places[: config.most_examples]:
        try:
            small = read_picture(place, reading)
        except UserError as error:
            say(f"warning: {error}", error=True)
            continue
        small.thumbnail((THUMBNAIL, THUMBNAIL))
        found.append(ExamplePicture(place, Path(name_of(place)).name, small))
    return found


def _listed(value: Any) -> list[str]:
    return [str(one) for one in (value if isinstance(value, ListConfig) else [value])]


def _for_each(config: DictConfig, key: str, models: int) -> Sequence[str | None]:
    """A setting of each model: one for all, or a list with one for each, null where a model needs none."""
    value = config[key]
    values = list(value) if isinstance(value, ListConfig) else [value] * models
    if len(values) != models:
        raise UserError(f"{key} has {len(values)} values for {models} models: give one for all, or [A,null,…].")
    return [None if one is None else str(one) for one in values]
