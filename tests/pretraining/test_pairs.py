"""Triplets, and pairs of texts put together for a whole batch, as properties."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pretraining.samples import SPECIAL
from vinvl.data.text import RaggedTokens, assemble_pair, truncated_lengths
from vinvl.pretraining.triplets import TRIES, PairDraws, PairOptions, assemble_pairs, mismatch, truncated_pairs
from vinvl.run.errors import UserError


def ragged(texts: list[list[int]]) -> RaggedTokens:
    offsets = np.cumsum([0, *map(len, texts)])
    return RaggedTokens(np.array([token for text in texts for token in text], dtype=np.int32), offsets)


token_lists = st.lists(st.integers(10, 99), max_size=14)


@given(st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=6), st.integers(5, 24))
@settings(deadline=None)
def test_a_batch_of_pairs_is_the_pairs_one_by_one(pairs: list[tuple[list[int], list[int]]], max_tokens: int) -> None:
    made = assemble_pairs(
        ragged([first for first, _ in pairs]),
        ragged([second for _, second in pairs]),
        max_tokens=max_tokens,
        special=SPECIAL,
    )
    for row, (first, second) in enumerate(pairs):
        ids, types = assemble_pair(
            np.array(first, dtype=np.int64),
            np.array(second, dtype=np.int64),
            max_tokens=max_tokens,
            cls_token_id=SPECIAL.cls_token_id,
            sep_token_id=SPECIAL.sep_token_id,
        )
        count = len(ids)
        assert made.num_tokens[row] == count
        np.testing.assert_array_equal(made.input_ids[row, :count], ids)
        np.testing.assert_array_equal(made.token_type_ids[row, :count], types)
        assert (made.input_ids[row, count:] == SPECIAL.pad_token_id).all()
        assert not made.token_type_ids[row, count:].any()
        # What may be hidden: every token of either text, and none of [CLS], [SEP] and padding.
        words = np.flatnonzero(made.input_ids[row] >= 10)
        np.testing.assert_array_equal(np.flatnonzero(made.text[row] | made.second_text[row]), words)
        np.testing.assert_array_equal(made.second_text[row, words], made.token_type_ids[row, words] == 1)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 60))
def test_truncation_of_many_pairs_is_that_of_one(first: int, second: int, limit: int) -> None:
    many = truncated_pairs(np.array([first]), np.array([second]), limit)
    assert (int(many[0][0]), int(many[1][0])) == truncated_lengths(first, second, limit)


MATCHED, SECOND, FIRST = 0.6, 0.4, 0.1  # a share that makes a triplet so
SAME, OTHER = [7, 7, 8], [7, 8, 9]  # the image of each row
# Share, rows drawn, images, settings → first row, second row, its side, label, whether the second text is masked.
CASES: dict[str, tuple[Any, ...]] = {
    "a row of the same image is passed over": (SECOND, [1, 0, 2], SAME, {}, (0, 2, 1, 1, 1)),
    "so it is for a first text": (FIRST, [1, 0, 2], SAME, {}, (2, 0, 1, 2, 1)),
    "the tenth row is looked at": (SECOND, [0] * 9 + [2], SAME, {}, (0, 2, 1, 1, 1)),
    "and taken as it is": (SECOND, [0] * 9 + [1], SAME, {}, (0, 1, 1, 1, 1)),
    "an answer is another question's": (SECOND, [0, 0, 1, 2], SAME, {"mode": 2}, (0, 1, 1, 1, 1)),
    "matched, all is masked": (MATCHED, [1], OTHER, {"mask": False}, (0, 0, 1, 0, 1)),
    "a wrong second text is not": (SECOND, [1], OTHER, {"mask": False}, (0, 1, 1, 1, 0)),
    "but where asked for": (SECOND, [1], OTHER, {}, (0, 1, 1, 1, 1)),
    "a wrong first text is": (FIRST, [1], OTHER, {"mask": False}, (1, 0, 1, 2, 1)),
    "an answer on the same image too": (SECOND, [1], SAME, {"mode": 2, "mask": False}, (0, 1, 1, 1, 1)),
    "not on another": (SECOND, [1], OTHER, {"mode": 2, "mask": False}, (0, 1, 1, 1, 0)),
    "without second text the first is wrong": (SECOND, [1], OTHER, {"second": [False, True, True]}, (1, 0, 1, 2, 1)),
    "an empty second text is passed over": (SECOND, [1, 2], OTHER, {"second": [True, False, True]}, (0, 2, 1, 1, 1)),
    "mode 0 has its first text": (
        SECOND, [1, 2], OTHER, {"second": [True, False, True], "mode": 0, "side": 0}, (0, 1, 0, 1, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_becomes_of_row_0(case: str) -> None:
    share, rows, images, settings, expected = CASES[case]
    options = PairOptions(settings.get("mode", 1), 0.25, settings.get("mask", True))
    candidates = np.array([[*rows, *[rows[-1]] * (TRIES - len(rows))]])
    draws = PairDraws(np.array([share]), candidates, np.array([settings.get("side", 1)]), candidates)
    second = np.array(settings.get("second", [True] * 3))
    made = mismatch(np.array([0]), draws, options, 3, lambda rows: np.array(images)[rows], lambda rows: second[rows])
    found = (made.first_rows, made.second_rows, made.second_sides, made.labels, made.mask_second)
    assert tuple(int(value[0]) for value in found) == expected and TRIES == 10


def test_classes_of_the_contrast() -> None:
    assert PairOptions(1, 0.0, True).num_classes(use_tags=False) == PairOptions(1, 0.25, True).num_classes() == 3
    assert PairOptions(1, 0.0, True).num_classes() == PairOptions(1, 0.5, True).num_classes() == 2


@pytest.mark.parametrize(("number", "share"), [(3, 0.25), (1, 0.6), (1, -0.1), (1, float("nan"))])
def test_options_that_mean_nothing_are_refused(number: int, share: float) -> None:
    with pytest.raises(UserError, match=r"data\.text[ab]_"):
        PairOptions(number, share, True)
