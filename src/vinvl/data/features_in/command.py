"""The settings of `python -m vinvl.convert from=…` → a conversion, and the line that tells how it went."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vinvl.data.features_in.convert import ConversionOptions, convert_features
from vinvl.data.features_in.left_out import REFUSE
from vinvl.data.features_in.rows import ReadOptions
from vinvl.data.record_fields import shown
from vinvl.data.store.layout import FEATURE_DTYPES
from vinvl.errors import UserError

DEFAULTS: dict[str, Any] = dict.fromkeys(
    ("predictions", "sizes", "assume_size", "labels", "detector", "dim", "class_offset", "id_pattern"), None
) | {"dtype": "float16", "clip_boxes": False, "images_per_shard": None, "workers": None, "on_damaged": REFUSE}


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
    told = [
        f"{target}: {done.images:,} images with {done.regions:,} regions from {source} ({done.format}) "
        f"in {seconds:,.1f} s ({done.read_bytes / 1e6 / seconds:,.1f} MB/s, {done.images / seconds:,.0f} images/s)"
    ]
    if done.left_out:
        told += [f"{done.left_out:,} damaged or repeated left out", *done.left_out_first]
    if done.left_out_list:
        told.append(f"… all of them in {done.left_out_list}")
    return "; ".join([*told, *done.notes])


def options_of(settings: Mapping[str, Any]) -> ConversionOptions:
    """Checked options; what is not given is as in conf/convert.yaml.

    Raises:
        UserError: a setting is not known or not usable; the sentence names it.
    """
    for name in settings:
        if name not in DEFAULTS:
            close = difflib.get_close_matches(str(name), DEFAULTS, n=1)
            hint = f"did you mean features.{close[0]}?" if close else f"there are {', '.join(DEFAULTS)}."
            raise UserError(f"There is no setting features.{name}: {hint}")
    given = {**DEFAULTS, **settings}
    if given["dtype"] not in FEATURE_DTYPES:
        raise UserError(f"features.dtype is {shown(given['dtype'])}; choose one of {', '.join(FEATURE_DTYPES)}.")
    if type(given["clip_boxes"]) is not bool:
        raise UserError(f"features.clip_boxes is {shown(given['clip_boxes'])}, expected true or false.")
    read = ReadOptions(
        feature_dim=_whole(given, "dim", 1),
        feature_dtype=given["dtype"],
        class_offset=_whole(given, "class_offset", 0),
        id_pattern=_text(given, "id_pattern"),
        assume_size=_size(given["assume_size"]),
        clip_boxes=given["clip_boxes"],
    )
    return ConversionOptions(
        read=read,
        predictions=_path(given, "predictions"),
        sizes=_path(given, "sizes"),
        labels=_path(given, "labels"),
        detector=_text(given, "detector"),
        images_per_shard=_whole(given, "images_per_shard", 1),
        workers=_whole(given, "workers", 1),
        on_damaged=given["on_damaged"],
    )


def _path(settings: Mapping[str, Any], name: str) -> Path | None:
    value = settings[name]
    if isinstance(value, int) and not isinstance(value, bool):  # a file whose name is a number
        value = str(value)
    if value is not None and not isinstance(value, str | Path):
        raise UserError(f"features.{name} is {shown(value)}, expected a file.")
    return None if value is None else Path(value).expanduser()


def _text(settings: Mapping[str, Any], name: str) -> str | None:
    value = settings[name]
    if value is not None and not isinstance(value, str | int | float):
        raise UserError(f"features.{name} is {shown(value)}, expected a text.")
    return None if value is None else str(value)


def _whole(settings: Mapping[str, Any], name: str, least: int) -> int | None:
    value: int | None = settings[name]
    if value is not None and (type(value) is not int or value < least):
        raise UserError(f"features.{name} is {shown(value)}, expected a whole number from {least}.")
    return value


def _size(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(type(side) is int and side > 0 for side in value):
        raise UserError(f"features.assume_size is {value!r}, expected [WIDTH,HEIGHT].")
    return value[0], value[1]
