"""The pre-training model against recordings of the published one, its losses, and starting it from other weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from tests import golden
from tests.models import samples
from tests.models.samples import as_region_features, assert_gradients, initialise_with_report
from vinvl.models import VinVLConfig, VinVLForAnswering, VinVLForPreTraining, initialise, load_published_state_dict
from vinvl.models.pretraining import NO_PAIR_LABEL, contrastive_loss, masked_token_loss
from vinvl.run.errors import UserError

torch.set_num_threads(1)

CASES = ["3class", "2class_default"]
NOT_OF_THE_MODEL = ("img_feature_type", "num_contrast_classes")
SIZES: dict[str, Any] = samples.SIZES | {"num_hidden_layers": 1}
WORD_HEAD = tuple(
    f"cls.predictions.{name}"
    for name in ("bias", "transform.LayerNorm.bias", "transform.LayerNorm.weight", "transform.dense.bias",
                 "transform.dense.weight")
)  # fmt: skip
PAIR_HEAD = ("cls.seq_relationship.bias", "cls.seq_relationship.weight")


def recorded(name: str, attention: str = "sdpa") -> tuple[dict[str, Any], dict[str, Tensor], VinVLForPreTraining]:
    """Facts, tensors and the model of a recording."""
    facts = golden.facts(f"oscar/pretrain__{name}")
    values = {key: value for key, value in facts["config"].items() if key not in NOT_OF_THE_MODEL}
    config = VinVLConfig(**values, num_labels=facts["config"].get("num_contrast_classes", 2))
    model = VinVLForPreTraining._from_config(config, attn_implementation=attention).eval()
    model.load_state_dict(load_published_state_dict(golden.whole(f"oscar/{facts['weights']}")), strict=True)
    return facts, golden.tensors(f"oscar/pretrain__{name}.io"), model


def labels_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The recording's labels, -1 where nothing is hidden, as positions and tokens."""
    labels = tensors["inputs.masked_lm_labels"]
    text = labels[:, : tensors["inputs.input_ids"].shape[1]]
    assert (labels[:, text.shape[1] :] == -1).all()
    hidden = text != -1
    return {
        "masked_positions": hidden,
        "masked_ids": text[hidden],
        "pair_labels": tensors["inputs.next_sentence_label"],
    }


def config(**changes: Any) -> VinVLConfig:
    return VinVLConfig(**(SIZES | {"img_feature_dim": 12, "num_labels": 3} | changes))


def random_inputs(seed: int = 0) -> dict[str, Tensor]:
    """Four triplets of 6 tokens and 3 regions for `config()`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(0, 30, (4, 6), generator=generator),
        "token_type_ids": torch.tensor([0, 0, 0, 1, 1, 1]).expand(4, -1),
        "region_features": torch.randn(4, 3, 12, generator=generator),
    }


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT with its own pre-training heads, no weight like a fresh one."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    model = BertForPreTraining(BertConfig(**SIZES))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder)
    return folder


class TestRecordings:
    @pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
    @pytest.mark.parametrize("name", CASES)
    def test_logits_losses_and_gradients(self, name: str, attention: str) -> None:
        facts, tensors, model = recorded(name, attention)
        labels = labels_of(tensors)
        output = model(**as_region_features(tensors), **labels)
        where = tensors["outputs.prediction_scores"][:, : labels["masked_positions"].shape[1]]
        torch.testing.assert_close(output.logits, where[labels["masked_positions"]], rtol=1e-5, atol=5e-5)
        torch.testing.assert_close(output.pair_logits, tensors["outputs.seq_relationship_score"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.masked_word_loss, tensors["outputs.masked_lm_loss"], rtol=1e-5, atol=0)
        torch.testing.assert_close(output.loss, tensors["outputs.loss"], rtol=1e-5, atol=0)
        assert torch.equal(output.loss, output.masked_word_loss + output.pair_loss)

        output.loss.backward()
        assert_gradients(model, facts["meta"]["grad_norms"])

    @pytest.mark.parametrize("name", CASES)
    def test_every_position_where_none_are_named(self, name: str) -> None:
        _, tensors, model = recorded(name)
        scores = tensors["outputs.prediction_scores"]
        with torch.no_grad():
            output = model(**as_region_features(tensors))
            everywhere = model.cls.predictions(model.bert(**as_region_features(tensors)).last_hidden_state)
        assert output.loss is None and output.masked_word_loss is None and output.pair_loss is None
        text = scores[:, : tensors["inputs.input_ids"].shape[1]].flatten(0, 1)
        torch.testing.assert_close(output.logits, text, rtol=1e-5, atol=5e-5)
        # The published model has word scores at regions too, which are no use to anybody. "sdpa" computes padding.
        torch.testing.assert_close(everywhere, scores, rtol=1e-5, atol=5e-5)


def test_the_decoder_is_tied_also_where_transformers_does_not_tie_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so when it initialises weights only."""
    monkeypatch.setattr(VinVLForPreTraining, "tie_weights", lambda *_, **__: None)
    model = VinVLForPreTraining(config())
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


