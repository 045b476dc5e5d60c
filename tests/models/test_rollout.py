"""Attention rollout: what the first position's state comes from."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.models.test_encoder import example, pad, small_model, stack
from vinvl.models import VinVLModel
from vinvl.models.rollout import attention_rollout

ATTENDED = 2  # the region that `model_that_looks_at` one looks at


@given(
    sizes=st.lists(st.tuples(st.integers(2, 7), st.integers(0, 5)), min_size=1, max_size=3),
    attention=st.sampled_from(["eager", "sdpa", "packed"]),
)
@torch.no_grad()
def test_shares_add_up_to_one_and_padding_has_none(sizes: list[tuple[int, int]], attention: str) -> None:
    model = small_model(attention)
    rows = [example(*size, seed=index) for index, size in enumerate(sizes)]
    length, regions = max(t for t, _ in sizes) + 1, max(r for _, r in sizes) + 1
    batch = stack([pad(row, length, regions) for row in rows])
    shares = attention_rollout(model, **batch)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(len(rows)))
    assert (shares >= 0).all() and (shares[batch["attention_mask"] == 0] == 0).all()
    assert model.config._attn_implementation == attention
    alone = attention_rollout(model, **rows[0])[0]
    tokens, count = sizes[0]
    found = torch.cat([shares[0, :tokens], shares[0, length : length + count]])
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_it_is_the_product_of_all_layers() -> None:
    model, row = small_model("eager"), example(4, 3)
    product = torch.eye(7)
    for weights in model(**row, output_attentions=True).attentions:
        product = (weights[0].mean(dim=0) + torch.eye(7)) / 2 @ product
    torch.testing.assert_close(attention_rollout(model, **row)[0], product[0])
    assert float(product[0].std()) > 0.02


def model_that_looks_at(region: int, layers: int) -> tuple[VinVLModel, dict[str, torch.Tensor]]:
    """A model whose every position attends to one region alone, which stands out in its first number, and an input."""
    model = small_model("packed", num_attention_heads=1, num_hidden_layers=layers, use_img_layernorm=False)
    row = example(4, 5)
    row["region_features"].zero_()[0, region, 0] = 100
    model.img_embedding.weight.zero_()[0, 0] = 1
    model.img_embedding.bias.zero_()
    for layer in model.encoder.layer:
        attention = layer.attention.self
        for linear in (attention.query, attention.key, layer.attention.output.dense, layer.output.dense):
            linear.weight.zero_()
            linear.bias.zero_()
        attention.query.bias[0] = 1000
        attention.key.weight[0, 0] = 1
    return model, row


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_a_model_that_looks_at_one_region_shows_it(layers: int) -> None:
    model, row = model_that_looks_at(ATTENDED, layers)
    shares = attention_rollout(model, **row)[0]
    own = 0.5**layers  # what is left of the first position itself: half of it in each layer
    expected = torch.zeros(9)
    expected[0], expected[4 + ATTENDED] = own, 1 - own
    torch.testing.assert_close(shares, expected, rtol=1e-4, atol=1e-4)
