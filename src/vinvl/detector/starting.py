"""What training starts from: random numbers, a weight file as far as it fits, and what stays as it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from vinvl.detector.backbone import FrozenBatchNorm2d
from vinvl.detector.detector import Detector
from vinvl.detector.weights import SHARED, match_names, read_detector_weights
from vinvl.run.errors import UserError

# Batch norm while training from scratch, constants ever after.
#
# The published detector, fine-tuned from an ImageNet network, keeps its batch norm frozen; random weights hardly
# learn without it. So it is trained and then folded into the same constants, exactly.


NORM_EPSILON = 1e-5  # torch's, added to the variances
Norm = TypeVar("Norm", FrozenBatchNorm2d, nn.BatchNorm2d)


def train_batch_norm(module: nn.Module) -> None:
    """Puts trainable batch norm in the place of all frozen ones in a module; in evaluation it does the same as before.

    To the rounding of its epsilon: a variance smaller than that becomes that.
    """
    for parent, name, norm in _norms(module, FrozenBatchNorm2d):
        channels = norm.get_buffer("weight").numel()
        trained = nn.BatchNorm2d(channels, eps=NORM_EPSILON, device=norm.get_buffer("weight").device)
        state = dict(norm.state_dict())
        state["running_var"] = (state["running_var"] - trained.eps).clamp(min=0)
        trained.load_state_dict(state, strict=False)  # the count of batches is its own
        trained.train(norm.training)
        setattr(parent, name, trained)


def freeze_batch_norm(module: nn.Module) -> None:
    """Puts constants in the place of all trainable batch norm in a module, which do what that does in evaluation.

    Frozen norm has no epsilon, so that of the trained one is added to the variance.
    """
    for parent, name, norm in _norms(module, nn.BatchNorm2d):
        frozen = FrozenBatchNorm2d(norm.num_features).to(norm.weight.device)
        state = {key: value for key, value in norm.state_dict().items() if key != "num_batches_tracked"}
        state["running_var"] = state["running_var"] + norm.eps
        frozen.load_state_dict(state)
        frozen.train(norm.training)
        setattr(parent, name, frozen)


def _norms(module: nn.Module, kind: type[Norm]) -> list[tuple[nn.Module, str, Norm]]:
    """(parent, name in it, norm) of all norms of a kind."""
    return [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, kind)
    ]


BGR, RGB = "bgr", "rgb"  # what the first convolution of a weight file takes
IMAGENET_DEVIATIONS = (0.229, 0.224, 0.225)  # of red, green and blue, 0 to 1
STEM = "backbone.body.stem.conv1.weight"
STAGES = ("stem", "layer1", "layer2", "layer3")
NAMES_SHOWN = 3


@dataclass(frozen=True)
class StartingReport:
    """What became of the tensors of a weight file and of the detector, by name."""

    source: str
    loaded: tuple[str, ...]  # the detector's
    random: tuple[str, ...]  # the detector's that are not in the file
    other_shape: tuple[str, ...]  # the detector's that the file has in another shape: they are random too
    unused: tuple[str, ...]  # the file's

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        for names, what in (
            (self.random, "not in it and random"),
            (self.other_shape, "of another shape in it and random"),
            (self.unused, "of it not used"),
        ):
            if names:
                more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
                parts.append(f"{len(names)} {what} ({', '.join(names[:NAMES_SHOWN])}{more})")
        return f"detector started from {self.source}: {'; '.join(parts)}"


@torch.no_grad()
def initialise(detector: Detector, generator: torch.Generator) -> None:
    """Random weights as published: Gaussian in the heads, uniform by the number of inputs in the residual networks.

    generator: on the CPU; the detector must be there too.
    """
    for module in detector.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=1, generator=generator)
    head, box, attribute = detector.rpn.head, detector.roi_heads.box.predictor, detector.attribute.predictor
    for layer, deviation in (
        (head.conv, 0.01),
        (head.cls_logits, 0.01),
        (head.bbox_pred, 0.01),
        (box.cls_score, 0.01),
        (box.bbox_pred, 0.001),
        (attribute.fc_attr, 0.01),
        (attribute.attr_score, 0.01),
        (attribute.cls_embedding, 0.01),
    ):
        layer.weight.normal_(0, deviation, generator=generator)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            layer.bias.zero_()


@torch.no_grad()
def load_what_fits(detector: Detector, path: str | Path, colours: str = BGR) -> StartingReport:
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
    matched = match_names(wanted, tensors)
    for alias, original in (SHARED, SHARED[::-1]):  # either name of the shared module will do
        for name in wanted:
            twin = original + name.removeprefix(alias)
            if name.startswith(alias) and name not in matched and twin in matched:
                matched[name] = matched[twin]
    fitting = {name: source for name, source in matched.items() if tensors[source].shape == wanted[name].shape}
    if not any(name.endswith(".weight") for name in fitting):
        raise UserError(f"{path} has no tensor that fits the detector: give a weight file of its architecture.")
    state = {name: tensors[source].detach().float() for name, source in fitting.items()}
    _add_epsilon(state, fitting, tensors)
    if colours == RGB and STEM in state:
        state[STEM] = _taking_bgr(state[STEM])
    detector.load_state_dict(state, strict=False)
    used = set(matched.values())
    return StartingReport(
        source=str(path),
        loaded=tuple(fitting),
        random=tuple(name for name in wanted if name not in matched),
        other_shape=tuple(name for name in matched if name not in fitting),
        unused=tuple(name for name in tensors if name not in used and not name.endswith("num_batches_tracked")),
    )


def freeze_stages(detector: Detector, number: int) -> None:
    """Leaves the first so many stages of the body (stem, layer1, layer2, layer3) as they are.

    Raises:
        UserError: there are fewer stages.
    """
    if not 0 <= number <= len(STAGES):
        raise UserError(f"frozen_stages={number} must be between 0 and {len(STAGES)} ({', '.join(STAGES)}).")
    for name in STAGES[:number]:
        detector.backbone.body.get_submodule(name).requires_grad_(False)


def _add_epsilon(state: dict[str, Tensor], fitting: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    """Ours has no epsilon; a file that counts batches comes from torch's batch norm, which has."""
    for name, source in fitting.items():
        if name.endswith("running_var") and source.removesuffix("running_var") + "num_batches_tracked" in tensors:
            state[name] = state[name] + NORM_EPSILON


def _taking_bgr(weight: Tensor) -> Tensor:
    """The first convolution (out, 3, 7, 7) for blue-green-red of 0 to 255, of one for red-green-blue deviations.

    Both networks are given pictures less the same mean, so that the borders' zeros mean the same too.
    """
    scale = 1 / (255 * weight.new_tensor(IMAGENET_DEVIATIONS))
    return (weight * scale[:, None, None]).flip(1)
