"""What decoding hands back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vinvl.models.generation.options import SpecialTokens


@dataclass(frozen=True)
class GeneratedCaptions:
    """N captions for each of B images, the best first; samples are in the order in which they were drawn.

    `log_probs` compares captions of one search only, because searches score differently, as published: greedy
    decoding and sampling give the mean log-probability of the words, end token included; beam search gives
    Σ log p / length^length_penalty, where the length counts the begin but not the end token; constrained beam search
    gives Σ log p / (words + 1). A caption that reached max_length ends in an end token that replaced its last word, but
    the word's log-probability is what was counted; a constrained caption just lacks the end token then.

    Where an n-best list could not be filled, ids are padding, the length is 0 and the score −∞.
    """

    ids: Tensor  # (B, N, max_length) int64: begin token, words, end token, padding
    lengths: Tensor  # (B, N) int64: begin and end token included
    log_probs: Tensor  # (B, N) float32
    constraints_met: Tensor | None = None  # (B,) int64: of constrained beam search


def finish(ids: Tensor, lengths: Tensor, log_probs: Tensor, special: SpecialTokens) -> GeneratedCaptions:
    """The result, given captions (B, N, max_length) that may lack their end token at max_length."""
    places = torch.arange(ids.shape[-1], device=ids.device)
    ids = torch.where(places == lengths[..., None] - 1, special.end, ids)
    return GeneratedCaptions(ids, lengths, log_probs)
