"""CIDEr-D as a reward, and the self-critical loss, against recordings of the published code."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests import golden
from vinvl.captioning.scores import NgramIndex
from vinvl.captioning.self_critical import CiderReward, mean_of_others_baseline, scst_loss, wrap_sentence

GOLDEN = golden.facts("oscar/cider_scst")
REFERENCES = dict(enumerate(GOLDEN["references"]))
SCST = GOLDEN["scst"]


def unchanged(text: str) -> str:
    return text


def recorded_frequencies(index: NgramIndex) -> dict[int, float]:
    """The recorded document frequencies of the n-grams that an index knows, by their ids."""
    ngrams = [ngram for ngram, _ in GOLDEN["df"]]
    found = index.count(ngrams)
    whole = (found.orders == found.lengths[found.sentences] - 1) & (found.ids >= 0)
    rows = found.sentences[whole].tolist()
    return {ngram: GOLDEN["df"][row][1] for ngram, row in zip(found.ids[whole].tolist(), rows, strict=True)}


def recorded_reward(prepare: Callable[[str], str] = wrap_sentence) -> CiderReward:
    """Weighs n-grams by the document frequencies with which the recordings were made."""
    reward = CiderReward(REFERENCES, prepare)
    frequencies = np.zeros(len(reward._cider._index))
    for ngram, frequency in recorded_frequencies(reward._cider._index).items():
        frequencies[ngram] = frequency
    sentences = [prepare(text).split() for texts in REFERENCES.values() for text in texts]
    reward._cider._weigh(sentences, GOLDEN["df_ref_len"], frequencies)
    return reward


@pytest.mark.parametrize(("prepare", "kind"), [(unchanged, "raw"), (wrap_sentence, "wrapped")])
def test_scores_with_recorded_frequencies(prepare: Callable[[str], str], kind: str) -> None:
    scores = recorded_reward(prepare)(GOLDEN["hyp_image"], GOLDEN["hypotheses"])
    assert scores.tolist() == pytest.approx(GOLDEN[f"scores_{kind}"], abs=1e-12)
    assert scores.mean().item() == pytest.approx(GOLDEN[f"mean_{kind}"], abs=1e-12)


def test_scores_with_frequencies_of_the_references() -> None:
    scores = CiderReward(REFERENCES, prepare=unchanged)(range(4), GOLDEN["corpus_mode"]["hyps"])
    assert scores.tolist() == pytest.approx(GOLDEN["corpus_mode"]["scores"], abs=1e-12)
    assert scores.mean().item() == pytest.approx(GOLDEN["corpus_mode"]["mean"], abs=1e-12)


def test_frequencies_of_wrapped_references() -> None:
    counted = CiderReward(REFERENCES)._cider
    recorded = recorded_frequencies(counted._index)
    assert len(recorded) == len(GOLDEN["df"]) == len(counted._index)
    for ngram, frequency in recorded.items():
        assert counted._weights[ngram] == pytest.approx(math.log(len(REFERENCES) / frequency), abs=1e-12)


def test_sentences_are_wrapped_as_published() -> None:
    for text, wrapped in GOLDEN["wrap_examples"]:
        assert wrap_sentence(text) == wrapped
    assert wrap_sentence("a cat..") == "a cat. <eos>"


@pytest.mark.parametrize("kind", ["greedy", "sample"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_loss_and_gradient(kind: str, dtype: torch.dtype) -> None:
    recorded = SCST["baselines"][kind]
    per_image = SCST["samples_per_image"]
    reward = recorded_reward()
    rewards = reward([row // per_image for row in range(len(SCST["samples"]))], SCST["samples"])
    assert rewards.mean().item() == pytest.approx(recorded["mean_sample_score"], rel=1e-9)
    if kind == "greedy":
        baseline = reward(range(4), SCST["greedy_captions"]).repeat_interleave(per_image)
    else:
        baseline = mean_of_others_baseline(rewards, per_image)
    log_probs = torch.tensor(recorded["sample_logprobs"], dtype=dtype, requires_grad=True)
    loss = scst_loss(log_probs, rewards, baseline)
    loss.backward()
    assert loss.dtype == dtype and loss.item() == pytest.approx(recorded["loss"], rel=1e-6)
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx(recorded["dloss_dlogprob"], rel=1e-5, abs=1e-7)


def test_rewards_are_constants_and_no_captions_have_none() -> None:
    log_probs, rewards = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    scst_loss(log_probs, rewards, torch.zeros(2)).backward()
    assert rewards.grad is None
    assert CiderReward(REFERENCES)([], []).shape == (0,)
