"""Retrieval: the rank of the first right item, and recall at k."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from vinvl.errors import UserError

RECALL_AT = (1, 5, 10)
_CELLS_AT_A_TIME = 1 << 24  # of the score matrix: bounds the memory of the comparisons


def ranks_of_first_match(scores: Tensor, matches: Tensor) -> Tensor:
    """Rank (Q,) int64 of the best-placed match of each query, 0 for the top; scores and matches (Q, N), matches bool.

    Items are ordered by falling score; of equal scores the *later* item comes first. That is what the published code's
    ascending sort, reversed, gives where the sort is stable. (Published code sorts with NumPy's default, which beyond
    16 items leaves the order of ties open: there, the rule is ours.) No sorting takes place: items placed before the
    best match are counted.

    Raises UserError if a query has no match or a score is nan, ValueError if the shapes or types do not fit.
    """
    if scores.ndim != 2 or scores.shape != matches.shape or matches.dtype != torch.bool:
        raise ValueError(
            f"Expected scores and bool matches of one shape (Q, N), got {tuple(scores.shape)} and "
            f"{tuple(matches.shape)} {matches.dtype}."
        )
    ranks = [_ranks(scores[rows], matches[rows], rows.start) for rows in _row_slices(*scores.shape)]
    return torch.cat([*ranks, torch.empty(0, dtype=torch.int64, device=scores.device)])


def image_to_text_ranks(scores: Tensor, image_of_caption: Tensor) -> Tensor:
    """Rank (I,) int64 of the best of each image's own captions among all C.

    scores (I, C) of every image with every caption; image_of_caption (C,) int64, the row of each caption's image. For
    ties and errors see `ranks_of_first_match`.
    """
    _check_pairing(scores, image_of_caption)
    ranks = []
    for rows in _row_slices(*scores.shape):
        images = torch.arange(rows.start, rows.stop, device=scores.device)
        ranks.append(_ranks(scores[rows], image_of_caption.to(scores.device) == images[:, None], rows.start))
    return torch.cat([*ranks, torch.empty(0, dtype=torch.int64, device=scores.device)])


def text_to_image_ranks(scores: Tensor, image_of_caption: Tensor) -> Tensor:
    """Rank (C,) int64 of each caption's image among all I images; arguments, ties and errors as for the other way."""
    _check_pairing(scores, image_of_caption)
    by_caption = scores.T
    ranks = []
    for rows in _row_slices(*by_caption.shape):
        images = torch.arange(scores.shape[0], device=scores.device)
        matches = image_of_caption[rows].to(scores.device)[:, None] == images
        ranks.append(_ranks(by_caption[rows], matches, rows.start))
    return torch.cat([*ranks, torch.empty(0, dtype=torch.int64, device=scores.device)])


def _check_pairing(scores: Tensor, image_of_caption: Tensor) -> None:
    if scores.ndim != 2 or image_of_caption.shape != scores.shape[1:]:
        raise ValueError(
            f"Expected scores (I, C) and the image of each caption (C,), got {tuple(scores.shape)} and "
            f"{tuple(image_of_caption.shape)}."
        )


def _row_slices(num_rows: int, num_columns: int) -> Iterator[slice]:
    step = max(1, _CELLS_AT_A_TIME // max(1, num_columns))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def _ranks(scores: Tensor, matches: Tensor, first_row: int) -> Tensor:
    """`ranks_of_first_match` for some rows; `first_row` is the number of the first, for the error sentences."""
    bad = scores.isnan().any(dim=1)
    if bool(bad.any()):
        raise UserError(f"The scores of query {first_row + int(bad.int().argmax())} hold nan; the model went astray.")
    bare = ~matches.any(dim=1)
    if bool(bare.any()):
        raise UserError(
            f"Query {first_row + int(bare.int().argmax())} has no matching item, so its rank is not defined; leave it "
            "out or add its match."
        )
    columns = torch.arange(scores.shape[1], device=scores.device)
    best = scores.masked_fill(~matches, float("-inf")).amax(dim=1, keepdim=True)  # (Q, 1)
    place = torch.where(matches & (scores == best), columns, -1).amax(dim=1, keepdim=True)  # (Q, 1)
    before = (scores > best) | ((scores == best) & (columns > place))
    return before.sum(dim=1)


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
        """Adds the ranks (N,) int64 of N queries, counted from 0, as `image_to_text_ranks` returns them."""
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
