"""What a store says of how its features were made, and by which part of that two stores are of one kind."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vinvl.detector.config import DetectorConfig
from vinvl.detector.detector import COLOUR_ORDER, MEAN
from vinvl.detector.weights import OpenedDetector
from vinvl.pictures import PictureNames, ReadingOptions
from vinvl.regions.feature_record import FeatureRecord, settings_of, unlike_settings
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError

PACKAGES = ("vinvl", "torch", "pillow", "numpy")
UNDECIDED = ("boxes_per_pass",)  # settings of a detector that change no result
DIGITS = 12  # of a hash, as a person is shown it


def feature_settings(
    *,
    weights: Path,
    weights_sha256: str,
    detector: DetectorConfig,
    label_map: LabelMap,
    reading: ReadingOptions,
    names: PictureNames,
    mixed_sizes: bool,
    feature_dtype: str,
    precision: str,
) -> dict[str, Any]:
    """Everything except the pictures that determines features, tags and ids; plain types, as JSON returns them."""
    own = {name: value for name, value in asdict(detector).items() if name not in UNDECIDED}
    return plain(
        {
            "weights": weights.name,
            "weights_sha256": weights_sha256,
            "label_map_sha256": hashlib.sha256(label_map.to_json().encode()).hexdigest(),
            **own,
            "batches": "mixed sizes" if mixed_sizes else "one size each",
            "colour_order": COLOUR_ORDER,
            "pixel_mean": list(MEAN),
            "exif_orientation": reading.exif_orientation,
            "transparency": reading.transparency,
            "image_id": {"rule": names.rule, "pattern": names.pattern},
            "feature_dtype": feature_dtype,
            "precision": precision,
        }
    )


def detector_text(settings: Mapping[str, Any]) -> str:
    """The settings in one line: what a person compares first, and a hash of all of them."""
    blocks = settings["architecture"]["blocks"]
    layers = 3 * sum(blocks) + 2
    weights = f"{settings['weights']} (sha256 {settings['weights_sha256'][:DIGITS]})"
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    nms = f"NMS_FILTER {settings['nms_filter']}, {settings['boxes']} boxes"
    numbers = f"score >= {settings['score_threshold']:g}, {settings['min_boxes']} to {settings['max_boxes']} boxes"
    return f"AttrRCNN X{layers}-C4, {weights}, {nms}, {numbers}, {settings['colour_order']}, settings {digest[:DIGITS]}"


def provenance(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, and what else is worth knowing: versions and the day."""
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    return {**settings, "versions": versions, "made": f"{datetime.now():%Y-%m-%d}"}


def plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


# How a detector is to be used so that it makes the features that a model was trained on.


def trained_config(record: FeatureRecord, weights_sha256: str, own: DetectorConfig | None) -> DetectorConfig | None:
    """How the detector was used that made the features a model was trained on, where these are its weights.

    Args:
        record: what the model's checkpoint carries.
        weights_sha256: of the detector's weight file.
        own: what the weight file says of itself; None if it says nothing.

    Returns:
        `own` if the features are another detector's, or how they were made is unknown.
    """
    if record.provenance.get("weights_sha256") != weights_sha256:
        return own
    config = own or DetectorConfig()
    known = {name: value for name, value in asdict(config).items() if name != "architecture"}
    found = {name: record.provenance[name] for name in known if _alike(record.provenance.get(name), known[name])}
    try:
        return replace(config, **found)
    except UserError:  # a record that somebody has changed
        return own


def _alike(value: object, example: object) -> bool:
    """Whether a value of a file may stand where the example stands."""
    if isinstance(example, str) or isinstance(value, bool):
        return isinstance(value, str) and isinstance(example, str)
    return isinstance(value, int if isinstance(example, int) else int | float)


def trained_reading(record: FeatureRecord) -> ReadingOptions:
    """How pictures became pixels for the features a model was trained on; as published if that is unknown."""
    exif, colour = (record.provenance.get(name) for name in ("exif_orientation", "transparency"))
    usual = ReadingOptions()
    try:
        return ReadingOptions(
            exif_orientation=exif if isinstance(exif, str) else usual.exif_orientation,
            transparency=colour if isinstance(colour, str) else usual.transparency,
        )
    except UserError:  # a record that somebody has changed
        return usual


def unlike_detector(
    record: FeatureRecord, opened: OpenedDetector, weights_sha256: str, reading: ReadingOptions
) -> str | None:
    """One sentence if a detector does not make the features that a model was trained on, otherwise None."""
    if "weights_sha256" not in record.provenance:
        return None
    now = feature_settings(
        weights=opened.weights,
        weights_sha256=weights_sha256,
        detector=opened.detector.config,
        label_map=opened.label_map,
        reading=reading,
        names=PictureNames(),
        mixed_sizes=False,
        feature_dtype=record.feature_dtype,
        precision="",
    )
    return unlike_settings(settings_of(record.provenance), now, f"{opened.weights} makes")
