"""What a store says of how its features were made, and by which part of that two stores are of one kind."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vinvl.data.pictures import PictureNames, ReadingOptions
from vinvl.data.store import LabelMap
from vinvl.detection.config import DetectorConfig
from vinvl.detection.preprocessing import COLOUR_ORDER, MEAN

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
    """Everything that features, tags and ids follow from besides the pictures; plain types, as JSON gives them back."""
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


def settings_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a provenance of `provenance`."""
    return {name: value for name, value in provenance.items() if name not in ("versions", "made")}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two settings, for a sentence."""
    keys = dict.fromkeys([*now, *before])
    return [
        f"{key} was {_shown(before.get(key))} and is {_shown(now.get(key))}"
        for key in keys
        if before.get(key) != now.get(key)
    ]


def plain(value: Any) -> Any:
    """The value as JSON gives it back."""
    return json.loads(json.dumps(value))


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
