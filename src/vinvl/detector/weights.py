"""Build a detector from a published weight file, with every tensor accounted for."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from vinvl.detector.config import Architecture, DetectorConfig
from vinvl.detector.detector import Detector
from vinvl.models.weight_files import load_published_state_dict
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write, read_bytes
from vinvl.run.tensor_files import load_tensor_file, unlike_plain

PARALLEL_PREFIX = "module."  # of every name in a file saved from a data-parallel model
SHARED = ("attribute.feature_extractor.", "roi_heads.box.feature_extractor.")  # two names of one module
COMPUTED = "rpn.anchor_generator.cell_anchors.0"  # follows from the architecture if it is not in the file
NAMES_SHOWN = 4


@dataclass(frozen=True)
class DetectorLoadingReport:
    """What became of the tensors of a weight file."""

    source: str
    matched: Mapping[str, str]  # the detector's name → the file's
    unused: tuple[str, ...]  # names of the file that the detector has no place for

    def __str__(self) -> str:
        text = f"detector from {self.source}: {len(self.matched)} tensors loaded"
        return text + (f", {len(self.unused)} not used: {_some(self.unused)}" if self.unused else "")


def load_detector(path: str | Path, config: DetectorConfig) -> tuple[Detector, DetectorLoadingReport]:
    """A detector with the weights of a file, and what became of the tensors.

    It is on the CPU, in float32, in channels-last memory (which convolutions are fastest in), set to evaluate.

    Args:
        path: a torch file, either a dict with the tensors under `model` (its other entries are not looked at) or the
            just tensors by name, or a .safetensors file. It is opened by torch's restricted loader.
        config: the architecture must be the file's.

    Raises:
        UserError: the file is missing, damaged or of another architecture: a tensor is missing or has another shape.
    """
    tensors = read_detector_weights(path)
    with torch.device("meta"):  # nothing is initialised that the file replaces
        detector = Detector(config)
    wanted = detector.state_dict()
    matched = match_names(wanted, tensors)
    for alias, original in (SHARED, SHARED[::-1]):  # either name of the shared module will do
        for name in wanted:
            twin = original + name.removeprefix(alias)
            if name.startswith(alias) and name not in matched and twin in matched:
                matched[name] = matched[twin]
    _refuse_missing(path, [name for name in wanted if name not in matched and name != COMPUTED], len(wanted))
    _refuse_other_shapes(path, matched, wanted, tensors)
    _refuse_two_versions(path, matched, tensors)
    state = {name: tensors[source].detach().float() for name, source in matched.items()}
    state.setdefault(COMPUTED, wanted[COMPUTED])
    detector.load_state_dict(state, assign=True)
    detector.requires_grad_(True).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    used = set(matched.values())
    report = DetectorLoadingReport(str(path), matched, tuple(name for name in tensors if name not in used))
    return detector, report


def read_detector_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a detector's weight file by name, without the prefix of a data-parallel model; no code is run.

    Raises:
        UserError: the file is missing, damaged, or holds no named tensors.
    """
    if Path(path).suffix == ".safetensors":
        content: Any = load_published_state_dict(path)
    else:
        if not Path(path).is_file():
            raise UserError(f"There is no detector weight file {path}: give weights=FILE, such as vinvl_vg_x152c4.pth.")
        try:
            content = load_tensor_file(path)
        except Exception:  # a hostile or damaged pickle may make the restricted loader raise anything
            raise UserError(
                f"{path} is damaged or holds more than tensors and plain values, so it was not opened: get it from its "
                "source again or, if you trust it, save only its 'model' with torch.save."
            ) from None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no tensors by name, nor such under 'model': give a detector's weight file.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or unlike_plain(value) is not None:
            raise UserError(f"{path}: {str(name)[:80]!r} is not a tensor of numbers: give a detector's weight file.")
    tensors: dict[str, Tensor] = dict(content)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name[:80]!r} holds NaN or infinite numbers: the file is damaged, get it again.")
    if all(name.startswith(PARALLEL_PREFIX) for name in tensors):
        return {name.removeprefix(PARALLEL_PREFIX): tensor for name, tensor in tensors.items()}
    return tensors


def match_names(wanted: Iterable[str], found: Iterable[str]) -> dict[str, str]:
    """For each wanted name the longest found name that it ends with, as in the published loader; none: left out."""
    available = set(found)
    matched = {}
    for name in wanted:
        source = next((name[start:] for start in range(len(name)) if name[start:] in available), None)
        if source is not None:
            matched[name] = source
    return matched


def read_label_map(path: str | Path, architecture: Architecture) -> LabelMap:
    """The names of a detector's classes and attributes, from the published label-map JSON.

    Raises:
        UserError: the file is missing or no label map, or it names other numbers of classes or attributes.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text: give the detector's label-map file.") from None
    labels = LabelMap.from_json(text, str(path))
    _check_names(labels, architecture, str(path))
    return labels


def sha256_of_file(path: str | Path) -> str:
    """The hash, 64 hexadecimal digits, by which features name the weights that they were made with."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_missing(path: str | Path, missing: list[str], number: int) -> None:
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of the detector's {number} tensors ({_some(missing)}): it is of another "
            "architecture, or not a detector."
        )


