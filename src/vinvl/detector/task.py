"""Training the detector: what it starts from, the losses, average precision, and a weight file at the end."""

import base64
import copy
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from vinvl.detector.average_precision import LAST_PIXEL, FoundBoxes, TrueBoxes, overlaps
from vinvl.detector.config import DetectorConfig, TrainingSettings
from vinvl.detector.data import DetectionBatch, DetectionDataModule
from vinvl.detector.detector import DetectedRegions, Detector, normalised, pad_batch
from vinvl.detector.losses import detector_losses
from vinvl.detector.scores import MORE, DetectionScores, shown_rows
from vinvl.detector.starting import (
    BGR,
    freeze_batch_norm,
    freeze_stages,
    initialise,
    load_what_fits,
    train_batch_norm,
)
from vinvl.detector.weights import checked_settings, refuse_unlike, save_detector
from vinvl.examples import BOXES, EXAMPLES, SeenBox, SeenPicture, write_boxes
from vinvl.panels import MOST, PanelFrame, PictureOf, Shown
from vinvl.pictures import EXIF_IGNORE
from vinvl.regions.regions import LabelMap
from vinvl.run.checkpoint import load_into
from vinvl.run.errors import UserError
from vinvl.run.values import shown
from vinvl.task import MakeOptimizer, MakeScheduler, VinVLTask

FROZEN, TRAINED = "frozen", "trained"
SURE = DetectorConfig.score_threshold  # the published one; a run may score with a lower one
WEIGHTS = "detector.pth"  # what a run makes, in its folder
SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)  # conf/detection_recipe/_base.yaml
KEPT = ("config", "label_map", "batch_norm", "scoring_threshold")  # arguments that checkpoints carry


