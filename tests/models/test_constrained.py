"""Constraints: from words and detections, their state machines, and searches under them."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.models.caption_cases import SPECIAL, dense_table, one_image, random_context, random_model, reencoding
from vinvl.models.constrained import Constraint, constraint_from_words, constraint_machine
from vinvl.models.decoding import DecodingOptions
from vinvl.models.generate import generate_captions
from vinvl.run.errors import UserError

torch.set_num_threads(1)

WORDS = 23
steps = st.lists(st.lists(st.integers(5, 12), min_size=1, max_size=2, unique=True), min_size=1, max_size=3)
constraints = st.lists(steps, max_size=3).map(
    lambda lists: [
        Constraint(f"c{number}", tuple(tuple(step) for step in phrase)) for number, phrase in enumerate(lists)
    ]
)


def holds(caption: list[int], constraint: Constraint) -> bool:
    width = len(constraint.steps)
    return any(
        all(token in step for token, step in zip(caption[start:], constraint.steps, strict=False))
        for start in range(len(caption) - width + 1)
    )


def main_states_reached(table: Tensor, caption: list[int], main_states: int) -> set[int]:
    states = {0}
    for word in caption:
        states = {int(target) for state in states for target in table[state, :, word].nonzero()}
    return {state for state in states if state < main_states}


class TestMachine:
    @given(given=constraints, caption=st.lists(st.integers(4, 14), max_size=7))
    @settings(max_examples=150, deadline=None)
    def test_a_state_never_claims_what_the_caption_lacks(self, given: list[Constraint], caption: list[int]) -> None:
        machine = constraint_machine(given)
        table = dense_table(machine, WORDS)
        places = machine.main_states
        numbers = {place: number for number, place in places.items()}
        for place in main_states_reached(table, caption, len(places)):
            for bit, constraint in enumerate(given):
                if numbers[place] >> bit & 1:
                    assert holds(caption, constraint)

    @given(given=constraints, fill=st.lists(st.integers(13, 20), max_size=2), order=st.randoms())
    @settings(max_examples=80, deadline=None)
    def test_saying_all_of_them_one_after_the_other_meets_them(
        self, given: list[Constraint], fill: list[int], order: Any
    ) -> None:
        machine = constraint_machine(given)
        said = [[step[-1] for step in constraint.steps] + fill for constraint in given]
        order.shuffle(said)
        # Free words in between, so that no phrase runs on into the next.
        caption = list(itertools.chain.from_iterable([*phrase, 21] for phrase in said))
        reached = main_states_reached(dense_table(machine, WORDS), caption, len(machine.main_states))
        counts = {number.bit_count() for number, place in machine.main_states.items() if place in reached}
        # A word that several constraints want is counted for one of them, so some may stay open.
        wanted = [token for constraint in given for step in constraint.steps for token in step]
        if len(wanted) == len(set(wanted)):
            assert max(counts) == len(given)

    def test_every_word_leads_somewhere(self) -> None:
        phrases = [Constraint("a", ((5,), (6, 7), (8,))), Constraint("b", ((5, 9),))]
        assert dense_table(constraint_machine(phrases), WORDS).any(dim=1).all()

    def test_unreachable_states_are_left_out(self) -> None:
        one = [Constraint("a", ((5,), (6,)))]
        assert constraint_machine(one).states == (0, 1, 2)
        assert constraint_machine([]).states == (0,)

    def test_too_many(self) -> None:
        with pytest.raises(UserError, match=r"7 constraints .*at most 6"):
            constraint_machine([Constraint(str(number), ((number,),)) for number in range(7)])


class TestFromWords:
    pieces = {"dog": [5], "dogs": [6], "cat": [7], "fire": [8], "hydrant": [9, 10], "puppy": [11, 12]}  # noqa: RUF012

    def tokenize(self, word: str) -> list[int]:
        return self.pieces.get(word, [])

    def test_words_phrases_and_forms(self) -> None:
        forms = {"dog": ["dog", "dogs", "puppy"], "hydrant": ["cat"]}
        assert constraint_from_words("dog", self.tokenize, forms).steps == ((5, 6),)
        assert constraint_from_words("fire hydrant", self.tokenize, forms).steps == ((8,), (9,), (10,))

    def test_no_tokens(self) -> None:
        with pytest.raises(UserError, match="'unheard' has no tokens"):
            constraint_from_words("unheard", self.tokenize)


@torch.no_grad()
def decode(model: Any, context: Any, given: list[list[Constraint]], **options: Any) -> Any:
    values = {"max_length": 9, "num_beams": 3, "min_constraints": 3} | options
    return generate_captions(model, context, DecodingOptions(**values), special=SPECIAL, constraints=given)


@given(
    images=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), constraints), min_size=1, max_size=3),
    seed=st.integers(0, 10_000),
    least=st.integers(0, 3),
)
@settings(max_examples=12, deadline=None)
def test_batches_caches_and_promises(images: list[tuple[int, int, list[Constraint]]], seed: int, least: int) -> None:
    given_ = [phrases for *_, phrases in images]
    given_ = [phrases if sum(len(item.steps) for item in phrases) <= 8 else phrases[:2] for phrases in given_]
    model = random_model(seed)
    context = random_context([tags for tags, *_ in images], [regions for _, regions, _ in images], seed)
    found = decode(model, context, given_, min_constraints=least)
    with reencoding():
        again = decode(model, context, given_, min_constraints=least)
    assert torch.equal(found.ids, again.ids) and torch.equal(found.constraints_met, again.constraints_met)
    for image, phrases in enumerate(given_):
        alone = decode(model, one_image(context, image), [phrases], min_constraints=least)
        assert torch.equal(found.ids[image], alone.ids[0])
        torch.testing.assert_close(found.log_probs[image], alone.log_probs[0], rtol=1e-4, atol=1e-4)
        length = int(found.lengths[image])
        caption = found.ids[image, 0, 1:length].tolist()
        assert sum(holds(caption, phrase) for phrase in phrases) >= found.constraints_met[image]
        assert found.constraints_met[image] >= min(least, len(phrases))
        assert (found.ids[image, 0, length:] == SPECIAL.pad_token_id).all()


def test_without_constraints_the_words_are_free() -> None:
    """An image without constraints next to one with them: [PAD] and all other words stay candidates."""
    model, context = random_model(5), random_context([2, 2], [2, 2])
    with torch.no_grad():
        model.cls.predictions.bias[SPECIAL.pad_token_id] += 50.0  # the first id, which also fills up tables
    found = decode(model, context, [[], [Constraint("a", ((5,),))]])
    assert (found.ids[0, 0, 1:] == SPECIAL.pad_token_id).all() and found.lengths[0] == 9


def test_what_cannot_be_met_is_refused() -> None:
    model, context = random_model(0), random_context([1], [1])
    long = [Constraint("long tale", tuple((word,) for word in range(5, 14)))]
    with pytest.raises(UserError, match=r"image 0 .*long tale.* need 9 tokens, but max_length 9 leaves 8"):
        decode(model, context, [long])
    with pytest.raises(UserError, match="constraints for 2 images but 1 images"):
        decode(model, context, [[], []])
    with pytest.raises(UserError, match="one caption per image"):
        decode(model, context, [[]], num_return_sequences=2)
    with pytest.raises(UserError, match="outside the vocabulary of 23"):
        decode(model, context, [[Constraint("far", ((99,),))]])
    with pytest.raises(UserError, match="special token"):
        decode(model, context, [[Constraint("end", ((SPECIAL.sep_token_id,),))]])
