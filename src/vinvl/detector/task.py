"""Training the detector: Faster R-CNN's losses and those of attributes, average precision, a weight file at the end."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from vinvl.detector.average_precision import AttributeRecall, AveragePrecision, FoundBoxes
from vinvl.detector.config import DetectorConfig, TrainingSettings
from vinvl.detector.data import DetectionBatch, DetectionDataModule
from vinvl.detector.detector import DetectedRegions, Detector, normalised, pad_batch
from vinvl.detector.losses import detector_losses
from vinvl.detector.starting import freeze_batch_norm, freeze_stages, initialise, load_what_fits, train_batch_norm
from vinvl.detector.weights import save_detector
from vinvl.pictures import EXIF_IGNORE
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError
from vinvl.task import Recipe, VinVLTask

FROZEN, TRAINED = "frozen", "trained"
WEIGHTS = "detector.pth"  # what a run makes, in its folder


def config_for(detector: DetectorConfig, labels: LabelMap) -> dict[str, Any]:
    """The settings of a detector with as many classes and attributes as there are names, in plain types."""
    architecture = replace(
        detector.architecture, num_classes=len(labels.classes), num_attributes=len(labels.attributes)
    )
    config = replace(detector, architecture=architecture)
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))  # lists for tuples: a checkpoint holds nothing else
    return plain


def parameter_groups(detector: nn.Module, weight_decay: float, bias_lr_factor: float) -> list[dict[str, Any]]:
    """Weights; the scales of norms, which do not decay; biases, which do not either, and may learn faster.

    `lr_factor` of a group is multiplied with the optimiser's rate (the published BIAS_LR_FACTOR).
    """
    weights: list[nn.Parameter] = []
    scales: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            (biases if name.endswith("bias") else scales if parameter.dim() == 1 else weights).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": weight_decay, "lr_factor": 1.0},
        {"params": scales, "weight_decay": 0.0, "lr_factor": 1.0},
        {"params": biases, "weight_decay": 0.0, "lr_factor": bias_lr_factor},
    ]
    return [group for group in groups if group["params"]]


class DetectorTask(VinVLTask):
    """A detector with its losses, scores in percent and recipe.

    Attributes:
        detector: the pure torch model.
    """

    datamodule_class = DetectionDataModule
    headline = "map_50"
    not_logged = "class_50/"
    start_again = "start.init=FILE, where FILE is the detector.pth that it wrote"

    def __init__(
        self,
        *,
        config: Mapping[str, Any],
        label_map: str,
        training: TrainingSettings,
        batch_norm: str,
        frozen_stages: int,
        init: str | None = None,
        init_colours: str = "bgr",
        scoring_threshold: float = 0.05,
        bias_lr_factor: float = 1.0,
        **recipe: Unpack[Recipe],
    ) -> None:
        """
        Args:
            config: the fields of a `DetectorConfig` in plain types, from `config_for`.
            label_map: the label map's JSON.
            training: what is learnt from, and how losses are weighed.
            batch_norm: "frozen", as a detector that starts from weights is trained, or "trained", without which random
                weights hardly learn; it is frozen when the weight file is written.
            frozen_stages: of stem, layer1, layer2 and layer3 the first so many stay as they are.
            init, init_colours: see `load_what_fits`; None for random weights.
            scoring_threshold: the least score of a box that counts in evaluation; that of the detector, for regions
                worth looking at, would cut the precision curves off.
            bias_lr_factor: how much faster biases learn.
            recipe: see `VinVLTask`; the seed is also that of random weights and of what is drawn in each step.

        Raises:
            UserError: settings that contradict each other, or weights that do not fit.
        """
        super().__init__({"config": dict(config), "label_map": label_map, "batch_norm": batch_norm}, **recipe)
        _check_batch_norm(batch_norm, frozen_stages)
        self.settings = DetectorConfig.of_plain(config)
        self.detector = Detector(self.settings)
        initialise(self.detector, torch.Generator().manual_seed(self.seed))
        if init is not None:
            self.started_from = str(load_what_fits(self.detector, init, init_colours))
        freeze_stages(self.detector, frozen_stages)
        if batch_norm == TRAINED:
            train_batch_norm(self.detector)
        self.detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.detector.config = replace(self.settings, score_threshold=scoring_threshold, min_boxes=0)
        self.labels = LabelMap.from_json(label_map)
        self.training_settings = training
        self.bias_lr_factor = bias_lr_factor
        self.precision_metric = AveragePrecision(len(self.labels.classes))
        self.attribute_metric = AttributeRecall()

    @classmethod
    def build(cls, *, datamodule: Any, **settings: Any) -> Self:
        """The task for a data module that has been set up, which says how many classes and attributes there are.

        Raises:
            UserError: the data are another task's, or see the constructor.
        """
        cls.check_data_class(datamodule)
        labels = datamodule.label_map
        return cls(config=config_for(datamodule.detector, labels), label_map=labels.to_json(), **settings)

    def training_loss(self, batch: DetectionBatch) -> Tensor:  # type: ignore[override]
        pictures = [normalised(one) for one in batch.pictures()]
        images, sizes = pad_batch(pictures, self.settings.pad_multiple)
        losses = detector_losses(
            self.detector, images, sizes, batch.objects(), self.training_settings, self._generator()
        )
        named = {f"train/{name}": loss.detach() for name, loss in losses.by_name().items()}
        self.log_dict(named, batch_size=len(batch))
        return losses.total()

    def _generator(self) -> torch.Generator:
        """What is random in a step is a function of (seed, rank, number of the batch), so that runs can continue."""
        seed = (self.seed * 1_000_003 + self.global_rank) * 2**31 + self.batches_seen
        return torch.Generator(self.device).manual_seed(seed)

    def evaluate_batch(self, batch: DetectionBatch) -> None:  # type: ignore[override]
        """Updates the metrics with what the detector finds."""
        found = self.detector.detect_pixels(batch.pictures(), list(batch.original_sizes))
        for index, regions, truth in zip(batch.indices, found, batch.truths, strict=True):
            boxes = found_boxes(regions)
            self.precision_metric.update(index, boxes, truth.boxes)
            said = torch.where(regions.attribute_scores > 0, regions.attribute_labels, 0).cpu().numpy()
            self.attribute_metric.update(boxes, said, truth.boxes, truth.attributes)

    def compute_scores(self) -> dict[str, float]:
        """The figures of an evaluation over all ranks, in percent, by name; nan if there is nothing to measure."""
        precision, recall = self.precision_metric.compute(), self.attribute_metric.compute()
        scores = {name: 100 * float(precision[name]) for name in ("map_50", "map_75", "map")}
        scores |= {"attributes_of_found": 100 * float(recall["found"]), "attributes": 100 * float(recall["all"])}
        at_half = precision["by_class"][:, 0].tolist()
        names = list(self.labels.classes)
        by_class = {f"class_50/{names[index]}": 100 * at_half[index] for index in range(1, len(names))}
        return scores | {name: value for name, value in by_class.items() if not np.isnan(value)}

    def result_rows(self) -> list[tuple[str, str]]:
        """The figures of the last evaluation for a person: (what, value) rows."""
        rows = [
            ("mean average precision at IoU 0.5", "map_50"),
            ("mean average precision at IoU 0.75", "map_75"),
            ("mean average precision, IoU 0.5 to 0.95", "map"),
            ("attributes named, of objects found", "attributes_of_found"),
            ("attributes named, of all objects", "attributes"),
        ]
        return [(what, f"{self.scores[name]:.2f} %") for what, name in rows if not np.isnan(self.scores[name])]

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.detector, self.weight_decay, self.bias_lr_factor)

    def exported(self) -> Detector:
        """A copy of the detector as it is used: with frozen batch norm and its own settings."""
        detector = copy.deepcopy(self.detector)
        freeze_batch_norm(detector)
        detector.config = self.settings
        return detector.eval()

    def write_files(self, folder: Path) -> dict[str, Path]:
        """The weight file, with settings and names."""
        path = folder / WEIGHTS
        save_detector(path, self.exported(), self.labels)
        return {"weight file": path}

    @classmethod
    def as_now(cls, run_config: dict[str, Any]) -> dict[str, Any]:
        """Earlier versions read pictures as they are stored, and their checkpoints do not say so."""
        reading = {"exif_orientation": EXIF_IGNORE}
        return {**run_config, "data": {"reading": reading, **run_config["data"]}}


def found_boxes(regions: DetectedRegions) -> FoundBoxes:
    """What evaluation takes: a detected box counts its last pixel in, an annotated one does not."""
    return FoundBoxes(
        boxes=regions.boxes.double().cpu().numpy() + np.array([0.0, 0, 1, 1]),
        labels=regions.labels.cpu().numpy(),
        scores=regions.scores.double().cpu().numpy(),
    )


def _check_batch_norm(batch_norm: str, frozen_stages: int) -> None:
    if batch_norm not in (FROZEN, TRAINED):
        raise UserError(f"batch_norm={batch_norm!r} is unknown: give {FROZEN} or {TRAINED}.")
    if batch_norm == TRAINED and frozen_stages > 0:
        raise UserError(
            f"frozen_stages={frozen_stages} with batch_norm={TRAINED} would change the norms of stages that are to "
            f"stay as they are: give frozen_stages=0 or batch_norm={FROZEN}."
        )