class DetectorTask(VinVLTask):
    """A detector with its losses, scores in percent and recipe.

    Attributes:
        detector: the pure torch model.
    """

    datamodule_class = DetectionDataModule
    headline = "map_50"
    not_logged = "/"  # of single classes and attributes
    start_again = "start.init=FILE, where FILE is the detector.pth that it wrote"

    def __init__(
        self,
        *,
        config: Mapping[str, Any],
        label_map: str,
        training: TrainingSettings = TrainingSettings(),  # noqa: B008, it is immutable
        batch_norm: str = FROZEN,
        frozen_stages: int = 2,
        init: str | None = None,
        init_colours: str = BGR,
        init_labels: str | None = None,
        scoring_threshold: float = 0.05,
        more_scores: Sequence[str] = (),
        bias_lr_factor: float = 2.0,
        optimizer: MakeOptimizer | None = SGD,
        scheduler: MakeScheduler | None = None,
        weight_decay: float = 1.0e-4,
        seed: int = 88,
    ) -> None:
        """Raises UserError for settings that contradict each other, or weights that do not fit.

        Args:
            config: the fields of a `DetectorConfig` in plain types, from `config_for`.
            label_map: the label map's JSON.
            training: what is learnt from, and how losses are weighed.
            batch_norm: "frozen", as a detector that starts from weights is trained, or "trained", without which random
                weights hardly learn; it is frozen when the weight file is written.
            frozen_stages: of stem, layer1, layer2 and layer3 the first so many stay as they are.
            init, init_colours, init_labels: see `load_what_fits`; None for random weights.
            scoring_threshold: the least score of a box that counts in evaluation; that of the detector, for regions
                worth looking at, would cut the precision curves off.
            more_scores: what is scored besides COCO's mAP, see `DetectionScores`.
            bias_lr_factor: how much faster biases learn.
            optimizer, scheduler, weight_decay, seed: see `VinVLTask`; the seed is also of random weights and of what is
                drawn in each step.
        """
        carried = (dict(config), label_map, batch_norm, scoring_threshold)
        self._carried = dict(zip(KEPT, carried, strict=True))
        super().__init__(optimizer=optimizer, scheduler=scheduler, weight_decay=weight_decay, seed=seed)
        if batch_norm not in (FROZEN, TRAINED):
            raise UserError(f"batch_norm={batch_norm!r} is unknown: give {FROZEN} or {TRAINED}.")
        if batch_norm == TRAINED and frozen_stages > 0:
            raise UserError(
                f"frozen_stages={frozen_stages} with batch_norm={TRAINED} would change the norms of stages that are to "
                f"stay as they are: give frozen_stages=0 or batch_norm={FROZEN}."
            )
        self.settings, self.labels = DetectorConfig.of_plain(config), LabelMap.from_json(label_map)
        self.detector = Detector(self.settings)
        initialise(self.detector, torch.Generator().manual_seed(self.seed))
        if init is not None:
            self.started_from = str(load_what_fits(self.detector, init, self.labels, init_labels, init_colours))
        freeze_stages(self.detector, frozen_stages)
        if batch_norm == TRAINED:
            train_batch_norm(self.detector)
        self.detector.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.detector.config = replace(self.settings, score_threshold=scoring_threshold, min_boxes=0)
        self.training_settings = training
        self.bias_lr_factor = bias_lr_factor
        self.scoring = DetectionScores(self.labels, more_scores)
        self._first: list[tuple[Tensor, tuple[int, int], FoundBoxes, TrueBoxes]] = []  # of an evaluation

    def own_arguments(self) -> dict[str, Any]:
        return self._carried

    @classmethod
    def from_checkpoint(cls, checkpoint: dict[str, Any], path: str | Path, **own: Any) -> Self:
        """The detector as a checkpoint of ours holds it, for evaluation, in which all is scored that can be."""
        hyper, tensors = checkpoint["hyper_parameters"], checkpoint["state_dict"]
        checked_settings(hyper, tensors, path, f"{path}: its hyper_parameters")
        with torch.device("meta"):  # nothing large is built of what the file does not hold
            wanted = Detector(DetectorConfig.of_plain(hyper["config"])).state_dict()
        places = {name: f"detector.{name}" for name in wanted}
        refuse_unlike(path, {name: place for name, place in places.items() if place in tensors}, wanted, tensors)
        known = {name: hyper[name] for name in KEPT if name in hyper}
        if unknown := hyper.keys() - set(KEPT):
            raise UserError(f"{path} has {shown(min(unknown, key=str))}, unknown to this version of vinvl.")
        try:
            task = cls(training=TrainingSettings(), frozen_stages=0, more_scores=MORE, **known, **own)
        except (UserError, TypeError, ValueError) as error:
            raise UserError(f"{path} describes a detector that cannot be built ({error}): it is damaged.") from error
        load_into(task, checkpoint, path)
        return task

    @classmethod
    def build(cls, datamodule: Any, **settings: Any) -> Self:
        """The task for a data module that has been set up, which says how many classes and attributes there are."""
        cls.check_data_class(datamodule)
        labels = datamodule.label_map
        return cls(config=config_for(datamodule.detector, labels), label_map=labels.to_json(), **settings)

    def check_datamodule(self, datamodule: Any) -> None:
        """Gives a data module this detector's classes and attributes; UserError if it is of another kind."""
        self.check_data_class(datamodule)
        datamodule.use_labels(self.labels, "the detector")

    def training_loss(self, batch: DetectionBatch) -> Tensor:  # type: ignore[override]
        images, sizes = pad_batch(list(map(normalised, batch.pictures())), self.settings.pad_multiple)
        settings, targets = self.training_settings, batch.objects()
        losses = detector_losses(self.detector, images, sizes, targets, settings, self._generator())
        self.log_dict({f"train/{name}": loss.detach() for name, loss in losses.items()}, batch_size=len(batch))
        return sum(losses.values(), images.new_zeros(()))

    def _generator(self) -> torch.Generator:
        """What is random in a step is a function of (seed, rank, number of the batch), so that runs can continue."""
        seed = (self.seed * 1_000_003 + self.global_rank) * 2**31 + self.batches_seen
        return torch.Generator(self.device).manual_seed(seed)

    def evaluate_batch(self, batch: DetectionBatch) -> None:  # type: ignore[override]
        pictures, sizes, truths = batch.pictures(), list(batch.original_sizes), batch.truths
        detected = list(map(found_boxes, self.detector.detect_pixels(pictures, sizes)))
        for index, found, truth in zip(batch.indices, detected, truths, strict=True):
            self.scoring.update(index, found, truth)
        if len(self._first) < MOST:
            self._first += zip(pictures, sizes, detected, truths, strict=True)
        if self.scoring.wants_true_boxes:
            corners = [truth.boxes[~truth.crowd] - LAST_PIXEL for truth in truths]
            given = [np.concatenate([one[:, :2], np.maximum(one[:, :2], one[:, 2:])], axis=1) for one in corners]
            described = self.detector.detect_pixels(pictures, sizes, given)
            for index, said, truth in zip(batch.indices, map(found_boxes, described), truths, strict=True):
                self.scoring.update_on_true_boxes(index, said, truth)
        if self.scoring.proposals:
            for boxes, truth in zip(self._proposals(batch), truths, strict=True):
                self.scoring.update_proposals(boxes, truth)

    def _reset_metrics(self) -> None:
        super()._reset_metrics()
        self._first = []

    def shown_examples(self, count: int, picture_of: PictureOf) -> list[Shown]:
        """Resized pictures of the first batches with the best boxes found, as many as there are true ones.

        The score is the share of these that a box of their class overlaps by half.
        """
        from PIL import Image

        told = []
        for pixels, (width, height), found, truth in self._first[:count]:
            picture, classes = Image.fromarray(pixels.cpu().numpy()), self.labels.classes
            best, hit = best_boxes(found, truth)
            names, true = ([classes[one] for one in some.tolist()] for some in (found.labels[best], truth.labels))
            score = 100 * float(hit.mean()) if true else math.nan
            frame = PanelFrame(width, height, found.boxes[best], names, picture)
            told.append(Shown("", ", ".join(sorted(names)), ", ".join(sorted(true)), score, (frame,)))
        return told

    def write_examples(
        self, folder: Path, split: str, source: str, left_out: int = 0, name: str = EXAMPLES
    ) -> dict[str, Path]:
        """Writes the first pictures of the last test with their true and found boxes, for a page of the run."""
        seen = [self._seen(*one) for one in self._first[:MOST]]
        write_boxes(folder / BOXES, seen)
        return {"true and found boxes": folder / BOXES}

    def _seen(self, pixels: Tensor, size: tuple[int, int], found: FoundBoxes, truth: TrueBoxes) -> SeenPicture:
        """A resized picture, and boxes in pixels of the original: true ones, the best found, more with good scores."""
        from PIL import Image

        def boxes(labels: np.ndarray, scores: np.ndarray, corners: np.ndarray) -> list[SeenBox]:
            rows = zip(labels.tolist(), scores.tolist(), corners.tolist(), strict=True)
            return [SeenBox(self.labels.classes[label], score, tuple(box)) for label, score, box in rows]

        best, hit = best_boxes(found, truth)
        good = found.scores.argsort()[::-1][: max(len(best), np.count_nonzero(found.scores >= SURE))]
        file = io.BytesIO()
        Image.fromarray(pixels.cpu().numpy()).save(file, "JPEG", quality=85)
        return SeenPicture(
            *size,
            base64.b64encode(file.getvalue()).decode("ascii"),
            boxes(truth.labels, np.ones(len(truth.labels)), truth.boxes),
            boxes(found.labels[good], found.scores[good], found.boxes[good]),
            int(np.count_nonzero(~hit)),
        )

    @torch.no_grad()
    def _proposals(self, batch: DetectionBatch) -> list[np.ndarray]:
        """The boxes (n, 4) of each picture that the RPN proposes, in pixels of the original, the best first."""
        images, sizes = pad_batch(list(map(normalised, batch.pictures())), self.settings.pad_multiple)
        found = self.detector.propose(self.detector.backbone(images), sizes).boxes
        original = zip(found, sizes, batch.original_sizes, strict=True)
        scaled = [(boxes, np.array([w / width, h / height] * 2)) for boxes, (height, width), (w, h) in original]
        return [boxes.double().cpu().numpy() * scale + LAST_PIXEL for boxes, scale in scaled]

    def compute_scores(self) -> dict[str, float]:
        """In percent; nan if there is nothing to measure."""
        return self.scoring.compute()

    def result_rows(self) -> list[tuple[str, str]]:
        return shown_rows(self.scores)

    def parameter_groups(self) -> list[dict[str, Any]]:
        return parameter_groups(self.detector, self.weight_decay, self.bias_lr_factor)

    def write_files(self, folder: Path) -> dict[str, Path]:
        """The weight file of the detector as it is used: frozen batch norm, its own settings and names."""
        detector = copy.deepcopy(self.detector)
        freeze_batch_norm(detector)
        detector.config = self.settings
        path = folder / WEIGHTS
        save_detector(path, detector.eval(), self.labels)
        return {"weight file": path}

    @classmethod
    def as_now(cls, run_config: dict[str, Any]) -> dict[str, Any]:
        """Earlier versions read pictures as they are stored, and their checkpoints do not say so."""
        reading = {"_target_": "vinvl.pictures.ReadingOptions", "exif_orientation": EXIF_IGNORE}
        return {**run_config, "data": {"reading": reading, **run_config["data"]}} if run_config else run_config


