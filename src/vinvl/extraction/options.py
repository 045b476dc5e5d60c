"""The configuration of `python -m vinvl.extract` → checked settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vinvl.data.pictures import PictureNames, ReadingOptions
from vinvl.data.store.layout import FEATURE_DTYPES
from vinvl.data.store.merging import shard_path
from vinvl.detection import Architecture, DetectorConfig
from vinvl.errors import UserError
from vinvl.extraction.feed import FeedOptions


def reading_options(config: DictConfig) -> ReadingOptions:
    """The section `reading`. Raises UserError for a value that is not usable."""
    return ReadingOptions(**section(config, "reading"))


def picture_names(config: DictConfig) -> PictureNames:
    """The section `id`. Raises UserError for a value that is not usable."""
    return PictureNames(**section(config, "id"))


def feed_options(config: DictConfig) -> FeedOptions:
    """How pictures become batches. Raises UserError for a value that is not usable."""
    for name, value in (("batch_size", config.batch_size), ("workers", config.workers)):
        if type(value) is not int:
            raise UserError(f"{name}={value!r} must be a whole number.")
    return FeedOptions(reading_options(config), config.batch_size, bool(config.mixed_sizes), config.workers)


def feature_dtype(config: DictConfig) -> str:
    """The data type of the features. Raises UserError for any that a store has not."""
    if config.dtype not in FEATURE_DTYPES:
        raise UserError(f"dtype={config.dtype!r} is unknown: give {' or '.join(FEATURE_DTYPES)}.")
    return str(config.dtype)


def shard(config: DictConfig) -> tuple[int, int]:
    """(index, count) of the part of the pictures to work on. Raises UserError if there is no such part."""
    index, count = config.shard.index, config.shard.count
    if type(index) is not int or type(count) is not int or not 0 <= index < count <= 99_999:
        raise UserError(f"shard.index={index!r} shard.count={count!r}: give an index from 0 below the count.")
    return index, count


def target_path(config: DictConfig) -> Path:
    """The store to write: `output`, or where the work is shared out, this part of it."""
    path = Path(str(config.output)).expanduser()
    return shard_path(path, *shard(config))


def detector_config(section: DictConfig, overrides: Sequence[str], carried: DetectorConfig | None) -> DetectorConfig:
    """The detector's settings: as its own weight file carries them, with `detector.KEY=VALUE` of the command on top.

    Where the file carries none, or the command chooses (detector=NAME), the section of the configuration stands.

    Raises:
        UserError: settings that contradict each other.
    """
    named = {override.split("=", 1)[0].lstrip("+~") for override in overrides if "=" in override}
    if carried is None or "detector" in named:
        config: DetectorConfig = instantiate(section)
        return config
    own = {name.removeprefix("detector.") for name in named if name.startswith("detector.")}
    values = {name: plain_value(OmegaConf.select(section, name)) for name in own}
    inner = {name.removeprefix("architecture."): values.pop(name) for name in own if name.startswith("architecture.")}
    architecture: Architecture = replace(carried.architecture, **inner)
    return replace(carried, **values, architecture=architecture)


def section(config: DictConfig, name: str) -> dict[str, Any]:
    """A section in plain types."""
    value = OmegaConf.to_container(config[name], resolve=True)
    assert isinstance(value, Mapping)
    return {str(key): item for key, item in value.items()}


def plain_value(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
