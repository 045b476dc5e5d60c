"""Training the detector: what it starts from, the losses, average precision, and a weight file at the end."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from vinvl.detector.average_precision import FoundBoxes
from vinvl.detector.config import DetectorConfig, TrainingSettings
from vinvl.detector.data import DetectionBatch, DetectionDataModule
from vinvl.detector.detector import DetectedRegions, Detector, normalised, pad_batch
from vinvl.detector.losses import detector_losses
from vinvl.detector.networks import FrozenBatchNorm2d
from vinvl.detector.scores import DetectionScores, shown_rows
from vinvl.detector.weights import LoadingReport, read_detector_weights, save_detector, sources_of, unused_of
from vinvl.pictures import EXIF_IGNORE
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError
from vinvl.task import Recipe, VinVLTask

# What training starts from: random numbers, a weight file as far as it fits, and what stays as it is.
#
# The published detector, fine-tuned from an ImageNet network, keeps its batch norm frozen; random weights hardly learn
# without it. So it is trained and then folded into the same constants, exactly.

NORM_EPSILON = 1e-5  # torch's, added to the variances; ours has none
BGR, RGB = "bgr", "rgb"  # what the first convolution of a weight file takes
IMAGENET_DEVIATIONS = (0.229, 0.224, 0.225)  # of red, green and blue, 0 to 1
STEM = "backbone.body.stem.conv1.weight"
STAGES = ("stem", "layer1", "layer2", "layer3")
FROZEN, TRAINED = "frozen", "trained"
WEIGHTS = "detector.pth"  # what a run makes, in its folder
LAST_PIXEL = np.array([0.0, 0, 1, 1])  # which a detected box counts in, an annotated one does not

Kind = TypeVar("Kind", bound=nn.Module)


def train_batch_norm(module: nn.Module) -> None:
    """Puts trainable batch norm in the place of all frozen ones in a module; in evaluation it does the same as before.

    To the rounding of its epsilon: a variance smaller than that becomes that.
    """
    for parent, name, norm in _norms(module, FrozenBatchNorm2d):
        weight = norm.get_buffer("weight")
        trained = nn.BatchNorm2d(len(weight), eps=NORM_EPSILON, device=weight.device)
        state = dict(norm.state_dict())
        state["running_var"] = (state["running_var"] - trained.eps).clamp(min=0)
        trained.load_state_dict(state, strict=False)  # the count of batches is its own
        setattr(parent, name, trained.train(norm.training))


def freeze_batch_norm(module: nn.Module) -> None:
    """Puts constants in the place of all trainable batch norm in a module, which do what that does in evaluation."""
    for parent, name, norm in _norms(module, nn.BatchNorm2d):
        frozen = FrozenBatchNorm2d(norm.num_features).to(norm.weight.device)
        state = {key: value for key, value in norm.state_dict().items() if key != "num_batches_tracked"}
        state["running_var"] = state["running_var"] + norm.eps
        frozen.load_state_dict(state)
        setattr(parent, name, frozen.train(norm.training))


def _norms(module: nn.Module, kind: type[Kind]) -> list[tuple[nn.Module, str, Kind]]:
    """(parent, name there, norm) of each norm of a kind."""
    parents = list(module.modules())
    return [(parent, name, one) for parent in parents for name, one in parent.named_children() if isinstance(one, kind)]


@torch.no_grad()
def initialise(detector: Detector, generator: torch.Generator) -> None:
    """Random weights as published: Gaussian in the heads, uniform by the number of inputs in the residual networks.

    Detector and generator are on the CPU.
    """
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1, generator=generator)
    head, box, attribute = detector.rpn.head, detector.roi_heads.box.predictor, detector.attribute.predictor
    layers: list[nn.Conv2d | nn.Linear | nn.Embedding] = [head.conv, head.cls_logits, head.bbox_pred, box.cls_score]
    layers += [box.bbox_pred, attribute.fc_attr, attribute.attr_score, attribute.cls_embedding]
    for layer in layers:
        layer.weight.normal_(0, 0.001 if layer is box.bbox_pred else 0.01, generator=generator)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            layer.bias.zero_()


@torch.no_grad()
def load_what_fits(detector: Detector, path: str | Path, colours: str = BGR) -> LoadingReport:
    """Takes the tensors of a weight file that the detector has a place for; the others stay as they are.

    Args:
        detector: with frozen batch norm.
        path: a detector's weight file, ours or a published one, or that of a residual network for whole pictures with
            torchvision's names (conv1, layer1.0.conv1, …), whose stages 1 to 4 are those of the detector.
        colours: what that network was trained on: "bgr", 0 to 255, as the detector is; or "rgb", 0 to 1, divided by
            ImageNet's deviations, as torchvision's networks are: its first convolution is rewritten to take the former.

    Raises:
        UserError: the file cannot be read, or nothing in it fits; or `colours` is neither.
    """
    if colours not in (BGR, RGB):
        raise UserError(f"init_colours={colours!r} is unknown: give {BGR} or {RGB}.")
    tensors = read_detector_weights(path)
    wanted = detector.state_dict()
    matched = sources_of(wanted, tensors)
    fitting = {name: source for name, source in matched.items() if tensors[source].shape == wanted[name].shape}
    if not any(name.endswith(".weight") for name in fitting):
        raise UserError(f"{path} has no tensor that fits the detector: give a weight file of its architecture.")
    state = {name: tensors[source].detach().float() for name, source in fitting.items()}
    for name, source in fitting.items():  # a file that counts batches comes from torch's batch norm
        if name.endswith("running_var") and source.removesuffix("running_var") + "num_batches_tracked" in tensors:
            state[name] = state[name] + NORM_EPSILON
    if colours == RGB and STEM in state:
        # Both networks are given pictures less the same mean, so that the borders' zeros mean the same too.
        scale = 1 / (255 * state[STEM].new_tensor(IMAGENET_DEVIATIONS))
        state[STEM] = (state[STEM] * scale[:, None, None]).flip(1)
    detector.load_state_dict(state, strict=False)
    return LoadingReport(
        source=str(path),
        loaded=tuple(fitting),
        unused=tuple(name for name in unused_of(matched, tensors) if not name.endswith("num_batches_tracked")),
        random=tuple(name for name in wanted if name not in matched),
        other_shape=tuple(name for name in matched if name not in fitting),
    )


def freeze_stages(detector: Detector, number: int) -> None:
    """Leaves the first so many stages of the body as they are. Raises UserError if there are fewer."""
    if not 0 <= number <= len(STAGES):
        raise UserError(f"frozen_stages={number} must be between 0 and {len(STAGES)} ({', '.join(STAGES)}).")
    for name in STAGES[:number]:
        detector.backbone.body.get_submodule(name).requires_grad_(False)


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
        training: TrainingSettings,
        batch_norm: str,
        frozen_stages: int,
        init: str | None = None,
        init_colours: str = "bgr",
        scoring_threshold: float = 0.05,
        more_scores: Sequence[str] = (),
        bias_lr_factor: float = 1.0,
        **recipe: Unpack[Recipe],
    ) -> None:
        """Raises UserError for settings that contradict each other, or weights that do not fit.

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
            more_scores: what is scored besides COCO's mAP, see `DetectionScores`.
            bias_lr_factor: how much faster biases learn.
            recipe: see `VinVLTask`; the seed is also that of random weights and of what is drawn in each step.
        """
        super().__init__({"config": dict(config), "label_map": label_map, "batch_norm": batch_norm}, **recipe)
        if batch_norm not in (FROZEN, TRAINED):
            raise UserError(f"batch_norm={batch_norm!r} is unknown: give {FROZEN} or {TRAINED}.")
        if batch_norm == TRAINED and frozen_stages > 0:
            raise UserError(
                f"frozen_stages={frozen_stages} with batch_norm={TRAINED} would change the norms of stages that are to "
                f"stay as they are: give frozen_stages=0 or batch_norm={FROZEN}."
            )
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
        self.scoring = DetectionScores(self.labels, more_scores)

    @classmethod
    def build(cls, *, datamodule: Any, **settings: Any) -> Self:
        """The task for a data module that has been set up, which says how many classes and attributes there are."""
        cls.check_data_class(datamodule)
        labels = datamodule.label_map
        return cls(config=config_for(datamodule.detector, labels), label_map=labels.to_json(), **settings)

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
        detected = self.detector.detect_pixels(pictures, sizes)
        for index, found, truth in zip(batch.indices, map(found_boxes, detected), truths, strict=True):
            self.scoring.update(index, found, truth)
        if self.scoring.wants_true_boxes:
            corners = [truth.boxes[~truth.crowd] - LAST_PIXEL for truth in truths]
            given = [np.concatenate([one[:, :2], np.maximum(one[:, :2], one[:, 2:])], axis=1) for one in corners]
            described = self.detector.detect_pixels(pictures, sizes, given)
            for index, said, truth in zip(batch.indices, map(found_boxes, described), truths, strict=True):
                self.scoring.update_on_true_boxes(index, said, truth)
        if self.scoring.proposals:
            for boxes, truth in zip(self._proposals(batch), truths, strict=True):
                self.scoring.update_proposals(boxes, truth)

    @torch.no_grad()
    def _proposals(self, batch: DetectionBatch) -> list[np.ndarray]:
        """The boxes (n, 4) of each picture that the RPN proposes, in pixels of the original, the best first."""
        images, sizes = pad_batch(list(map(normalised, batch.pictures())), self.settings.pad_multiple)
        found = self.detector.propose(self.detector.backbone(images), sizes)
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
        return {**run_config, "data": {"reading": {"exif_orientation": EXIF_IGNORE}, **run_config["data"]}}


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
        {"params": [], "weight_decay": decay, "lr_factor": factor}
        for decay, factor in ((weight_decay, 1.0), (0.0, 1.0), (0.0, bias_lr_factor))
    )
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            group: dict[str, Any] = biases if name.endswith("bias") else scales if parameter.dim() == 1 else weights
            group["params"].append(parameter)
    return [group for group in (weights, scales, biases) if group["params"]]


def found_boxes(regions: DetectedRegions) -> FoundBoxes:
    """What evaluation takes, in the original picture's pixels."""
    return FoundBoxes(
        boxes=regions.boxes.double().cpu().numpy() + LAST_PIXEL,
        labels=regions.labels.cpu().numpy(),
        scores=regions.scores.double().cpu().numpy(),
        attributes=torch.where(regions.attribute_scores > 0, regions.attribute_labels, 0).cpu().numpy(),
        attribute_scores=regions.attribute_scores.double().cpu().numpy(),
    )
