"""A caption and an image's tags as one text, cut as image-text retrieval cuts it, and its masks of who sees whom."""

import numpy as np
import torch
from torch import Tensor

from vinvl.data.batch import Batch
from vinvl.data.text import SpecialTokens
from vinvl.errors import UserError

PADDING, CAPTION, TAGS, REGIONS = range(4)  # the parts of a joint sequence
CROSS_PAIRS = {"CL": (CAPTION, TAGS), "CR": (CAPTION, REGIONS), "LR": (TAGS, REGIONS)}
ATTENTION_TYPES = ("CLR", *CROSS_PAIRS)
LEAST_TOKENS = 3  # [CLS], one word, [SEP]


def segment_lengths(
    caption: np.ndarray | int, tags: np.ndarray | int, max_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of the two segments, special tokens included: the caption comes first, tags fill what it leaves.

    Args:
        caption: tokens of captions, without special tokens; any shape.
        tags: tokens of tags, of a shape that broadcasts with it.
        max_tokens: limit over both segments.

    Returns:
        the caption's with [CLS] and [SEP], and the tags' with [SEP]; 0 where there are no tags or no room. A room of
        one token is given to the [SEP] alone, as published. Where the caption leaves none, the published slice is wrong
        and the sequence too long; here it has no second segment.
    """
    first = np.minimum(caption, max_tokens - 2) + 2
    room = max_tokens - first
    second = np.where((np.asarray(tags) > 0) & (room > 0), np.minimum(tags, room - 1) + 1, 0)
    return np.asarray(first), second


def caption_first(
    caption: np.ndarray, tags: np.ndarray, *, max_tokens: int, special: SpecialTokens
) -> tuple[np.ndarray, np.ndarray]:
    """`[CLS] caption [SEP] tags [SEP]` of at most `max_tokens` (published Oscar, retrieval).

    Args:
        caption: (n,) token ids without special tokens.
        tags: (m,) token ids; m may be 0.
        max_tokens: see `segment_lengths`.
        special: ids of the special tokens.

    Returns:
        input_ids (L,) int64 and token_type_ids (L,) int64: 0 for the caption, 1 for the tags.
    """
    first, second = (int(length) for length in segment_lengths(len(caption), len(tags), max_tokens))
    sep = [special.sep_token_id]
    input_ids = np.concatenate([[special.cls_token_id], caption[: first - 2], sep]).astype(np.int64)
    if second:
        input_ids = np.concatenate([input_ids, tags[: second - 1], sep])
    token_type_ids = np.zeros(len(input_ids), dtype=np.int64)
    token_type_ids[first:] = 1
    return input_ids, token_type_ids


def check_attention_type(attention_type: str) -> None:
    """Refuses a mask that is not one of the published `att_mask_type`.

    Raises:
        UserError: it is none of CLR, CL, CR, LR.
    """
    if attention_type not in ATTENTION_TYPES:
        raise UserError(f"data.attention_type is '{attention_type}': pass one of {', '.join(ATTENTION_TYPES)}.")


def parts_of(batch: Batch) -> Tensor:
    """(B, L + R) int64: which part each position of a batch belongs to."""
    length = batch.input_ids.shape[1]
    text = CAPTION + batch.token_type_ids  # (B, L)
    regions = torch.full_like(batch.attention_mask[:, length:], REGIONS, dtype=text.dtype)
    return torch.cat([text, regions], dim=1) * batch.attention_mask


def attention_mask_of(parts: Tensor, attention_type: str) -> Tensor:
    """The mask of published `att_mask_type`: who sees whom among caption (C), tags (L) and regions (R).

    Args:
        parts: (..., S) int64, PADDING, CAPTION, TAGS or REGIONS for each position.
        attention_type: CLR lets all see all. CL, CR and LR let each part see itself and the two named see each other.

    Returns:
        (..., S) bool for CLR, otherwise (..., S, S) bool; rows and columns of padding are False.
    """
    if attention_type == "CLR":
        return parts != PADDING
    one, other = CROSS_PAIRS[attention_type]
    table = torch.eye(4, dtype=torch.bool, device=parts.device)
    table[PADDING, PADDING] = False
    table[one, other] = table[other, one] = True
    return table[parts.unsqueeze(-1), parts.unsqueeze(-2)]
