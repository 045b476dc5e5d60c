"""What training starts from: random numbers, a weight file as far as it fits, and what stays as it is.

The published detector, fine-tuned from an ImageNet network, keeps its batch norm frozen; random weights hardly learn
without it. So it is trained and then folded into the same constants, exactly.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vinvl.detector.detector import Detector
from vinvl.detector.networks import FrozenBatchNorm2d
from vinvl.detector.vocabulary import ClassMap, map_of_names, name_maps
from vinvl.detector.weights import (
    COMPUTED,
    LoadingReport,
    find_weights,
    labels_beside,
    read_detector_weights,
    read_settings,
    some,
    sources_of,
    unused_of,
)
from vinvl.regions.regions import LabelMap
from vinvl.run.errors import UserError
from vinvl.run.files import read_bytes
from vinvl.run.restricted_pickle import load_restricted

NORM_EPSILON = 1e-5  # torch's, added to the variances; ours has none
BGR, RGB = "bgr", "rgb"  # what the first convolution of a weight file takes
IMAGENET_DEVIATIONS = (0.229, 0.224, 0.225)  # of red, green and blue, 0 to 1
STEM = "backbone.body.stem.conv1.weight"
STAGES = ("stem", "layer1", "layer2", "layer3")
CAFFE2 = ".pkl"
CAFFE2_NAME = re.compile(r"(?:res_)?conv1|res([2-5])_(\d{1,3})_branch(1|2a|2b|2c)")
CAFFE2_KINDS = {"_w": ("conv", "weight"), "_bn_s": ("bn", "weight"), "_bn_b": ("bn", "bias")}
BY_INDEX, ANEW = "by_index", "anew"  # instead of a label map
NETWORK = ("backbone.", "roi_heads.box.feature_extractor.", "attribute.feature_extractor.")
ATTRIBUTE_HEAD = "attribute.predictor."
OF_ANCHORS = ("rpn.head.cls_logits.", "rpn.head.bbox_pred.")  # which mean the anchors that they were trained with


class _Kind(NamedTuple):
    """What the rows of the last layers stand for, and which these are: one row for each, four of boxes."""

    noun: str
    layers: tuple[str, ...]


CLASSES = _Kind(
    "classes",
    (
        "roi_heads.box.predictor.cls_score.weight",
        "roi_heads.box.predictor.cls_score.bias",
        "roi_heads.box.predictor.bbox_pred.weight",
        "roi_heads.box.predictor.bbox_pred.bias",
        "attribute.predictor.cls_embedding.weight",
    ),
)
ATTRIBUTES = _Kind("attributes", ("attribute.predictor.attr_score.weight", "attribute.predictor.attr_score.bias"))

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
    head, box = detector.rpn.head, detector.roi_heads.box.predictor
    layers: list[nn.Conv2d | nn.Linear | nn.Embedding] = [head.conv, head.cls_logits, head.bbox_pred, box.cls_score]
    layers.append(box.bbox_pred)
    if detector.attribute is not None:
        attribute = detector.attribute.predictor
        layers += [attribute.fc_attr, attribute.attr_score, attribute.cls_embedding]
    for layer in layers:
        layer.weight.normal_(0, 0.001 if layer is box.bbox_pred else 0.01, generator=generator)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            layer.bias.zero_()


@torch.no_grad()
def load_what_fits(
    detector: Detector, path: str | Path, labels: LabelMap, their_labels: str | None = None, colours: str = BGR
) -> LoadingReport:
    """Takes the tensors of a weight file that the detector has a place for; the others stay as they are.

    The last layers have rows for classes and attributes, which are taken over by name.

    Args:
        detector: with frozen batch norm.
        path: a detector's weight file, ours or a published one, also by a name on the hub (`find_weights`); or that of
            a residual network for whole pictures, whose stages 1 to 4 are those of the detector: with torchvision's
            names (conv1, layer1.0.conv1, …), or the .pkl of Caffe2 that Detectron published (X-152-32x8d-IN5k.pkl).
        labels: what the detector's rows stand for.
        their_labels: what the file's rows stand for: a file that `name_maps` reads; "by_index": the same as ours, as
            far as there are as many; "anew": these layers are left as they are. None: what a file of ours says, or the
            published label map, if that is beside the weights and fits them.
        colours: what that network was trained on: "bgr", 0 to 255, as the detector is; or "rgb", 0 to 1, divided by
            ImageNet's deviations, as torchvision's networks are: its first convolution is rewritten to take the former.

    Raises:
        UserError: the file cannot be read, is of another network, or does not say what its rows stand for; or
            `colours` is neither.
    """
    if colours not in (BGR, RGB):
        raise UserError(f"init_colours={colours!r} is unknown: give {BGR} or {RGB}.")
    path, hub_name = find_weights(path)
    tensors = caffe2_tensors(path) if Path(path).suffix == CAFFE2 else read_detector_weights(path)
    wanted = {name: tensor for name, tensor in detector.state_dict().items() if name != COMPUTED}
    matched = sources_of(wanted, tensors)
    _refuse_another_network(path, matched, wanted, tensors)
    found = {name: tensors[source] for name, source in matched.items()}
    if len(labels.attributes) > 1 and len(found.get(ATTRIBUTES.layers[0], ())) == 1:  # it has never learnt any
        found = {name: tensor for name, tensor in found.items() if not name.startswith(ATTRIBUTE_HEAD)}
    state, told = _rows_taken_over(path, labels, their_labels, wanted, found)
    anchors, own_anchors = tensors.get(COMPUTED), detector.state_dict()[COMPUTED]
    if anchors is not None and (anchors.shape != own_anchors.shape or not own_anchors.allclose(anchors.float())):
        told += ("its anchors are others, so what is said of anchors is learnt anew",)
        found = {name: tensor for name, tensor in found.items() if not name.startswith(OF_ANCHORS)}
    last = (*CLASSES.layers, *ATTRIBUTES.layers)
    for name, tensor in found.items():
        if name not in last and tensor.shape == wanted[name].shape:
            state[name] = tensor.detach().float()
            counted = matched[name].removesuffix("running_var") + "num_batches_tracked" in tensors
            if name.endswith("running_var") and counted:  # by torch's batch norm
                state[name] = state[name] + NORM_EPSILON
    if not any(name.endswith(".weight") for name in state):
        raise UserError(f"{path} has no tensor that fits the detector: give a weight file of its architecture.")
    if colours == RGB and STEM in state:
        state[STEM] = _taking_bgr(state[STEM])
    detector.load_state_dict(state, strict=False)
    return LoadingReport(
        source=hub_name or str(path),
        loaded=tuple(name for name in wanted if name in state),
        unused=tuple(
            name for name in unused_of(matched, tensors) if not name.endswith(("num_batches_tracked", COMPUTED))
        ),
        random=tuple(name for name in wanted if name not in found),
        other_shape=tuple(name for name in found if name not in state and name not in last),
        rows=told,
    )


def _taking_bgr(stem: Tensor) -> Tensor:
    """A first convolution (n, 3, 7, 7) for red, green and blue, 0 to 1 and normalised, rewritten for our pictures.

    Both are given pictures less the same mean, so that the borders' zeros mean the same too.
    """
    scale = 1 / (255 * stem.new_tensor(IMAGENET_DEVIATIONS))
    return (stem * scale[:, None, None]).flip(1)


def caffe2_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a residual network that Detectron published for Caffe2, with torchvision's names, float32.

    The statistics of its batch norm are in the scales and shifts already; here they are 0 and 1. No code is run.

    Raises UserError if the file is missing, damaged, or holds something else.
    """
    content = load_restricted(read_bytes(path), str(path))
    blobs = content.get("blobs", content) if isinstance(content, dict) else None
    tensors: dict[str, Tensor] = {}
    for name, value in blobs.items() if isinstance(blobs, dict) else ():
        if not isinstance(name, str) or not isinstance(value, np.ndarray) or name.endswith("_momentum"):
            continue
        ours = _name_of_caffe2(name)
        if value.dtype.kind != "f" or not np.isfinite(value).all():
            raise UserError(f"{path}: {name[:80]!r} holds no finite numbers: the file is damaged, get it again.")
        tensors[ours or name] = torch.from_numpy(value.astype(np.float32))
        if ours is None and name.startswith("res"):
            raise UserError(
                f"{path} has {name[:80]!r}, which is neither a convolution nor the scale or shift after one: give a "
                "network as Detectron published it (w, bn_s and bn_b of every convolution)."
            )
        if name.endswith("_bn_s"):
            norm = (ours or name).removesuffix("weight")
            tensors |= {f"{norm}running_mean": torch.zeros(len(value)), f"{norm}running_var": torch.ones(len(value))}
    if "conv1.weight" not in tensors:
        raise UserError(f"{path} is no residual network of Caffe2: it has no conv1_w. Give weights by torch.save.")
    return tensors


