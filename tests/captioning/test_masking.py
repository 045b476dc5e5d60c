"""Hiding words of captions: how many, which, by what, and each caption's own draw."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.captioning.data import CaptionLimits, Replacements, hide_words, uniform_numbers

CLS, SEP, MASK, UNK = 2, 3, 4, 1
REPLACEMENTS = Replacements(MASK, UNK, vocab_size=1_000_000)


def captions_of(lengths: np.ndarray) -> np.ndarray:
    """(B, C): [CLS], words that tell their caption and place, [SEP], zeros."""
    width = int(lengths.max())
    place = np.arange(width)
    words = 1000 * (1 + np.arange(len(lengths)))[:, None] + place
    words[:, 0] = CLS
    words[place == lengths[:, None] - 1] = SEP
    return np.where(place < lengths[:, None], words, 0)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 40), min_size=1, max_size=9),
    probability=st.sampled_from([0.0, 0.15, 0.5, 1.0]),
    most=st.integers(1, 40),
    seed=st.integers(0, 2**63 - 1),
)
def test_so_many_words_are_hidden_and_nothing_else_changes(
    lengths: list[int], probability: float, most: int, seed: int
) -> None:
    sizes = np.array(lengths)
    captions = captions_of(sizes)
    limits = CaptionLimits(40, 70, probability, most)
    numbers = uniform_numbers(seed, np.zeros_like(sizes), np.arange(len(sizes)), 4 * captions.shape[1])
    shown, masked = hide_words(captions, sizes, numbers.reshape(*captions.shape, 4), limits, REPLACEMENTS)
    expected = [min(max(round(probability * length), 1), most, length - 1) for length in lengths]
    assert masked.sum(axis=1).tolist() == expected
    assert not masked[:, 0].any() and not masked[captions == 0].any()
    assert np.array_equal(shown[~masked], captions[~masked])


def test_shares_of_places_and_replacements_are_the_published_ones() -> None:
    count, length = 20_000, 12
    sizes = np.full(count, length)
    captions = np.full((count, length), 9)
    numbers = uniform_numbers(0, np.zeros_like(sizes), np.arange(count), 4 * length).reshape(count, length, 4)
    shown, masked = hide_words(captions, sizes, numbers, CaptionLimits(40, 70, 0.15, 3), REPLACEMENTS)
    assert masked.sum(axis=0)[1:] == pytest.approx(np.full(length - 1, 2 * count / (length - 1)), rel=0.05)
    hidden = shown[masked]
    assert [(hidden == MASK).mean(), (hidden == 9).mean()] == pytest.approx([0.8, 0.1], abs=0.01)
    others = hidden[(hidden != MASK) & (hidden != 9)]
    assert others.mean() == pytest.approx(500_000, rel=0.03) and others.max() > 990_000 and others.min() < 10_000


def test_numbers_are_uniform_and_unlike_each_other() -> None:
    numbers = uniform_numbers(7, np.repeat([0, 1], 500), np.tile(np.arange(500), 2), 100)
    assert numbers.min() >= 0 and numbers.max() < 1
    shares, _ = np.histogram(numbers, bins=50, range=(0, 1))
    assert shares == pytest.approx(np.full(50, numbers.size / 50), rel=0.1)
    assert len(np.unique(numbers)) == numbers.size
    between = np.corrcoef(numbers)  # of items, and of an item's two epochs
    assert np.abs(between - np.eye(len(numbers))).max() < 0.55  # some 4.5 / √100 by chance alone


def test_numbers_are_an_items_own_whatever_stands_beside_it() -> None:
    items = np.array([5, 900, 17, 5])
    epochs = np.array([0, 3, 1, 2])
    together = uniform_numbers(11, epochs, items, 8)
    for place in range(4):
        alone = uniform_numbers(11, epochs[place : place + 1], items[place : place + 1], 20)
        assert np.array_equal(alone[0, :8], together[place])
    assert not np.array_equal(together[0], together[3])  # another epoch
    assert not np.array_equal(together[0], uniform_numbers(12, epochs, items, 8)[0])  # another seed
