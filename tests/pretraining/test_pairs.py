"""Triplets, and pairs of texts put together for a whole batch, as properties."""

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


def mode(number: int, share: float = 0.25, mask: bool = True) -> PairOptions:
    return PairOptions(number, share, mask)


def drawn(share: float, rows: list[int], side: int = 1, answers: list[int] | None = None) -> PairDraws:
    def full(drawn_rows: list[int]) -> np.ndarray:
        return np.array([[*drawn_rows, *[drawn_rows[-1]] * (TRIES - len(drawn_rows))]])

    return PairDraws(np.array([share]), full(rows), np.array([side]), full(answers or rows))


def one(draws: PairDraws, options: PairOptions, images: list[int], second: list[bool]) -> tuple[int, ...]:
    """(first row, second row, side, label, whether the second text is masked) of row 0."""
    made = mismatch(
        np.array([0]),
        draws,
        options,
        options.num_classes(),
        lambda rows: np.array(images)[rows],
        lambda rows: np.array(second)[rows],
    )
    values = (made.first_rows, made.second_rows, made.second_sides, made.labels, made.mask_second)
    return tuple(int(value[0]) for value in values)


def test_rows_of_the_same_image_are_passed_over_ten_times_at_most() -> None:
    images, second = [7, 7, 8], [True] * 3
    assert one(drawn(0.4, [1, 0, 2]), mode(1), images, second) == (0, 2, 1, 1, 1)
    assert one(drawn(0.1, [1, 0, 2]), mode(1), images, second) == (2, 0, 1, 2, 1)
    # The tenth candidate is still looked at, and there is no eleventh.
    assert TRIES == 10
    assert one(drawn(0.4, [0] * 9 + [2]), mode(1), images, second) == (0, 2, 1, 1, 1)
    assert one(drawn(0.4, [0] * 9 + [1]), mode(1), images, second) == (0, 1, 1, 1, 1)


def test_an_answer_is_another_questions() -> None:
    drawn_answers = drawn(0.4, [3], answers=[0, 0, 1, 2])
    assert one(drawn_answers, mode(2), [7, 7, 8, 9], [True] * 4)[1] == 1


def test_a_wrong_second_text_is_masked_only_where_asked_for() -> None:
    images, second = [7, 8], [True] * 2
    for share, label, masked in ((0.6, 0, 1), (0.4, 1, 0), (0.1, 2, 1)):
        assert one(drawn(share, [1]), mode(1, mask=False), images, second)[3:] == (label, masked)
        assert one(drawn(share, [1]), mode(1), images, second)[3:] == (label, 1)
    # An answer to another question on the same image is no text of another image.
    assert one(drawn(0.4, [1]), mode(2, mask=False), [7, 7], second) == (0, 1, 1, 1, 1)
    assert one(drawn(0.4, [1]), mode(2, mask=False), [7, 8], second) == (0, 1, 1, 1, 0)


def test_a_row_without_second_text_gets_a_wrong_first_text() -> None:
    assert one(drawn(0.4, [1]), mode(1), [7, 8], [False, True]) == (1, 0, 1, 2, 1)
    assert mode(1, 0.0).num_classes(use_tags=False) == 3
    assert mode(1, 0.0).num_classes() == mode(1, 0.5).num_classes() == 2


def test_an_empty_second_text_is_not_drawn_while_there_are_others() -> None:
    assert one(drawn(0.4, [1, 2]), mode(1), [7, 8, 9], [True, False, True])[1] == 2
    # A first text will do in its place where mode 0 draws one.
    assert one(drawn(0.4, [1, 2], side=0), mode(0), [7, 8, 9], [True, False, True])[1:3] == (1, 0)


@pytest.mark.parametrize(("number", "share"), [(3, 0.25), (1, 0.6), (1, -0.1), (1, float("nan"))])
def test_options_that_mean_nothing_are_refused(number: int, share: float) -> None:
    with pytest.raises(UserError, match=r"data\.text[ab]_"):
        PairOptions(number, share, True)