def _refuse_other_shapes(
    path: str | Path, matched: Mapping[str, str], wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    other = [name for name, source in matched.items() if tensors[source].shape != wanted[name].shape]
    if other:
        name = other[0]
        there, here = tuple(tensors[matched[name]].shape), tuple(wanted[name].shape)
        more = f" and {len(other) - 1} more tensors differ" if len(other) > 1 else ""
        raise UserError(
            f"{path}: {matched[name]} has the shape {there}, the detector's {name} has {here}{more}: give the "
            "configuration that belongs to the weights."
        )


def _refuse_two_versions(path: str | Path, matched: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """The box and the attribute head are one C5 head under two names; a file in which they differ is none of ours."""
    alias, original = SHARED
    for name, source in matched.items():
        twin = matched[original + name.removeprefix(alias)] if name.startswith(alias) else source
        if twin != source and not torch.equal(tensors[source], tensors[twin]):
            raise UserError(f"{path}: {source} and {twin} differ, although the detector has one C5 head for both.")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + rest


# Weight files of our own: the published layout, with the settings and names that belong to the weights.
#
# A torch file of a dict: `model` holds the tensors under the published names, so that whatever reads published files
# reads these; `vinvl_detector` holds the settings as plain values and the label map as JSON text.


OUR_KEY = "vinvl_detector"
LARGEST_NUMBER = 2**20  # that a setting may have: more is a damaged file, and would take for ever to build
Settings = TypeVar("Settings", Architecture, DetectorConfig)


@dataclass(frozen=True)
class DetectorFileSettings:
    """What a weight file of ours says besides its tensors."""

    config: DetectorConfig
    label_map: LabelMap


def save_detector(path: str | Path, detector: Detector, label_map: LabelMap) -> None:
    """Writes a detector's weights, settings and names; the file is written completely or not at all.

    Args:
        path: replaced if it exists; its folder is made if it is missing.
        detector: with frozen batch norm, on any device; `detector.config` is what the file will say.
        label_map: a name for each class and attribute of the detector, index 0 included.

    Raises:
        UserError: the numbers of names are others than the detector's, or the disk cannot be written to.
    """
    _check_names(label_map, detector.config.architecture, f"{path}: the label map")
    own = {"config": _plain(asdict(detector.config)), "label_map": label_map.to_json()}
    content = {"model": _state_on_cpu(detector), OUR_KEY: own}
    with atomic_write(path, "wb") as file:
        torch.save(content, file)


def read_settings(path: str | Path) -> DetectorFileSettings | None:
    """What a weight file says of itself; None for a published file, and for what is not a weight file at all.

    `load_detector` says what is wrong with the latter. No tensor is read and no code is run.

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
    _check_names(label_map, config.architecture, f"{path}: the label map")
    return DetectorFileSettings(config, label_map)


def _plain(value: Any) -> Any:
    """Dicts, lists and single values only."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _state_on_cpu(detector: Detector) -> dict[str, Tensor]:
    """The tensors by name; the two names of the C5 head keep sharing theirs, so that the file holds them once."""
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
                f"{place} has the setting {_shown(key)}, unknown to this version of vinvl: use the version that "
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
                f"{place} names {len(names):,} {kind}, index 0 included, the detector has {number:,}: give the label "
                "map that belongs to the weights."
            )


# A weight file, its label map and the settings that belong to it → a detector ready for use.


PUBLISHED_LABELS = "VG-SGG-dicts-vgoi6-clipped.json"
NO_LABELS = "none"


@dataclass(frozen=True)
class OpenedDetector:
    """A detector with what its indices mean; without names where `label_map` is empty."""

    detector: Detector
    label_map: LabelMap
    weights: Path
    report: DetectorLoadingReport


def open_detector(
    weights: str | Path,
    labels: str | Path | None = None,
    configure: Callable[[DetectorConfig | None], DetectorConfig] | None = None,
    *,
    compile: bool = False,
) -> OpenedDetector:
    """The detector of a weight file.

    Args:
        weights: a published file such as vinvl_vg_x152c4.pth, or one that `vinvl.train_detector` has written.
        labels: its label map; "none" does without names; None takes the one within the weight file, or the published
            one if it is beside it.
        configure: settings in, settings out: it gets those that the file carries, None for a published file. Left out,
            these are taken, and for a published file the defaults of `DetectorConfig`.
        compile: torch.compile of the two networks that take nearly all of the time, at their first use.

    Raises:
        UserError: a file is missing, damaged, or does not fit the other.
    """
    weights = Path(weights).expanduser()
    own = read_settings(weights)
    found = own.config if own else None
    config = configure(found) if configure else found or DetectorConfig()
    label_map = _label_map(weights, labels, own.label_map if own else None, config)
    detector, report = load_detector(weights, config)
    detector.requires_grad_(False)
    if compile:
        detector.compile_networks(dynamic=True)
    return OpenedDetector(detector, label_map, weights, report)


def _label_map(weights: Path, labels: str | Path | None, carried: LabelMap | None, config: DetectorConfig) -> LabelMap:
    if labels is None and carried is not None:
        return carried
    if labels is None:
        beside = weights.with_name(PUBLISHED_LABELS)
        if not beside.is_file():
            raise UserError(
                f"The label map of {weights} is not known: pass labels=FILE (the published one is called "
                f"{PUBLISHED_LABELS}; beside the weights it is found by itself), or labels={NO_LABELS} to do without "
                "names of classes and attributes."
            )
        labels = beside
    if str(labels) == NO_LABELS:
        return LabelMap((), ())
    return read_label_map(Path(labels).expanduser(), config.architecture)


def device_of(name: str | None) -> torch.device:
    """A device by name; None: the GPU if there is one.

    Raises:
        UserError: there is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={name!r} cannot be used ({str(error).splitlines()[0]}): give cpu or cuda.") from None
    return device
