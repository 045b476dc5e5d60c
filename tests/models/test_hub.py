"""transformers' own ways to a model of ours: AutoConfig, AutoModel."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel

import vinvl.models
from tests.models.samples import SIZES


def test_transformers_knows_our_models(tmp_path: Path) -> None:
    assert vinvl.models.__name__  # its import is all that is needed
    model = vinvl.models.VinVLForAnswering(vinvl.models.VinVLConfig(**SIZES, img_feature_dim=14))
    model.save_pretrained(tmp_path)
    config, encoder = AutoConfig.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    assert type(config) is vinvl.models.VinVLConfig and type(encoder) is vinvl.models.VinVLModel
    state = model.bert.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())