def config_for(detector: DetectorConfig, labels: LabelMap) -> dict[str, Any]:
    """The settings of a detector with as many classes and attributes as there are names, in plain types."""
    classes, attributes = len(labels.classes), len(labels.attributes)
    architecture = replace(detector.architecture, num_classes=classes, num_attributes=attributes)
    return replace(detector, architecture=architecture).plain()


def parameter_groups(detector: nn.Module, weight_decay: float, bias_lr_factor: float) -> list[dict[str, Any]]:
    """Weights; the scales of norms, which do not decay; biases, which do not either, and may learn faster.

    `lr_factor` of a group is multiplied with the optimiser's rate (the published BIAS_LR_FACTOR).
    """
    weights, scales, biases = (
        {"params": [], "weight_decay": decay, "lr_factor": factor, "name": name}
        for name, decay, factor in (
            ("weights", weight_decay, 1.0),
            ("norms", 0.0, 1.0),
            ("biases", 0.0, bias_lr_factor),
        )
    )
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            group: dict[str, Any] = biases if name.endswith("bias") else scales if parameter.dim() == 1 else weights
            group["params"].append(parameter)
    return [group for group in (weights, scales, biases) if group["params"]]


def best_boxes(found: FoundBoxes, truth: TrueBoxes) -> tuple[np.ndarray, np.ndarray]:
    """(k,) int64, the best boxes, as many as there are objects; (m,) bool, objects that one of them has found.

    That is one of the object's class that overlaps it by half.
    """
    best = found.scores.argsort()[::-1][: max(len(truth.labels), 1)]
    lies = overlaps(found.boxes[best], truth.boxes, truth.crowd) >= 0.5
    return best, (lies & (found.labels[best][:, None] == truth.labels)).any(axis=0)


def found_boxes(regions: DetectedRegions) -> FoundBoxes:
    """What evaluation takes, in the original picture's pixels."""
    return FoundBoxes(
        boxes=regions.boxes.double().cpu().numpy() + LAST_PIXEL,
        labels=regions.labels.cpu().numpy(),
        scores=regions.scores.double().cpu().numpy(),
        attributes=torch.where(regions.attribute_scores > 0, regions.attribute_labels, 0).cpu().numpy(),
        attribute_scores=regions.attribute_scores.double().cpu().numpy(),
    )
