"""The model of picture pairs against recordings of the published one, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import golden
from vinvl.models import VinVLConfig, VinVLForPairs, initialise, load_published_state_dict
from vinvl.run.errors import UserError

torch.set_num_threads(1)

NOT_OF_THE_MODEL = ("img_feature_type", "num_choice")


def recorded(name: str) -> tuple[dict[str, Any], dict[str, Tensor], VinVLConfig]:
    facts = golden.facts(f"oscar/nlvr2__{name}")
    values = {key: value for key, value in facts["config"].items() if key not in NOT_OF_THE_MODEL}
    return facts, golden.tensors(f"oscar/nlvr2__{name}.io"), VinVLConfig(**values)


def rows_of_pairs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """(B, 2, …) as recorded → (2B, …)."""
    names = {"img_feats": "region_features"}
    return {
        names.get(key, key): tensors[f"inputs.{key}"].flatten(0, 1)
        for key in ("input_ids", "token_type_ids", "attention_mask", "img_feats")
    }


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
    norms = {key: parameter.grad.norm().item() for key, parameter in model.named_parameters()}
    assert set(norms) == set(facts["meta"]["grad_norms"])
    for key, norm in facts["meta"]["grad_norms"].items():
        assert norms[key] == pytest.approx(norm, rel=1e-4, abs=1e-6), key


def test_the_layer_norm_of_the_head_follows_the_checkpoint(tmp_path: Path) -> None:
    facts, _, config = recorded("mlp3_imgln")
    weights = load_published_state_dict(golden.whole(f"oscar/{facts['weights']}"))
    save_file(weights, tmp_path / "model.safetensors")
    config.use_img_layernorm = False
    model = initialise(VinVLForPairs, config, tmp_path, strict_head=True)
    assert isinstance(model.classifier[2], torch.nn.LayerNorm)
    assert torch.equal(model.classifier[3].weight, weights["classifier.3.weight"])


def test_the_pictures_of_a_pair_have_places() -> None:
    facts, tensors, config = recorded("linear")
    model = VinVLForPairs(config).eval()
    model.load_state_dict(load_published_state_dict(golden.whole(f"oscar/{facts['weights']}")))
    rows = rows_of_pairs(tensors)
    swapped = {name: value.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for name, value in rows.items()}
    with torch.no_grad():
        assert not torch.allclose(model(**rows).logits, model(**swapped).logits, atol=1e-3)


def test_dropout_on_the_pooled_vectors() -> None:
    _, tensors, config = recorded("linear")
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.classifier_dropout = 0.5
    model = VinVLForPairs(config).train()
    rows = rows_of_pairs(tensors)
    assert not torch.equal(model(**rows).logits, model(**rows).logits)


def test_an_odd_number_of_rows_is_refused() -> None:
    _, tensors, config = recorded("linear")
    rows = {name: value[:3] for name, value in rows_of_pairs(tensors).items()}
    with pytest.raises(UserError, match="3 rows, which is odd"):
        VinVLForPairs(config)(**rows)
