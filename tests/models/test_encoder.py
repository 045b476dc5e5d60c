"""How the encoder behaves: padding, masks, gradient checkpointing, history, saving, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache

from tests.models.samples import SIZES
from vinvl.models import VinVLConfig, VinVLForAnswering, VinVLModel
from vinvl.models.encoder import dense_attention_mask
from vinvl.run.errors import UserError

torch.set_num_threads(1)  # threads cost more than they give at these sizes

WIDTH = 12  # numbers per region row

# The name of 2026's transformers releases; older ones have no other.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")


def small_config(**changes: Any) -> VinVLConfig:
    values: dict[str, Any] = {
        "vocab_size": 50, "img_feature_dim": WIDTH, "use_img_layernorm": True, "num_labels": 5,
        "initializer_range": 0.5,  # large, so that attention is far from uniform
    }  # fmt: skip
    return VinVLConfig(**(SIZES | values | changes))


def small_model(attention: str = "sdpa", model_class: Any = VinVLModel, **changes: Any) -> Any:
    torch.manual_seed(0)
    return model_class._from_config(small_config(**changes), attn_implementation=attention).eval()


def example(tokens: int, regions: int, seed: int = 0) -> dict[str, Tensor]:
    """One unpadded row."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(1, 50, (1, tokens), generator=generator),
        "token_type_ids": torch.randint(0, 2, (1, tokens), generator=generator),
        "attention_mask": torch.ones(1, tokens + regions, dtype=torch.long),
        "region_features": torch.randn(1, regions, WIDTH, generator=generator),
    }


def pad(row: dict[str, Tensor], length: int, regions: int) -> dict[str, Tensor]:
    """The row with its tokens padded to `length` and its regions to `regions`."""
    tokens, features = row["input_ids"], row["region_features"]
    right, below = (0, length - tokens.shape[1]), (0, regions - features.shape[1])
    token_mask, region_mask = torch.ones_like(tokens), torch.ones(features.shape[:2], dtype=torch.long)
    return {
        "input_ids": F.pad(tokens, right),
        "token_type_ids": F.pad(row["token_type_ids"], right),
        "attention_mask": torch.cat([F.pad(token_mask, right), F.pad(region_mask, below)], dim=1),
        "region_features": F.pad(features, (0, 0, *below)),
    }


def stack(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}


@settings(max_examples=15, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(0, 6)), min_size=1, max_size=4),
    extra=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
@torch.no_grad()
def test_a_row_does_not_depend_on_the_padding_of_its_batch(
    sizes: list[tuple[int, int]], extra: tuple[int, int]
) -> None:
    """By the plain way, to which `test_packing` holds the others."""
    model = small_model("eager", VinVLForAnswering)
    rows = [example(*size, seed=index) for index, size in enumerate(sizes)]
    length, regions = max(t for t, _ in sizes) + extra[0], max(r for _, r in sizes) + extra[1]
    logits = model(**stack([pad(row, length, regions) for row in rows])).logits
    alone = torch.cat([model(**row).logits for row in rows])
    torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
