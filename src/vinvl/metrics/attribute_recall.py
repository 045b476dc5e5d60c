"""How many of the annotated attributes a detector names."""

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from vinvl.metrics.detection_matching import FoundBoxes, TrueBoxes, overlaps

FOUND_IOU = 0.5  # of an object with the box that it is looked for in


class AttributeRecall(Metric):
    """Share of the objects' attributes that are named by the box that overlaps the object most, whatever its class.

    Of an object with k attributes, the k most likely ones of the box count: naming all there are earns nothing. Counts
    are whole numbers, so that order, batches and ranks change nothing.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    named: Tensor
    of_found: Tensor
    of_all: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("named", "of_found", "of_all"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self, found: FoundBoxes, found_attributes: np.ndarray, true: TrueBoxes, true_attributes: np.ndarray
    ) -> None:
        """Adds a picture.

        Args:
            found: its n boxes.
            found_attributes: (n, J) int64, the most likely first; entries below 1 name none.
            true: its m objects.
            true_attributes: (m, K) int64; entries below 1 name none. Crowds are passed over.
        """
        annotated = (true_attributes > 0).sum(axis=1) * ~true.crowd  # (m,)
        self.of_all += int(annotated.sum())
        if len(found.labels) == 0 or not annotated.any():
            return
        shared = overlaps(found.boxes, true.boxes, np.zeros_like(true.crowd))  # (n, m)
        box = shared.argmax(axis=0)  # (m,)
        looked_at = (shared.max(axis=0) >= FOUND_IOU) & (annotated > 0)
        most_likely = np.arange(found_attributes.shape[1]) < annotated[:, None]  # (m, J)
        said = np.where(most_likely, found_attributes[box], 0)
        right = (said[:, :, None] == true_attributes[:, None]) & (true_attributes[:, None] > 0)  # (m, J, K)
        self.named += int(right[looked_at].any(axis=1).sum())
        self.of_found += int(annotated[looked_at].sum())

    def compute(self) -> dict[str, Tensor]:
        """`all`: of the attributes of all objects; `found`: of those that some box overlaps by half. Float64 between 0
        and 1, nan where there are none."""
        return {"all": self.named.double() / self.of_all, "found": self.named.double() / self.of_found}
