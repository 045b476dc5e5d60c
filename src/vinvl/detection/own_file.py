"""Weight files of our own: the published layout, with the settings and names that belong to the weights.

A torch file of a dict: `model` holds the tensors under the published names, so that whatever reads published files
reads these; `vinvl_detector` holds the settings as plain values and the label map as JSON text.
"""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vinvl.data.store.labels import LabelMap
from vinvl.detection.config import Architecture, DetectorConfig
from vinvl.detection.detector import Detector
from vinvl.errors import UserError
from vinvl.files import atomic_write
from vinvl.tensor_files import load_tensor_file

OUR_KEY = "vinvl_detector"
LARGEST_NUMBER = 2**20  # that a setting may have: more is a damaged file, and would take for ever to build
Settings = TypeVar("Settings", Architecture, DetectorConfig)


@dataclass(frozen=True)
class DetectorFileSettings:
    """What a weight file of ours says besides its tensors."""

    config: DetectorConfig
    label_map: LabelMap


def save_detector(path: str | Path, detector: Detector, label_map: LabelMap) -> None:
    """Writes a detector's weights, settings and names; the file appears under its name whole or not at all.

    Args:
        path: replaced where it exists; its folder is made where it is missing.
        detector: with frozen batch norm, on any device; `detector.config` is what the file will say.
        label_map: a name for each class and attribute of the detector, index 0 included.

    Raises:
        UserError: the numbers of names are others than the detector's, or the disk cannot be written to.
    """
    _check_names(label_map, detector.config.architecture, str(path))
    own = {"config": _plain(asdict(detector.config)), "label_map": label_map.to_json()}
    content = {"model": _state_on_cpu(detector), OUR_KEY: own}
    with atomic_write(path, "wb") as file:
        torch.save(content, file)


def read_settings(path: str | Path) -> DetectorFileSettings | None:
    """What a weight file says of itself; None for a published file, and for what is no weight file at all.

    Of the latter `load_detector` says what is wrong with it. No tensor is read and no code is run.

    Raises:
        UserError: the file has settings, and they are damaged or from a later version.
    """
    path = Path(path)
    if not path.is_file() or not zipfile.is_zipfile(path):  # ours are always zip files; safetensors never are
        return None
    try:
        content: Any = load_tensor_file(path, mmap=True)
    except Exception:  # a hostile or damaged pickle may make the restricted loader raise anything
        return None
    own = content.get(OUR_KEY) if isinstance(content, Mapping) else None
    if own is None:
        return None
    place = f"{path}: {OUR_KEY}"
    if not isinstance(own, Mapping) or not isinstance(own.get("config"), Mapping):
        raise UserError(f"{place} holds no settings: the file is damaged, get it from its source again.")
    if not isinstance(own.get("label_map"), str):
        raise UserError(f"{place} holds no label map: the file is damaged, get it from its source again.")
    config = _config(own["config"], f"{place}.config")
    _check_blocks(config.architecture, content.get("model"), f"{place}.config")
    label_map = LabelMap.from_json(own["label_map"], f"{place}.label_map")
    _check_names(label_map, config.architecture, str(path))
    return DetectorFileSettings(config, label_map)


def _plain(value: Any) -> Any:
    """Dicts, lists and single values only."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _state_on_cpu(detector: Detector) -> dict[str, Tensor]:
    """The tensors by name; the two names of the C5 head go on sharing theirs, so that the file holds them once."""
    copies: dict[int, Tensor] = {}
    state = detector.state_dict(keep_vars=True)
    for tensor in state.values():
        copies.setdefault(id(tensor), tensor.detach().to("cpu", torch.float32).contiguous())
    return {name: copies[id(tensor)] for name, tensor in state.items()}


def _config(values: Mapping[Any, Any], place: str) -> DetectorConfig:
    architecture = values.get("architecture")
    if not isinstance(architecture, Mapping):
        raise UserError(f"{place} has no architecture: the file is damaged, get it from its source again.")
    others = {key: value for key, value in values.items() if key != "architecture"}
    _check_types(others, DetectorConfig(), place)
    _check_types(architecture, Architecture(), f"{place}.architecture")
    try:
        return DetectorConfig(architecture=Architecture(**architecture), **others)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def _check_types(values: Mapping[Any, Any], defaults: Settings, place: str) -> None:
    """Refuses unknown settings and values of another kind than the default; a setting may be missing."""
    known = {field.name: getattr(defaults, field.name) for field in fields(defaults)}
    for key, value in values.items():
        if key not in known:
            raise UserError(
                f"{place} has the setting {_shown(key)}, which this version of vinvl has not: use the version that "
                "wrote the file, or a later one."
            )
        default = known[key]
        if not (_all_like(value, default) if isinstance(default, tuple) else _like(value, default)):
            kind = f"numbers like {list(default)}" if isinstance(default, tuple) else f"a value like {default!r}"
            raise UserError(f"{place}.{key} is {_shown(value)}, where {kind} should be: the file is damaged.")


def _all_like(value: object, default: Sequence[float]) -> bool:
    return isinstance(value, list) and 0 < len(value) <= 100 and all(_like(item, default[0]) for item in value)


def _like(value: object, default: object) -> bool:
    """Whether a single value may stand where the default stands: text, a whole number or a number, in range."""
    if isinstance(default, str) or isinstance(value, bool):
        return isinstance(value, str) and isinstance(default, str)
    kinds = int if isinstance(default, int) else (int, float)
    return isinstance(value, kinds) and 0 <= value <= LARGEST_NUMBER  # so it is finite


def _shown(value: object) -> str:
    """A value of a file that may hold anything, short enough for a sentence."""
    if isinstance(value, str | float | bool) or (isinstance(value, int) and abs(value) < 10**40):
        return repr(value)[:40]
    return f"a {type(value).__name__}"


def _check_blocks(architecture: Architecture, tensors: object, place: str) -> None:
    """Refuses an architecture that cannot be the file's before it is built, which could take for ever."""
    number = len(tensors) if isinstance(tensors, Mapping) else 0
    names = ("blocks", "anchor_sizes", "anchor_ratios")
    least = min(min(getattr(architecture, name)) for name in names)
    single = (getattr(architecture, field.name) for field in fields(architecture) if field.name not in names)
    if sum(architecture.blocks) > number or least <= 0 or min(single) < 1:
        raise UserError(f"{place}.architecture cannot be that of the file's {number:,} tensors: the file is damaged.")


def _check_names(label_map: LabelMap, architecture: Architecture, place: str) -> None:
    for kind, names, number in (
        ("classes", label_map.classes, architecture.num_classes),
        ("attributes", label_map.attributes, architecture.num_attributes),
    ):
        if len(names) != number:
            raise UserError(
                f"{place}: the label map names {len(names):,} {kind}, index 0 included, and the detector has "
                f"{number:,}: the two do not belong together."
            )
