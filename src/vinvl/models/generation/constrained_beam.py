"""Constrained beam search: one beam per state of the machine that tells which constraints a caption meets.

Shapes: B images, S states, K beams per state, W words in any constraint, V words, C candidates per beam.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.generation.beam import pick_captions
from vinvl.models.generation.constraints import ConstraintMachine
from vinvl.models.generation.context import CaptionContext
from vinvl.models.generation.distribution import adjusted_logits
from vinvl.models.generation.options import DecodingOptions, SpecialTokens
from vinvl.models.generation.result import GeneratedCaptions
from vinvl.models.generation.stepping import WordStepper


@torch.no_grad()
def constrained_beam_search(
    model: VinVLForCaptioning,
    context: CaptionContext,
    machines: Sequence[ConstraintMachine],
    options: DecodingOptions,
    special: SpecialTokens,
) -> GeneratedCaptions:
    """The best caption of each image that meets `options.min_constraints` of its constraints, or all it has.

    As published (Anderson et al. 2017; Agrawal et al. 2019), except that every image of a batch starts from its own
    distribution of first words, not from the first image's. Where no caption within max_length meets so many, the one
    that meets the most is given; `constraints_met` tells. Images are searched together with those of as many states.
    """
    size, device = options.max_length, context.device
    ids = torch.full((len(context), 1, size), special.pad, device=device)
    log_probs = torch.zeros(len(context), 1, device=device)
    met = torch.zeros(len(context), dtype=torch.long, device=device)
    groups: dict[int, list[int]] = defaultdict(list)
    for image, machine in enumerate(machines):
        groups[len(machine.states)].append(image)
    for images in groups.values():
        chosen = torch.tensor(images, device=device)
        group = [machines[image] for image in images]
        stepper = WordStepper(model, context.select(chosen), special.mask)
        found, sums = _search(stepper, _Transitions(group, device), options, special)
        ids[chosen, 0], log_probs[chosen, 0], met[chosen] = _select(found, sums, group, options, special)
    is_end = ids == special.end
    is_after_end = is_end.cumsum(dim=-1) - is_end.long() > 0
    ids = ids.masked_fill(is_after_end, special.pad)
    return GeneratedCaptions(ids, (~is_after_end).sum(dim=-1), log_probs, met)


class _Transitions:
    """The machines of B images with equally many states, their constraint words padded to one width."""

    def __init__(self, machines: Sequence[ConstraintMachine], device: torch.device) -> None:
        width = max(len(machine.words) for machine in machines)
        states = len(machines[0].states)
        words = torch.zeros(len(machines), width, dtype=torch.long)
        by_word = torch.zeros(len(machines), states, states, width, dtype=torch.bool)
        for image, machine in enumerate(machines):
            count = len(machine.words)
            if width:  # images with and without constraints have different numbers of states: all have words, or none
                words[image] = machine.words[0]  # padding repeats a word and allows it nowhere
            words[image, :count] = machine.words
            by_word[image, :, :, :count] = machine.by_word
        self.words = words.to(device)  # (B, W)
        self.by_word = by_word.to(device)  # (B, S, S, W)
        self.otherwise = torch.stack([machine.otherwise for machine in machines]).to(device)  # (B, S, S)

    def select(self, images: Tensor) -> None:
        """Go on with the images of these numbers only."""
        self.words, self.by_word, self.otherwise = self.words[images], self.by_word[images], self.otherwise[images]

    def candidates(self, log_probs: Tensor, free: int) -> tuple[Tensor, Tensor]:
        """Words (B, N, C) and their log-probabilities out of (B, N, V): the best `free` others, and all W.

        These suffice: words outside the constraints lead the same way, so no state wants more than the best of them.
        """
        places = self.words[:, None].expand(-1, log_probs.shape[1], -1)  # (B, N, W)
        theirs = log_probs.gather(2, places)
        others, words = log_probs.scatter(2, places, -math.inf).topk(free, dim=2)
        return torch.cat([words, places], dim=2), torch.cat([others, theirs], dim=2)

    def allowed(self, free: int) -> Tensor:
        """(B, S, S, C) bool, [from, to, candidate]."""
        return torch.cat([self.otherwise[..., None].expand(-1, -1, -1, free), self.by_word], dim=-1)


def _search(
    stepper: WordStepper, transitions: _Transitions, options: DecodingOptions, special: SpecialTokens
) -> tuple[Tensor, Tensor]:
    """All states' beams: ids (B, S, K, max_length), and summed log-probabilities (B, S, K), −∞ where there is none."""
    images, states = transitions.otherwise.shape[:2]
    beams, size, device = options.num_beams, options.max_length, transitions.words.device
    all_ids = torch.full((images, states * beams, size), special.end, device=device)
    all_sums = torch.full((images, states, beams), -math.inf, device=device)
    active = torch.arange(images, device=device)
    ids = torch.full((images, 1, size), special.end, device=device)  # at first there is one caption, in state 0
    ids[..., 0] = special.begin
    sums = torch.zeros(images, 1, 1, device=device)  # (B, states, beams)
    for length in range(1, size):
        earlier = ids[..., :length]
        last = earlier[..., -1]
        logits = adjusted_logits(stepper.next_logits(last), earlier, options, special.end)
        log_probs = _stay_ended(logits.log_softmax(dim=-1), last == special.end, special.end)
        words, gains = transitions.candidates(log_probs, beams)  # (B, N, C)
        totals = sums[..., None] + gains.unflatten(1, sums.shape[1:])  # (B, from, K, C)
        allowed = transitions.allowed(beams)[:, : sums.shape[1]]  # (B, from, to, C)
        sums, places = _best_per_state(totals, allowed, beams)  # (B, to, K)

        parents = places.flatten(1) // words.shape[2]
        words = words.flatten(1).gather(1, places.flatten(1))
        ids = pick_captions(ids, parents)
        ids[..., length] = words
        stepper.choose(parents)
        all_ids[active], all_sums[active] = ids, sums

        is_open = (sums.flatten(1) > -math.inf) & (words != special.end)
        still = is_open.any(dim=1).nonzero().squeeze(1)
        if len(still) == 0:
            break
        if len(still) < len(active):
            stepper.keep_images(still)
            transitions.select(still)
            active, ids, sums = active[still], ids[still], sums[still]
    return all_ids.unflatten(1, (states, beams)), all_sums


