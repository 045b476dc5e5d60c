"""Build a detector from a published weight file, with every tensor accounted for."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vinvl.data.json_files import read_bytes
from vinvl.data.store.labels import LabelMap
from vinvl.detection.config import Architecture, DetectorConfig
from vinvl.detection.detector import Detector
from vinvl.errors import UserError
from vinvl.models.checkpoint_files import load_published_state_dict
from vinvl.tensor_files import load_tensor_file, unlike_plain

PARALLEL_PREFIX = "module."  # of every name in a file saved from a data-parallel model
SHARED = ("attribute.feature_extractor.", "roi_heads.box.feature_extractor.")  # two names of one module
COMPUTED = "rpn.anchor_generator.cell_anchors.0"  # follows from the architecture where a file has it not
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
            tensors by name alone, or a .safetensors file. It is opened by torch's restricted loader.
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
                "source again or, where you trust it, save its 'model' alone with torch.save."
            ) from None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no tensors by name, nor such under 'model': give a detector's weight file.")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or unlike_plain(value) is not None:
            raise UserError(f"{path}: {str(name)[:80]!r} is no tensor of plain numbers: give a detector's weight file.")
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
    for kind, names, number in (
        ("classes", labels.classes, architecture.num_classes),
        ("attributes", labels.attributes, architecture.num_attributes),
    ):
        if len(names) != number:
            raise UserError(
                f"{path} names {len(names):,} {kind}, index 0 included, the detector has {number:,}: give the label "
                "map that belongs to the weights."
            )
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
