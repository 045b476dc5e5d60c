"""Training the detector: Faster R-CNN's losses and those of attributes, average precision, a weight file at the end."""

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from vinvl.detector.average_precision import AttributeRecall, AveragePrecision, FoundBoxes
from vinvl.detector.config import Architecture, DetectorConfig, TrainingSettings
from vinvl.detector.data import DetectionBatch
from vinvl.detector.detector import DetectedRegions, Detector, normalised, pad_batch
from vinvl.detector.losses import detector_losses
from vinvl.detector.starting import freeze_batch_norm, freeze_stages, initialise, load_what_fits, train_batch_norm
from vinvl.detector.weights import save_detector
from vinvl.regions.regions import LabelMap
from vinvl.run.checkpoint import OUR_KEY
from vinvl.run.errors import UserError
from vinvl.run.made import make_optimizer, make_scheduler
from vinvl.task import MakeOptimizer, MakeScheduler, detector_parameter_groups

FROZEN, TRAINED = "frozen", "trained"


def config_for(detector: DetectorConfig, labels: LabelMap) -> dict[str, Any]:
    """The settings of a detector with as many classes and attributes as there are names, in plain types."""
    architecture = replace(
        detector.architecture, num_classes=len(labels.classes), num_attributes=len(labels.attributes)
    )
    config = replace(detector, architecture=architecture)
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))  # lists for tuples: a checkpoint holds nothing else
    return plain


