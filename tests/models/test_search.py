"""Decoding of batches, with the cache, under autograd; what options do; what is refused."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.models.caption_cases import SPECIAL, one_image, random_context, random_model, reencoding, word_log_probs
from vinvl.models.decoding import (
    CaptionContext,
    DecodingOptions,
    GeneratedCaptions,
    adjusted_logits,
    sampling_logits,
)
from vinvl.models.generate import generate_captions
from vinvl.models.word_steps import WordStepper
from vinvl.run.errors import UserError

torch.set_num_threads(1)

SEARCHES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "long_beam": {"num_beams": 4, "length_penalty": 1.7, "min_length": 5},
    "no_repeats": {"num_beams": 3, "no_repeat_ngram_size": 2, "repetition_penalty": 1.3},
}
counts = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=4)


@torch.no_grad()
def decode(model: Any, context: CaptionContext, **options: Any) -> GeneratedCaptions:
    return generate_captions(model, context, DecodingOptions(**{"max_length": 8} | options), special=SPECIAL)


def same(left: GeneratedCaptions, right: GeneratedCaptions) -> None:
    assert torch.equal(left.ids, right.ids)
    assert torch.equal(left.lengths, right.lengths)
    torch.testing.assert_close(left.log_probs, right.log_probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("search", SEARCHES)
@given(sizes=counts, seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_batches_decode_like_single_images_and_with_cache_like_without(
    search: str, sizes: list[tuple[int, int]], seed: int
) -> None:
    model = random_model(seed)
    context = random_context([tags for tags, _ in sizes], [regions for _, regions in sizes], seed)
    together = decode(model, context, **SEARCHES[search])
    with reencoding():
        same(together, decode(model, context, **SEARCHES[search]))
    for image in range(len(sizes)):
        alone = decode(model, one_image(context, image), **SEARCHES[search])
        torch.testing.assert_close(together.log_probs[image], alone.log_probs[0], rtol=1e-4, atol=1e-4)
        assert torch.equal(together.ids[image], alone.ids[0])


def test_the_images_matter_and_captions_end() -> None:
    """The properties above would hold for a decoder that always says the same."""
    found = [decode(random_model(seed), random_context([3, 0, 2], [2, 3, 0], seed)) for seed in range(12)]
    assert any(not torch.equal(result.ids[0], result.ids[1]) for result in found)
    lengths = torch.cat([result.lengths.flatten() for result in found])
    assert (lengths < 8).any() and (lengths == 8).any()


@pytest.mark.parametrize(
    ("options", "power"),
    [
        ({"num_return_sequences": 3, "sample": True, "temperature": 1.5, "top_k": 5}, 1.0),
        ({"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.8}, 0.8),
    ],
)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=12, deadline=None)
@torch.no_grad()
def test_scores_are_those_of_the_words(options: dict[str, Any], power: float, seed: int) -> None:
    model, context, chosen = random_model(seed), random_context([2, 0], [0, 3], seed), DecodingOptions(**options)
    drawn = torch.Generator().manual_seed(seed)
    found = generate_captions(model, context, replace(chosen, max_length=7), special=SPECIAL, generator=drawn)
    sums, ended = word_log_probs(model, context, found, chosen)
    scores = sums / (found.lengths - 1) ** power
    torch.testing.assert_close(found.log_probs[ended], scores[ended], rtol=1e-4, atol=1e-4)
    assert chosen.sample or (found.log_probs.diff(dim=1) <= 0).all()


class TestAutograd:
    def sample(self, model: Any) -> GeneratedCaptions:
        options = DecodingOptions(max_length=6, sample=True, num_return_sequences=3)
        generator = torch.Generator().manual_seed(1)
        return generate_captions(model, random_context([2, 3], [3, 1]), options, special=SPECIAL, generator=generator)

    def test_gradients_with_cache_are_those_without(self) -> None:
        gradients = []
        for use_cache in (True, False):
            model = random_model(3)
            with reencoding(not use_cache):
                found = self.sample(model)
            (found.log_probs * torch.tensor([1.0, -2.0, 0.5])).sum().backward()
            gradients.append({name: p.grad for name, p in model.named_parameters()})
        for name, with_cache in gradients[0].items():
            without = gradients[1][name]
            assert (with_cache is None) == (without is None), name
            if with_cache is not None:
                torch.testing.assert_close(with_cache, without, rtol=1e-3, atol=1e-5)
        assert gradients[0]["bert.img_embedding.weight"].abs().sum() > 0  # type: ignore[union-attr]  # not None

    def test_dropout_is_on_in_training(self) -> None:
        model = random_model(3).train()
        torch.manual_seed(0)
        first, second = self.sample(model), self.sample(model)
        assert not torch.allclose(first.log_probs, second.log_probs)
        first.log_probs.sum().backward()
        assert model.bert.encoder.layer[0].attention.self.key.weight.grad is not None

    def test_attention_dropout_alone_is_on(self) -> None:
        model = random_model(3).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        same(self.sample(model), self.sample(model))
        for layer in model.bert.encoder.layer:
            layer.attention.self.dropout.p = 0.5
        context = random_context([0], [0])  # nothing to encode: only the captions' own attention drops anything
        logits = []
        for _ in range(2):
            stepper, words = WordStepper(model, context, DecodingOptions(), SPECIAL), torch.tensor([[[2, 5, 6, 7]]])
            logits.append(torch.stack([stepper.next_logits(words[..., :length]) for length in range(1, 5)]))
        assert not torch.allclose(*logits)


class TestDistribution:
    def test_least_length_bans_the_end(self) -> None:
        for seed in range(6):
            found = decode(random_model(seed), random_context([2], [2], seed), num_beams=2, min_length=6)
            assert found.lengths.min() >= 6

    @given(ids=st.lists(st.integers(0, 4), min_size=1, max_size=9), size=st.integers(1, 3))
    @settings(max_examples=80, deadline=None)
    def test_repeated_ngrams(self, ids: list[int], size: int) -> None:
        options = DecodingOptions(no_repeat_ngram_size=size)
        logits = adjusted_logits(torch.zeros(1, 1, 6), torch.tensor([[ids]]), options, end_token_id=5)
        seen = {tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)}
        for word in range(6):
            completes = (*ids[len(ids) - size + 1 :], word)
            assert (logits[0, 0, word] == -torch.inf) == (len(completes) == size and completes in seen)

    @given(
        values=st.lists(st.integers(-40, 40), min_size=2, max_size=8, unique=True),
        top_k=st.integers(0, 9),
        top_p=st.floats(0.05, 1),
    )
    @settings(max_examples=80, deadline=None)
    def test_top_k_and_top_p(self, values: list[int], top_k: int, top_p: float) -> None:
        logits = torch.tensor(values) / 10.0
        options = DecodingOptions(sample=True, top_k=top_k, top_p=top_p)
        kept = (sampling_logits(logits, options) > -torch.inf).tolist()
        ranked = sorted(range(len(values)), key=lambda word: -values[word])
        ranked = ranked[: top_k or None]
        probabilities = logits[ranked].double().softmax(dim=0)
        expected, total = [], 0.0
        for word, probability in zip(ranked, probabilities.tolist(), strict=True):
            if expected and total > top_p + 1e-6:
                break
            expected.append(word)
            total += probability
        certain = [w for w in range(len(values)) if kept[w]] == sorted(expected)
        near = abs(total - probabilities[len(expected) - 1].item() - top_p) < 1e-5
        assert certain or near


def test_done_images_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    step = WordStepper.next_logits

    def counted(self: WordStepper, captions: Tensor) -> Tensor:
        rows.append(len(captions))
        return step(self, captions)

    monkeypatch.setattr(WordStepper, "next_logits", counted)
    for options in ({}, {"num_beams": 3}):
        dropped = False
        for seed in range(12):
            rows.clear()
            found = decode(random_model(seed), random_context([2] * 4, [3] * 4, seed), **options)
            dropped |= rows[-1] < 4
            if not options:
                assert rows == [int((found.lengths > step + 1).sum()) for step in range(len(rows))]
        assert dropped


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"min_length": 21}, "min_length 21 is above max_length 20"),
        ({"num_return_sequences": 2}, "num_return_sequences 2 is above num_beams 1"),
        ({"sample": True, "num_beams": 2}, "sample is on and num_beams is 2"),
        ({"temperature": 0.5}, "are for samples"),
        ({"temperature": 0.0, "sample": True}, "temperature=0.0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0"),
        ({"top_p": 0.0, "sample": True}, "top_p=0.0"),
        ({"max_length": 1}, "max_length=1"),
        ({"num_beams": 2.0}, "num_beams=2.0"),
        ({"num_beams": True}, "num_beams=True"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size=-1"),
    ],
)
def test_options_refused(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        DecodingOptions(**values)


def test_what_does_not_fit_the_model_is_refused() -> None:
    model, context = random_model(0), random_context([1], [1])
    with pytest.raises(UserError, match="max_length is 33, but the model knows 32 positions"):
        decode(model, context, max_length=33)
    with pytest.raises(UserError, match="only 23 words; use at most 11"):
        decode(model, context, num_beams=12)
