"""Weight files of detectors, published ones and our own, with every tensor accounted for.

A file of ours is a torch file of a dict: `model` holds the tensors under the published names, so that whatever reads
published files reads these; `vinvl_detector` holds the settings as plain values and the label map as JSON text.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vinvl.detector.config import Architecture, DetectorConfig
from vinvl.detector.detector import Detector
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write
from vinvl.run.hub import fetch
from vinvl.run.tensor_files import load_tensor_file, plain_tensors, read_safetensors
from vinvl.run.values import shown

OUR_KEY = "vinvl_detector"
PARALLEL_PREFIX = "module."  # of every name in a file saved from a data-parallel model
SHARED = ("attribute.feature_extractor.", "roi_heads.box.feature_extractor.")  # two names of one module
COMPUTED = "rpn.anchor_generator.cell_anchors.0"  # follows from the architecture if it is not in the file
PUBLISHED_LABELS = "VG-SGG-dicts-vgoi6-clipped.json"
PUBLISHED_WEIGHTS, OUR_WEIGHTS = "vinvl_vg_x152c4.pth", "detector.pth"
OTHER_LABELS = {1849: "vgcocooiobjects_v1_class2ind.json", 366: "train.labelmap.tsv"}
NO_LABELS = "none"
NAMES_SHOWN = 4


class LoadingReport(NamedTuple):
    """What became of the tensors of a weight file and of the detector, by name."""

    source: str
    loaded: tuple[str, ...]  # the detector's
    unused: tuple[str, ...]  # the file's that the detector has no place for
    random: tuple[str, ...] = ()  # the detector's that are not in the file
    other_shape: tuple[str, ...] = ()  # the detector's that do not fit those of the file: they are random too
    rows: tuple[str, ...] = ()  # what is said of rows for classes and attributes

    def __str__(self) -> str:
        others = {
            "not in it and random": self.random,
            "of another shape or meaning in it and random": self.other_shape,
            "of it not used": self.unused,
        }
        told = [f"{len(names)} {what} ({some(names)})" for what, names in others.items() if names]
        return f"detector from {self.source}: " + "; ".join([f"{len(self.loaded)} tensors loaded", *self.rows, *told])


def load_detector(path: str | Path, config: DetectorConfig) -> tuple[Detector, LoadingReport]:
    """A detector with the weights of a file, and what became of the tensors.

    It is on the CPU, in float32, in channels-last memory (which convolutions are fastest in), set to evaluate.

    Args:
        path: see `read_detector_weights`.
        config: the architecture must be the file's.

    Raises:
        UserError: the file is missing, damaged or of another architecture: a tensor is missing or has another shape.
    """
    tensors = read_detector_weights(path)
    with torch.device("meta"):  # nothing is initialised that the file replaces
        detector = Detector(config)
    wanted = detector.state_dict()
    matched = sources_of(wanted, tensors)
    refuse_unlike(path, matched, wanted, tensors)
    state = {name: tensors[source].detach().float() for name, source in matched.items()}
    state.setdefault(COMPUTED, wanted[COMPUTED])
    detector.load_state_dict(state, assign=True)
    detector.requires_grad_(True).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return detector, LoadingReport(str(path), tuple(matched), unused_of(matched, tensors))


def read_detector_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a detector's weight file by name, without the prefix of a data-parallel model; no code is run.

    path: a torch file, either a dict with the tensors under `model` (its other entries are not looked at) or just the
        tensors by name, or a .safetensors file. It is opened by torch's restricted loader.

    Raises:
        UserError: the file is missing, damaged, or holds no named tensors.
    """
    if not Path(path).is_file():
        raise UserError(f"There is no detector weight file {path}: give weights=FILE, such as vinvl_vg_x152c4.pth.")
    if Path(path).suffix == ".safetensors":
        content: Any = read_safetensors(path)
    else:
        content = _opened(path)
        if content is None:
            raise UserError(
                f"{path} is damaged or holds more than tensors and plain values, so it was not opened: get it from its "
                "source again or, if you trust it, save only its 'model' with torch.save."
            )
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no tensors by name, nor such under 'model': give a detector's weight file.")
    tensors = plain_tensors(content, str(path))
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {name[:80]!r} holds NaN or infinite numbers: the file is damaged, get it again.")
    prefix = PARALLEL_PREFIX if all(name.startswith(PARALLEL_PREFIX) for name in tensors) else ""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _opened(path: str | Path, **options: Any) -> Any:
    """The content of a torch file; None if it is damaged, or asks for more than plain values."""
    try:
        return load_tensor_file(path, **options)
    except Exception:  # a hostile or damaged pickle may make the restricted loader raise anything
        return None


def match_names(wanted: Iterable[str], found: Iterable[str]) -> dict[str, str]:
    """For each wanted name the longest found name that it ends with, as in the published loader; none: left out."""
    available = set(found)
    matched = {}
    for name in wanted:
        source = next((name[start:] for start in range(len(name)) if name[start:] in available), None)
        if source is not None:
            matched[name] = source
    return matched