class TestLosses:
    def test_nothing_hidden_is_a_loss_of_zero(self) -> None:
        """With a gradient for every weight, which DDP waits for."""
        model = VinVLForPreTraining(config())
        output = model(
            **random_inputs(),
            masked_positions=torch.zeros(4, 6, dtype=torch.bool),
            masked_ids=torch.zeros(0, dtype=torch.long),
            pair_labels=torch.tensor([0, 1, 2, 0]),
        )
        assert output.masked_word_loss.item() == 0.0 and torch.equal(output.loss, output.pair_loss)
        assert output.logits.shape == (0, 30)
        output.loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert not model.cls.predictions.transform.dense.weight.grad.any()

    def test_rows_without_a_label_do_not_count(self) -> None:
        logits = torch.randn(4, 3, requires_grad=True)
        loss = contrastive_loss(logits, torch.tensor([NO_PAIR_LABEL, 2, NO_PAIR_LABEL, 0]))
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits[[1, 3]], torch.tensor([2, 0])))
        loss = contrastive_loss(logits, torch.full((4,), NO_PAIR_LABEL))
        loss.backward()
        assert loss.item() == 0.0 and logits.grad is not None and not logits.grad.any()

    def test_weights_reach_the_tokens_and_the_pair_of_their_row(self) -> None:
        model = VinVLForPreTraining(config()).eval()
        hidden = torch.zeros(4, 6, dtype=torch.bool)
        hidden[0, 1] = hidden[2, 2] = hidden[2, 5] = hidden[3, 0] = True
        ids, pairs = torch.tensor([3, 4, 5, 6]), torch.tensor([0, 1, 2, 1])
        weights = torch.tensor([1.0, 2.0, 0.0, 0.5])
        with torch.no_grad():
            output = model(
                **random_inputs(), masked_positions=hidden, masked_ids=ids, pair_labels=pairs, row_weights=weights
            )
        words = -output.logits.log_softmax(-1)[torch.arange(4), ids]
        classes = -output.pair_logits.log_softmax(-1)[torch.arange(4), pairs]
        assert output.masked_places.tolist() == [1, 14, 17, 18]
        torch.testing.assert_close(output.masked_word_loss, (words[0] + 0.5 * words[3]) / 4)
        torch.testing.assert_close(output.pair_loss, (weights * classes).sum() / 4)

    @settings(max_examples=25, deadline=None)
    @given(count=st.integers(0, 6), weight=st.floats(0, 4), seed=st.integers(0, 99))
    def test_one_weight_for_all_scales_the_loss(self, count: int, weight: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        logits, ids = torch.randn(count, 7, generator=generator), torch.randint(0, 7, (count,), generator=generator)
        plain = masked_token_loss(logits, ids)
        torch.testing.assert_close(masked_token_loss(logits, ids, torch.full((count,), weight)), weight * plain)
        if count:
            torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(logits, ids))
            torch.testing.assert_close(contrastive_loss(logits, ids, torch.full((count,), weight)), weight * plain)

    def test_halves_are_summed_in_full_precision(self) -> None:
        logits, ids = 8 * torch.randn(5, 3000), torch.arange(5)
        loss = masked_token_loss(logits.bfloat16(), ids)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, masked_token_loss(logits.bfloat16().float(), ids), rtol=0, atol=0)


