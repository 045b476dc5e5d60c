"""The settings of `python -m vinvl.convert from=…` → a conversion, and the line that tells how it went."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vinvl.data.features_in.convert import ConversionOptions, convert_features
from vinvl.data.features_in.rows import ReadOptions
from vinvl.data.store.layout import FEATURE_DTYPES
from vinvl.errors import UserError


def run_conversion(source: Path, target: Path, settings: Mapping[str, Any]) -> str:
    """Converts; returns a line with the number of images, the seconds and the MB/s of input.

    Args:
        source: features in anybody's format.
        target: the store to make.
        settings: the section `features` of conf/convert.yaml.

    Raises:
        UserError: a setting is not usable, or as `convert_features` does.
    """
    options = options_of(settings)
    begin = time.perf_counter()
    done = convert_features(source, target, options)
    seconds = time.perf_counter() - begin
    return (
        f"{target}: {done.images:,} images with {done.regions:,} regions from {source} ({done.format}) "
        f"in {seconds:,.1f} s ({done.read_bytes / 1e6 / seconds:,.1f} MB/s, {done.images / seconds:,.0f} images/s)"
    )


def options_of(settings: Mapping[str, Any]) -> ConversionOptions:
    """Checked options. Raises UserError naming the setting that is not usable."""
    if settings["dtype"] not in FEATURE_DTYPES:
        raise UserError(f"features.dtype is {settings['dtype']!r}; choose one of {', '.join(FEATURE_DTYPES)}.")
    read = ReadOptions(
        feature_dim=_whole(settings, "dim", 1) or 0,
        feature_dtype=settings["dtype"],
        class_offset=_whole(settings, "class_offset", 0),
        id_pattern=settings["id_pattern"],
        assume_size=_size(settings["assume_size"]),
        clip_boxes=bool(settings["clip_boxes"]),
    )
    return ConversionOptions(
        read=read,
        predictions=_path(settings["predictions"]),
        sizes=_path(settings["sizes"]),
        labels=_path(settings["labels"]),
        detector=settings["detector"],
        images_per_shard=_whole(settings, "images_per_shard", 1),
        workers=_whole(settings, "workers", 1),
    )


def _path(value: str | None) -> Path | None:
    return None if value is None else Path(str(value)).expanduser()


def _whole(settings: Mapping[str, Any], name: str, least: int) -> int | None:
    value = settings[name]
    if value is None and name != "dim":
        return None
    if type(value) is not int or value < least:
        raise UserError(f"features.{name} is {value!r}, expected a whole number from {least}.")
    return value


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(side) is int and side > 0 for side in value):
        raise UserError(f"features.assume_size is {value!r}, expected [WIDTH,HEIGHT].")
    return value[0], value[1]
