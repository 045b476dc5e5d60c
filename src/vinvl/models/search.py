"""Sampling and beam search: what the next word may be, and the n-best lists of ended captions."""

import math

import torch
from torch import Tensor

from vinvl.models.config import SpecialTokens
from vinvl.models.decoding import DecodingOptions, GeneratedCaptions, WordStepper, finish

# How decoding options change the distribution of the next word.
#
# Shapes: … any leading dimensions (images, captions), P words so far, V words of the vocabulary.


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


class NBestLists:
    """For each of B images the `size` best captions so far, ranked by Σ log p / length^length_penalty.

    The rules are the published ones: an image is done once its list is full and the best open caption, if it continued
    to the greatest length at no cost, could not beat the worst in the list. The order of adding does not matter,
    except among equal scores.
    """

    def __init__(
        self,
        images: int,
        size: int,
        max_length: int,
        length_penalty: float,
        device: torch.device,
        pad_token_id: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._best_length = max_length - 1  # the begin token is counted, the end token is not
        self._length_penalty = length_penalty
        self.scores = torch.full((images, size), -math.inf, dtype=dtype, device=device)  # descending; −∞ is empty
        self.ids = torch.full((images, size, max_length), pad_token_id, device=device)
        self.lengths = torch.zeros(images, size, dtype=torch.long, device=device)

    def add(self, images: Tensor, ids: Tensor, sums: Tensor, is_ended: Tensor, length: int) -> None:
        """Offer captions to the lists of some images.

        Args:
            images: (b,) int64, the numbers of the images.
            ids: (b, n, max_length) int64, captions with their end token (or the word that it will replace).
            sums: (b, n) float, summed log-probabilities.
            is_ended: (b, n) bool; the others are not offered.
            length: of all n captions, the begin token counted, the end token not.
        """
        offered = (sums.to(self.scores.dtype) / length**self._length_penalty).masked_fill(~is_ended, -math.inf)
        scores = torch.cat([self.scores[images], offered], dim=1)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, : self.scores.shape[1]]
        lengths = torch.cat([self.lengths[images], torch.full_like(sums, length + 1, dtype=torch.long)], dim=1)
        rows = torch.arange(len(images), device=images.device)[:, None]
        self.scores[images] = scores[rows, best]
        self.ids[images] = torch.cat([self.ids[images], ids], dim=1)[rows, best]
        self.lengths[images] = lengths[rows, best]

    def is_done(self, images: Tensor, best_sums: Tensor) -> Tensor:
        """(b,) bool: whether no open caption of these images can enter the list any more.

        Args:
            images: (b,) int64.
            best_sums: (b,) float, the greatest summed log-probability of an open caption.
        """
        worst = self.scores[images, -1]
        bound = best_sums.to(worst.dtype) / self._best_length**self._length_penalty
        return (worst > -math.inf) & (worst >= bound)

    def result(self, special: SpecialTokens) -> GeneratedCaptions:
        """The captions of all lists, the best first."""
        is_empty = self.scores == -math.inf
        return finish(
            self.ids.masked_fill(is_empty[..., None], special.pad_token_id),
            self.lengths.masked_fill(is_empty, 0),
            self.scores.float(),
            special,
        )


# Beam search.


CANDIDATES_PER_BEAM = 2  # each beam ends at most once per step, so this many leave every beam open


