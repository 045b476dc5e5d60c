"""Words that a caption must hold, and the state machine that tells which of them it has."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vinvl.errors import UserError

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


def dense_table(machine: ConstraintMachine, vocabulary: int) -> Tensor:
    """(S, S, V) bool: the machine as published, for every word of the vocabulary. Large; for inspection."""
    table = machine.otherwise[..., None].repeat(1, 1, vocabulary)
    table[..., machine.words] = machine.by_word
    return table


def refuse_unmeetable(constraints: Sequence[Constraint], min_constraints: int, max_length: int, place: str) -> None:
    """Raises UserError if the shortest `min_constraints` constraints take more words than a caption may have."""
    lengths = sorted(len(constraint.steps) for constraint in constraints)
    needed = sum(lengths[:min_constraints])
    if needed > max_length - 1:
        raise UserError(
            f"The constraints of {place} ({', '.join(item.name for item in constraints)}) need {needed} tokens, but "
            f"max_length {max_length} leaves {max_length - 1}; raise max_length or lower min_constraints."
        )