def _name_of_caffe2(name: str) -> str | None:
    """The name that torchvision has for a tensor of a stage; None for any other."""
    stem = next((name.removesuffix(end) for end in CAFFE2_KINDS if name.endswith(end)), name)
    found = CAFFE2_NAME.fullmatch(stem)
    if found is None or stem == name:
        return None
    kind, what = CAFFE2_KINDS[name[len(stem) :]]
    number, block, branch = found.groups()
    if branch == "1":
        return f"layer{int(number) - 1}.{block}.downsample.{('conv', 'bn').index(kind)}.{what}"
    place = f"layer{int(number) - 1}.{block}." if number else ""
    return f"{place}{kind}{'abc'.index(branch[1]) + 1 if branch else 1}.{what}"


def _refuse_another_network(
    path: str | Path, matched: Mapping[str, str], wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Raises UserError where a tensor of a stage has another shape; the small layers after them may differ."""
    for name, source in matched.items():
        there, here = tuple(tensors[source].shape), tuple(wanted[name].shape)
        if name.startswith(NETWORK) and there != here:
            raise UserError(
                f"{path}: {source} has the shape {there}, the detector's {name} has {here}: it is another network. "
                "Choose the detector of the weights (detector=NAME, detector.architecture.…)."
            )


def _rows_taken_over(
    path: str | Path,
    labels: LabelMap,
    their_labels: str | None,
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The detector's last layers with rows of a file's, and sentences about them.

    `wanted`, `found`: the tensors of the detector, and the file's by the same names.
    """
    numbers = {kind: len(found[kind.layers[0]]) for kind in (CLASSES, ATTRIBUTES) if kind.layers[0] in found}
    told, state = [], dict[str, Tensor]()
    if CLASSES in numbers and ATTRIBUTES not in numbers and len(labels.attributes) > 1:
        told.append("it has no attributes, so their head is learnt anew")
    if their_labels == ANEW:
        return {}, (*told, *(f"its {kind.noun} are not taken over" for kind in numbers))
    theirs = _their_names(path, their_labels, labels, numbers) if numbers else {}
    for kind, number in numbers.items():
        ours = getattr(labels, kind.noun)
        if len(ours) <= 1:
            continue
        at = {row: theirs[kind].find(name) if theirs else row for row, name in enumerate(ours) if row > 0}
        rows = {row: source for row, source in at.items() if source is not None and source < number}
        for name in filter(found.__contains__, kind.layers if rows else ()):
            layer = _with_rows(wanted[name], found[name], {0: 0, **rows}, len(ours), number)
            if layer is None:
                told.append(f"its {name} has the shape {tuple(found[name].shape)}, so ours is learnt anew")
            else:
                state[name] = layer
        new = [ours[row] for row in at if row not in rows]
        anew = f", {len(new):,} learnt anew ({some(new)})" if new else ""
        told.append(f"{len(rows):,} of {len(at):,} {kind.noun} by {'name' if theirs else 'index'}{anew}")
    return state, tuple(told)


def _with_rows(wanted: Tensor, found: Tensor, rows: Mapping[int, int], ours: int, theirs: int) -> Tensor | None:
    """A layer with rows (index → the file's) of another; None where that has not the same number for each of `theirs`.

    `ours`, `theirs`: classes or attributes of either.
    """
    of_each = len(wanted) // ours
    if found.shape != (of_each * theirs, *wanted.shape[1:]):
        return None
    layer = wanted.clone()
    of_ours, of_theirs = layer.unflatten(0, (ours, of_each)), found.float().unflatten(0, (theirs, of_each))
    of_ours[list(rows)] = of_theirs[list(rows.values())]
    return layer


def _their_names(
    path: str | Path, given: str | None, ours: LabelMap, numbers: Mapping[_Kind, int]
) -> dict[_Kind, ClassMap]:
    """What the rows of a weight file stand for; {}: the same as ours, by index.

    Raises UserError where that is not known, or is known to be something else.
    """
    own, beside = read_settings(path), labels_beside(Path(path), numbers.get(CLASSES, 0))
    if given == BY_INDEX:
        if own is not None:
            _refuse_other_names(path, own.label_map, ours)
        return {}
    maps: tuple[ClassMap, ...] = ()
    if given is None and own is not None:
        maps = tuple(map_of_names(names, str(path)) for names in (own.label_map.classes, own.label_map.attributes))
    elif given is not None or beside.is_file():
        maps = name_maps(given or beside)
    theirs = dict(zip((CLASSES, ATTRIBUTES), maps, strict=False))
    problem = "" if theirs else f"{path} does not say what the {numbers[CLASSES]:,} rows of its classifier stand for"
    for kind, names in theirs.items():
        rows, of_file = set(names.indices.values()), numbers.get(kind, 0)
        whole = len(rows) == max(rows, default=0)  # otherwise the rows of some names
        if not problem and of_file and rows and (max(rows) >= of_file or (whole and len(rows) != of_file - 1)):
            problem = f"{names.source} names {max(rows):,} {kind.noun}, and {path} has {of_file - 1:,}"
    if problem:
        raise UserError(
            f"{problem}: give start.init_labels=FILE, the label map of these weights (or JSON of names and rows), "
            f"start.init_labels={BY_INDEX} if every row stands for the same as ours (Visual Genome's are the first of "
            f"the four sets'), or start.init_labels={ANEW} to learn these layers anew."
        )
    return theirs


def _refuse_other_names(path: str | Path, theirs: LabelMap, ours: LabelMap) -> None:
    """Raises UserError where a row of ours stands for something else in a file."""
    for noun in ("classes", "attributes"):
        for row, (there, here) in enumerate(zip(getattr(theirs, noun), getattr(ours, noun), strict=False)):
            if row > 0 and there != here:
                raise UserError(
                    f"start.init_labels={BY_INDEX}: row {row} of {path} is {there!r} among its {noun}, and {here!r} "
                    "here: leave start.init_labels out, and rows are taken over by name."
                )


def freeze_stages(detector: Detector, number: int) -> None:
    """Leaves the first so many stages of the body as they are. Raises UserError if there are fewer."""
    if not 0 <= number <= len(STAGES):
        raise UserError(f"frozen_stages={number} must be between 0 and {len(STAGES)} ({', '.join(STAGES)}).")
    for name in STAGES[:number]:
        detector.backbone.body.get_submodule(name).requires_grad_(False)
