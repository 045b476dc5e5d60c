"""What a detector is (its architecture) and how it is used (sizes, thresholds, which boxes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vinvl.run.errors import UserError

# How the detector is trained: what counts as found, how much is looked at, how losses are weighed.


@dataclass(frozen=True)
class TrainingSettings:
    """The defaults are those of maskrcnn-benchmark (config/defaults.py) and, for attributes, of scene_graph_benchmark
    (config/sg_defaults.py), which VinVL's detector was trained with.

    Args:
        rpn_foreground_iou, rpn_background_iou: an anchor that overlaps an object at least so much is one to be found,
            one that overlaps none so much shows background; between them it is left out.
        straddle: pixels that an anchor may reach out of the image and still be learnt from; negative: any number.
        rpn_samples, rpn_positive_fraction: anchors of an image that are learnt from, and how many may show objects.
        rpn_candidates, rpn_proposals: as in `DetectorConfig`, in training.
        foreground_iou: a region that overlaps an object at least so much is it, any other is background.
        region_samples, region_positive_fraction: regions of an image that are learnt from; see above.
        attribute_loss_weight: of the attributes' loss in the sum of all; those of the others are 1.

    Raises:
        UserError: settings out of range.
    """

    rpn_foreground_iou: float = 0.7
    rpn_background_iou: float = 0.3
    straddle: int = 0
    rpn_samples: int = 256
    rpn_positive_fraction: float = 0.5
    rpn_candidates: int = 12000
    rpn_proposals: int = 2000
    foreground_iou: float = 0.5
    region_samples: int = 512
    region_positive_fraction: float = 0.25
    attribute_loss_weight: float = 0.5

    def __post_init__(self) -> None:
        for name in ("rpn_samples", "rpn_candidates", "rpn_proposals", "region_samples"):
            if getattr(self, name) < 1:
                raise UserError(f"training {name}={getattr(self, name)} must be at least 1.")
        for name in ("rpn_foreground_iou", "rpn_positive_fraction", "foreground_iou", "region_positive_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"training {name}={getattr(self, name)} must be above 0 and at most 1.")
        if not 0 <= self.rpn_background_iou <= self.rpn_foreground_iou:
            raise UserError(
                f"training rpn_background_iou={self.rpn_background_iou} must be between 0 and "
                f"rpn_foreground_iou={self.rpn_foreground_iou}."
            )
        if self.attribute_loss_weight < 0:
            raise UserError(f"training attribute_loss_weight={self.attribute_loss_weight} must not be negative.")


REGRESSED, PROPOSALS = "regressed", "proposals"
PER_CLASS, CLASS_AGNOSTIC = 1, 2  # the published NMS_FILTER


@dataclass(frozen=True)
class Architecture:
    """What the weights fix. The defaults are AttrRCNN ResNeXt-152 (32×8d) C4, VinVL's detector.

    Channels double from stage to stage; all convolutions of a bottleneck's middle have `groups` groups.
    """

    blocks: Sequence[int] = (3, 8, 36, 3)  # of the stages 1 to 3 (the body, up to C4) and 4 (the C5 head)
    stem_channels: int = 64
    first_stage_channels: int = 256
    groups: int = 32
    width_per_group: int = 8
    anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512)  # pixels of the network's input
    anchor_ratios: Sequence[float] = (0.5, 1.0, 2.0)  # height / width
    num_classes: int = 1595  # with the background, class 0
    num_attributes: int = 525  # with "no attribute", attribute 0
    class_embedding_size: int = 256
    attribute_hidden_size: int = 512

    def __post_init__(self) -> None:
        for name in ("blocks", "anchor_sizes", "anchor_ratios"):  # lists, where they come from a configuration file
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.blocks) != 4:
            raise UserError(f"architecture.blocks={list(self.blocks)} must give the blocks of 4 stages.")

    @property
    def c4_channels(self) -> int:
        return self.first_stage_channels * 4

    @property
    def c5_channels(self) -> int:
        """The size of a region's feature vector: 2048 for VinVL's detector."""
        return self.first_stage_channels * 8

    @property
    def num_anchors(self) -> int:
        """Anchors in a cell of the C4 map."""
        return len(self.anchor_sizes) * len(self.anchor_ratios)


@dataclass(frozen=True)
class DetectorConfig:
    """How images become regions. Features made with other settings are other features: store these with them.

    Args:
        architecture: what the weights fix.
        min_size, max_size: pixels; the shorter side becomes min_size, less if the longer would exceed max_size.
        pad_multiple: a batch is zero-padded at the bottom and right to a multiple of it; 1 pads to the largest image.
        rpn_candidates, rpn_proposals: boxes of an image before and after the RPN's NMS at IoU `rpn_nms_threshold`.
        boxes: "regressed" refines a proposal for its class; "proposals" leaves it (the published
            IGNORE_BOX_REGRESSION). Features are the proposal's in both.
        nms_filter: 1: NMS within each class at `class_nms_threshold`, then a proposal's best class that survived;
            2: one NMS at `agnostic_nms_threshold` over the best class of each proposal, only with boxes="proposals".
        score_threshold, min_boxes, max_boxes: all boxes with at least this score, but not fewer or more than these.
        attribute_threshold, attributes_per_box: attributes above this probability, of them at most this many.
        boxes_per_pass: regions that the C5 head takes at once; bounds memory and does not change the result.

    Raises:
        UserError: settings that contradict each other.
    """

    architecture: Architecture = field(default_factory=Architecture)
    min_size: int = 600
    max_size: int = 1000
    pad_multiple: int = 1
    rpn_candidates: int = 6000
    rpn_proposals: int = 300
    rpn_nms_threshold: float = 0.7
    boxes: str = REGRESSED
    nms_filter: int = PER_CLASS
    class_nms_threshold: float = 0.3
    agnostic_nms_threshold: float = 0.5
    score_threshold: float = 0.2
    min_boxes: int = 10
    max_boxes: int = 100
    attribute_threshold: float = 0.05
    attributes_per_box: int = 16
    boxes_per_pass: int = 100

    @classmethod
    def of_plain(cls, fields: Mapping[str, Any]) -> DetectorConfig:
        """From the fields in plain types, as `dataclasses.asdict` gives them."""
        return cls(**{**fields, "architecture": Architecture(**fields["architecture"])})

    def __post_init__(self) -> None:
        if self.boxes not in (REGRESSED, PROPOSALS):
            raise UserError(f"detector boxes={self.boxes!r} is unknown: give {REGRESSED} or {PROPOSALS}.")
        if self.nms_filter not in (PER_CLASS, CLASS_AGNOSTIC):
            raise UserError(
                f"detector nms_filter={self.nms_filter!r} is unknown: give 1 (per class) or 2 (all classes)."
            )
        if self.nms_filter == CLASS_AGNOSTIC and self.boxes != PROPOSALS:
            raise UserError("detector nms_filter=2 has one box for all classes: give boxes=proposals with it.")
        if not 0 <= self.min_boxes <= self.max_boxes:
            raise UserError(
                f"detector min_boxes={self.min_boxes} and max_boxes={self.max_boxes} leave no number of boxes between "
                "them: give 0 <= min_boxes <= max_boxes."
            )
        sizes = ("min_size", "max_size", "pad_multiple", "rpn_candidates", "rpn_proposals", "max_boxes")
        for name in (*sizes, "attributes_per_box", "boxes_per_pass"):
            if getattr(self, name) < 1:
                raise UserError(f"detector {name}={getattr(self, name)} must be at least 1.")
        if self.min_size > self.max_size:
            raise UserError(f"detector min_size={self.min_size} must not exceed max_size={self.max_size}.")


def published_config(pipeline: str) -> DetectorConfig:
    """The settings of one published pipeline.

    Args:
        pipeline: "mmf" (MMF's extraction script), "demo" (the published demo), "readme" (the published README's
            extraction) or "released" (the released feature files, as far as their folder's name tells: NMS_FILTER 2 and
            threshold 0.2; that their boxes are proposals and the padding is the batch's is assumed).

    Raises:
        UserError: another name.
    """
    match pipeline:
        case "mmf":
            return DetectorConfig(pad_multiple=32)
        case "demo":
            return DetectorConfig()
        case "readme":
            return DetectorConfig(boxes=PROPOSALS)
        case "released":
            return DetectorConfig(boxes=PROPOSALS, nms_filter=CLASS_AGNOSTIC)
    raise UserError(f"There is no published detector pipeline {pipeline!r}: give mmf, demo, readme or released.")
