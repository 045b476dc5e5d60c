"""Constrained beam search: one beam per state of the machine that tells which constraints a caption meets.

Shapes: B images, S states, K beams per state, W words in any constraint, V words, C candidates per beam.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.config import SpecialTokens
from vinvl.models.decoding import (
    CaptionContext,
    DecodingOptions,
    GeneratedCaptions,
    WordStepper,
    adjusted_logits,
    pick_captions,
)
from vinvl.run.errors import UserError

# From detected objects to the constraints of a caption.


# Classes of Open Images that captions seldom name: parts of bodies and things, and groups too wide to be seen as one.
TOO_GENERIC = frozenset(
    """auto part|bathroom accessory|bicycle wheel|boy|building|clothing|door handle|fashion accessory|footwear|girl|
hiking equipment|human arm|human beard|human body|human ear|human eye|human face|human foot|human hair|human hand|
human head|human leg|human mouth|human nose|land vehicle|mammal|man|person|personal care|plant|plumbing fixture|
seat belt|skull|sports equipment|tire|tree|vehicle registration plate|wheel|woman""".replace("\n", "").split("|")
)


def constraints_from_detections(
    classes: Sequence[str],
    scores: np.ndarray,
    boxes: np.ndarray,
    *,
    parents: Mapping[str, str] | None = None,
    synonyms: Mapping[str, str] | None = None,
    excluded: Collection[str] = TOO_GENERIC,
    max_constraints: int = 3,
    threshold: float = 0.85,
) -> list[str]:
    """The classes that an image's caption should name, the surest first (the NoCaps baseline, Agrawal et al. 2019).

    Excluded classes go first. Of two boxes that are nearly the same, the one whose class is an ancestor of the other's
    in the hierarchy goes: a dog is not also an animal. What remains is renamed, each label counted once with its best
    score, and cut to the best `max_constraints`.

    Args:
        classes: (n) class names; compared in lower case.
        scores: (n,) float; detections of score 0 are padding.
        boxes: (n, 4) float, x1, y1, x2, y2.
        parents: the class hierarchy: each class's parent. No suppression if not given.
        synonyms: what captions call a class, if not by its name ("kitchen & dining room table": "table").
        excluded: classes that set no constraint.
        threshold: boxes overlapping by more than this (intersection over union) are the same thing.

    Raises:
        UserError: arrays of different lengths, or a hierarchy with a circle.
    """
    scores, boxes = np.asarray(scores, dtype=np.float64), np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if not len(classes) == len(scores) == len(boxes):
        raise UserError(
            f"An image has {len(classes)} detected classes, {len(scores)} scores and {len(boxes)} boxes; give one each."
        )
    names = [name.lower() for name in classes]
    hierarchy = {child.lower(): parent.lower() for child, parent in (parents or {}).items()}
    unwanted = {name.lower() for name in excluded}
    renamed = {name.lower(): label for name, label in (synonyms or {}).items()}

    kept = [index for index, name in enumerate(names) if scores[index] > 0 and name not in unwanted]
    overlaps = box_overlaps(boxes[kept])
    ancestors = [_ancestors(names[index], hierarchy) for index in kept]
    best: dict[str, float] = {}
    for place, index in enumerate(kept):
        is_suppressed = any(
            names[index] in ancestors[other] and overlaps[place, other] > threshold for other in range(len(kept))
        )
        if not is_suppressed:
            label = renamed.get(names[index], names[index])
            best[label] = max(best.get(label, 0.0), float(scores[index]))
    return sorted(best, key=lambda label: -best[label])[:max_constraints]


def box_overlaps(boxes: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair of boxes (n, 4): (n, n), 0 where both are empty."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=-1)
    areas = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1)
    joint = areas[:, None] + areas[None, :] - shared
    return np.divide(shared, joint, out=np.zeros_like(shared), where=joint > 0)


def _ancestors(name: str, parents: Mapping[str, str]) -> set[str]:
    found: set[str] = set()
    while name in parents:
        name = parents[name]
        if name in found:
            raise UserError(f"The class hierarchy goes in a circle at {name!r}; every class needs a way to the top.")
        found.add(name)
    return found


# Words that a caption must hold, and the state machine that tells which of them it has.


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
    """The constraint that a label sets, such as "fire hydrant".

    Args:
        label: words, separated by blanks.
        tokenize: token ids of a word, without special tokens.
        word_forms: other words that will do, by word. As published, they count only for words of one token, and only
            forms of one token do; a word of several tokens must be said as it is.

    Raises:
        UserError: a label without any token.
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