class DetectorTask(pl.LightningModule):
    """A detector with its losses, scores and recipe.

    Attributes:
        headline: the name in `scores` of the figure that checkpoints are chosen by (logged as `val/score`).
        detector: the pure torch model.
        started_from: what became of the tensors of `init`, for a person; empty without one.
        run_config: the composed configuration of the run in plain types, carried in checkpoints.
        scores: the figures of the last evaluation, by name, in percent.
    """

    headline = "map_50"

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
        optimizer: MakeOptimizer | None = None,
        scheduler: MakeScheduler | None = None,
        weight_decay: float = 0.0,
        bias_lr_factor: float = 1.0,
        seed: int = 0,
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
            optimizer: parameter groups → optimiser; None where nothing is trained.
            scheduler: (optimiser, total_steps=) → schedule, stepped after each update.
            weight_decay: of weights; biases and norms do not decay.
            bias_lr_factor: how much faster biases learn.
            seed: of random weights and of what is drawn in each step.

        Raises:
            UserError: settings that contradict each other, or weights that do not fit.
        """
        super().__init__()
        if batch_norm not in (FROZEN, TRAINED):
            raise UserError(f"batch_norm={batch_norm!r} is unknown: give {FROZEN} or {TRAINED}.")
        if batch_norm == TRAINED and frozen_stages > 0:
            raise UserError(
                f"frozen_stages={frozen_stages} with batch_norm={TRAINED} would change the norms of stages that are to "
                f"stay as they are: give frozen_stages=0 or batch_norm={FROZEN}."
            )
        self.config = _config_of(config)
        self.detector = Detector(self.config)
        initialise(self.detector, torch.Generator().manual_seed(seed))
        self.started_from = "" if init is None else str(load_what_fits(self.detector, init, init_colours))
        freeze_stages(self.detector, frozen_stages)
        if batch_norm == TRAINED:
            train_batch_norm(self.detector)
        self.detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.detector.config = replace(self.config, score_threshold=scoring_threshold, min_boxes=0)
        self.labels = LabelMap.from_json(label_map)
        self.save_hyperparameters({"config": dict(config), "label_map": label_map, "batch_norm": batch_norm})
        self.training_settings = training
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.weight_decay = weight_decay
        self.bias_lr_factor = bias_lr_factor
        self.seed = seed
        self.precision_metric = AveragePrecision(len(self.labels.classes))
        self.attribute_metric = AttributeRecall()
        self.batches_seen = 0
        self.run_config: dict[str, Any] = {}
        self.scores: dict[str, float] = {}

    def training_step(self, batch: DetectionBatch, batch_idx: int) -> Tensor:
        pictures = [normalised(one) for one in batch.pictures()]
        images, sizes = pad_batch(pictures, self.config.pad_multiple)
        losses = detector_losses(
            self.detector, images, sizes, batch.objects(), self.training_settings, self._generator()
        )
        named = {f"train/{name}": loss.detach() for name, loss in losses.by_name().items()}
        self.log_dict(named, batch_size=len(batch))
        total = losses.total()
        self.log("train/loss", total.detach(), batch_size=len(batch))
        return total

    def _generator(self) -> torch.Generator:
        """What is random in a step is a function of (seed, rank, number of the batch), so that runs can go on."""
        seed = (self.seed * 1_000_003 + self.global_rank) * 2**31 + self.batches_seen
        return torch.Generator(self.device).manual_seed(seed)

    def validation_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        self.evaluate_batch(batch)

    def test_step(self, batch: DetectionBatch, batch_idx: int) -> None:
        self.evaluate_batch(batch)

    def evaluate_batch(self, batch: DetectionBatch) -> None:
        """Updates the metrics with what the detector finds."""
        found = self.detector.detect_pixels(batch.pictures(), list(batch.original_sizes))
        for index, regions, truth in zip(batch.indices, found, batch.truths, strict=True):
            boxes = found_boxes(regions)
            self.precision_metric.update(index, boxes, truth.boxes)
            said = torch.where(regions.attribute_scores > 0, regions.attribute_labels, 0).cpu().numpy()
            self.attribute_metric.update(boxes, said, truth.boxes, truth.attributes)

    def compute_scores(self) -> dict[str, float]:
        """The figures of an evaluation over all ranks, in percent, by name; nan where there is nothing to measure."""
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

    def on_validation_epoch_start(self) -> None:
        self._reset_metrics()

    def on_test_epoch_start(self) -> None:
        self._reset_metrics()

    def on_validation_epoch_end(self) -> None:
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")

    def _reset_metrics(self) -> None:
        self.precision_metric.reset()
        self.attribute_metric.reset()

    def _log_scores(self, stage: str) -> None:
        self.scores = self.compute_scores()
        self.log(f"{stage}/score", self.scores[self.headline], prog_bar=True, rank_zero_only=False)
        # Classes may be thousands: they are in results.json, and not worth a curve each.
        logged = {name: value for name, value in self.scores.items() if "/" not in name and not np.isnan(value)}
        self.log_dict({f"{stage}/{name}": value for name, value in logged.items()}, rank_zero_only=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = make_optimizer(
            self.make_optimizer, detector_parameter_groups(self.detector, self.weight_decay, self.bias_lr_factor)
        )
        for group in optimizer.param_groups:
            group["lr"] *= group["lr_factor"]
        scheduler = make_scheduler(self.make_scheduler, optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def exported(self) -> Detector:
        """A copy of the detector as it is used: with frozen batch norm and its own settings."""
        detector = copy.deepcopy(self.detector)
        freeze_batch_norm(detector)
        detector.config = self.config
        return detector.eval()

    def write_detector(self, path: Path) -> None:
        """Writes the weight file, with settings and names."""
        save_detector(path, self.exported(), self.labels)

    def on_train_batch_start(self, batch: DetectionBatch, batch_idx: int) -> None:
        self.batches_seen += 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kind = type(self)
        checkpoint[OUR_KEY] = {
            "task_class": f"{kind.__module__}.{kind.__qualname__}",
            "batches_seen": self.batches_seen,
            "run_config": self.run_config,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.batches_seen = checkpoint[OUR_KEY]["batches_seen"]


def found_boxes(regions: DetectedRegions) -> FoundBoxes:
    """What evaluation takes: a detected box counts its last pixel in, an annotated one does not."""
    return FoundBoxes(
        boxes=regions.boxes.double().cpu().numpy() + np.array([0.0, 0, 1, 1]),
        labels=regions.labels.cpu().numpy(),
        scores=regions.scores.double().cpu().numpy(),
    )


def _config_of(fields: Mapping[str, Any]) -> DetectorConfig:
    others = {name: value for name, value in fields.items() if name != "architecture"}
    return DetectorConfig(architecture=Architecture(**fields["architecture"]), **others)
