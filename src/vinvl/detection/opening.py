"""A weight file, its label map and the settings that belong to it → a detector ready for use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vinvl.data.store.labels import LabelMap
from vinvl.detection.config import DetectorConfig
from vinvl.detection.detector import Detector
from vinvl.detection.loading import DetectorLoadingReport, load_detector, read_label_map
from vinvl.detection.own_file import read_settings
from vinvl.errors import UserError

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
            one where it lies beside it.
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