class TestRefusals:
    def test_labels_of_other_numbers(self) -> None:
        model, inputs = VinVLForPreTraining(config()), random_inputs()
        hidden = torch.zeros(4, 6, dtype=torch.bool)
        hidden[0, 1] = True
        with pytest.raises(UserError, match="1 masked positions but 2 masked ids"):
            model(**inputs, masked_positions=hidden, masked_ids=torch.tensor([1, 2]))
        for labels in ({"masked_ids": torch.tensor([1, 2])}, {"pair_labels": torch.tensor([0, 1, 2])}):
            with pytest.raises(ValueError, match="batch_size"):
                model(**inputs, **labels)
        with pytest.raises(UserError, match=r"Row weights of shape \(4, 1\) do not fit 4 triplets"):
            model(**inputs, pair_labels=torch.tensor([0, 1, 2, 0]), row_weights=torch.ones(4, 1))

    def test_configurations_that_make_no_pre_training(self) -> None:
        with pytest.raises(UserError, match="tie_word_embeddings=true"):
            VinVLForPreTraining(config(tie_word_embeddings=False))
        with pytest.raises(UserError, match="num_labels is 1"):
            VinVLForPreTraining(config(num_labels=1))


class TestStarting:
    def under_hub_names(self, bert: Path, folder: Path, **changes: Tensor | None) -> Path:
        """The tensors as older hub files name them, `changes` added or (None) left out."""
        tensors: dict[str, Any] = dict(load_file(bert / "model.safetensors"))
        for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
            tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        tensors |= changes
        save_file({k: v.contiguous() for k, v in tensors.items() if v is not None}, folder / "model.safetensors")
        return folder

    def test_two_classes_take_both_heads_of_bert_and_three_the_word_head_alone(self, bert: Path) -> None:
        model, report = initialise_with_report(VinVLForPreTraining, config(num_labels=2), bert, strict_head=True)
        assert set(WORD_HEAD + PAIR_HEAD) <= set(report.loaded) and report.unused == report.resized == ()
        assert set(report.missing) == {"bert.img_embedding.weight", "bert.img_embedding.bias"}
        weights = load_file(bert / "model.safetensors")
        assert all(torch.equal(model.state_dict()[name], weights[name]) for name in WORD_HEAD + PAIR_HEAD)
        model, report = initialise_with_report(VinVLForPreTraining, config(), bert)
        assert set(WORD_HEAD) <= set(report.loaded) and report.resized == PAIR_HEAD
        assert torch.equal(model.cls.predictions.bias, weights["cls.predictions.bias"])
        with pytest.raises(UserError, match=r"'cls.seq_relationship.bias' is \(2,\) there and \(3,\) here"):
            initialise(VinVLForPreTraining, config(), bert, strict_head=True)

    def test_a_head_with_a_part_missing_is_new_as_a_whole(self, bert: Path, tmp_path: Path) -> None:
        folder = self.under_hub_names(bert, tmp_path, **{"cls.predictions.bias": None})
        _, report = initialise_with_report(VinVLForPreTraining, config(num_labels=2), folder)
        assert set(PAIR_HEAD) <= set(report.loaded)
        assert report.resized == WORD_HEAD[1:] and "cls.predictions.bias" in report.missing

    @pytest.mark.parametrize("twice", [True, False])
    def test_the_bias_may_be_named_as_the_decoders(self, bert: Path, tmp_path: Path, twice: bool) -> None:
        bias = load_file(bert / "model.safetensors")["cls.predictions.bias"]
        names = {"cls.predictions.decoder.bias": bias.clone(), "cls.predictions.bias": bias if twice else None}
        start = self.under_hub_names(bert, tmp_path, **names)
        model, report = initialise_with_report(VinVLForPreTraining, config(num_labels=2), start, strict_head=True)
        assert torch.equal(model.cls.predictions.bias, bias)
        assert report.unused == () and "cls.predictions.bias" in report.loaded

    def test_another_decoder_bias_is_told(self, bert: Path, tmp_path: Path) -> None:
        folder = self.under_hub_names(bert, tmp_path, **{"cls.predictions.decoder.bias": torch.zeros(30)})
        model, report = initialise_with_report(VinVLForPreTraining, config(), folder)
        assert "cls.predictions.decoder.bias" in report.unused and model.cls.predictions.bias.any()

    def test_an_answering_model_starts_from_it(self, tmp_path: Path) -> None:
        VinVLForPreTraining(config(use_img_layernorm=True)).save_pretrained(tmp_path)
        model, report = initialise_with_report(VinVLForAnswering, config(num_labels=5), tmp_path)
        assert set(report.missing) == {"classifier.weight", "classifier.bias"} and model.config.use_img_layernorm
        assert set(report.unused) == set(WORD_HEAD + PAIR_HEAD)
