"""Batches: padding, masks and dense targets; how they travel from data workers, and how their features get there."""

import pickle
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.data.region_samples import image_regions, made_rows
from tests.regions.samples import make_regions, write
from tests.retrieval.samples import retrieval_data
from vinvl.data import batch as module
from vinvl.data.batch import SMALL, Batch, Example, Packed, collate, gather_regions, soft_targets
from vinvl.data.inputs import InputLimits, RegionText
from vinvl.models import VinVLConfig, VinVLForAnswering
from vinvl.regions import RegionStore
from vinvl.run.errors import UserError

PAD = 9
SIZES = st.lists(st.tuples(st.integers(2, 9), st.integers(0, 7)), min_size=1, max_size=6)  # tokens and regions


def example(num_tokens: int, num_regions: int, label: int) -> Example:
    rng = np.random.default_rng((num_tokens, num_regions))
    return Example(
        input_ids=rng.integers(10, 30, size=num_tokens),
        token_type_ids=rng.integers(0, 2, size=num_tokens),
        regions=image_regions(made_rows(num_regions, 9, rng)),
        label_ids=np.array([label]),
        label_scores=np.array([0.3], dtype=np.float32),
        record={"question_id": label},
    )


def batch_of(sizes: list[tuple[int, int]]) -> tuple[Batch, list[Example]]:
    examples = [example(*size, label) for label, size in enumerate(sizes)]
    return collate(examples, pad_token_id=PAD, labels=soft_targets(examples, 40_000)), examples


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor | np.ndarray):
        assert one.dtype == other.dtype and np.array_equal(one, other)
    elif hasattr(one, "__dataclass_fields__"):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for part, same in zip(one, other, strict=True):
            assert_same(part, same)
    else:
        assert one == other


@settings(deadline=None, max_examples=40)
@given(SIZES)
def test_every_example_comes_back_out_of_its_row_and_survives_the_way(sizes: list[tuple[int, int]]) -> None:
    batch, examples = batch_of(sizes)
    longest, most = (max(side) for side in zip(*sizes, strict=True))
    assert batch.input_ids.shape == (len(sizes), longest) and batch.region_features.shape == (len(sizes), most, 9)
    assert batch.labels is not None
    for row, (one, (tokens, regions)) in enumerate(zip(examples, sizes, strict=True)):
        assert batch.attention_mask[row].sum() == tokens + regions
        text, seen = batch.attention_mask[row, :longest], batch.attention_mask[row, longest:]
        np.testing.assert_array_equal(batch.input_ids[row][text].numpy(), one.input_ids)
        np.testing.assert_array_equal(batch.token_type_ids[row][text].numpy(), one.token_type_ids)
        np.testing.assert_array_equal(batch.region_features[row][seen].numpy(), one.regions.rows())
        assert (batch.input_ids[row][~text] == PAD).all() and (batch.region_features[row][~seen] == 0).all()
        assert batch.labels[row].nonzero().tolist() == [[row]]
    assert np.array_equal(batch.regions.rows(), np.concatenate([one.regions.rows() for one in examples]))
    assert_same(batch, pickle.loads(pickle.dumps(batch)))
    assert_same(batch, batch.to("cpu"))


def test_small_tensors_travel_as_arrays_and_large_ones_as_themselves() -> None:
    batch, _ = batch_of([(3, 2)])
    _, (parts,) = batch.__reduce__()
    assert isinstance(parts["labels"], Tensor) and batch.labels is not None and batch.labels.nbytes > SMALL
    small = (parts["input_ids"], parts["regions"].places, parts["layout"].places, parts["layout"].groups[0].rows)
    assert all(isinstance(one, Packed) for one in small)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
def test_every_attention_takes_rows_without_padding(attention: str) -> None:
    config = VinVLConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        img_feature_dim=9, num_labels=3, initializer_range=0.5, attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    model, (batch, _) = VinVLForAnswering(config).eval(), batch_of([(3, 2), (4, 0), (2, 5)])
    assert batch.inputs()["region_features"].dim() == 2
    with torch.no_grad():
        logits = model(**batch.inputs()).logits
        padded = model(**batch.inputs() | {"region_features": batch.region_features}).logits
        with pytest.raises(UserError, match="without padding were given without a layout"):
            model(**batch.inputs() | {"layout": None})
    torch.testing.assert_close(logits, padded, rtol=1e-6, atol=1e-6)


def test_a_worker_sends_no_features_and_they_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "store.h5", [make_regions(name, 4, 5) for name in "abc"], feature_dim=5)
    store = RegionStore(path)
    parts = [module.ImageRegions(store.at(index), count, index) for index, count in ((2, 2), (0, 1), (1, 0))]
    whole = gather_regions(parts)
    monkeypatch.setattr(module, "get_worker_info", object)
    light = gather_regions(parts)
    assert light.features is None and whole.features is not None
    assert_same(light.filled(store), whole)
    assert whole.features.dtype == torch.float16


@pytest.mark.slow
def test_loaders_with_and_without_workers_give_the_same(demo_data: Path) -> None:
    batches = []
    for workers in (0, 1):
        data = retrieval_data(demo_data, num_workers=workers)
        data.setup("fit")
        batches.append(list(data.train_dataloader()))
    assert len(batches[0]) == len(batches[1]) > 0
    for one, other in zip(*batches, strict=True):
        assert_same(one, other)


def test_an_image_is_looked_at_until_it_was_found_sound() -> None:
    looked: list[int] = []

    class Found:
        def __init__(self, image: int) -> None:
            self.image = image

        def __len__(self) -> int:
            return 3

        def check_finite(self) -> None:
            looked.append(self.image)
            if self.image == 3:
                raise UserError("not finite")

    store: Any = SimpleNamespace(at=Found)
    text = RegionText(store, None, InputLimits(9, 2), None)  # type: ignore[arg-type]
    assert [text.image_regions(image).count for image in (0, 1, 0, 1)] == [2] * 4 and looked == [0, 1]
    for _ in range(2):
        with pytest.raises(UserError, match="not finite"):
            text.image_regions(3)
