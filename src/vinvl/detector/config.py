"""What a detector is (its architecture), how it is used (sizes, thresholds, which boxes), and how it is trained."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from vinvl.run.errors import UserError
from vinvl.run.values import check_fields

LARGEST = 2**20  # that a setting may be: more is a damaged file, and would take for ever to build
Count = Annotated[int, Meta(ge=1, le=LARGEST)]
Number = Annotated[float, Meta(ge=0, le=LARGEST)]
Ratio = Annotated[float, Meta(gt=0, le=LARGEST)]
Share = Annotated[float, Meta(gt=0, le=1)]
ONCE: Final = "once"


def refuse_falling(settings: Any, prefix: str, *pairs: tuple[str, str]) -> None:
    """Raises UserError where the first of two settings is above the second."""
    for least, most in pairs:
        low, high = getattr(settings, least), getattr(settings, most)
        if low > high:
            raise UserError(f"{prefix}{least}={low} must not exceed {most}={high}.")


@dataclass(frozen=True)
class TrainingSettings:
    """The defaults are those of maskrcnn-benchmark (config/defaults.py) and, for attributes, of scene_graph_benchmark
    (config/sg_defaults.py), which VinVL's detector was trained with. Raises UserError for settings out of range.

    Args:
        rpn_foreground_iou, rpn_background_iou: an anchor that overlaps an object at least so much is one to be found,
            one that overlaps none so much shows background; between them it is left out.
        straddle: pixels that an anchor may reach out of the image and still be learnt from; negative: any number.
        rpn_samples, rpn_positive_fraction: anchors of an image that are learnt from, and how many may show objects.
        rpn_candidates, rpn_proposals: as in `DetectorConfig`, in training.
        foreground_iou: a region that overlaps an object at least so much is it, any other is background.
        region_samples, region_positive_fraction: regions of an image that are learnt from; see above.
        attribute_loss_weight: of the attributes' loss in the sum of all; those of the others are 1.
        repeated_attributes: of an attribute that an object lists twice: "once" counts it once, so that the targets of
            an object sum to 1; "as_published" divides by the length of the list, as the published code does, so that
            they sum to less, and a slip of who annotated weakens the object.
    """

    rpn_foreground_iou: Share = 0.7
    rpn_background_iou: Number = 0.3
    straddle: int = 0
    rpn_samples: Count = 256
    rpn_positive_fraction: Share = 0.5
    rpn_candidates: Count = 12000
    rpn_proposals: Count = 2000
    foreground_iou: Share = 0.5
    region_samples: Count = 512
    region_positive_fraction: Share = 0.25
    attribute_loss_weight: Number = 0.5
    repeated_attributes: Literal["once", "as_published"] = ONCE

    def __post_init__(self) -> None:
        check_fields(self, "training ")
        refuse_falling(self, "training ", ("rpn_background_iou", "rpn_foreground_iou"))


@dataclass(frozen=True)
class Architecture:
    """What the weights fix. The defaults are AttrRCNN ResNeXt-152 (32×8d) C4, VinVL's detector.

    Channels double from stage to stage; all convolutions of a bottleneck's middle have `groups` groups. Raises
    UserError where a setting is out of range.
    """

    # Blocks of the stages 1 to 3 (the body, up to C4) and 4 (the C5 head).
    blocks: Annotated[Sequence[Count], Meta(min_length=4, max_length=4)] = (3, 8, 36, 3)
    stem_channels: Count = 64
    first_stage_channels: Count = 256
    groups: Count = 32
    width_per_group: Count = 8
    # Pixels of the network's input, and height / width.
    anchor_sizes: Annotated[Sequence[Count], Meta(min_length=1, max_length=100)] = (32, 64, 128, 256, 512)
    anchor_ratios: Annotated[Sequence[Ratio], Meta(min_length=1, max_length=100)] = (0.5, 1.0, 2.0)
    num_classes: Count = 1595  # with the background, class 0
    num_attributes: Annotated[int, Meta(ge=0, le=LARGEST)] = 525  # with "no attribute", 0; without a head for them 0
    class_embedding_size: Count = 256
    attribute_hidden_size: Count = 512

    def __post_init__(self) -> None:
        for name in ("blocks", "anchor_sizes", "anchor_ratios"):  # lists, where they come from a configuration file
            given = getattr(self, name)
            object.__setattr__(self, name, tuple(given) if isinstance(given, Sequence) else given)
        check_fields(self, "detector architecture.")

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

    Raises UserError for settings out of range, or that contradict each other.

    Args:
        architecture: what the weights fix.
        min_size, max_size: pixels; the shorter side becomes min_size, less if the longer would exceed max_size.
        pad_multiple: a batch is zero-padded at the bottom and right to a multiple of it; 1 pads to the largest image.
        rpn_candidates, rpn_proposals: boxes of an image before and after the RPN's NMS at IoU `rpn_nms_threshold`.
        boxes: "regressed" refines a proposal for its class; "proposals" leaves it (the published
            IGNORE_BOX_REGRESSION). Features are the proposal's in both.
        nms_filter: the published NMS_FILTER; 0: NMS within each class at `agnostic_nms_threshold` (the published
            ROI_HEADS.NMS) and all classes that survived, so that a box may come several times; 1: NMS within each class
            at `class_nms_threshold`, then a proposal's best class that survived; 2: one NMS at
            `agnostic_nms_threshold` over the best class of each proposal, only with boxes="proposals".
        score_threshold, min_boxes, max_boxes: all boxes with at least this score, but not fewer or more than these.
            With nms_filter=0 all above it, which is halved at most ten times where they are fewer, and more where
            several score as the last one.
        attribute_threshold, attributes_per_box: attributes above this probability, of them at most this many.
        boxes_per_pass: regions that the C5 head takes at once; bounds memory and does not change the result.
    """

    architecture: Architecture = Architecture()
    min_size: Count = 600
    max_size: Count = 1000
    pad_multiple: Count = 1
    rpn_candidates: Count = 6000
    rpn_proposals: Count = 300
    rpn_nms_threshold: Number = 0.7
    boxes: Literal["regressed", "proposals"] = "regressed"
    nms_filter: Literal[0, 1, 2] = 1
    class_nms_threshold: Number = 0.3
    agnostic_nms_threshold: Number = 0.5
    score_threshold: Number = 0.2
    min_boxes: Annotated[int, Meta(ge=0)] = 10
    max_boxes: Count = 100
    attribute_threshold: Number = 0.05
    attributes_per_box: Count = 16
    boxes_per_pass: Count = 100

    def plain(self) -> dict[str, Any]:
        """The fields in the types of JSON: lists for tuples."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def of_plain(cls, fields: Mapping[str, Any]) -> DetectorConfig:
        """From `plain` fields."""
        return cls(**{**fields, "architecture": Architecture(**fields["architecture"])})

    def __post_init__(self) -> None:
        check_fields(self, "detector ")
        if self.nms_filter == 2 and self.boxes != "proposals":
            raise UserError("detector nms_filter=2 has one box for all classes: give boxes=proposals with it.")
        refuse_falling(self, "detector ", ("min_boxes", "max_boxes"), ("min_size", "max_size"))
