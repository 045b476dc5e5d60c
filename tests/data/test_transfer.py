"""How batches travel from data workers, and how their features get there."""

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
from vinvl.data.batch import SMALL, Batch, BatchRegions, Example, Packed, collate, gather_regions
from vinvl.data.inputs import InputLimits, RegionText
from vinvl.models import VinVLConfig, VinVLForAnswering
from vinvl.regions import RegionStore
from vinvl.run.errors import UserError


def batch_of(sizes: list[tuple[int, int]], width: int = 9) -> Batch:
    random = np.random.default_rng(3)
    examples = [
        Example(
            random.integers(5, 30, tokens),
            np.zeros(tokens, dtype=np.int64),
            image_regions(made_rows(regions, width, random)),
        )
        for tokens, regions in sizes
    ]
    return collate(examples, pad_token_id=0, labels=torch.rand(len(sizes), 40_000))


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert torch.equal(one, other) and one.dtype == other.dtype
    elif isinstance(one, np.ndarray):
        assert np.array_equal(one, other) and one.dtype == other.dtype
    elif hasattr(one, "__dataclass_fields__"):
        for field in fields(one):
            assert_same(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, tuple):
        assert len(one) == len(other)
        for part, same in zip(one, other, strict=True):
            assert_same(part, same)
    else:
        assert one == other


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 7)), min_size=1, max_size=6))
def test_a_batch_survives_the_way(sizes: list[tuple[int, int]]) -> None:
    batch = batch_of(sizes)
    assert_same(batch, pickle.loads(pickle.dumps(batch)))
    assert_same(batch, batch.to("cpu"))


def test_small_tensors_travel_as_arrays_and_large_ones_as_themselves() -> None:
    batch = batch_of([(3, 2)])
    _, (parts,) = batch.__reduce__()
    assert isinstance(parts["labels"], Tensor) and batch.labels is not None and batch.labels.nbytes > SMALL
    small = (parts["input_ids"], parts["regions"].places, parts["layout"].places, parts["layout"].groups[0].rows)
    assert all(isinstance(one, Packed) for one in small)


def test_rows_and_padded_rows_are_those_of_the_examples() -> None:
    batch = batch_of([(3, 2), (4, 0), (2, 5)])
    rows = torch.from_numpy(np.concatenate([np.zeros((0, 9), dtype=np.float32), batch.regions.rows().numpy()]))
    assert rows.shape == (7, 9) and batch.region_features.shape == (3, 5, 9)
    assert torch.equal(batch.region_features[0, :2], rows[:2]) and torch.equal(batch.region_features[2], rows[2:])
    assert not batch.region_features[1].any()


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
def test_every_attention_takes_rows_without_padding(attention: str) -> None:
    config = VinVLConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=24,
        img_feature_dim=9, num_labels=3, initializer_range=0.5, attn_implementation=attention,
    )  # fmt: skip
    torch.manual_seed(0)
    model, batch = VinVLForAnswering(config).eval(), batch_of([(3, 2), (4, 0), (2, 5)])
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
    assert isinstance(light, BatchRegions) and whole.features.dtype == torch.float16


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
