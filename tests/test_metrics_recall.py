"""Retrieval ranks and recall against recordings of the published code and a naive version."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vinvl.errors import UserError
from vinvl.metrics import RecallAtK, image_to_text_ranks, ranks_of_first_match, recall, text_to_image_ranks

GOLDEN = json.loads((Path(__file__).parent / "data" / "golden" / "oscar" / "data__retrieval_ranks.json").read_text())


def test_recorded_ranks() -> None:
    num_images, per_image = len(GOLDEN["img_keys"]), GOLDEN["num_captions_per_img"]
    scores = torch.tensor(GOLDEN["similarities"]).view(num_images, num_images * per_image)
    image_of_caption = torch.arange(num_images).repeat_interleave(per_image)
    by_image = image_to_text_ranks(scores, image_of_caption)
    by_text = text_to_image_ranks(scores, image_of_caption)
    assert by_image.tolist() == GOLDEN["i2t_ranks"] and by_text.tolist() == GOLDEN["t2i_ranks"]
    for ranks, name in ((by_image, "i2t_retrieval"), (by_text, "t2i_retrieval")):
        metric = RecallAtK()
        metric.update(ranks)
        found = metric.compute()
        assert {key: found[key].item() / 100 for key in GOLDEN["eval"][name]} == GOLDEN["eval"][name]


def naive_rank(scores: list[float], matches: list[bool]) -> int:
    order = np.argsort(np.array(scores), kind="stable")[::-1]
    return next(rank for rank, item in enumerate(order) if matches[item])


@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 24), st.sampled_from([1, 30, 1 << 24]))
def test_ranks_equal_sorting(data: st.DataObject, queries: int, items: int, cells: int) -> None:
    few = st.sampled_from([0.0, 0.25, -1.0, float("inf"), float("-inf")])  # few values: many ties
    scores = data.draw(st.lists(st.lists(few, min_size=items, max_size=items), min_size=queries, max_size=queries))
    flags = st.lists(st.booleans(), min_size=items, max_size=items).filter(any)
    matches = data.draw(st.lists(flags, min_size=queries, max_size=queries))
    expected = [naive_rank(row, flag) for row, flag in zip(scores, matches, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recall, "_CELLS_AT_A_TIME", cells)
        assert ranks_of_first_match(torch.tensor(scores), torch.tensor(matches)).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10_000), st.sampled_from([1, 1 << 24]))
def test_both_ways_equal_explicit_matches(num_images: int, seed: int, cells: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    image_of_caption = torch.cat([torch.arange(num_images), torch.randint(num_images, (7,), generator=generator)])
    scores = torch.randint(4, (num_images, len(image_of_caption)), generator=generator).float()
    matches = image_of_caption == torch.arange(num_images)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recall, "_CELLS_AT_A_TIME", cells)
        assert torch.equal(image_to_text_ranks(scores, image_of_caption), ranks_of_first_match(scores, matches))
        assert torch.equal(text_to_image_ranks(scores, image_of_caption), ranks_of_first_match(scores.T, matches.T))


def test_bad_scores_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "_CELLS_AT_A_TIME", 1)
    scores, matches = torch.zeros(3, 2), torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(UserError, match="Query 2 has no matching item"):
        ranks_of_first_match(scores, matches & torch.tensor([[1], [1], [0]], dtype=torch.bool))
    with pytest.raises(UserError, match="scores of query 1 hold nan"):
        ranks_of_first_match(torch.tensor([[0, 0], [0, float("nan")], [0, 0]]), matches)
    with pytest.raises(ValueError, match="one shape"):
        ranks_of_first_match(scores, matches[:, :1])
    with pytest.raises(ValueError, match="image of each caption"):
        image_to_text_ranks(scores, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UserError, match="Query 1 has no matching item"):
        image_to_text_ranks(scores, torch.tensor([0, 2]))
    assert ranks_of_first_match(scores[:0], matches[:0]).tolist() == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(1, 9))
def test_recall_over_batches(ranks: list[int], size: int) -> None:
    metric = RecallAtK()
    for start in range(0, len(ranks), size):
        metric.update(torch.tensor(ranks[start : start + size]))
    found = {name: value.item() for name, value in metric.compute().items()}
    for k in (1, 5, 10):
        assert found[f"R@{k}"] == pytest.approx(100 * np.mean(np.array(ranks) < k))
    assert found["median_rank"] == np.median(ranks) + 1
    assert found["mean_rank"] == pytest.approx(np.mean(ranks) + 1)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_recall_of_nothing_and_of_something_else() -> None:
    metric = RecallAtK()
    found = metric.compute()
    assert set(found) == {"R@1", "R@5", "R@10", "median_rank", "mean_rank"}
    assert all(value.isnan() and value.dtype == torch.float64 for value in found.values())
    with pytest.raises(ValueError, match="int64"):
        metric.update(torch.zeros(3))
