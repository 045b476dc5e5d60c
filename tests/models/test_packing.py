"""Packed sequences: layouts, and every model's outputs and gradients equal to the eager path's."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional

from tests.models.samples import SIZES
from vinvl.models import (
    VinVLConfig,
    VinVLForAnswering,
    VinVLForCaptioning,
    VinVLForPairs,
    VinVLForPreTraining,
    VinVLModel,
)
from vinvl.models.captioning import seq2seq_attention_mask
from vinvl.models.packing import LEAST_FILL, PackedLayout, in_slots
from vinvl.run.errors import UserError

torch.set_num_threads(1)

pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")

WIDTH, WORDS, HEADS = 6, 31, 4
ROWS = st.lists(st.tuples(st.integers(2, 12), st.integers(0, 9)), min_size=1, max_size=7)  # tokens, regions


def model_of(kind: Any, attention: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "vocab_size": WORDS, "num_hidden_layers": 3, "num_attention_heads": HEADS, "img_feature_dim": WIDTH,
        "use_img_layernorm": True, "num_labels": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.5,  # large, so that attention is far from uniform
    }  # fmt: skip
    return kind._from_config(VinVLConfig(**(SIZES | values | changes)), attn_implementation=attention)


def batch_of(sizes: list[tuple[int, int]], seed: int = 0) -> dict[str, Tensor]:
    """Padded rows of so many tokens and regions; padding holds nonsense, which nobody may look at."""
    generator = torch.Generator().manual_seed(seed)
    tokens, regions = (torch.tensor(one) for one in zip(*sizes, strict=True))
    text_slots, region_slots = int(tokens.max()) + seed % 2, int(regions.max())
    real_text, real_regions = (
        torch.arange(slots) < counts[:, None] for slots, counts in ((text_slots, tokens), (region_slots, regions))
    )
    return {
        "input_ids": torch.randint(0, WORDS, (len(sizes), text_slots), generator=generator),
        "token_type_ids": torch.randint(0, 2, (len(sizes), text_slots), generator=generator),
        "attention_mask": torch.cat([real_text, real_regions], dim=1),
        "region_features": 3 * torch.randn(len(sizes), region_slots, WIDTH, generator=generator),
    }


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def assert_alike(kind: Any, given_: dict[str, Any], loss_of: Any, **changes: Any) -> None:
    """Logits and the gradients of all parameters by all ways, in training mode with dropout off."""
    results = {}
    for attention in ("eager", "sdpa", "packed"):
        model = model_of(kind, attention, **changes).train()
        output = model(**given_)
        results[attention] = (output.logits, gradients(model, loss_of(output)))
    logits, expected = results["eager"]
    for attention in ("sdpa", "packed"):
        found, of_parameters = results[attention]
        torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
        assert of_parameters.keys() == expected.keys()
        for name, gradient in of_parameters.items():
            scale = max(1.0, float(expected[name].abs().max()))
            torch.testing.assert_close(gradient / scale, expected[name] / scale, rtol=1e-4, atol=1e-4, msg=name)


@settings(max_examples=60, deadline=None)
@given(
    mask=st.integers(1, 8).flatmap(
        lambda slots: st.lists(st.lists(st.booleans(), min_size=slots, max_size=slots), min_size=1, max_size=9)
    ),
    data=st.data(),
)
def test_a_layout_has_every_real_position_once(mask: list[list[bool]], data: st.DataObject) -> None:
    exists = np.array(mask)
    text_slots = data.draw(st.integers(1, exists.shape[1]))
    layout = PackedLayout.of_mask(exists, text_slots)
    expected = exists.copy()
    expected[~exists.any(axis=1), 0] = True
    assert layout.places.tolist() == np.flatnonzero(expected).tolist()
    assert layout.offsets.tolist() == [0, *np.cumsum(expected.sum(axis=1)).tolist()]
    assert layout.longest == expected.sum(axis=1).max()
    slots = torch.arange(exists.size).view(exists.shape)
    in_turn = torch.cat(
        [slots[:, :text_slots].flatten()[layout.text_places], slots[:, text_slots:].flatten()[layout.region_places]]
    )
    assert torch.equal(in_turn[layout.merged], layout.places)
    flat = torch.cat([one.rows.flatten() for one in layout.groups])
    assert flat[layout.from_groups].tolist() == list(range(len(layout.places)))
    assert sum(int(group.real.sum()) for group in layout.groups) == len(layout.places)
    for group in layout.groups:
        lengths = group.real.sum(dim=1)
        assert lengths.max() == group.rows.shape[1] and lengths.min() >= LEAST_FILL * lengths.max()
    hidden = torch.randn(len(layout.places), 2)
    padded = in_slots(hidden, layout.places, *exists.shape)
    assert torch.equal(padded[torch.from_numpy(expected)], hidden) and not padded[~torch.from_numpy(expected)].any()


@settings(max_examples=15, deadline=None)
@given(sizes=ROWS, seed=st.integers(0, 99))
def test_answers(sizes: list[tuple[int, int]], seed: int) -> None:
    given_ = batch_of(sizes, seed) | {"labels": torch.rand(len(sizes), 4)}
    assert_alike(VinVLForAnswering, given_, lambda output: output.loss)


def test_pairs_and_a_mask_of_who_sees_whom() -> None:
    given_ = batch_of([(5, 3), (5, 9), (8, 2), (8, 1)]) | {"labels": torch.tensor([1, 0])}
    assert_alike(VinVLForPairs, given_, lambda output: output.loss, loss_type="ce")
    given_ = batch_of([(5, 3), (9, 0), (3, 6)])
    real = given_["attention_mask"]
    sees = real[:, :, None] & real[:, None, :] & (torch.rand(3, 15, 15, generator=torch.manual_seed(1)) < 0.7)
    sees |= torch.eye(15, dtype=torch.bool) & real[:, :, None]
    assert_alike(VinVLForAnswering, given_ | {"attention_mask": sees}, lambda output: output.logits.square().sum())


@settings(max_examples=8, deadline=None)
@given(sizes=ROWS, seed=st.integers(0, 99))
def test_hidden_words_and_triplets(sizes: list[tuple[int, int]], seed: int) -> None:
    given_ = batch_of(sizes, seed)
    text_slots = given_["input_ids"].shape[1]
    chosen = given_["attention_mask"][:, :text_slots] & (torch.rand(len(sizes), text_slots) < 0.4)
    chosen[0, 1] = True
    given_ |= {
        "masked_positions": chosen,
        "masked_ids": torch.randint(0, WORDS, (int(chosen.sum()),)),
        "pair_labels": torch.randint(0, 3, (len(sizes),)),
    }
    assert_alike(VinVLForPreTraining, given_, lambda output: output.loss, tie_word_embeddings=True)


@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(2, 8), st.integers(0, 6), st.integers(0, 7)), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_captions_from_left_to_right(sizes: list[tuple[int, int, int]], seed: int) -> None:
    given_ = batch_of([(caption + tags, regions) for caption, tags, regions in sizes], seed)
    captions, tags, regions = (torch.tensor(one) for one in zip(*sizes, strict=True))
    slots = given_["input_ids"].shape[1], given_["region_features"].shape[1]
    chosen = torch.zeros(len(sizes), slots[0], dtype=torch.bool)
    chosen[:, 1] = True
    given_ |= {
        "attention_mask": seq2seq_attention_mask(captions, tags, regions, *slots),
        "masked_positions": chosen,
        "masked_ids": torch.randint(0, WORDS, (len(sizes),)),
        "position_ids": torch.arange(slots[0]).expand(len(sizes), -1) + 2,
    }
    assert_alike(VinVLForCaptioning, given_, lambda output: output.loss, tie_word_embeddings=True)


def test_padding_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What linear layers see are the real positions alone."""
    model, given_ = model_of(VinVLModel, "packed").eval(), batch_of([(5, 3), (2, 9), (12, 0)])
    seen: list[int] = []
    linear = functional.linear

    def counting(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(rows.numel() // rows.shape[-1])
        return linear(rows, weight, bias)

    monkeypatch.setattr(functional, "linear", counting)
    model(**given_)
    regions, real = 12, int(given_["attention_mask"].sum())
    # The projection; queries, keys and values at once and three more of each of three layers; the pooler.
    assert seen == [regions, *[real] * 4 * 3, 3]


class Doubled(nn.Module):
    """Stands where a linear layer was, as adapters do: its own weights are not all there is to it."""

    def __init__(self, linear: Any) -> None:
        super().__init__()
        self.linear, self.weight, self.bias = linear, linear.weight, linear.bias

    def forward(self, rows: Tensor) -> Tensor:
        doubled: Tensor = 2 * self.linear(rows)
        return doubled


@pytest.mark.parametrize("changed", ["query", "key", "value"])
def test_what_stands_in_the_place_of_a_projection_is_asked(changed: str) -> None:
    given_ = batch_of([(5, 3), (2, 9), (12, 0)])
    logits, called = {}, []
    for attention in ("eager", "packed"):
        model = model_of(VinVLForAnswering, attention).eval()
        for layer in model.bert.encoder.layer:
            own = layer.attention.self
            setattr(own, changed, Doubled(getattr(own, changed)))
            own.query.register_forward_hook(lambda *_, attention=attention: called.append(attention))
        logits[attention] = model(**given_).logits
    torch.testing.assert_close(logits["packed"], logits["eager"], rtol=1e-4, atol=1e-5)
    assert called == ["eager"] * 3 + ["packed"] * 3


def test_the_first_position_alone_spares_the_last_layer() -> None:
    model, given_ = model_of(VinVLForAnswering, "packed").eval(), batch_of([(5, 3), (2, 9), (12, 0)])
    seen: list[int] = []
    dense = model.bert.encoder.layer[-1].intermediate.dense
    dense.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].numel() // module.in_features))
    layout = PackedLayout.of_mask(given_["attention_mask"].numpy(), given_["input_ids"].shape[1])
    assert torch.equal(model(**given_, layout=layout).logits, model(**given_).logits)
    assert seen == [3, 3]
    whole = model.bert(**given_)
    first = model.bert(**given_, only_first=True)
    assert first.last_hidden_state.shape == (3, 1, 16)
    torch.testing.assert_close(first.last_hidden_state, whole.last_hidden_state[:, :1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first.pooler_output, whole.pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "packed"])
def test_attention_drops_out_in_training_alone_and_to_the_same_mean(attention: str) -> None:
    model = model_of(VinVLForAnswering, attention, num_hidden_layers=1, attention_probs_dropout_prob=0.4)
    given_ = batch_of([(5, 3)])
    first = model.bert.encoder.layer[-1].attention.self
    hidden = torch.randn(1, 8, 16)
    with torch.no_grad():
        whole = first.eval().attend_from_first(hidden, None)
        assert torch.equal(whole, first.attend_from_first(hidden, None))
        drawn = torch.stack([first.train().attend_from_first(hidden, None) for _ in range(4000)])
    assert drawn.std(dim=0).min() > 0.01
    torch.testing.assert_close(drawn.mean(dim=0), whole, rtol=0, atol=0.15)
    with torch.no_grad():
        assert not torch.equal(model.train()(**given_).logits, model(**given_).logits)


@pytest.mark.slow
@pytest.mark.parametrize(("training", "checkpointing"), [(False, False), (True, False), (True, True)])
def test_compiled_it_is_the_same_and_does_not_compile_again_for_other_lengths(
    training: bool, checkpointing: bool
) -> None:
    torch.compiler.reset()
    counters.clear()
    model, plain = (model_of(VinVLForAnswering, "packed").train(training) for _ in range(2))
    if checkpointing:
        model.gradient_checkpointing_enable()
    # The one with both graphs of a step, as torch.compile makes them; the others only as Python is read.
    model.bert.compile_layers(backend="aot_eager" if training and not checkpointing else "eager")
    compiled, groups = 0, set()
    sizes = [(16, 9), (9, 3), (5, 0), (2, 0), (16, 8)]  # by falling length: a group each, but for the last
    for number in (0, 1, 3, 5):
        # One group, two groups, and then numbers of groups that no graph was made for.
        given_ = batch_of([(6 + number, 4)] * 4 if number % 2 == 0 else sizes[: 2 + number // 2], seed=number)
        layout = PackedLayout.of_mask(given_["attention_mask"].numpy(), given_["input_ids"].shape[1])
        groups.add(len(layout.groups))
        with torch.set_grad_enabled(training):
            logits, expected = (one(**given_, layout=layout).logits for one in (model, plain))
        torch.testing.assert_close(logits, expected)
        if training:
            found, wanted = gradients(model, logits.sum()), gradients(plain, expected.sum())
            for name in wanted:
                torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5)
        if number == 1:
            compiled = counters["stats"]["unique_graphs"]
    assert groups == {1, 2, 3, 4}
    assert compiled > 0
    if not torch.__version__.startswith("2.9."):  # which makes graphs anew for other numbers of groups
        assert counters["stats"]["unique_graphs"] == compiled, counters
    torch.compiler.reset()


def test_shapes_that_do_not_fit_are_refused() -> None:
    model, given_ = model_of(VinVLModel, "packed"), batch_of([(5, 3), (2, 9)])
    with pytest.raises(UserError, match=r"shape \(2, 13\), but 2 sequences of 14 tokens and regions"):
        model(**given_ | {"attention_mask": given_["attention_mask"][:, 1:]})
    with pytest.raises(UserError, match="a model that knows 20 positions"):
        model(**batch_of([(25, 3)]))
