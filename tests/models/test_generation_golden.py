"""Caption decoding against recordings of the published one."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import golden
from tests.data.test_text import golden_tokenizer
from tests.models.caption_cases import (
    FIRST_TAG_POSITION,
    MAX_LENGTH,
    SPECIAL,
    ReencodingStepper,
    decoding_model,
    read_case,
    recorded_context,
    recorded_model,
    recorded_options,
    reencoding,
    word_log_probs,
)
from tests.models.samples import assert_gradients
from vinvl.captioning.task import caption_texts
from vinvl.models.constrained import Constraint, constraint_from_words, constraint_words, transition_table
from vinvl.models.decoding import DecodingOptions, GeneratedCaptions
from vinvl.models.generate import NBestLists, generate_captions
from vinvl.models.word_steps import WordStepper

torch.set_num_threads(1)

SEARCHES = [case for case in read_case("caption_generate")[0]["meta"]["cases"] if not case["fast_hidden_state_cache"]]
SAMPLED = read_case("caption_sample")[0]["meta"]["cases"]
SAMPLES = [case for case in SAMPLED if case["params"]["num_beams"] == 1]
TOKENIZER = golden_tokenizer()
CONSTRAINED = read_case("caption_cbs")[0]["meta"]


def close(actual: Tensor, recorded: Tensor, atol: float = 1e-4) -> None:
    torch.testing.assert_close(actual, recorded, rtol=0, atol=atol)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("case", SEARCHES, ids=lambda case: case["name"])
@torch.no_grad()
def test_greedy_and_beam_search(case: dict[str, Any], use_cache: bool) -> None:
    _, tensors = read_case("caption_generate")
    options = recorded_options(case["params"], num_beams=case["params"]["num_beams"])
    with reencoding(not use_cache):
        found = generate_captions(decoding_model(), recorded_context(tensors, case["mode"]), options, special=SPECIAL)
    assert torch.equal(found.ids, tensors[f"outputs.{case['name']}.ids"])
    close(found.log_probs, tensors[f"outputs.{case['name']}.logprobs"])
    assert torch.equal(found.lengths, (found.ids == SPECIAL.sep_token_id).int().argmax(dim=-1) + 1)
    assert [caption_texts(TOKENIZER, ids) for ids in found.ids] == case["texts"]


@pytest.mark.parametrize("case", SAMPLES, ids=lambda case: case["name"])
def test_samples_their_scores_and_gradients(case: dict[str, Any]) -> None:
    """With the recorded seed the very samples, their scores, and gradients of these."""
    facts, tensors = read_case("caption_sample")
    options = recorded_options(case["params"])
    model, context = recorded_model(facts), recorded_context(tensors)
    generator = torch.Generator().manual_seed(case["torch_manual_seed"])
    found = generate_captions(model, context, options, special=SPECIAL, generator=generator)
    assert torch.equal(found.ids.flatten(0, 1), tensors[f"outputs.{case['name']}.ids"][:, 0])

    flat = found.log_probs.flatten()
    close(flat, tensors[f"outputs.{case['name']}.logprobs"][:, 0])
    loss = -(flat * torch.linspace(-1, 1, len(flat))).mean()
    close(loss, tensors[f"outputs.{case['name']}.weighted_loss"])
    loss.backward()
    assert_gradients(model, case["grad_norms"], rel=1e-3)


@torch.no_grad()
def test_samples_of_a_beam_search_have_the_recorded_scores() -> None:
    """Such a search is the published code's alone: its captions are scored here."""
    facts, tensors = read_case("caption_sample")
    (case,) = [case for case in SAMPLED if case["params"]["num_beams"] > 1]
    assert not case["requires_grad"] and case["grad_norms"] is None
    ids = tensors[f"outputs.{case['name']}.ids"]
    lengths = (ids == SPECIAL.sep_token_id).int().argmax(dim=-1) + 1
    options = recorded_options(case["params"])
    given = GeneratedCaptions(ids, lengths, tensors[f"outputs.{case['name']}.logprobs"])
    sums, ended = word_log_probs(recorded_model(facts), recorded_context(tensors), given, options)
    assert ended.any()
    close((sums / (lengths - 1) ** options.length_penalty)[ended], given.log_probs[ended])


@pytest.mark.parametrize("stepper_class", [WordStepper, ReencodingStepper])
@torch.no_grad()
def test_logits_of_every_step(stepper_class: Any) -> None:
    facts, tensors = read_case("caption_step_logits")
    assert facts["meta"]["od_labels_start_posid"] == FIRST_TAG_POSITION
    context, prefix = recorded_context(tensors), tensors["inputs.prefix_ids"][:, None]
    stepper = stepper_class(decoding_model("caption_step_logits"), context, DecodingOptions(), SPECIAL)
    for step in range(MAX_LENGTH - 1):
        logits = stepper.next_logits(prefix[..., : step + 1])
        close(logits[:, 0], tensors["outputs.step_logits"][:, step])


