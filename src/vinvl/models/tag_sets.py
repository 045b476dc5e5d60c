"""Hidden tags guessed as a set (VIVO, Hu et al. 2021, section 3.2): which position is asked for which of the tags.

An image's tags have no order, so a model that sees two [MASK]s cannot know which of two hidden tags each stands for.
The true tokens are therefore given to the positions in the way that suits the guesses best.

Shapes: M hidden tokens in the batch, V words, K hidden tokens of a row at most.
"""

import numpy as np
import torch
from torch import Tensor


@torch.no_grad()
def matched_tags(logits: Tensor, masked_ids: Tensor, rows: Tensor, most: int) -> Tensor:
    """The true token of each hidden position when the tokens of a row are given to its positions as suits best.

    Of all ways to give a row's tokens to its positions, one each, the one with the smallest sum of 1 - p(token), which
    the Hungarian algorithm finds. Tokens are given out one by one: a tag of several pieces is as many tokens, so that
    its pieces may go to positions that do not follow each other, or in another order.

    Args:
        logits: (M, V) float.
        masked_ids: (M,) int64, the true tokens in any order within a row.
        rows: (M,) int64, the row that each is of, rising.
        most: K, no row has more.

    Returns:
        (M,) int64, in each row the same tokens; without a gradient. The host waits for the device once.
    """
    # By number within each row: which of equally good ways is taken does not depend on the order that was given either.
    words = logits.shape[1]
    masked_ids = (rows * words + masked_ids).sort().values % words
    place = torch.arange(len(rows), device=rows.device)
    within = place - torch.searchsorted(rows, rows)  # of its row's hidden tokens the 0th, 1st, …
    # (M, K): which of all tokens the K of the own row are; past a row's end any, which nobody looks at.
    of_row = (place - within)[:, None] + torch.arange(most, device=rows.device)
    candidates = masked_ids[of_row.clamp(max=max(len(rows) - 1, 0))]
    log_p = logits.float().gather(1, candidates) - logits.float().logsumexp(dim=1, keepdim=True)
    p = torch.nan_to_num(log_p.exp())  # of weights that are no numbers any more the loss tells, not the matching
    chosen = _assigned(torch.cat([p, rows[:, None].to(p)], dim=1).cpu().numpy())
    return masked_ids[torch.from_numpy(chosen).to(masked_ids.device)]


def _assigned(table: np.ndarray) -> np.ndarray:
    """(M,) int64: which of all tokens each position gets; of a table (M, K + 1), probabilities and the row's number."""
    chosen = np.arange(len(table))
    starts = np.flatnonzero(np.diff(table[:, -1], prepend=-1))
    counts = np.diff(starts, append=len(table))
    for start, count in zip(starts[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        block = table[start : start + count, :count]
        chosen[start : start + count] = start + assignment(block)
    return chosen


def assignment(p: np.ndarray) -> np.ndarray:
    """(n,): of p (n, n) the column of each row, no two the same, with the smallest sum of 1 - p."""
    from scipy.optimize import linear_sum_assignment  # half a second, which only VIVO needs

    columns: np.ndarray = linear_sum_assignment(p, maximize=True)[1]
    return columns
