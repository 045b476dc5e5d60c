"""A mean that does not depend on how the values were divided."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class ExactMean(Metric):
    """Mean of single values, the same to the last bit for every order, batch size and number of ranks.

    Floating-point sums depend on their order. This metric keeps every value (8 bytes each, on the device) and adds them
    in `compute` with `math.fsum`, which rounds only once.
    """

    full_state_update = False
    is_differentiable = False
    values: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("values", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        # A rank that sees no value must still join the gathering with a tensor of the right type.
        self.values = [torch.empty(0, dtype=torch.float64, device=self.device)]

    def update(self, values: Tensor) -> None:
        """Adds values (B,), any float type; a scalar counts as one value."""
        self.values.append(values.detach().reshape(-1).to(device=self.device, dtype=torch.float64))

    def compute(self) -> Tensor:
        """Returns the mean as a float64 scalar; nan if nothing was seen, nan or ±inf if the values hold such."""
        values = dim_zero_cat(self.values)  # (N,)
        if values.numel() == 0 or not bool(values.isfinite().all()):
            return values.mean()
        mean = math.fsum(values.tolist()) / values.numel()
        return torch.tensor(mean, dtype=torch.float64, device=values.device)
