"""Decoding word by word: its options and results, and the logits of the next word of captions that share a context.

Shapes: B images, N captions per image, P words so far, T tag tokens, R regions, C = T + R, H hidden size, V words.
"""

import math
from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.config import SpecialTokens
from vinvl.models.encoder import as_bias
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


# Keys and values of a layer: of the context (B, heads, C, H / heads), of captions (B, N, heads, P, H / heads).
KeysValues = tuple[Tensor, Tensor]


def _picked(layers: tuple[KeysValues, ...], index: Any) -> tuple[KeysValues, ...]:
    return tuple((keys[index], values[index]) for keys, values in layers)


def encode_context(model: VinVLForCaptioning, context: CaptionContext) -> tuple[KeysValues, ...]:
    """Encode tags and regions, once per image: they attend to no caption, so no word will ever change them.

    Raises:
        UserError: region rows of another width, or training with gradient checkpointing, which keeps no memory.
    """
    mask, config = context.mask, model.config
    if mask.shape[1] == 0:
        sizes = (len(mask), config.num_attention_heads, 0, config.hidden_size // config.num_attention_heads)
        nothing = model.bert.embeddings.word_embeddings.weight.new_zeros(sizes)
        return ((nothing, nothing),) * config.num_hidden_layers
    cache = DynamicCache()
    model.bert(
        context.tag_ids,
        token_type_ids=context.tag_token_type_ids,
        # The three-dimensional form is the one that is safe for an image with neither tags nor regions.
        attention_mask=mask[:, None, :].expand(-1, mask.shape[1], -1),
        region_features=context.region_features,
        position_ids=context.tag_position_ids,
        past_key_values=cache,
    )
    layers: list[Any] = list(cache.layers)
    return tuple((layer.keys, layer.values) for layer in layers)


class WordStepper:
    """Captions of B images under construction, N of each image; N may change from step to step.

    Tags and regions are encoded once. Each step feeds the last word and a [MASK], whose logits are those of the next
    word and which is then forgotten. Nothing is written in place, so that gradients flow through any number of steps,
    and the context is never copied: all captions of an image read one set of keys and values.
    """

    def __init__(
        self, model: VinVLForCaptioning, context: CaptionContext, options: DecodingOptions, special: SpecialTokens
    ) -> None:
        self._model, self._options, self._special = model, options, special
        self._context = encode_context(model, context)
        self._is_real = context.mask
        self._words: tuple[KeysValues, ...] | None = None

    def next_logits(self, captions: Tensor) -> Tensor:
        """Logits (B, N, V) float32 of the word after captions (B, N, P), which are one word longer than before."""
        words, length = captions[..., -1], captions.shape[-1]
        new = torch.stack([words, torch.full_like(words, self._special.mask_token_id)], dim=-1).flatten(0, 1)
        positions = torch.arange(length - 1, length + 1, device=words.device)
        embedded = self._model.bert.embeddings(input_ids=new, position_ids=positions[None].expand(len(new), -1))
        hidden = embedded.unflatten(0, words.shape)  # (B, N, 2, H)
        seen = torch.ones(2, length + 1, dtype=torch.bool, device=words.device)
        seen[0, -1] = False  # the word does not see the mask after it
        of_context = as_bias(self._is_real, hidden.dtype)[:, None, None, None, :].expand(-1, -1, -1, 2, -1)
        of_caption = as_bias(seen, hidden.dtype).expand(len(hidden), 1, 1, -1, -1)
        bias = torch.cat([of_context, of_caption], dim=-1)  # (B, 1, 1, 2, C + P + 1)
        kept: list[KeysValues] = []
        layer: Any  # a BertLayer
        for index, layer in enumerate(self._model.bert.encoder.layer):
            earlier = None if self._words is None else self._words[index]
            attended, keys_values = _attend(layer.attention.self, hidden, self._context[index], earlier, bias)
            hidden = layer.feed_forward_chunk(layer.attention.output(attended, hidden))
            kept.append(keys_values)
        self._words = _picked(tuple(kept), (..., slice(-1), slice(None)))
        logits = self._model.cls.predictions(hidden[:, :, 1]).float()
        return adjusted_logits(logits, captions, self._options, self._special.sep_token_id)

    def choose(self, parents: Tensor) -> None:
        """Continue with captions `parents` (B, n) int64, numbers within each image; they may repeat or be left out."""
        assert self._words is not None
        self._words = _picked(self._words, (torch.arange(len(parents), device=parents.device)[:, None], parents))

    def keep_images(self, images: Tensor) -> None:
        """Go on with the images of these numbers, (b,) int64, only."""
        self._context, self._is_real = _picked(self._context, images), self._is_real[images]
        self._words = None if self._words is None else _picked(self._words, images)


def _attend(
    attention: Any, hidden: Tensor, context: KeysValues, earlier: KeysValues | None, bias: Tensor
) -> tuple[Tensor, KeysValues]:
    """One layer's self-attention, before its output projection: one softmax over the context and the own caption.

    Scores over the context come from one product per image, with the N·Q queries of its captions as rows; those over
    the captions from one product per caption. Only the scores are joined. `hidden` is (B, N, Q, H).
    """
    images, captions, new = hidden.shape[:3]
    heads, size = attention.num_attention_heads, attention.attention_head_size
    context_keys, context_values = context

    def split(states: Tensor) -> Tensor:  # (B, N, Q, H) → (B, N, heads, Q, H / heads)
        return states.view(images, captions, new, heads, size).transpose(2, 3)

    query, keys, values = (split(part(hidden)) for part in (attention.query, attention.key, attention.value))
    query = query / math.sqrt(size)
    if earlier is not None:
        keys, values = torch.cat([earlier[0], keys], dim=3), torch.cat([earlier[1], values], dim=3)

    by_image = query.transpose(1, 2).reshape(images, heads, captions * new, size)
    on_context = (by_image @ context_keys.transpose(-1, -2)).view(images, heads, captions, new, -1).transpose(1, 2)
    on_caption = query @ keys.transpose(-1, -2)  # (B, N, heads, Q, P + Q)
    scores = torch.cat([on_context, on_caption], dim=-1) + bias
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    weights = F.dropout(weights, attention.dropout.p, attention.training)

    length = context_keys.shape[2]
    for_context = weights[..., :length].transpose(1, 2).reshape(images, heads, captions * new, length)
    from_context = (for_context @ context_values).view(images, heads, captions, new, size).transpose(1, 2)
    attended = from_context + weights[..., length:] @ values  # (B, N, heads, Q, H / heads)
    return attended.transpose(2, 3).reshape(images, captions, new, heads * size), (keys, values)


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
