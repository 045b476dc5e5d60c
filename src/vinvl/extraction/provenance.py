"""The settings of an extraction, what a store says of them, and what already exists at the place of the store."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from vinvl.detector.config import DetectorConfig
from vinvl.detector.detector import COLOUR_ORDER, MEAN
from vinvl.detector.weights import OpenedDetector, sha256_of_file
from vinvl.pictures import PictureNames, ReadingOptions
from vinvl.regions.shard import IdLookup
from vinvl.regions.store import FeatureRecord, RegionStore, differences, settings_of, unlike_settings
from vinvl.regions.writer import Unfinished
from vinvl.run.errors import UserError
from vinvl.run.overrides import command_overrides, given_values, with_given

PACKAGES = ("vinvl", "torch", "pillow", "numpy")
UNDECIDED = ("boxes_per_pass",)  # settings of a detector that change no result
GIVEN, GIVEN_BOXES = "given", "given_boxes"  # what `boxes` are where a file gives them, and what tells of that file
DIGITS = 12  # of a hash, as a person is shown it
SHOWN = 3  # settings that differ


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
    return DetectorConfig.of_plain(with_given(carried.plain(), "detector", config, given, "The weight file's detector"))


def feature_settings(
    opened: OpenedDetector,
    weights_sha256: str,
    reading: ReadingOptions,
    *,
    names: PictureNames | None = None,
    mixed_sizes: bool = False,
    feature_dtype: str,
    precision: str = "",
    given: Path | None = None,
) -> dict[str, Any]:
    """Everything except the pictures that determines features, tags and ids; plain types, as JSON returns them.

    It is what a store says of how its features were made, and by which two stores are of one kind. `given` is the file
    of boxes where they are given.
    """
    names = names or PictureNames()
    boxes = {"boxes": GIVEN, GIVEN_BOXES: {"file": given.name, "sha256": sha256_of_file(given)}} if given else {}
    return {
        "weights": opened.weights.name,
        "weights_sha256": weights_sha256,
        "label_map_sha256": hashlib.sha256(opened.label_map.to_json().encode()).hexdigest(),
        **{name: value for name, value in opened.detector.config.plain().items() if name not in UNDECIDED},
        **boxes,
        "batches": "mixed sizes" if mixed_sizes else "one size each",
        "colour_order": COLOUR_ORDER,
        "pixel_mean": list(MEAN),
        "exif_orientation": reading.exif_orientation,
        "transparency": reading.transparency,
        "image_id": {"rule": names.rule, "pattern": names.pattern} | ({"prefix": names.prefix} if names.prefix else {}),
        "feature_dtype": feature_dtype,
        "precision": precision,
    }


def detector_text(settings: Mapping[str, Any]) -> str:
    """The settings in one line: what a person compares first, and a hash of all of them."""
    layers = 3 * sum(settings["architecture"]["blocks"]) + 2
    weights = f"{settings['weights']} (sha256 {settings['weights_sha256'][:DIGITS]})"
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    nms = f"NMS_FILTER {settings['nms_filter']}, {settings['boxes']} boxes"
    numbers = f"score >= {settings['score_threshold']:g}, {settings['min_boxes']} to {settings['max_boxes']} boxes"
    which = f"{nms}, {numbers}"
    if given := settings.get(GIVEN_BOXES):
        which = f"boxes given by {given['file']} (sha256 {given['sha256'][:DIGITS]})"
    return f"AttrRCNN X{layers}-C4, {weights}, {which}, {settings['colour_order']}, settings {digest[:DIGITS]}"


def provenance(settings: Mapping[str, Any], weights_from: str | None = None) -> dict[str, Any]:
    """The settings, and what else is worth knowing: of weights on the hub NAME@COMMIT, versions and the day."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    origin = {} if weights_from is None else {"weights_from": weights_from}
    return {**settings, **origin, "versions": versions, "made": f"{datetime.now():%Y-%m-%d}"}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


# How a detector is to be used so that it makes the features that a model was trained on; `record` is of these, as the
# model's checkpoint carries it. Where somebody has changed the record to what cannot be, it is not followed.


def trained_config(record: FeatureRecord, weights_sha256: str, own: DetectorConfig | None) -> DetectorConfig | None:
    """How the detector was used that made a model's features, where these are its weights; otherwise `own`.

    `own` is what the weight file says of itself; None if it says nothing.
    """
    said, config = record.provenance, own or DetectorConfig()
    if said.get("weights_sha256") != weights_sha256:
        return own
    names = [name for name in config.plain() if name in said and name != "architecture" and said[name] != GIVEN]
    try:
        return replace(config, **{name: said[name] for name in names})
    except UserError:
        return own


def trained_reading(record: FeatureRecord) -> ReadingOptions:
    """How pictures became pixels for the features a model was trained on; as published if that is unknown."""
    said = record.provenance
    try:
        return ReadingOptions(**{name: said[name] for name in ("exif_orientation", "transparency") if name in said})
    except UserError:
        return ReadingOptions()


def unlike_detector(
    record: FeatureRecord, opened: OpenedDetector, weights_sha256: str, reading: ReadingOptions
) -> str | None:
    """One sentence if a detector does not make the features that a model was trained on, otherwise None."""
    if "weights_sha256" not in record.provenance:
        return None
    now = feature_settings(opened, weights_sha256, reading, feature_dtype=record.feature_dtype)
    return unlike_settings(settings_of(record.provenance), now, f"{opened.weights} makes")


class Target:
    """The store to write, with what was done for it before.

    Raises UserError if there is something else at `path`, or work that was begun with other settings, and `overwrite`
    is False; or a folder.

    Attributes:
        path: of the store.
        settings: all that its features follow from, in plain types.
        weights_from: where the detector is on the Hugging Face hub, for the record.
        unfinished: what is done and not in the store yet.
        earlier: the finished store at `path` if it was made with these settings, to which pictures may be added.
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], *, overwrite: bool, weights_from: str | None = None
    ) -> None:
        self.path, self.settings, self.unfinished = path, settings, Unfinished(path)
        self.weights_from = weights_from
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

    @property
    def goes_on(self) -> bool:
        """Whether there is unfinished work, which is gone on with."""
        return self.unfinished.settings() is not None and not self._stale

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
