"""Ranks and best matches taken block by block, and recall, against the published ones and naive versions."""

import math
from collections.abc import Iterator
from statistics import mean, median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import golden
from vinvl.retrieval.data import Block, Fold
from vinvl.retrieval.recall import Blocks, best_columns, best_images, chance, first_matches, fold_ranks, recall


def fold_of(captions_per_image: list[int]) -> Fold:
    owner = np.repeat(np.arange(len(captions_per_image)), captions_per_image)
    return Fold(np.arange(len(captions_per_image)), np.arange(len(owner)), owner)


def in_blocks(scores: np.ndarray, size: int) -> Blocks:
    def blocks() -> Iterator[tuple[Block, np.ndarray]]:
        for start in range(0, len(scores), size):
            stop = min(start + size, len(scores))
            yield Block(0, start, stop), scores[start:stop]

    return blocks


GOLDEN = golden.facts("oscar/data__retrieval_ranks")


@pytest.mark.parametrize("size", [1, 3, 4])
def test_ranks_are_the_published_ones(size: int) -> None:
    recorded = GOLDEN
    images, captions = len(recorded["img_keys"]), recorded["num_captions_per_img"]
    fold = fold_of([captions] * images)
    for pair in recorded["index_map"]:
        image, caption = divmod(pair["index"], images * captions)
        owner = fold.owner[fold.captions[caption]]
        assert [image, recorded["img_keys"][owner], caption % captions] == [pair["img_idx"], *pair["cap"]]
        assert (owner == image) == pair["label"]
    scores = np.array(recorded["similarities"], dtype=np.float32).reshape(images, images * captions)
    ranks = fold_ranks(fold, in_blocks(scores, size))
    assert ranks.image_to_text.tolist() == recorded["i2t_ranks"]
    assert ranks.text_to_image.tolist() == recorded["t2i_ranks"]


def sorted_rank(scores: np.ndarray, matches: np.ndarray) -> int:
    """Of the first match, from 0, by sorting."""
    order = np.argsort(scores, kind="stable")[::-1]
    return int(np.flatnonzero(matches[order])[0])


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=9), st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_blocks_give_the_ranks_of_sorting_ties_included(counts: list[int], size: int, levels: int, seed: int) -> None:
    fold = fold_of(counts)
    shape = (len(counts), sum(counts))
    scores = np.random.default_rng(seed).integers(0, levels, size=shape).astype(np.float32)
    ranks = fold_ranks(fold, in_blocks(scores, size))
    owns = fold.owner == np.arange(len(counts))[:, None]
    assert ranks.image_to_text.tolist() == list(map(sorted_rank, scores, owns))
    assert ranks.text_to_image.tolist() == list(map(sorted_rank, scores.T, owns.T))
    images, found = best_images(fold, in_blocks(scores, size), 3)
    expected = best_columns(np.ascontiguousarray(scores.T), 3)
    assert images.tolist() == expected.tolist()
    assert found.tolist() == np.take_along_axis(scores.T, expected, axis=1).tolist()
    first = images[np.arange(len(images)), 0] == fold.owner
    assert first.tolist() == (ranks.text_to_image == 0).tolist()
    first = first_matches(fold, in_blocks(scores, size), 3)
    assert first.captions.tolist() == best_columns(scores, 3).tolist() and first.images.tolist() == expected.tolist()
    np.testing.assert_array_equal(first.caption_scores, np.take_along_axis(scores, first.captions, axis=1))
    np.testing.assert_array_equal(first.image_scores, np.take_along_axis(scores.T, first.images, axis=1))


def test_scores_of_double_precision_are_not_rounded() -> None:
    """0.7 is more than the nearest number of single precision: a caption would be behind itself."""
    own = np.array([0, 0, 1, 1])
    scores = np.where(own == np.arange(2)[:, None], 0.7, 0.7 - 1e-12)
    ranks = fold_ranks(fold_of([2, 2]), in_blocks(scores, 1))
    assert ranks.image_to_text.tolist() == [0, 0] and ranks.text_to_image.tolist() == [0] * 4
    assert first_matches(fold_of([2, 2]), in_blocks(scores, 1)).images[:, 0].tolist() == own.tolist()


def test_chance_is_what_random_orders_give() -> None:
    fold = fold_of([5, 3, 5, 5])
    random = np.random.default_rng(0)
    hits = np.zeros((2, 3))
    rounds = 300
    for _ in range(rounds):
        ranks = fold_ranks(fold, in_blocks(random.random((4, 18)).astype(np.float32), 4))
        for column, k in enumerate((1, 2, 5)):
            hits[0, column] += (ranks.image_to_text < k).mean()
            hits[1, column] += (ranks.text_to_image < k).mean()
    for column, k in enumerate((1, 2, 5)):
        assert chance(fold, k) == pytest.approx(tuple(100 * hits[:, column] / rounds), abs=4)
    own = [5, 3, 5, 5]
    missed = [math.comb(18 - count, 2) / math.comb(18, 2) for count in own]
    assert chance(fold, 2)[0] == pytest.approx(100 * (1 - sum(missed) / 4))


@pytest.mark.parametrize("way", ["i2t", "t2i"])
def test_recorded_figures(way: str) -> None:
    recorded, found = GOLDEN["eval"][f"{way}_retrieval"], recall(np.array(GOLDEN[f"{way}_ranks"]))
    assert {key: found[key] / 100 for key in recorded} == recorded


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_recall(ranks: list[int]) -> None:
    found = recall(np.array(ranks))
    for k in (1, 5, 10):
        assert found[f"R@{k}"] == pytest.approx(100 * sum(rank < k for rank in ranks) / len(ranks))
    assert found["median_rank"] == median(ranks) + 1
    assert found["mean_rank"] == pytest.approx(mean(ranks) + 1)


def test_recall_of_nothing() -> None:
    found = recall(np.zeros(0, dtype=np.int64))
    assert set(found) == {"R@1", "R@5", "R@10", "median_rank", "mean_rank"} and all(map(math.isnan, found.values()))