def _stay_ended(log_probs: Tensor, is_ended: Tensor, end_token_id: int) -> Tensor:
    """Captions that have ended (B, N) go on with end tokens, at no cost."""
    is_end = torch.arange(log_probs.shape[-1], device=log_probs.device) == end_token_id
    after_end = torch.where(is_end, 0.0, -math.inf)
    return torch.where(is_ended[..., None], after_end, log_probs)


def _best_per_state(totals: Tensor, allowed: Tensor, beams: int) -> tuple[Tensor, Tensor]:
    """The K best (B, to, K) of all candidates that lead to each state, and their places among from × K × C."""
    reachable = torch.where(allowed.transpose(1, 2)[:, :, :, None], totals[:, None], -math.inf)  # (B, to, from, K, C)
    best = reachable.flatten(2).topk(beams, dim=2)
    return best.values, best.indices


def _select(
    ids: Tensor,
    sums: Tensor,
    machines: Sequence[ConstraintMachine],
    options: DecodingOptions,
    special: SpecialTokens,
) -> tuple[Tensor, Tensor, Tensor]:
    """For each image the best caption (B, max_length), its score (B,) and how many constraints it meets (B,)."""
    first, words = ids[:, :, 0], ids[:, :, 0, 1:]  # the best of every state
    length = (words != special.end).sum(dim=-1) + 1
    scores = (sums[:, :, 0] / length).cpu()  # (B, S)
    places, counts = [], []
    for image, machine in enumerate(machines):
        wanted = min(machine.constraints, options.min_constraints)
        by_count: dict[int, list[int]] = defaultdict(list)
        for number, place in machine.main_states.items():
            if scores[image, place] > -math.inf:
                by_count[min(number.bit_count(), wanted)].append(place)
        enough = by_count[max(by_count)] if by_count else [0]
        place = max(enough, key=lambda state: float(scores[image, state]))
        places.append(place)
        counts.append(machine.states[place].bit_count())
    rows, chosen = torch.arange(len(machines), device=ids.device), torch.tensor(places, device=ids.device)
    return first[rows, chosen], scores.to(ids.device)[rows, chosen], torch.tensor(counts, device=ids.device)
