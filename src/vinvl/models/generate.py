"""Captions for a batch of images: the way in, beam search, and captions that grow one word at a time."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.config import SpecialTokens
from vinvl.models.constrained import Constraint, constrained_beam_search, constraint_machine, constraint_words
from vinvl.models.decoding import (
    CaptionContext,
    DecodingOptions,
    GeneratedCaptions,
    finish,
    pick_captions,
    sampling_logits,
)
from vinvl.models.word_steps import StepGraphs, WordStepper
from vinvl.run.errors import UserError

CANDIDATES_PER_BEAM = 2  # each beam ends at most once per step, so this many leave every beam open


def generate_captions(
    model: VinVLForCaptioning,
    context: CaptionContext,
    options: DecodingOptions,
    *,
    special: SpecialTokens,
    constraints: Sequence[Sequence[Constraint]] | None = None,
    generator: torch.Generator | None = None,
    graphs: StepGraphs | None = None,
) -> GeneratedCaptions:
    """Write captions as `options` say; constrained beam search where constraints are given.

    The result is the same whatever else is in the batch (samples excepted: they share one generator). The model
    is used as it is: call `model.eval()` for captions without dropout. In training mode the context's dropout is drawn
    once per call. Sampling and greedy decoding are differentiable; the searches are not.

    Args:
        context: tags and regions of B images; tag positions start at max(40, max_length) in published models.
        constraints: for each image the constraints that its caption should meet; may be empty for some.
        generator: draws the samples; torch's own if not given. It must be on the model's device.
        graphs: for steps of fixed shapes, which is faster on a GPU; keep it for further calls. Constrained search,
            training and autograd do without.

    Raises:
        UserError: options that do not fit the model, the vocabulary or the constraints.
    """
    positions, words = model.config.max_position_embeddings, model.config.vocab_size
    if options.max_length > positions:
        raise UserError(f"max_length is {options.max_length}, but the model knows {positions} positions; lower it.")
    if CANDIDATES_PER_BEAM * options.num_beams > words:
        raise UserError(
            f"num_beams is {options.num_beams}, but the vocabulary has only {words} words; use at most {words // 2}."
        )
    if constraints is not None:
        _check_constraints(len(context), constraints, options, special, words)
        machines = [constraint_machine(given) for given in constraints]
        return constrained_beam_search(model, context, machines, options, special)
    if options.num_beams > 1:
        return beam_search(model, context, options, special, graphs)
    return decode_stepwise(model, context, options, special, generator, graphs)


def _check_constraints(
    images: int,
    constraints: Sequence[Sequence[Constraint]],
    options: DecodingOptions,
    special: SpecialTokens,
    vocabulary: int,
) -> None:
    if len(constraints) != images:
        raise UserError(f"There are constraints for {len(constraints)} images but {images} images; match them.")
    if options.sample or options.num_return_sequences > 1:
        raise UserError(
            "Constrained beam search gives one caption per image; set sample off and num_return_sequences to 1."
        )
    fixed = {special.cls_token_id, special.sep_token_id, special.pad_token_id, special.mask_token_id}
    room = options.max_length - 1
    for image, given in enumerate(constraints):
        needed = sum(sorted(len(constraint.steps) for constraint in given)[: options.min_constraints])
        if needed > room:
            raise UserError(
                f"The constraints of image {image} of the batch ({', '.join(item.name for item in given)}) need "
                f"{needed} tokens, but max_length {options.max_length} leaves {room}; raise max_length or lower "
                "min_constraints."
            )
        for constraint in given:
            tokens = set(constraint_words([constraint]))
            if not all(0 <= token < vocabulary for token in tokens):
                raise UserError(
                    f"The constraint {constraint.name!r} has a token outside the vocabulary of {vocabulary}."
                )
            if tokens & fixed:
                raise UserError(f"The constraint {constraint.name!r} holds a special token; give plain words.")


class NBestLists:
    """For each of B images the `size` best captions so far, ranked by Σ log p / length^length_penalty.

    The rules are the published ones: an image is done once its list is full and the best open caption, if it continued
    to the greatest length at no cost, could not beat the worst in the list. The order of adding does not matter,
    except among equal scores.
    """

    def __init__(
        self, size: int, max_length: int, length_penalty: float, sums: Tensor, dtype: torch.dtype = torch.float32
    ) -> None:
        """`sums` (B, any) are of the device that the lists shall be on."""
        self._best_length = max_length - 1  # the begin token is counted, the end token is not
        self._length_penalty = length_penalty
        self.scores = sums.new_full((len(sums), size), -math.inf, dtype=dtype)  # descending; −∞ is empty
        self.ids = sums.new_zeros((len(sums), size, max_length), dtype=torch.long)
        self.lengths = sums.new_zeros((len(sums), size), dtype=torch.long)

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
        self.scores[images] = scores.gather(1, best)
        self.ids[images] = pick_captions(torch.cat([self.ids[images], ids], dim=1), best)
        self.lengths[images] = lengths.gather(1, best)

    def is_done(self, images: Tensor, best_sums: Tensor) -> Tensor:
        """(b,) bool: whether no open caption of these images, the best of which sums to (b,), can enter any more."""
        worst = self.scores[images, -1]
        bound = best_sums.to(worst.dtype) / self._best_length**self._length_penalty
        return (worst > -math.inf) & (worst >= bound)

    def result(self, special: SpecialTokens) -> GeneratedCaptions:
        """The captions of all lists, the best first."""
        is_empty = self.scores == -math.inf
        ids = self.ids.masked_fill(is_empty[..., None], special.pad_token_id)
        return finish(ids, self.lengths.masked_fill(is_empty, 0), self.scores.float(), special)


@torch.no_grad()
def beam_search(
    model: VinVLForCaptioning,
    context: CaptionContext,
    options: DecodingOptions,
    special: SpecialTokens,
    graphs: StepGraphs | None,
) -> GeneratedCaptions:
    """The published beam search: 2 · `num_beams` candidates per step, of which those that end enter an n-best list.

    A candidate that ends counts only if it ranks before the `num_beams`-th open one. At the greatest length every
    candidate ends. Images that are done are dropped from the batch, or go on without effect (`WordStepper.remaining`).
    """
    images, beams, size, device = len(context), options.num_beams, options.max_length, context.device
    stepper = WordStepper(model, context, options, special, beams, graphs)
    active = torch.arange(images, device=device)
    ids = torch.full((images, 1, size), special.pad_token_id, device=device)  # beams are alike: one stands for all
    ids[..., 0] = special.cls_token_id
    sums = torch.zeros(images, 1, device=device)
    lists = NBestLists(options.num_return_sequences, size, options.length_penalty, sums)
    for length in range(1, size):
        logits = stepper.next_logits(ids[..., :length])
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
        if is_last or len(still := stepper.remaining(~is_done)) == 0:
            break

        chosen = is_ended.long().argsort(dim=1, stable=True)[:, :beams]  # the best open candidates
        ids, sums = pick_captions(candidates, chosen), best.gather(1, chosen)
        stepper.choose(parents.gather(1, chosen))
        if len(still) < len(active):
            stepper.keep_images(still)
            active, ids, sums = active[still], ids[still], sums[still]
    return lists.result(special)


def decode_stepwise(
    model: VinVLForCaptioning,
    context: CaptionContext,
    options: DecodingOptions,
    special: SpecialTokens,
    generator: torch.Generator | None,
    graphs: StepGraphs | None,
) -> GeneratedCaptions:
    """`options.num_return_sequences` captions of each image, by the best word or, with `options.sample`, a drawn one.

    Under autograd, gradients flow from `log_probs` to the model. Images whose captions have all ended are dropped
    from the batch, or go on without effect (`WordStepper.remaining`). The draws of a batch come from one generator, so
    they depend on what else is in the batch.
    """
    images, captions, size, device = len(context), options.num_return_sequences, options.max_length, context.device
    stepper = WordStepper(model, context, options, special, captions, graphs)
    ids = torch.full((images, captions, size), special.pad_token_id, device=device)
    ids[..., 0] = special.cls_token_id
    sums = torch.zeros(images, captions, device=device)
    is_open = torch.ones(images, captions, dtype=torch.bool, device=device)
    lengths = torch.ones(images, captions, dtype=torch.long, device=device)
    active = torch.arange(images, device=device)  # images with an open caption
    for length in range(1, size):
        logits = stepper.next_logits(ids[active, :, :length])
        if options.sample:
            logits = sampling_logits(logits, options)
            shares = logits.detach().softmax(dim=-1)
            # What torch.multinomial draws, which would make the host wait for its check of the shares.
            words = (shares / torch.empty_like(shares).exponential_(generator=generator)).argmax(dim=-1)
        else:
            words = logits.detach().argmax(dim=-1)
        chosen = logits.log_softmax(dim=-1).gather(-1, words[..., None]).squeeze(-1)

        was_open = is_open[active]
        sums = sums.index_add(0, active, torch.where(was_open, chosen, 0.0))
        words = torch.where(was_open, words, special.pad_token_id)
        ids[active, :, length] = words
        lengths[active] += was_open
        is_open[active] = was_open & (words != special.sep_token_id)

        if length + 1 == size or len(still := stepper.remaining(is_open[active].any(dim=1))) == 0:
            break
        if len(still) < len(active):
            stepper.keep_images(still)
            active = active[still]
    return finish(ids, lengths, sums / (lengths - 1), special)