@torch.no_grad()
def test_recorded_attention_is_that_of_the_plain_way(attention: str) -> None:
    """Of the first position in the last layer, and of nothing after it is asked for no more."""
    plain, model = small_model("eager"), small_model(attention)
    batch = stack([pad(example(4, 2), 6, 3), example(6, 3, seed=1)])
    with model.recorded_attention() as recorded:
        model(**batch, only_first=True)
    model(**batch, only_first=True)
    expected = plain(**batch, output_attentions=True).attentions[-1][:, :, 0]
    assert len(recorded) == 1 and float(expected.std()) > 1e-3
    torch.testing.assert_close(recorded[0], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_regions_have_no_order_but_tokens_have() -> None:
    model, row = small_model(), example(5, 4)
    pooled = model(**row).pooler_output
    turned = row | {"region_features": row["region_features"].flip(1)}
    torch.testing.assert_close(model(**turned).pooler_output, pooled, rtol=1e-5, atol=1e-5)
    swapped = row | {"input_ids": row["input_ids"].flip(1)}
    assert (model(**swapped).pooler_output - pooled).abs().max() > 1e-2


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
def test_rows_that_may_attend_to_nothing_stay_finite_in_training(attention: str) -> None:
    model = small_model(attention).train()
    row = example(4, 2)
    mask = torch.ones(1, 6, 6, dtype=torch.long)
    mask[0, 3] = 0
    mask[0, :, 3] = 0
    output = model(**row | {"attention_mask": mask}).last_hidden_state
    output[:, :3].sum().backward()
    assert output.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_mask_given_to_each_attention_implementation() -> None:
    mask = torch.tensor([[[1, 0], [1, 1]]])
    assert dense_attention_mask(mask, "sdpa", torch.float32).tolist() == [[[[True, False], [True, True]]]]
    nothing = dense_attention_mask(torch.zeros(1, 1, 3), "sdpa", torch.float32)
    assert nothing.tolist() == [[[[True, True, True]]]]  # not NaN, on any backend
    lowest = torch.finfo(torch.float16).min
    additive = dense_attention_mask(mask, "eager", torch.float16)
    assert additive.dtype == torch.float16
    assert additive.tolist() == [[[[0, lowest], [0, 0]]]]
    for implementation in ("flash_attention_2", "flex_attention"):
        with pytest.raises(UserError, match=f"'{implementation}' attention takes no mask of who sees whom"):
            dense_attention_mask(mask, implementation, torch.float16)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
def test_gradient_checkpointing_gives_the_same_gradients(attention: str) -> None:
    batch = stack([pad(example(4, 2), 6, 3), example(6, 3, seed=1)])

    def gradients(checkpointing: bool) -> dict[str, Tensor]:
        model = small_model(attention, VinVLForAnswering).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.bert.encoder.layer[0].gradient_checkpointing
        torch.manual_seed(1)  # dropout is on: the recomputation must draw the same again
        model(**batch, labels=torch.rand(2, 5)).loss.backward()
        return {name: p.grad for name, p in model.named_parameters()}

    plain, recomputed = gradients(False), gradients(True)
    for name, gradient in plain.items():
        assert gradient.abs().max() > 0 or "key.bias" in name or "word_emb" in name
        torch.testing.assert_close(recomputed[name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_batch_without_regions_still_gives_every_parameter_a_gradient(checkpointing: bool) -> None:
    model = small_model(model_class=VinVLForAnswering).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    model(**example(5, 0), labels=torch.rand(1, 5)).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
@torch.no_grad()
def test_history_equals_a_causal_mask_over_the_whole_sequence(attention: str) -> None:
    model, row = small_model(attention), example(6, 0)
    ids, types = row["input_ids"], row["token_type_ids"]
    causal = torch.ones(1, 6, 6).tril()
    whole = model(ids, types, causal)
    first = {"input_ids": ids[:, :4], "token_type_ids": types[:, :4], "position_ids": torch.arange(4)[None]}
    rest = {"input_ids": ids[:, 4:], "token_type_ids": types[:, 4:], "position_ids": torch.tensor([[4, 5]])}
    model(**first, attention_mask=causal[:, :4, :4], past_key_values=(history := DynamicCache()))
    stepwise = model(**rest, attention_mask=causal[:, 4:], past_key_values=history)
    torch.testing.assert_close(stepwise.last_hidden_state, whole.last_hidden_state[:, 4:], rtol=1e-5, atol=1e-5)
    assert history.get_seq_length() == 6


@torch.no_grad()
def test_save_and_load(tmp_path: Path) -> None:
    model, row = small_model(model_class=VinVLForAnswering, loss_type="sfmx", classifier="mlp"), example(5, 3)
    model.save_pretrained(tmp_path)
    again = VinVLForAnswering.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert again.config.loss_type == "ce" and again.config.use_img_layernorm and again.config.num_labels == 5
    torch.testing.assert_close(again(**row).logits, model(**row).logits, rtol=1e-5, atol=1e-5)
    encoder = VinVLModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(encoder(**row).pooler_output, model.bert(**row).pooler_output)


def test_initial_weights_are_berts() -> None:
    torch.manual_seed(0)
    model: Any = VinVLModel(small_config(hidden_size=64, initializer_range=0.02))
    assert model.img_embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.encoder.layer[1].attention.self.query.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.img_embedding.bias.abs().max() == 0 and (model.LayerNorm.weight == 1).all()
    assert model.embeddings.word_embeddings.weight[0].abs().max() == 0  # padding


def test_dropout_on_the_regions_and_on_the_pooled_vector() -> None:
    model = small_model(model_class=VinVLForAnswering, hidden_dropout_prob=0.0).train()
    row = example(5, 3)
    kept = model.bert.embed(row["input_ids"], row["token_type_ids"], row["region_features"])
    model.bert.dropout.p = 1.0
    dropped = model.bert.embed(row["input_ids"], row["token_type_ids"], row["region_features"])
    assert torch.equal(dropped[:, :5], kept[:, :5])
    assert dropped[:, 5:].abs().max() == 0 and kept[:, 5:].abs().min() > 0
    model.dropout.p = 1.0
    assert torch.equal(model(**row).logits[0], model.classifier.bias)


def test_half_precision_region_rows_and_autocast() -> None:
    model, row = small_model(), example(5, 3)
    half = row | {"region_features": row["region_features"].half()}
    with torch.no_grad():
        full = model(**row).pooler_output
        torch.testing.assert_close(model(**half).pooler_output, full, rtol=0, atol=2e-2)
        for attention in ("eager", "sdpa"):
            model.set_attn_implementation(attention)
            with torch.autocast("cpu", torch.bfloat16):
                pooled = model(**row | {"attention_mask": torch.ones(1, 8, 8)}).pooler_output
            assert pooled.isfinite().all() and (pooled.float() - full).abs().max() < 0.3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"region_features": torch.zeros(1, 2, 7)}, "region rows hold 7 numbers but the model expects 12"),
        ({"attention_mask": torch.ones(1, 4)}, r"shape \(1, 4\), but 1 sequences of 5 tokens and regions"),
        ({"attention_mask": torch.ones(1, 5, 4)}, r"need \(B, 5\) or \(B, 5, 5\)"),
        ({"attention_mask": torch.ones(2, 5)}, r"shape \(2, 5\), but 1 sequences"),
        ({"attention_mask": torch.ones(5)}, r"shape \(5,\)"),
        ({"input_ids": torch.ones(1, 21, dtype=torch.long)}, "text of 21 tokens .* knows 20 positions"),
        ({"output_attentions": True}, "'sdpa' attention does not compute them"),
    ],
)
def test_shapes_that_do_not_fit(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        small_model()(**example(3, 2) | changes)


def test_history_that_cannot_be_used() -> None:
    model, row = small_model(), example(3, 0)
    history = DynamicCache()
    ids = row["input_ids"]
    with pytest.raises(UserError, match="give position_ids"):
        model(ids, past_key_values=history)
    model.train().gradient_checkpointing_enable()
    with pytest.raises(UserError, match="gradient checkpointing"):
        model(ids, past_key_values=history, position_ids=torch.tensor([[2, 3, 4]]))