@torch.no_grad()
def beam_search(
    stepper: WordStepper, images: int, options: DecodingOptions, special: SpecialTokens, device: torch.device
) -> GeneratedCaptions:
    """The published beam search: 2 · `num_beams` candidates per step, of which those that end enter an n-best list.

    A candidate that ends counts only if it ranks before the `num_beams`-th open one. At the greatest length every
    candidate ends. Images that are done are dropped from the batch.
    """
    beams, size, pad = options.num_beams, options.max_length, special.pad_token_id
    lists = NBestLists(images, options.num_return_sequences, size, options.length_penalty, device, pad)
    active = torch.arange(images, device=device)
    ids = torch.full((images, 1, size), pad, device=device)  # beams are alike at first: one stands for all
    ids[..., 0] = special.cls_token_id
    sums = torch.zeros(images, 1, device=device)
    for length in range(1, size):
        earlier = ids[..., :length]
        logits = adjusted_logits(stepper.next_logits(earlier[..., -1]), earlier, options, special.sep_token_id)
        totals = (sums[..., None] + logits.log_softmax(dim=-1)).flatten(1)
        best, places = totals.topk(CANDIDATES_PER_BEAM * beams, dim=1)
        parents, words = places // logits.shape[-1], places % logits.shape[-1]
        candidates = pick_captions(ids, parents)
        candidates[..., length] = words

        is_last = length + 1 == size
        is_ended = torch.ones_like(words, dtype=torch.bool) if is_last else words == special.sep_token_id
        open_before = (~is_ended).cumsum(dim=1) - (~is_ended).long()
        is_done = lists.is_done(active, best[:, 0])
        lists.add(active, candidates, best, is_ended & (open_before < beams) & ~is_done[:, None], length)
        still = (~is_done).nonzero().squeeze(1)
        if is_last or len(still) == 0:
            break

        chosen = is_ended.long().argsort(dim=1, stable=True)[:, :beams]  # the best open candidates
        ids, sums = pick_captions(candidates, chosen), best.gather(1, chosen)
        stepper.choose(parents.gather(1, chosen))
        if len(still) < len(active):
            stepper.keep_images(still)
            active, ids, sums = active[still], ids[still], sums[still]
    return lists.result(special)


def pick_captions(ids: Tensor, numbers: Tensor) -> Tensor:
    """Captions `numbers` (B, n) of each image, out of ids (B, N, L): (B, n, L)."""
    return ids.gather(1, numbers[..., None].expand(-1, -1, ids.shape[2]))


# Greedy decoding and sampling: captions that grow one word at a time, each by itself.


def decode_stepwise(
    stepper: WordStepper,
    images: int,
    options: DecodingOptions,
    special: SpecialTokens,
    device: torch.device,
    generator: torch.Generator | None,
) -> GeneratedCaptions:
    """`options.num_return_sequences` captions of each image, by the best word or, with `options.sample`, a drawn one.

    Under autograd, gradients flow from `log_probs` to the model. Images whose captions have all ended are dropped
    from the batch. The draws of a batch come from one generator, so they depend on what else is in the batch.
    """
    captions, size = options.num_return_sequences, options.max_length
    ids = torch.full((images, captions, size), special.pad_token_id, device=device)
    ids[..., 0] = special.cls_token_id
    sums = torch.zeros(images, captions, device=device)
    is_open = torch.ones(images, captions, dtype=torch.bool, device=device)
    lengths = torch.ones(images, captions, dtype=torch.long, device=device)
    active = torch.arange(images, device=device)  # images with an open caption
    for length in range(1, size):
        earlier = ids[active, :, :length]
        logits = adjusted_logits(stepper.next_logits(earlier[..., -1]), earlier, options, special.sep_token_id)
        if options.sample:
            logits = sampling_logits(logits, options)
        words = _choose(logits.detach(), options.sample, generator)
        chosen = logits.log_softmax(dim=-1).gather(-1, words[..., None]).squeeze(-1)

        was_open = is_open[active]
        sums = sums.index_add(0, active, torch.where(was_open, chosen, 0.0))
        words = torch.where(was_open, words, special.pad_token_id)
        ids[active, :, length] = words
        lengths[active] += was_open
        is_open[active] = was_open & (words != special.sep_token_id)

        still = is_open[active].any(dim=1).nonzero().squeeze(1)
        if len(still) == 0 or length + 1 == size:
            break
        if len(still) < len(active):
            stepper.keep_images(still)
            active = active[still]
    return finish(ids, lengths, sums / (lengths - 1), special)


def _choose(logits: Tensor, sample: bool, generator: torch.Generator | None) -> Tensor:
    if not sample:
        return logits.argmax(dim=-1)
    drawn = torch.multinomial(logits.softmax(dim=-1).flatten(0, 1), num_samples=1, generator=generator)
    return drawn.view(logits.shape[:-1])
