"""How the detector is trained: what counts as found, how much is looked at, how losses are weighed."""

from __future__ import annotations

from dataclasses import dataclass

from vinvl.errors import UserError


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
