"""The settings of an extraction, and what already exists at the place of its store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from vinvl.detector.config import DetectorConfig
from vinvl.extraction.feed import FeedOptions
from vinvl.pictures import PictureNames, ReadingOptions
from vinvl.regions.feature_record import differences, settings_of
from vinvl.regions.layout import FEATURE_DTYPES
from vinvl.regions.merging import shard_path
from vinvl.regions.shard import IdLookup
from vinvl.regions.store import RegionStore
from vinvl.regions.writer import Unfinished
from vinvl.run.errors import UserError
from vinvl.run.overrides import command_overrides, given_values, with_given

# The configuration of `python -m vinvl.extract` → checked settings.


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
    """The data type of the features. Raises UserError for others than those of a store."""
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
    """The store to write: `output`, or this part of it if the work is shared out."""
    path = Path(str(config.output)).expanduser()
    return shard_path(path, *shard(config))


def detector_config(config: DictConfig, carried: DetectorConfig | None) -> DetectorConfig:
    """The detector's settings: as its own weight file carries them, with `detector.KEY=VALUE` of the command on top.

    Where the file carries none, or the command chooses (detector=NAME), the section of the configuration stands.

    Raises:
        UserError: settings that contradict each other.
    """
    given = given_values(command_overrides())
    if carried is None or "detector" in given:
        chosen: DetectorConfig = instantiate(config.detector)
        return chosen
    own = json.loads(json.dumps(asdict(carried)))  # lists for tuples, as a configuration has them
    return DetectorConfig.of_plain(with_given(own, "detector", config, given, "The weight file's detector"))


def section(config: DictConfig, name: str) -> dict[str, Any]:
    """A section in plain types."""
    value = OmegaConf.to_container(config[name], resolve=True)
    assert isinstance(value, Mapping)
    return {str(key): item for key, item in value.items()}


SHOWN = 3


class Target:
    """The store to write, with what was done for it before.

    Args:
        path: of the store.
        settings: all that its features follow from, in plain types.
        overwrite: whether what is there with other settings, or is complete, is to be replaced.

    Attributes:
        unfinished: what is done and not in the store yet.
        earlier: the finished store at `path` if it was made with these settings, to which pictures may be added.

    Raises:
        UserError: there is something else at `path`, or work that was begun with other settings, and `overwrite` is
            False; or a folder.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        self.path, self.settings, self.unfinished = path, settings, Unfinished(path)
        if path.is_dir():
            raise UserError(f"output={path} is a folder: name a file to write, such as features.h5.")
        begun = self.unfinished.settings()
        self._stale = begun is not None and begun != settings
        if begun is not None and self._stale and not overwrite:
            raise UserError(
                f"{self.unfinished.folder} holds work that was begun with other settings ({self._differing(begun)}): "
                "give the same, or another output, or overwrite=true to begin anew."
            )
        self.earlier = None if overwrite or not path.exists() else self._same_store()

    def _same_store(self) -> RegionStore:
        try:
            store = RegionStore(self.path)
            made = settings_of(store.provenance)
        except UserError as error:
            raise UserError(
                f"output={self.path} exists and is no region store that could be added to ({error}) Give another name, "
                "or overwrite=true to replace it."
            ) from None
        if made == self.settings:
            return store
        reason = self._differing(made) if made else "it does not say how its features were made"
        raise UserError(
            f"output={self.path} exists with other settings ({reason}): give another name, or overwrite=true to "
            "replace it."
        )

    def _differing(self, before: Mapping[str, Any]) -> str:
        found = differences(before, self.settings)
        if len(found) == 1 and "exif_orientation" in before and found[0].startswith("exif_orientation"):
            return f"{found[0]}; reading.exif_orientation={before['exif_orientation']} goes on as it was begun"
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        return "; ".join(found[:SHOWN]) + more

    def done(self) -> IdLookup:
        """The images that are in the store or its unfinished work."""
        ids = [self.earlier.encoded_ids] if self.earlier is not None else []
        for shard in () if self._stale else self.unfinished.shards():
            ids.append(shard.image_ids)
            shard.close()
        return IdLookup(np.concatenate([np.zeros(0, dtype="S1"), *ids]))

    def begin(self) -> None:
        """Makes the folder of the work; work that was begun with other settings is removed."""
        if self._stale:
            self.unfinished.discard()
        self.unfinished.begin(self.settings)
