"""Two-stage retrieval: what is chosen, the order of the rest, and the words that tags and captions share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.retrieval.samples import retrieval_data
from tests.retrieval.test_recall import fold_of, in_blocks
from vinvl.data.text import RaggedTokens
from vinvl.retrieval.data import Block, Fold, RetrievalDataModule, blocks_of
from vinvl.retrieval.overlap import cheap_overlap, tag_overlap, terms_of
from vinvl.retrieval.recall import FoldRanks, best_columns, fold_ranks
from vinvl.retrieval.two_stage import FLOOR, STEP, TwoStage, below_all, chosen_captions, is_scored, stepped
from vinvl.run.errors import UserError


def two_stage_scores(fold: Fold, cheap: np.ndarray, full: np.ndarray, top: int, size: int = 3) -> np.ndarray:
    """(I, C) scores of all blocks."""
    two = TwoStage([fold], lambda _: lambda start, stop: cheap[start:stop], top)
    rows = []
    for block in blocks_of([fold], size):
        scores = full[block.start : block.stop]

        def score(image: int, captions: np.ndarray, scores: np.ndarray = scores) -> np.ndarray:
            return scores[image, captions]

        rows.append(two.scores(block, lambda scores=scores: scores, score))  # type: ignore[misc]
    return np.concatenate(rows)


def ranks_of(fold: Fold, scores: np.ndarray) -> FoldRanks:
    return fold_ranks(fold, in_blocks(scores, 4))


def drawn(shape: tuple[int, int], levels: int, seed: int) -> np.ndarray:
    """Few levels: many ties."""
    numbers = np.random.default_rng(seed).integers(-levels, levels + 1, size=shape)
    return (numbers / levels).astype(np.float32)


COUNTS = st.lists(st.integers(1, 4), min_size=1, max_size=9)
LEVELS, SEED = st.integers(1, 6), st.integers(0, 99)


@settings(deadline=None)
@given(COUNTS, LEVELS, SEED, st.integers(1, 9))
def test_the_best_of_rows_and_columns_are_chosen_ties_included(
    counts: list[int], levels: int, seed: int, top: int
) -> None:
    fold = fold_of(counts)
    cheap = drawn((len(counts), sum(counts)), levels, seed)
    top = min(top, len(counts))
    wanted = np.zeros(cheap.shape, dtype=bool)
    np.put_along_axis(wanted, best_columns(cheap, top), True, axis=1)
    np.put_along_axis(wanted.T, best_columns(np.ascontiguousarray(cheap.T), top), True, axis=1)
    chosen = chosen_captions(fold, lambda start, stop: cheap[start:stop], top)
    assert [one.tolist() for one in chosen] == [np.flatnonzero(row).tolist() for row in wanted]
    two = TwoStage([fold], lambda _: lambda start, stop: cheap[start:stop], top)
    assert two.scored == wanted.sum() <= top * sum(cheap.shape) and two.total == cheap.size
    assert sum(map(two.pairs, blocks_of([fold], 2))) == two.scored


@settings(deadline=None)
@given(COUNTS, LEVELS, SEED)
def test_all_candidates_give_the_ranks_of_the_model_exactly(counts: list[int], levels: int, seed: int) -> None:
    fold = fold_of(counts)
    cheap, full = (drawn((len(counts), sum(counts)), levels, seed + number) for number in range(2))
    scores = two_stage_scores(fold, cheap, full, top=len(counts))
    np.testing.assert_array_equal(scores, full)


@settings(deadline=None)
@given(COUNTS, LEVELS, SEED, st.integers(1, 9))
def test_cheap_scores_in_the_models_order_lose_nothing_among_the_first(
    counts: list[int], levels: int, seed: int, top: int
) -> None:
    fold, top = fold_of(counts), min(top, len(counts))
    full = drawn((len(counts), sum(counts)), levels, seed)
    scores = two_stage_scores(fold, full / 2, full, top)
    for ours, theirs in zip(ranks_of(fold, scores), ranks_of(fold, full), strict=True):
        np.testing.assert_array_equal(np.minimum(ours, top), np.minimum(theirs, top))


@settings(deadline=None)
@given(COUNTS, LEVELS, SEED, st.integers(1, 9), st.integers(1, 5))
def test_chosen_pairs_come_first_and_the_others_in_cheap_order(
    counts: list[int], levels: int, seed: int, top: int, size: int
) -> None:
    fold, top = fold_of(counts), min(top, len(counts))
    cheap, full = (drawn((len(counts), sum(counts)), levels, seed + number) for number in range(2))
    scores = two_stage_scores(fold, cheap, 1e4 * full, top, size)
    chosen = chosen_captions(fold, lambda start, stop: cheap[start:stop], top)
    for row, captions, by_model, by_words in zip(scores, chosen, 1e4 * full, cheap, strict=True):
        rest = np.setdiff1d(np.arange(len(row)), captions)
        assert is_scored(row[captions]).all() and not is_scored(row[rest]).any()
        expected = [*captions[best_columns(by_model[None, captions], len(row))[0]]]
        expected += [*rest[best_columns(stepped(by_words)[None, rest], len(row))[0]]]
        assert best_columns(row[None], len(row))[0].tolist() == expected


@given(st.lists(st.integers(-(2**22), 2**22 - 1), min_size=2, max_size=20))
def test_what_stands_for_cheap_scores_keeps_every_step(numbers: list[int]) -> None:
    numbers = [*numbers, *(number + 1 for number in numbers)]  # neighbours are the hardest to keep apart
    cheap = stepped(np.array(numbers) * STEP)
    np.testing.assert_array_equal(cheap / np.float32(STEP), numbers)
    lowered = below_all(cheap)
    assert lowered.dtype == np.float32 and np.isfinite(lowered).all() and (lowered < FLOOR).all()
    assert np.unique(lowered, return_inverse=True)[1].tolist() == np.unique(numbers, return_inverse=True)[1].tolist()


def test_cheap_scores_beyond_their_range_are_cut() -> None:
    assert stepped(np.array([1.0000001, -7.0])).tolist() == [1, -1]


@pytest.mark.parametrize("score", [np.nan, -np.inf])
def test_scores_without_order_are_refused(score: float) -> None:
    fold = fold_of([1, 1, 1])
    with pytest.raises(UserError, match="NaN or infinite"):
        two_stage_scores(fold, drawn((3, 3), 3, 0), np.full((3, 3), score, dtype=np.float32), top=1)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rerank_top": 0}, r"data\.rerank_top is 0: give a number of 1 or more"),
        ({"rerank_top": 1.5}, r"data\.rerank_top is 1\.5: give a number of 1 or more"),
        ({"rerank_top": "many"}, r"data\.rerank_top is many: give a number of 1 or more"),
        ({"rerank_top": 2, "rerank_by": "luck"}, r"data\.rerank_by is 'luck', and there is no such file: pass tags"),
        ({"rerank_top": 2, "use_tags": False}, r"rerank_by=tags needs data\.use_tags=true"),
        ({"rerank_top": 2, "rerank_by": "dual_encoder", "rerank_steps": 0}, r"data\.rerank_steps is 0"),
        ({"rerank_top": 2, "val_hard_captions": "minival.pt"}, r"val_hard_captions names them: leave one out"),
    ],
)
def test_settings_that_cannot_be_are_refused(demo_data: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        retrieval_data(demo_data, **changes)


@pytest.mark.parametrize("changes", [{"rerank_top": 7}, {"rerank_top": 4, "test_candidates": 3}])
def test_more_than_the_candidates_are_refused_before_a_training(demo_data: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"is more than the . images that a caption is compared with"):
        retrieval_data(demo_data, **changes).setup("test")


def test_terms_are_tokens_and_pairs_of_neighbours() -> None:
    assert len(terms_of(np.array([3, 4, 3, 4], dtype=np.int32))) == 2 + 2  # 3, 4, (3, 4), (4, 3)
    assert set(terms_of(np.array([3, 4]))) < set(terms_of(np.array([7, 3, 4])))
    assert set(terms_of(np.array([4, 3]))) - set(terms_of(np.array([3, 4]))) == {(4 + 1) << 32 | 3}
    assert len(terms_of(np.array([], dtype=np.int32))) == 0 and len(terms_of(np.array([5]))) == 1


def test_overlap_is_the_cosine_of_weighted_terms() -> None:
    random = np.random.default_rng(0)
    rows, tags = ([random.integers(5, 12, size=size) for size in random.integers(low, 9, 12)] for low in (1, 0))
    texts = [RaggedTokens.of_lengths(np.concatenate(one), np.array(list(map(len, one)))) for one in (tags, rows)]
    fold = Fold(np.array([3, 1, 7, 5]), np.array([0, 2, 3, 8, 9, 11]), np.array([0, 0, 1, 2, 3, 3]))
    captions = [set(terms_of(rows[one]).tolist()) for one in fold.captions.tolist()]
    images = [set(terms_of(tags[one]).tolist()) for one in fold.images.tolist()]

    def weight(terms: set[int]) -> float:
        holders = [max(1, sum(term in one for one in captions)) for term in terms]
        return float(sum(np.log1p(len(captions) / count) ** 2 for count in holders))

    naive = [[weight(a & b) / np.sqrt(weight(a) * weight(b) or 1) for b in captions] for a in images]
    found = tag_overlap(*texts, fold)
    assert found(0, 4).max() > 0.2
    np.testing.assert_allclose(found(0, 4), naive, rtol=1e-12)
    np.testing.assert_array_equal(found(2, 4), found(0, 4)[2:])


def overlap_of(data: RetrievalDataModule) -> tuple[str, np.ndarray]:
    data.setup("test")
    cheap = cheap_overlap(data.candidates("test"), data.tokenizer, data.tag_choice)
    return cheap.what, cheap.of_fold(data.folds("test")[0])(0, 6)


def test_attributes_count_whether_the_model_sees_them_or_not(demo_data: Path, tmp_path: Path) -> None:
    (what, hidden), (same, seen) = (
        overlap_of(retrieval_data(demo_data, tag_form=form)) for form in ("class", "attribute+class")
    )
    np.testing.assert_array_equal(hidden, seen)
    assert what == same
    given = tmp_path / "tags.json"
    file = json.loads((demo_data / "demo" / "dataset_demo.json").read_text())
    ids = [str(image["cocoid"]) for image in file["images"] if image["split"] == "test"]
    given.write_text(json.dumps({image_id: ["star"] for image_id in ids}))
    other, overlap = overlap_of(retrieval_data(demo_data, tags=str(given)))
    assert other != what and (overlap == overlap[0]).all() and overlap.any()


def test_blocks_of_several_folds_are_kept_apart() -> None:
    folds = [fold_of([1, 2]), fold_of([2, 1])]
    cheap = [drawn((2, 3), 3, seed) for seed in range(2)]
    number = {id(fold): place for place, fold in enumerate(folds)}
    two = TwoStage(folds, lambda fold: lambda start, stop: cheap[number[id(fold)]][start:stop], 1)
    for place, fold in enumerate(folds):
        chosen = chosen_captions(fold, lambda start, stop, place=place: cheap[place][start:stop], 1)  # type: ignore[misc]
        assert [one.tolist() for one in two.chosen(Block(place, 0, 2))] == [one.tolist() for one in chosen]


def test_the_share_and_folds_of_other_sizes() -> None:
    """Of the second fold all pairs are chosen, and the model's scores are taken as they come."""
    folds = [fold_of([2, 2]), fold_of([1, 1])]
    cheap = {4: np.eye(2, 4, dtype=np.float32), 2: np.array([[0, 0], [1, 1]], dtype=np.float32)}
    two = TwoStage(folds, lambda fold: lambda start, stop: cheap[len(fold.captions)][start:stop], 1)
    chosen = [sum(map(two.pairs, [Block(place, 0, 2)])) for place in range(2)]
    assert (two.scored, two.total) == (sum(chosen), 12)
    assert two.share == pytest.approx(100 * sum(chosen) / 12) and f"{sum(chosen)} pairs of 12 (" in two.describe()
    whole = TwoStage(folds, lambda fold: lambda start, stop: cheap[len(fold.captions)][start:stop], 2)
    for place, columns in enumerate((4, 2)):
        full = np.full((2, columns), 0.5, dtype=np.float32)
        scores = whole.scores(Block(place, 0, 2), lambda full=full: full, lambda *_: pytest.fail("pair by pair"))  # type: ignore[misc]
        np.testing.assert_array_equal(scores, full)


@pytest.mark.parametrize("top", [0, 3])
def test_as_many_as_a_fold_has_images_at_most(top: int) -> None:
    with pytest.raises(UserError, match=r"give 1 to 2, the images of a fold"):
        TwoStage([fold_of([1, 1, 1]), fold_of([1, 1])], lambda _: lambda start, stop: np.zeros((1, 1)), top)