@pytest.mark.parametrize("trace", golden.facts("oscar/caption_beam_hypotheses"))
def test_n_best_list(trace: dict[str, Any]) -> None:
    sizes = (trace["n_hyp"], trace["max_length"], trace["length_penalty"])
    lists = NBestLists(*sizes, torch.zeros(1, 1), dtype=torch.float64)
    image, ended = torch.tensor([0]), torch.tensor([[True]])
    for step in trace["seq"]:
        bound = torch.tensor([step["is_done_bound"]], dtype=torch.float64)
        assert lists.is_done(image, bound).item() == step["is_done_before_add"]
        ids = torch.full((1, 1, trace["max_length"]), step["length"])
        lists.add(image, ids, torch.tensor([[step["sum_logprob"]]], dtype=torch.float64), ended, step["length"])
        filled = lists.scores[0][lists.scores[0] > -torch.inf]
        assert filled.tolist() == pytest.approx(sorted(step["scores"], reverse=True), rel=1e-9)
        assert filled[-1].item() == pytest.approx(step["worst"], rel=1e-9)
        assert torch.equal(lists.lengths[0, : len(filled)], lists.ids[0, : len(filled), 0] + 1)


def recorded_constraints() -> list[list[Constraint]]:
    vocabulary = golden.facts("oscar/vocab")
    pieces = CONSTRAINED["constraint2tokens"]

    def tokenize(word: str) -> list[int]:
        return [vocabulary.index(piece) for piece in pieces.get(word, [word])]

    return [
        [constraint_from_words(label, tokenize, CONSTRAINED["wordforms"]) for label in labels]
        for labels in CONSTRAINED["constraints"]
    ]


def test_constraint_machines() -> None:
    facts, tensors = read_case("caption_cbs")
    words = facts["config"]["vocab_size"]
    recorded = np.unpackbits(tensors["inputs.fsm_packed"].numpy(), axis=-1)[..., :words].astype(bool)
    given = CONSTRAINED["max_given_constraints"]
    assert list(recorded.shape) == CONSTRAINED["fsm_shape"]
    for image, constraints in enumerate(recorded_constraints()):
        phrases = sum(len(constraint.steps) - 1 for constraint in constraints) * 2 ** (given - 1)
        assert 2**given + phrases == CONSTRAINED["next_free_state"][image]
        assert all(len(constraint.steps) <= CONSTRAINED["max_words_per_constraint"] for constraint in constraints)
        assert len(constraints) == tensors["inputs.num_constraints"][image]
        named = constraint_words(constraints)
        table = transition_table(constraints, named, 2**given)
        states = table.shape[0]
        dense = table[..., -1:].repeat(1, 1, words)
        dense[..., named] = table[..., :-1]
        assert np.array_equal(dense.numpy(), recorded[image, :states, :states])
        assert not recorded[image, states:].any() and not recorded[image, :, states:].any()


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("run", CONSTRAINED["runs"], ids=lambda run: f"beam{run['beams']}.min{run['min_constraints']}")
@torch.no_grad()
def test_constrained_beam_search(run: dict[str, Any], use_cache: bool) -> None:
    _, tensors = read_case("caption_cbs")
    beams = {"num_beams": run["beams"], "min_constraints": run["min_constraints"]}
    options = recorded_options(CONSTRAINED["params"], **beams)
    constraints = recorded_constraints()
    context = recorded_context(tensors)
    with reencoding(not use_cache):
        model = decoding_model("caption_cbs")
        found = generate_captions(model, context, options, special=SPECIAL, constraints=constraints)
    name = f"outputs.single.beam{run['beams']}.min{run['min_constraints']}"
    # Published: without the begin token, and padded with end tokens.
    words = torch.cat([found.ids[..., 1:], torch.full((4, 1, 1), SPECIAL.sep_token_id)], dim=-1)
    ended = (words == SPECIAL.sep_token_id).cumsum(dim=-1) > 0
    assert torch.equal(words.masked_fill(ended, SPECIAL.sep_token_id), tensors[f"{name}.ids"])
    close(found.log_probs, tensors[f"{name}.logprobs"])
    assert caption_texts(TOKENIZER, found.ids[:, 0]) == run["texts"]
    assert found.constraints_met is not None
    wanted = torch.tensor([min(len(given), run["min_constraints"]) for given in constraints])
    assert (found.constraints_met >= wanted).all()
