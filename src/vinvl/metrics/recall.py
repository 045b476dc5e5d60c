"""Retrieval: recall at k."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

RECALL_AT = (1, 5, 10)


class RecallAtK(Metric):
    """Retrieval figures of all queries seen, as float64 scalars.

    - "R@1", "R@5", "R@10": percentage of queries whose first match is among the top k (rank < k);
    - "median_rank", "mean_rank": of ranks counted from 1, as tables print them (1 is perfect).

    All are nan if nothing was seen. Every rank is kept (8 bytes, on the device), so the figures do not depend on order,
    batches or ranks. Say beside the numbers whether they are of 1K (one fold, or the mean of five) or 5K images.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    ranks: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("ranks", default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forgets everything seen."""
        super().reset()
        # A process that sees no query must still join the gathering with a tensor of the right type.
        self.ranks = [torch.empty(0, dtype=torch.int64, device=self.device)]

    def update(self, ranks: Tensor) -> None:
        """Adds the ranks (N,) int64 of N queries, counted from 0, as `vinvl.tasks.retrieval_ranks` makes them."""
        if ranks.dtype != torch.int64 or ranks.ndim != 1:
            raise ValueError(f"Expected ranks (N,) int64, got {tuple(ranks.shape)} {ranks.dtype}.")
        self.ranks.append(ranks.detach().to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """Returns the figures; see the class."""
        ranks = dim_zero_cat(self.ranks).sort().values  # (N,)
        total = ranks.numel()
        figures = {f"R@{k}": 100 * (ranks < k).sum(dtype=torch.float64) / total for k in RECALL_AT}
        if total == 0:
            nan = torch.full((), float("nan"), dtype=torch.float64, device=ranks.device)
            return figures | {"median_rank": nan, "mean_rank": nan.clone()}
        middle = ranks[(total - 1) // 2] + ranks[total // 2]
        return figures | {"median_rank": middle.double() / 2 + 1, "mean_rank": ranks.sum().double() / total + 1}
