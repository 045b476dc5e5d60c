"""transformers' own ways to a model of ours and back: AutoConfig, AutoModel, push_to_hub, from_pretrained."""

from pathlib import Path

import torch
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModel, BertTokenizer

import vinvl.models
from tests.hub_server import Hub
from tests.models.samples import SIZES
from vinvl.data.text import load_tokenizer
from vinvl.models.published import convert_model, model_card
from vinvl.models.weight_files import find_checkpoint


def test_transformers_knows_our_models(tmp_path: Path) -> None:
    assert vinvl.models.__name__  # its import is all that is needed
    model = vinvl.models.VinVLForAnswering(vinvl.models.VinVLConfig(**SIZES, img_feature_dim=14))
    model.save_pretrained(tmp_path)
    config, encoder = AutoConfig.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert type(config) is vinvl.models.VinVLConfig and type(encoder) is vinvl.models.VinVLModel
    state = model.bert.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())


def test_pushed_and_loaded_by_name(tmp_path: Path, hub: Hub) -> None:
    model = vinvl.models.VinVLForAnswering(vinvl.models.VinVLConfig(**SIZES, img_feature_dim=14, num_labels=3))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(25))]
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    tokenizer = BertTokenizer.from_pretrained(tmp_path)
    for one in (model, tokenizer):
        one.push_to_hub("me/model", token="hf_none")
    there = hub.repositories["me/model"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= there.commits[
        there.refs["main"]
    ].keys()
    for kind in (vinvl.models.VinVLForAnswering, AutoModel):
        found = kind.from_pretrained("me/model")
        state = (model if kind is not AutoModel else model.bert).state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())
    assert load_tokenizer("me/model").get_vocab() == tokenizer.get_vocab()
    assert vinvl.models.initialise(vinvl.models.VinVLModel, model.config, "me/model").config.hidden_size == 16


def test_a_card_that_was_uploaded_stays(tmp_path: Path, hub: Hub) -> None:
    model = vinvl.models.VinVLForAnswering(vinvl.models.VinVLConfig(**SIZES, img_feature_dim=14, num_labels=3))
    model.save_pretrained(tmp_path / "plain")
    converted, report = convert_model(find_checkpoint(tmp_path / "plain"), "vqa")
    text = model_card(converted, report, source="plain", task="vqa", data={"regions": "a.h5, b.h5"}, scores={})
    said = ModelCard(text).data
    assert said.tags == ["vinvl", "oscar", "vision-language"] and said.pipeline_tag == "visual-question-answering"
    hub.add("me/model", {"README.md": text.encode()})
    model.push_to_hub("me/model", token="hf_none")
    there = hub.repositories["me/model"]
    kept = there.commits[there.refs["main"]]["README.md"].decode()
    assert ModelCard(kept).text == ModelCard(text).text and "- regions: `a.h5, b.h5`" in kept
