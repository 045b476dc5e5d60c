"""Constrained beam search: one beam per state of the machine that tells which constraints a caption meets.

Shapes: B images, S states, K beams per state, W words in any constraint, V words, C candidates per beam.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.config import SpecialTokens
from vinvl.models.decoding import (
    CaptionContext,
    DecodingOptions,
    GeneratedCaptions,
    pick_captions,
)
from vinvl.models.word_steps import WordStepper
from vinvl.run.errors import UserError

MAX_CONSTRAINTS = 6  # every subset of the constraints is a state: 64 of them already


@dataclass(frozen=True)
class Constraint:
    """A word or phrase: one step per token, each met by any of its token ids (the word's forms)."""

    name: str
    steps: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.steps or not all(self.steps):
            raise UserError(f"The constraint {self.name!r} has no tokens; give words that the tokenizer knows.")


def constraint_from_words(
    label: str, tokenize: Callable[[str], Sequence[int]], word_forms: Mapping[str, Sequence[str]] | None = None
) -> Constraint:
    """The constraint that a label sets, such as "fire hydrant"; `tokenize` gives the token ids of a word.

    `word_forms`: other words that will do, by word. As published, they count only for words of one token, and only
    forms of one token do; a word of several tokens must be said as it is.
    """
    steps: list[tuple[int, ...]] = []
    for word in label.split():
        tokens = list(tokenize(word))
        if len(tokens) == 1:
            forms = [list(tokenize(form)) for form in (word_forms or {}).get(word, ())]
            steps.append(tuple(dict.fromkeys(tokens + [form[0] for form in forms if len(form) == 1])))
        else:
            steps.extend((token,) for token in tokens)
    return Constraint(label, tuple(steps))


@dataclass(frozen=True)
class ConstraintMachine:
    """A finite-state machine over words, compactly: all words that are in no constraint behave alike.

    The state is 0 at first; state s < `main_states` says that constraint i is met where bit i of s is set; the states
    from there on are within a phrase. More than one next state may be allowed.
    """

    words: Tensor  # (W,) int64: the token ids in any constraint, ascending
    by_word: Tensor  # (S, S, W) bool: [from, to, word], whether the word leads there
    otherwise: Tensor  # (S, S) bool: the same for every other word
    constraints: int
    states: tuple[int, ...]  # (S,) the states' numbers; unreachable ones are left out

    @property
    def main_states(self) -> dict[int, int]:
        """Where the main states stand in the tables, by number."""
        return {number: place for place, number in enumerate(self.states) if number < 2**self.constraints}


def constraint_machine(constraints: Sequence[Constraint]) -> ConstraintMachine:
    """The machine of one image's constraints (published: Agrawal et al. 2019 after Anderson et al. 2017).

    Raises:
        UserError: too many constraints.
    """
    if len(constraints) > MAX_CONSTRAINTS:
        raise UserError(
            f"An image has {len(constraints)} constraints ({', '.join(item.name for item in constraints)}); give at "
            f"most {MAX_CONSTRAINTS} (two or three are usual)."
        )
    words = constraint_words(constraints)
    table = transition_table(constraints, words, 2 ** len(constraints))
    leads_to, reached = table.any(dim=-1), torch.arange(len(table)) == 0
    while not torch.equal(more := reached | leads_to[reached].any(dim=0), reached):
        reached = more
    table, states = table[reached][:, reached], tuple(reached.nonzero().flatten().tolist())
    return ConstraintMachine(
        torch.tensor(words, dtype=torch.long), table[..., :-1], table[..., -1], len(constraints), states
    )


def constraint_words(constraints: Sequence[Constraint]) -> list[int]:
    """The token ids in any constraint, ascending."""
    return sorted({token for constraint in constraints for step in constraint.steps for token in step})


def transition_table(constraints: Sequence[Constraint], words: list[int], main_states: int) -> Tensor:
    """(S, S, W + 1) bool: the transitions, by word; the last column is for all other words.

    The states within phrases follow the main ones, of which published tables have 2^(most constraints there are).
    """
    column = {word: place for place, word in enumerate(words)}
    states = main_states + sum(len(constraint.steps) - 1 for constraint in constraints) * main_states // 2
    table = torch.zeros(states, states, len(words) + 1, dtype=torch.bool)
    main = torch.arange(main_states)
    table[main, main] = True
    free = main_states
    for number, constraint in enumerate(constraints):
        for start in (state for state in range(main_states) if not state >> number & 1):
            origin = start
            for place, step in enumerate(constraint.steps):
                columns = [column[token] for token in step]
                is_last = place + 1 == len(constraint.steps)
                target = start | 1 << number if is_last else free
                # Any other word leads (back) to where the phrase began. From there that takes back what an earlier
                # constraint withheld: its word may then also go uncounted. Published, and no caption is lost by it.
                table[origin, start] = True
                table[origin, start, columns] = False
                table[origin, target, columns] = True
                if not is_last:
                    origin, free = free, free + 1
    return table


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
    distribution of first words, not from the first image's. If no caption within max_length meets so many, the one
    that meets the most is given; `constraints_met` tells. Images are searched together with those of as many states.
    """
    size, device = options.max_length, context.device
    ids = torch.full((len(context), 1, size), special.pad_token_id, device=device)
    log_probs = torch.zeros(len(context), 1, device=device)
    met = torch.zeros(len(context), dtype=torch.long, device=device)
    groups: dict[int, list[int]] = defaultdict(list)
    for image, machine in enumerate(machines):
        groups[len(machine.states)].append(image)
    for images in groups.values():
        chosen = torch.tensor(images, device=device)
        group = [machines[image] for image in images]
        captions = len(group[0].states) * options.num_beams
        stepper = WordStepper(model, context.select(chosen), options, special, captions)
        found, sums = _search(stepper, _Transitions(group, device), options, special)
        ids[chosen, 0], log_probs[chosen, 0], met[chosen] = _select(found, sums, group, options, special)
    is_end = ids == special.sep_token_id
    is_after_end = is_end.cumsum(dim=-1) - is_end.long() > 0
    ids = ids.masked_fill(is_after_end, special.pad_token_id)
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

        These suffice: words outside the constraints lead the same way, so no state needs more than the best of them.
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
    all_ids = torch.full((images, states * beams, size), special.sep_token_id, device=device)
    all_sums = torch.full((images, states, beams), -math.inf, device=device)
    active = torch.arange(images, device=device)
    ids = torch.full((images, 1, size), special.sep_token_id, device=device)  # at first one caption, in state 0
    ids[..., 0] = special.cls_token_id
    sums = torch.zeros(images, 1, 1, device=device)  # (B, states, beams)
    for length in range(1, size):
        logits, last = stepper.next_logits(ids[..., :length]), ids[..., length - 1]
        is_end = torch.arange(logits.shape[-1], device=device) == special.sep_token_id
        after_end = torch.where(is_end, 0.0, -math.inf)  # what has ended is filled up with end tokens, at no cost
        log_probs = torch.where((last == special.sep_token_id)[..., None], after_end, logits.log_softmax(dim=-1))
        words, gains = transitions.candidates(log_probs, beams)  # (B, N, C)
        totals = sums[..., None] + gains.unflatten(1, sums.shape[1:])  # (B, from, K, C)
        allowed = transitions.allowed(beams)[:, : sums.shape[1]]  # (B, from, to, C)
        reachable = torch.where(allowed.transpose(1, 2)[:, :, :, None], totals[:, None], -math.inf)
        sums, places = reachable.flatten(2).topk(beams, dim=2)  # (B, to, K), out of (B, to, from · K · C)

        parents = places.flatten(1) // words.shape[2]
        words = words.flatten(1).gather(1, places.flatten(1))
        ids = pick_captions(ids, parents)
        ids[..., length] = words
        stepper.choose(parents)
        all_ids[active], all_sums[active] = ids, sums

        is_open = (sums.flatten(1) > -math.inf) & (words != special.sep_token_id)
        still = is_open.any(dim=1).nonzero().squeeze(1)
        if len(still) == 0:
            break
        if len(still) < len(active):
            stepper.keep_images(still)
            transitions.select(still)
            active, ids, sums = active[still], ids[still], sums[still]
    return all_ids.unflatten(1, (states, beams)), all_sums


def _select(
    ids: Tensor, sums: Tensor, machines: Sequence[ConstraintMachine], options: DecodingOptions, special: SpecialTokens
) -> tuple[Tensor, Tensor, Tensor]:
    """For each image the best caption (B, max_length), its score (B,) and how many constraints it meets (B,)."""
    first, words = ids[:, :, 0], ids[:, :, 0, 1:]  # the best of every state
    length = (words != special.sep_token_id).sum(dim=-1) + 1
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