def constraint_machine(
    constraints: Sequence[Constraint], *, max_given_constraints: int | None = None, max_states: int | None = None
) -> ConstraintMachine:
    """The machine of one image's constraints (published: Agrawal et al. 2019 after Anderson et al. 2017).

    Args:
        max_given_constraints: number states as the published tables for so many constraints do, unreachable states
            included; by default unreachable ones are left out.
        max_states: with `max_given_constraints`, the states of those tables.

    Raises:
        UserError: too many constraints.
    """
    if len(constraints) > MAX_CONSTRAINTS:
        raise UserError(
            f"An image has {len(constraints)} constraints ({', '.join(item.name for item in constraints)}); give at "
            f"most {MAX_CONSTRAINTS} (two or three are usual)."
        )
    given = max_given_constraints or len(constraints)
    words = sorted({token for constraint in constraints for step in constraint.steps for token in step})
    phrase_states = sum((len(constraint.steps) - 1) * 2 ** (given - 1) for constraint in constraints)
    table = _full_table(constraints, words, 2**given, max_states or 2**given + phrase_states)
    states = list(range(len(table))) if max_given_constraints else _reachable(table.any(dim=-1))
    table = table[states][:, states]
    return ConstraintMachine(
        torch.tensor(words, dtype=torch.long), table[..., :-1], table[..., -1], len(constraints), tuple(states)
    )


def _full_table(constraints: Sequence[Constraint], words: list[int], main_states: int, states: int) -> Tensor:
    """(states, states, W + 1) bool: the transitions, by word; the last column is for all other words."""
    column = {word: place for place, word in enumerate(words)}
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


def _reachable(leads_to: Tensor) -> list[int]:
    """The states that can be reached from state 0, given who leads to whom (S, S)."""
    seen, edge = {0}, [0]
    while edge:
        state = edge.pop()
        new = [target for target in leads_to[state].nonzero().flatten().tolist() if target not in seen]
        seen.update(new)
        edge.extend(new)
    return sorted(seen)


def refuse_unmeetable(constraints: Sequence[Constraint], min_constraints: int, max_length: int, place: str) -> None:
    """Raises UserError if the shortest `min_constraints` constraints take more words than a caption may have."""
    lengths = sorted(len(constraint.steps) for constraint in constraints)
    needed = sum(lengths[:min_constraints])
    if needed > max_length - 1:
        raise UserError(
            f"The constraints of {place} ({', '.join(item.name for item in constraints)}) need {needed} tokens, but "
            f"max_length {max_length} leaves {max_length - 1}; raise max_length or lower min_constraints."
        )


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
        stepper = WordStepper(model, context.select(chosen), special.mask_token_id)
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
        earlier = ids[..., :length]
        last = earlier[..., -1]
        logits = adjusted_logits(stepper.next_logits(last), earlier, options, special.sep_token_id)
        log_probs = _stay_ended(logits.log_softmax(dim=-1), last == special.sep_token_id, special.sep_token_id)
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

        is_open = (sums.flatten(1) > -math.inf) & (words != special.sep_token_id)
        still = is_open.any(dim=1).nonzero().squeeze(1)
        if len(still) == 0:
            break
        if len(still) < len(active):
            stepper.keep_images(still)
            transitions.select(still)
            active, ids, sums = active[still], ids[still], sums[still]
    return all_ids.unflatten(1, (states, beams)), all_sums


def _stay_ended(log_probs: Tensor, is_ended: Tensor, end_token_id: int) -> Tensor:
    """Captions that have ended (B, N) are filled up with end tokens, at no cost."""
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
