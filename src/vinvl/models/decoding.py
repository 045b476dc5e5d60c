"""Decoding word by word: its options, its results, what captions are about, and the logits that the options make.

Shapes: B images, N captions per image, P words so far, T tag tokens, R regions, C = T + R, V words.
"""

import math
from dataclasses import dataclass, fields
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor

from vinvl.models.config import SpecialTokens
from vinvl.run.errors import UserError
from vinvl.run.values import check_fields

Count = Annotated[int, Meta(ge=0)]
AtLeastOne = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0)]


@dataclass(frozen=True)
class DecodingOptions:
    """How captions are decoded: greedily (the default), by beam search, by sampling, or by constrained beam search.

    The defaults of the published code, except `max_length`, which is the 20 of its recipes. Lengths count the begin
    and the end token. The penalties and bans, temperature, `top_k` and `top_p` change the distribution, which is then
    normalised again: log-probabilities are those of the changed distribution, as published.

    Args:
        max_length: longest caption. At this length a caption is ended by force.
        min_length: the end token is banned before this length (not in the published code).
        num_beams: beams per image, or per state of a constrained search; 1 is not a beam search.
        num_return_sequences: captions per image. Beam search keeps an n-best list of just this length, as published,
            and is over sooner with a short one (published: `num_keep_best`). For samples: how many are drawn.
        length_penalty: beam search ranks by Σ log p / length^length_penalty.
        repetition_penalty: logits of words that the caption has are divided by it where positive, else multiplied.
        no_repeat_ngram_size: no n words in a row occur twice; 0 for no such ban (not in the published code).
        sample: draw words instead of taking the best.
        temperature: of samples; logits are divided by it.
        top_k: sample from the k best words only; 0 for all.
        top_p: sample from the fewest best words that together are likelier than this.
        min_constraints: a constrained caption meets at least this many constraints, or all of an image that has fewer.

    Raises:
        UserError: values that make no search.
    """

    max_length: Annotated[int, Meta(ge=2)] = 20
    min_length: Count = 0
    num_beams: AtLeastOne = 1
    num_return_sequences: AtLeastOne = 1
    length_penalty: float = 1.0
    repetition_penalty: Positive = 1.0
    no_repeat_ngram_size: Count = 0
    sample: bool = False
    temperature: Positive = 1.0
    top_k: Count = 0
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_constraints: Count = 2

    def __post_init__(self) -> None:
        check_fields(self, "")
        if self.min_length > self.max_length:
            raise UserError(f"min_length {self.min_length} is above max_length {self.max_length}; lower one of them.")
        if self.sample and self.num_beams > 1:
            raise UserError(
                f"sample is on and num_beams is {self.num_beams}; sample with num_beams 1 (num_return_sequences says "
                "how many) or search with sample off."
            )
        if not self.sample and self.num_return_sequences > self.num_beams:
            raise UserError(
                f"num_return_sequences {self.num_return_sequences} is above num_beams {self.num_beams}; a search keeps "
                "no more captions than it has beams."
            )
        if not self.sample and (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0):
            raise UserError("temperature, top_k and top_p are for samples; set sample, or leave them at 1, 0 and 1.")


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
    ids = torch.where(places == lengths[..., None] - 1, special.sep_token_id, ids)
    return GeneratedCaptions(ids, lengths, log_probs)


@dataclass(frozen=True)
class CaptionContext:
    """What captions are written about: tags and regions of B images, padded, either of which may be absent.

    Published captioning gives tags token type 1 and, at decoding, the positions from max(40, max_length) on.
    """

    tag_ids: Tensor  # (B, T) int64, the final [SEP] included
    tag_position_ids: Tensor  # (B, T) int64
    tag_token_type_ids: Tensor  # (B, T) int64
    tag_mask: Tensor  # (B, T), 1 = exists
    region_features: Tensor  # (B, R, D) float
    region_mask: Tensor  # (B, R), 1 = exists

    def __len__(self) -> int:
        return self.tag_ids.shape[0]

    @property
    def device(self) -> torch.device:
        return self.tag_ids.device

    @property
    def mask(self) -> Tensor:
        """(B, C) bool: which tags and regions exist."""
        return torch.cat([self.tag_mask.bool(), self.region_mask.bool()], dim=1)

    def select(self, images: Tensor) -> "CaptionContext":
        """The images of these numbers, (n,) int64, in their order; numbers may repeat."""
        return CaptionContext(**{field.name: getattr(self, field.name)[images] for field in fields(self)})


def adjusted_logits(logits: Tensor, ids: Tensor, options: DecodingOptions, end_token_id: int) -> Tensor:
    """Logits (…, V) of the word after `ids` (…, P) under repetition penalty, n-gram ban and least length.

    Banned words get −∞. Nothing is written in place.
    """
    if (penalty := options.repetition_penalty) != 1:
        used = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)
        logits = torch.where(used, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
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
        excess = likelier > options.top_p
        excess[..., 0] = False  # by rounding the first word's sum of better ones need not be exactly 0
        logits = logits.masked_fill(torch.zeros_like(excess).scatter(-1, order, excess), -math.inf)
    return logits


def _repeating_words(ids: Tensor, size: int, vocabulary: int) -> Tensor:
    """(…, V) bool: words that would complete a run of `size` words for the second time."""
    length = ids.shape[-1]
    banned = torch.zeros(*ids.shape[:-1], vocabulary + 1, dtype=torch.bool, device=ids.device)
    if length >= size:
        runs = ids.unfold(-1, size, 1)  # (…, runs, size)
        last = ids[..., length - size + 1 :]  # (…, size − 1), what the next word would complete
        begins_alike = (runs[..., :-1] == last[..., None, :]).all(dim=-1)
        words = torch.where(begins_alike, runs[..., -1], vocabulary)  # one column more, for runs that ban nothing
        banned = banned.scatter(-1, words, True)
    return banned[..., :vocabulary]


def pick_captions(ids: Tensor, numbers: Tensor) -> Tensor:
    """Captions `numbers` (B, n) of each image, out of ids (B, N, L): (B, n, L)."""
    return ids.gather(1, numbers[..., None].expand(-1, -1, ids.shape[2]))
