"""How decoding options change the distribution of the next word.

Shapes: … any leading dimensions (images, captions), P words so far, V words of the vocabulary.
"""

import math

import torch
from torch import Tensor

from vinvl.models.generation.options import DecodingOptions


def adjusted_logits(logits: Tensor, ids: Tensor, options: DecodingOptions, end_token_id: int) -> Tensor:
    """Logits (…, V) of the word after `ids` (…, P) under repetition penalty, n-gram ban and least length.

    Banned words get −∞. Nothing is written in place.
    """
    if options.repetition_penalty != 1:
        logits = _penalise_repetition(logits, ids, options.repetition_penalty)
    if options.no_repeat_ngram_size:
        logits = logits.masked_fill(_repeating_words(ids, options.no_repeat_ngram_size, logits.shape[-1]), -math.inf)
    if ids.shape[-1] + 1 < options.min_length:
        is_end = torch.arange(logits.shape[-1], device=logits.device) == end_token_id
        logits = logits.masked_fill(is_end, -math.inf)
    return logits


def sampling_logits(logits: Tensor, options: DecodingOptions) -> Tensor:
    """Logits (…, V) to sample from: divided by the temperature, −∞ for words outside `top_k` and then `top_p`."""
    logits = logits / options.temperature
    if 0 < options.top_k < logits.shape[-1]:
        least = logits.topk(options.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    if options.top_p < 1:
        ranked, order = logits.sort(dim=-1, descending=True)
        probabilities = ranked.softmax(dim=-1)
        likelier = probabilities.cumsum(dim=-1) - probabilities  # the summed probability of all better words
        # The first is always kept; by rounding its sum of better words need not be exactly 0.
        excess = torch.cat(
            [torch.zeros_like(likelier[..., :1], dtype=torch.bool), likelier[..., 1:] > options.top_p], -1
        )
        logits = logits.masked_fill(torch.zeros_like(excess).scatter(-1, order, excess), -math.inf)
    return logits


def _penalise_repetition(logits: Tensor, ids: Tensor, penalty: float) -> Tensor:
    used = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)
    return torch.where(used, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _repeating_words(ids: Tensor, size: int, vocabulary: int) -> Tensor:
    """(…, V) bool: words that would complete a run of `size` words for the second time."""
    length = ids.shape[-1]
    if length < size:
        return torch.zeros(*ids.shape[:-1], vocabulary, dtype=torch.bool, device=ids.device)
    runs = ids.unfold(-1, size, 1)  # (…, runs, size)
    last = ids[..., length - size + 1 :]  # (…, size − 1), what the next word would complete
    begins_alike = (runs[..., :-1] == last[..., None, :]).all(dim=-1)
    words = torch.where(begins_alike, runs[..., -1], vocabulary)  # one column more, for runs that ban nothing
    banned = torch.zeros(*ids.shape[:-1], vocabulary + 1, dtype=torch.bool, device=ids.device)
    return banned.scatter(-1, words, True)[..., :vocabulary]
