"""Log-probabilities of given captions, in one pass of the model."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.generation.context import CaptionContext, encode_context
from vinvl.models.generation.distribution import adjusted_logits, sampling_logits
from vinvl.models.generation.layers import embed_words, run_layers
from vinvl.models.generation.options import DecodingOptions, SpecialTokens


@dataclass(frozen=True)
class CaptionScores:
    """Log-probabilities of N captions of each of B images, of at most L tokens."""

    token_log_probs: Tensor  # (B, N, L − 1) float32: of the tokens after the begin token; 0 after the end token
    log_probs: Tensor  # (B, N) float32: their mean, the end token counted
    lengths: Tensor  # (B, N) int64: tokens that were scored


def next_word_logits(model: VinVLForCaptioning, context: CaptionContext, ids: Tensor, special: SpecialTokens) -> Tensor:
    """Logits (B, N, L − 1, V) float32 of the word after each prefix of `ids` (B, N, L) int64 but the whole.

    One pass instead of L − 1: every place has a word and a [MASK]; words see the words before them, and each mask sees
    the words before its place and itself, but no other mask, just as in decoding.
    """
    words = ids[..., :-1]
    count = words.shape[-1]
    tokens = torch.cat([words, torch.full_like(words, special.mask)], dim=-1)  # (B, N, 2(L − 1))
    places = torch.arange(count, device=ids.device)
    causal = places[None, :] <= places[:, None]  # word or mask i sees word j: mask i stands at place i + 1
    nothing, itself = torch.zeros_like(causal), torch.eye(count, dtype=torch.bool, device=ids.device)
    mask = torch.cat([torch.cat([causal, nothing], dim=1), torch.cat([causal, itself], dim=1)])
    embedded = embed_words(model, tokens, torch.cat([places, places + 1]))
    hidden, _ = run_layers(model, embedded, encode_context(model, context), None, mask)
    return model.cls(hidden[:, :, count:]).float()


def score_captions(
    model: VinVLForCaptioning,
    context: CaptionContext,
    ids: Tensor,
    special: SpecialTokens,
    options: DecodingOptions | None = None,
) -> CaptionScores:
    """Log-probabilities of captions, differentiable, with the same meaning as those of greedy decoding and sampling.

    Args:
        ids: (B, N, L) int64, begin token first; tokens after the first end token are not scored. For
            generated captions give `GeneratedCaptions.scored_ids`.
        options: its penalties and bans, and with `sample` its temperature, top_k and top_p, shape the distribution;
            the plain distribution if not given.
    """
    options = options or DecodingOptions()
    logits = next_word_logits(model, context, ids, special)
    prefixes = range(1, ids.shape[-1])
    logits = torch.stack(
        [adjusted_logits(logits[:, :, n - 1], ids[..., :n], options, special.end) for n in prefixes], dim=2
    )
    if options.sample:
        logits = sampling_logits(logits, options)
    words = ids[..., 1:]
    is_end = words == special.end
    is_scored = is_end.cumsum(dim=-1) - is_end.long() == 0
    chosen = logits.log_softmax(dim=-1).gather(-1, words[..., None]).squeeze(-1)
    token_log_probs = torch.where(is_scored, chosen, 0.0)
    lengths = is_scored.sum(dim=-1)
    return CaptionScores(token_log_probs, token_log_probs.sum(dim=-1) / lengths, lengths)
