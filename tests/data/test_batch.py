"""Collate: padding, masks and dense targets."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.region_samples import image_regions, made_rows
from vinvl.data.batch import Example, collate, soft_targets

PAD = 9


def example(num_tokens: int, num_regions: int, label: int) -> Example:
    rng = np.random.default_rng((num_tokens, num_regions))
    return Example(
        input_ids=rng.integers(10, 50, size=num_tokens),
        token_type_ids=rng.integers(0, 2, size=num_tokens),
        regions=image_regions(made_rows(num_regions, 7, rng)),
        label_ids=np.array([label]),
        label_scores=np.array([0.3], dtype=np.float32),
        record={"question_id": label},
    )


@given(st.lists(st.tuples(st.integers(2, 12), st.integers(0, 9)), min_size=1, max_size=8))
@settings(deadline=None)
def test_every_example_comes_back_out_of_its_row(shapes: list[tuple[int, int]]) -> None:
    examples = [example(tokens, regions, label) for label, (tokens, regions) in enumerate(shapes)]
    batch = collate(examples, pad_token_id=PAD, labels=soft_targets(examples, 8))
    longest, most = max(t for t, _ in shapes), max(r for _, r in shapes)
    assert batch.input_ids.shape == (len(shapes), longest) and batch.region_features.shape == (len(shapes), most, 7)
    assert batch.labels is not None
    for row, (one, (tokens, regions)) in enumerate(zip(examples, shapes, strict=True)):
        assert batch.attention_mask[row].sum() == tokens + regions
        text, seen = batch.attention_mask[row, :longest], batch.attention_mask[row, longest:]
        np.testing.assert_array_equal(batch.input_ids[row][text].numpy(), one.input_ids)
        np.testing.assert_array_equal(batch.token_type_ids[row][text].numpy(), one.token_type_ids)
        np.testing.assert_array_equal(batch.region_features[row][seen].numpy(), one.regions.rows())
        assert (batch.input_ids[row][~text] == PAD).all() and (batch.region_features[row][~seen] == 0).all()
        assert batch.labels[row].nonzero().tolist() == [[row]]


def test_without_answers_there_are_no_labels_and_moving_keeps_the_records() -> None:
    batch = collate([example(3, 2, 0)], pad_token_id=PAD, labels=None)
    moved = batch.to(torch.device("cpu"))
    assert moved.labels is None and moved.records == batch.records and len(moved) == 1
