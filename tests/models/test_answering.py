"""The models that answer: losses, the configuration's checks, and pairs against recordings of the published one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig

from tests import golden
from tests.models.samples import as_region_features, assert_gradients
from vinvl.models import VinVLConfig, VinVLForAnswering, VinVLForPairs, initialise, load_published_state_dict
from vinvl.models.answering import answer_loss, answer_loss_per_example
from vinvl.run.errors import UserError

torch.set_num_threads(1)

SIZES: dict[str, Any] = {
    "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
}  # fmt: skip


@given(batch=st.integers(1, 6), answers=st.integers(2, 9), loss_type=st.sampled_from(["bce", "ce", "kl", "xe", "sfmx"]))
@settings(max_examples=50, deadline=None)
def test_losses_are_torchs_and_means_of_examples(batch: int, answers: int, loss_type: str) -> None:
    logits, scores = torch.randn(batch, answers), torch.rand(batch, answers)
    numbers = torch.randint(answers, (batch,))
    labels = scores if loss_type in ("bce", "kl") else numbers
    expected = {
        "bce": F.binary_cross_entropy_with_logits(logits, scores) * answers,
        "kl": F.kl_div(logits.log_softmax(-1), scores, reduction="batchmean"),
    }.get(loss_type, F.cross_entropy(logits, numbers))
    loss, each = answer_loss(logits, labels, loss_type), answer_loss_per_example(logits, labels, loss_type)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert each.shape == (batch,)
    assert torch.equal(each.mean(), loss)
    for index in range(batch):  # an example's loss does not depend on its batch
        alone = answer_loss(logits[index : index + 1], labels[index : index + 1], loss_type)
        torch.testing.assert_close(alone, each[index], rtol=1e-5, atol=1e-6)


def test_cross_entropy_label_shapes() -> None:
    logits, numbers, weights = torch.randn(4, 3), torch.tensor([0, 2, 1, 1]), torch.rand(4, 3)
    loss = answer_loss(logits, numbers, "ce")
    assert torch.equal(answer_loss(logits, numbers[:, None], "ce"), loss)
    torch.testing.assert_close(answer_loss(logits, F.one_hot(numbers, 3).float(), "ce"), loss)
    torch.testing.assert_close(answer_loss(logits, weights, "ce"), F.cross_entropy(logits, weights))
    with pytest.raises((IndexError, RuntimeError)):  # no label is skipped silently
        answer_loss(logits[:2], torch.tensor([0, -100]), "ce")


@pytest.mark.parametrize("loss_type", ["bce", "ce", "kl"])
def test_one_answer_is_a_squared_error(loss_type: str) -> None:
    logits, labels = torch.randn(4, 1), torch.randn(4)
    expected = F.mse_loss(logits[:, 0], labels)
    torch.testing.assert_close(answer_loss(logits, labels, loss_type), expected)
    torch.testing.assert_close(answer_loss(logits, labels[:, None], loss_type), expected)


def test_half_precision_logits_are_summed_in_full() -> None:
    logits, labels = torch.randn(2, 3129), torch.rand(2, 3129)
    half = answer_loss(logits.bfloat16(), labels, "bce")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, answer_loss(logits.bfloat16().float(), labels, "bce"))


@pytest.mark.parametrize(
    ("labels", "loss_type"),
    [
        (torch.rand(2, 4), "bce"),
        (torch.rand(3, 3), "kl"),
        (torch.rand(2), "bce"),
        (torch.rand(2, 4), "ce"),
        (torch.tensor([0, 1, 2]), "ce"),
    ],
)
def test_labels_that_do_not_fit(labels: torch.Tensor, loss_type: str) -> None:
    with pytest.raises(UserError, match=r"do not fit the .* loss on logits of shape \(2, 3\)"):
        answer_loss(torch.randn(2, 3), labels, loss_type)


def test_published_dropout_and_classifier_sizes() -> None:
    config = VinVLConfig(**SIZES, num_labels=7, classifier="mlp", cls_hidden_scale=2, hidden_dropout_prob=0.3)
    model = VinVLForAnswering(config)
    assert model.dropout.p == 0.3
    shapes = {name: tuple(p.shape) for name, p in model.classifier.named_parameters()}
    assert shapes == {"0.weight": (16, 8), "0.bias": (16,), "2.weight": (7, 16), "2.bias": (7,)}
    assert VinVLForAnswering(VinVLConfig(**SIZES, classifier_dropout=0.2)).dropout.p == 0.2


# transformers 5.0 does not.
TYPES_ARE_CHECKED = pytest.mark.skipif(not hasattr(BertConfig, "__validators__"), reason="types are not checked")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"classifier": "deep"}, "classifier 'deep'; choose one of linear, mlp, mlp_gelu"),
        ({"loss_type": "hinge"}, "loss_type is 'hinge'; choose one of bce, ce, kl"),
        ({"img_feature_dim": 0}, "img_feature_dim 0"),
        ({"cls_hidden_scale": 1.5}, "cls_hidden_scale 1.5"),
        ({"hidden_size": 100, "num_attention_heads": 12}, "hidden_size 100 cannot be split over .* 12"),
        ({"hidden_size": None}, "configuration cannot be used .*hidden_size"),
        pytest.param({"use_cache": [1]}, "configuration cannot be used .*use_cache", marks=TYPES_ARE_CHECKED),
        pytest.param({"eos_token_id": 0.5}, "configuration cannot be used .*eos_token_id", marks=TYPES_ARE_CHECKED),
    ],
)
def test_configurations_that_make_no_model(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        VinVLConfig(**changes)


NOT_OF_THE_MODEL = ("img_feature_type", "num_choice")


def recorded(name: str) -> tuple[dict[str, Any], dict[str, Tensor], VinVLConfig]:
    facts = golden.facts(f"oscar/nlvr2__{name}")
    values = {key: value for key, value in facts["config"].items() if key not in NOT_OF_THE_MODEL}
    return facts, golden.tensors(f"oscar/nlvr2__{name}.io"), VinVLConfig(**values)


def rows_of_pairs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """(B, 2, …) as recorded → (2B, …)."""
    return {name: value.flatten(0, 1) for name, value in as_region_features(tensors).items()}


@pytest.mark.parametrize("attention", ["eager", "sdpa", "packed"])
@pytest.mark.parametrize("name", ["linear", "mlp3_noln", "mlp3_imgln"])
def test_logits_loss_and_gradients(name: str, attention: str) -> None:
    facts, tensors, config = recorded(name)
    model = VinVLForPairs._from_config(config, attn_implementation=attention).eval()
    model.load_state_dict(load_published_state_dict(golden.whole(f"oscar/{facts['weights']}")), strict=True)
    output = model(**rows_of_pairs(tensors), labels=tensors["inputs.labels"])
    torch.testing.assert_close(output.logits, tensors["outputs.logits"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, tensors["outputs.loss"], rtol=1e-5, atol=0)

    output.loss.backward()
    assert_gradients(model, facts["meta"]["grad_norms"])


def test_the_layer_norm_of_the_head_follows_the_checkpoint(tmp_path: Path) -> None:
    facts, _, config = recorded("mlp3_imgln")
    weights = load_published_state_dict(golden.whole(f"oscar/{facts['weights']}"))
    save_file(weights, tmp_path / "model.safetensors")
    config.use_img_layernorm = False
    model = initialise(VinVLForPairs, config, tmp_path, strict_head=True)
    assert isinstance(model.classifier[2], torch.nn.LayerNorm)
    assert torch.equal(model.classifier[3].weight, weights["classifier.3.weight"])


def test_the_pictures_of_a_pair_have_places() -> None:
    _, tensors, config = recorded("linear")
    model, rows = VinVLForPairs(config).eval(), rows_of_pairs(tensors)
    torch.nn.init.normal_(model.classifier.weight)
    swapped = {name: value.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for name, value in rows.items()}
    with torch.no_grad():
        assert not torch.allclose(model(**rows).logits, model(**swapped).logits, atol=1e-3)
    with pytest.raises(UserError, match="3 rows, which is odd"):
        model(**{name: value[:3] for name, value in rows.items()})