def sources_of(wanted: Iterable[str], tensors: Iterable[str]) -> dict[str, str]:
    """`match_names`, where either name of the shared module will do for both."""
    matched = match_names(wanted, tensors)
    for alias, original in (SHARED, SHARED[::-1]):
        for name in wanted:
            twin = original + name.removeprefix(alias)
            if name.startswith(alias) and name not in matched and twin in matched:
                matched[name] = matched[twin]
    return matched


def unused_of(matched: Mapping[str, str], tensors: Iterable[str]) -> tuple[str, ...]:
    used = set(matched.values())
    return tuple(name for name in tensors if name not in used)


def refuse_unlike(
    path: str | Path, matched: Mapping[str, str], wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Raises UserError where a file does not hold the detector that is wanted."""
    missing = [name for name in wanted if name not in matched and name != COMPUTED]
    if missing and all(name.startswith("attribute.") for name in missing):
        raise UserError(
            f"{path} has no head for attributes: give detector.architecture.num_attributes=0, as "
            "detector=x152c4_foursets and detector=x152c4_objects365 do."
        )
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of the detector's {len(wanted)} tensors ({some(missing)}): it is of another "
            "architecture, or not a detector."
        )
    other = [name for name, source in matched.items() if tensors[source].shape != wanted[name].shape]
    if other:
        there, here = tuple(tensors[matched[other[0]]].shape), tuple(wanted[other[0]].shape)
        more = f" and {len(other) - 1} more tensors differ" if len(other) > 1 else ""
        raise UserError(
            f"{path}: {matched[other[0]]} has the shape {there}, the detector's {other[0]} has {here}{more}: give the "
            "configuration that belongs to the weights."
        )
    alias, original = SHARED  # one C5 head under two names; a file in which they differ is none of ours
    for name, source in matched.items():
        twin = matched[original + name.removeprefix(alias)] if name.startswith(alias) else source
        if twin != source and not torch.equal(tensors[source], tensors[twin]):
            raise UserError(f"{path}: {source} and {twin} differ, although the detector has one C5 head for both.")


def some(names: Iterable[str]) -> str:
    """The first of many names, for a sentence."""
    names = list(names)
    rest = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + rest


class DetectorFileSettings(NamedTuple):
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
    copies: dict[int, Tensor] = {}  # the two names of the C5 head keep sharing theirs: the file holds them once
    state = detector.state_dict(keep_vars=True)
    for tensor in state.values():
        copies.setdefault(id(tensor), tensor.detach().to("cpu", torch.float32).contiguous())
    content = {
        "model": {name: copies[id(tensor)] for name, tensor in state.items()},
        OUR_KEY: {"config": detector.config.plain(), "label_map": label_map.to_json()},
    }
    with atomic_write(path, "wb") as file:
        torch.save(content, file)


def read_settings(path: str | Path) -> DetectorFileSettings | None:
    """What a weight file says of itself; None for a published file, and for what is not a weight file at all.

    `load_detector` says what is wrong with the latter. No tensor is read and no code is run.

    Raises:
        UserError: the file has settings, and they are damaged or from a later version.
    """
    if not Path(path).is_file() or not zipfile.is_zipfile(path):  # ours are always zip files; safetensors never are
        return None
    content = _opened(Path(path), mmap=True)
    own = content.get(OUR_KEY) if isinstance(content, Mapping) else None
    if own is None:
        return None
    place = f"{path}: {OUR_KEY}"
    own = own if isinstance(own, Mapping) else {}
    tensors = content.get("model")
    return checked_settings(own, tensors if isinstance(tensors, Mapping) else {}, path, place)


def checked_settings(
    own: Mapping[Any, Any], tensors: Mapping[str, Tensor], path: str | Path, place: str
) -> DetectorFileSettings:
    """The `config` and the `label_map` of a detector as a file says them in `place`, before anything is built of them.

    Raises UserError if they are damaged, contradict each other, or cannot be those of the file's tensors.
    """
    config: Any = own.get("config")
    names: Any = own.get("label_map")
    architecture = config.get("architecture") if isinstance(config, Mapping) else None
    for whose, found, kind, what in (
        (place, config, Mapping, "settings"),
        (place, names, str, "label map"),
        (f"{place}.config", architecture, Mapping, "architecture"),
    ):
        if not isinstance(found, kind):
            raise UserError(f"{whose} has no {what}: the file is damaged, get it from its source again.")
    settings = _config(config, f"{place}.config")
    if sum(settings.architecture.blocks) > len(tensors):  # to build it could take for ever
        raise UserError(
            f"{place}.config.architecture cannot be that of the file's {len(tensors):,} tensors: the file is damaged."
        )
    label_map = LabelMap.from_json(names, f"{place}.label_map")
    _check_names(label_map, settings.architecture, f"{path}: the label map")
    return DetectorFileSettings(settings, label_map)


def _config(values: Mapping[Any, Any], place: str) -> DetectorConfig:
    try:
        return DetectorConfig.of_plain(values)
    except UserError as error:
        raise UserError(f"{place}: {error} The file is damaged.") from None
    except TypeError as error:  # a name that is none of ours
        name = shown(str(error).rpartition(" argument ")[2].strip("'"))
        raise UserError(
            f"{place} has the setting {name}, unknown to this version of vinvl: use the version that wrote the file, "
            "or a later one."
        ) from None


def _check_names(label_map: LabelMap, architecture: Architecture, place: str) -> None:
    for kind in ("classes", "attributes"):
        names, number = len(getattr(label_map, kind)), getattr(architecture, f"num_{kind}")
        if names != number:
            raise UserError(
                f"{place} names {names:,} {kind}, index 0 included, the detector has {number:,}: give the label "
                "map that belongs to the weights."
            )


def read_label_map(path: str | Path, architecture: Architecture | None = None) -> LabelMap:
    """The names of classes and attributes from a file, as `LabelMap.from_file`, and for an `architecture` if given.

    Raises:
        UserError: the file is missing or no label map, or it names other numbers of classes or attributes.
    """
    labels = LabelMap.from_file(path)
    if architecture is not None:
        labels = labels if architecture.num_attributes else LabelMap(labels.classes)  # some have names for others too
        _check_names(labels, architecture, str(path))
    return labels


def labels_beside(weights: Path, classes: int) -> Path:
    """Where the published label map of weights with so many classes, the background included, is looked for."""
    return weights.with_name(OTHER_LABELS.get(classes, PUBLISHED_LABELS))


@dataclass(frozen=True)
class OpenedDetector:
    """A detector with what its indices mean; without names where `label_map` is empty."""

    detector: Detector
    label_map: LabelMap
    weights: Path
    report: LoadingReport
    hub_name: str | None = None  # NAME@COMMIT, of a detector on the Hugging Face hub


def open_detector(
    weights: str | Path,
    labels: str | Path | None = None,
    configure: Callable[[DetectorConfig | None], DetectorConfig] | None = None,
    *,
    compile: bool = False,
) -> OpenedDetector:
    """The detector of a weight file, ready for use.

    Args:
        weights: a published file such as vinvl_vg_x152c4.pth, or one that `vinvl.train_detector` has written, or the
            name of a repository on the Hugging Face hub that holds one (`find_weights`).
        labels: its label map; "none" does without names; None takes the one within the weight file, or the published
            one if it is beside it.
        configure: settings in, settings out: it gets those that the file carries, None for a published file. Left out,
            these are taken, and for a published file the defaults of `DetectorConfig`.
        compile: torch.compile of the two networks that take nearly all of the time, at their first use.

    Raises:
        UserError: a file is missing, damaged, or does not fit the other.
    """
    weights, hub_name = find_weights(weights)
    own = read_settings(weights)
    found = own.config if own else None
    config = configure(found) if configure else found or DetectorConfig()
    beside = labels_beside(weights, config.architecture.num_classes)
    if labels is None and own is None and not beside.is_file():
        raise UserError(
            f"The label map of {weights} is not known: pass labels=FILE (the published one is called "
            f"{beside.name}; beside the weights it is found by itself), or labels={NO_LABELS} to do without "
            "names of classes and attributes."
        )
    if str(labels) == NO_LABELS:
        label_map = LabelMap((), ())
    elif labels is None and own is not None:
        label_map = own.label_map
    else:
        label_map = read_label_map(Path(beside if labels is None else labels).expanduser(), config.architecture)
    detector, report = load_detector(weights, config)
    detector.requires_grad_(False)
    if compile:
        detector.compile_networks(dynamic=True)
    return OpenedDetector(detector, label_map, weights, report, hub_name)


def find_weights(given: str | Path) -> tuple[Path, str | None]:
    """The detector's weight file that a path or a name on the Hugging Face hub stands for; of the latter NAME@COMMIT.

    Raises UserError if there is none, or as `vinvl.run.hub.fetch`.
    """
    path = Path(given).expanduser()
    if os.path.exists(path):
        return path, None
    found = fetch(
        given, "detector weight file", f"{PUBLISHED_WEIGHTS}, {OUR_WEIGHTS} or one other .pth", detector_files
    )
    return found.folder / detector_files(os.listdir(found.folder))[-1], found.name


def detector_files(names: Sequence[str]) -> list[str]:
    """Of a repository's files the published label maps and, at the end, the weights; none if it is unclear which."""
    others = [name for name in names if name.endswith(".pth")]
    weights = next((name for name in (PUBLISHED_WEIGHTS, OUR_WEIGHTS) if name in names), None)
    if weights is None and len(others) != 1:
        return []
    labels = [name for name in (PUBLISHED_LABELS, *OTHER_LABELS.values()) if name in names]
    return [*labels, weights or others[0]]


def sha256_of_file(path: str | Path) -> str:
    """The hash, 64 hexadecimal digits, by which features name the weights that they were made with."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
