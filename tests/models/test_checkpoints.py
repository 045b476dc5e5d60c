"""Starting models from other weights: what is taken, what is reported, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertForPreTraining, BertModel

from tests.hub_server import Hub
from tests.models.samples import SIZES, initialise_with_report
from vinvl.models import VinVLConfig, VinVLForAnswering, VinVLModel, initialise
from vinvl.models.weight_files import model_files, pinned
from vinvl.run.errors import UserError


def config(**changes: Any) -> VinVLConfig:
    return VinVLConfig(**(SIZES | {"img_feature_dim": 12, "num_labels": 5} | changes))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plain BERT, a BERT with its pre-training heads, and an answering model, as save_pretrained writes them."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    models: dict[str, Any] = {
        "bert": BertModel(BertConfig(**SIZES)),
        "pretraining": BertForPreTraining(BertConfig(**SIZES)),
        "vinvl": VinVLForAnswering(config(use_img_layernorm=True, img_layer_norm_eps=1e-5)),
    }
    for name, model in models.items():
        for parameter in model.parameters():  # nothing may agree with a fresh model by chance, LayerNorms included
            torch.nn.init.normal_(parameter)
        model.save_pretrained(root / name)
    return {name: root / name for name in models}


def as_published(folder: Path, target: Path, legacy: bool = False, **config_changes: Any) -> Path:
    """The folder's model the way Oscar was published: pytorch_model.bin and a config.json without model_type."""
    target.mkdir()
    tensors = load_file(folder / "model.safetensors")
    if legacy:
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new_name, old_name in old.items():
            tensors = {key.replace(new_name, old_name): tensor for key, tensor in tensors.items()}
        tensors["bert.embeddings.position_ids"] = torch.arange(20)[None]
    torch.save(tensors, target / "pytorch_model.bin")
    published = json.loads((folder / "config.json").read_text())
    del published["model_type"]
    (target / "config.json").write_text(json.dumps(published | config_changes))
    return target


def assert_taken(model: torch.nn.Module, tensors: dict[str, Tensor], names: tuple[str, ...]) -> None:
    own = model.state_dict()
    bare = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    for name in names:
        assert torch.equal(own[name], bare[name.removeprefix("bert.")]), name


def test_attention_implementation_of_the_configuration(folders: dict[str, Path]) -> None:
    for source in (None, folders["vinvl"]):
        model = initialise(VinVLForAnswering, config(attn_implementation="eager"), source)
        assert model.config._attn_implementation == model.bert.config._attn_implementation == "eager"
    with pytest.raises(UserError, match=r"has attn_implementation .eegar.; choose one of"):
        config(attn_implementation="eegar")


@pytest.mark.parametrize("source", ["bert", "pretraining"])
@pytest.mark.parametrize("model_class", [VinVLModel, VinVLForAnswering])
def test_from_bert(folders: dict[str, Path], source: str, model_class: Any) -> None:
    model, report = initialise_with_report(model_class, config(use_img_layernorm=True), str(folders[source]))
    prefix = "" if model_class is VinVLModel else "bert."
    fresh = {f"{prefix}{name}" for name in ("img_embedding.weight", "img_embedding.bias")}
    fresh |= {f"{prefix}LayerNorm.weight", f"{prefix}LayerNorm.bias"}
    fresh |= set() if model_class is VinVLModel else {"classifier.weight", "classifier.bias"}
    assert set(report.missing) == fresh
    assert set(report.loaded) == set(model.state_dict()) - fresh
    assert report.resized == () and report.image_layernorm is None
    assert all(name.startswith("cls.") for name in report.unused) and bool(report.unused) == (source == "pretraining")
    assert ("and 1 more" in str(report)) == (source == "pretraining")  # of the seven tensors of its heads
    assert_taken(model, load_file(folders[source] / "model.safetensors"), report.loaded)
    assert model.config.use_img_layernorm


def test_encoder_equals_bert_on_text(folders: dict[str, Path]) -> None:
    ids = torch.randint(1, 30, (2, 7))
    with torch.no_grad():
        ours = initialise(VinVLModel, config(), folders["bert"]).eval()(ids)
        theirs = BertModel.from_pretrained(folders["bert"]).eval()(ids)
    torch.testing.assert_close(ours.pooler_output, theirs.pooler_output)


def test_from_a_published_folder_with_older_names(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = as_published(folders["vinvl"], tmp_path / "oscar", legacy=True)
    model, report = initialise_with_report(VinVLForAnswering, config(), folder, strict_head=True)
    assert report.missing == report.unused == report.resized == ()
    assert_taken(model, load_file(folders["vinvl"] / "model.safetensors"), report.loaded)
    assert len(report.loaded) == len(model.state_dict())


def test_image_layernorm_follows_the_checkpoint(folders: dict[str, Path], tmp_path: Path) -> None:
    wish = config(use_img_layernorm=False)
    model: Any
    model, report = initialise_with_report(VinVLForAnswering, wish, folders["vinvl"])
    assert report.image_layernorm is True and "bert.LayerNorm.weight" in report.loaded
    assert model.config.use_img_layernorm and model.bert.LayerNorm.eps == 1e-5
    assert not wish.use_img_layernorm  # the caller's configuration is left alone

    initialise(VinVLForAnswering, config(), None).save_pretrained(tmp_path)
    model, report = initialise_with_report(VinVLForAnswering, config(use_img_layernorm=True), tmp_path)
    assert report.image_layernorm is False and model.bert.LayerNorm is None
    assert "layer norm, as in the checkpoint: off" in str(report)


def test_a_head_of_another_size(folders: dict[str, Path]) -> None:
    model: Any
    model, report = initialise_with_report(VinVLForAnswering, config(num_labels=9), folders["vinvl"])
    assert str(report).splitlines() == [
        f"started from {folders['vinvl']}: 43 tensors loaded",
        "  image layer norm, as in the checkpoint: on",
        "  of another size there, randomly initialised (2): classifier.bias, classifier.weight",
    ]
    assert model.classifier.weight.shape == (9, 16)
    assert model.classifier.weight.std() < 0.1  # BERT's 0.02, not the checkpoint's 1
    with pytest.raises(UserError, match=r"'classifier.bias' is \(5,\) there and \(9,\) here"):
        initialise(VinVLForAnswering, config(num_labels=9), folders["vinvl"], strict_head=True)


def test_a_head_of_another_kind_is_started_whole(folders: dict[str, Path], tmp_path: Path) -> None:
    mlp = config(classifier="mlp")
    _, report = initialise_with_report(VinVLForAnswering, mlp, folders["vinvl"])
    assert len(report.missing) == 4 and report.unused == ("classifier.bias", "classifier.weight")
    with pytest.raises(UserError, match=r"'classifier.0.bias' is not in it"):
        initialise(VinVLForAnswering, mlp, folders["vinvl"], strict_head=True)

    initialise(VinVLForAnswering, mlp, None).save_pretrained(tmp_path)
    _, report = initialise_with_report(VinVLForAnswering, config(classifier="mlp", num_labels=9), tmp_path)
    assert report.resized == ("classifier.0.bias", "classifier.0.weight", "classifier.2.bias", "classifier.2.weight")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 3}, "num_hidden_layers is 2 there and 3 here"),
        ({"num_attention_heads": 2}, "num_attention_heads is 4 there and 2 here"),
        ({"vocab_size": 31}, "vocab_size is 30 there and 31 here"),
        ({"intermediate_size": 8}, "intermediate_size is 24 there and 8 here"),
        ({"max_position_embeddings": 10}, "max_position_embeddings is 20 there and 10 here"),
        ({"img_feature_dim": 14}, "img_feature_dim is 12 there and 14 here"),
        ({"hidden_act": "relu"}, "hidden_act is gelu there and relu here"),
        ({"hidden_size": 32, "vocab_size": 31}, "vocab_size is 30 there and 31 here; hidden_size is 16 there"),
    ],
)
def test_an_encoder_of_another_size(folders: dict[str, Path], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        initialise(VinVLForAnswering, config(**changes), folders["vinvl"])


def test_folders_that_hold_no_such_model(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no weights; it needs a file model.safetensors or pytorch_model.bin"):
        initialise(VinVLModel, config(), tmp_path)
    with pytest.raises(UserError, match=r"no model folder .*/nowhere"):
        initialise(VinVLModel, config(), str(tmp_path / "nowhere"))

    save_file({"vision.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"none of the 1 tensors is an encoder weight \(its first is 'vision.weight'\)"):
        initialise(VinVLModel, config(), tmp_path)
    shutil.copy(folders["bert"] / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(UserError, match="is a 'roberta' model"):
        initialise(VinVLModel, config(), tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(UserError, match=r"config.json is not valid JSON"):
        initialise(VinVLModel, config(), tmp_path)


def test_an_encoder_with_holes(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["bert"] / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith("pooler")}, tmp_path / "weights.safetensors")
    _, report = initialise_with_report(VinVLModel, config(), tmp_path / "weights.safetensors")
    assert "pooler.dense.weight" in report.missing  # which captions do without
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"lacks 1 of the 37 encoder weights, among them 'encoder.layer.1.output.dense"):
        initialise(VinVLModel, config(), tmp_path)


def test_weights_in_shards(folders: dict[str, Path], tmp_path: Path) -> None:
    BertModel.from_pretrained(folders["bert"]).save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    _, report = initialise_with_report(VinVLModel, config(), tmp_path)
    assert len(report.loaded) == 39


def test_two_names_of_one_tensor(folders: dict[str, Path], tmp_path: Path) -> None:
    tensors = load_file(folders["bert"] / "model.safetensors")
    old, new = "encoder.layer.0.output.LayerNorm.gamma", "encoder.layer.0.output.LayerNorm.weight"
    for name, other in (("same", tensors[new].clone()), ("other", tensors[new] + 1)):
        shutil.copytree(folders["bert"], tmp_path / name)
        save_file(tensors | {old: other}, tmp_path / name / "model.safetensors")
    model = initialise(VinVLModel, config(), str(tmp_path / "same"))
    assert torch.equal(model.state_dict()[new], tensors[new])
    with pytest.raises(UserError, match=rf"{tmp_path / 'other'}: '{old}' and '{new}' mean the same tensor, and"):
        initialise(VinVLModel, config(), str(tmp_path / "other"))


def test_a_shard_index_cannot_point_out_of_its_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    outside = str(folders["bert"] / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": outside}}))
    with pytest.raises(UserError, match="There is no weight file"):
        initialise(VinVLModel, config(), tmp_path)


def test_a_name_on_the_hub(folders: dict[str, Path], tmp_path: Path, hub: Hub) -> None:
    there = hub.add("someone/oscar", as_published(folders["vinvl"], tmp_path / "oscar"))
    name = f"someone/oscar@{there.refs['main']}"
    _, report = initialise_with_report(VinVLForAnswering, config(), "someone/oscar")
    assert report.source == name and len(report.loaded) == 45
    assert pinned("someone/oscar") == name and pinned(None) is None and pinned(str(tmp_path)) == str(tmp_path)
    hub.asked.clear()
    with pytest.raises(UserError, match="There is no model folder not a name!: give one that exists"):
        initialise(VinVLModel, config(), "not a name!")
    assert not hub.asked


def test_only_the_files_of_a_model_are_got() -> None:
    whole = [
        "README.md",
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "tf_model.h5",
        "vocab.txt",
        "vinvl.json",
    ]
    assert model_files(whole) == ["config.json", "vinvl.json", "vocab.txt", "model.safetensors"]
    shards = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    split = ["pytorch_model.bin.index.json", *shards, "x_label2ans.pkl"]
    assert model_files(split) == ["x_label2ans.pkl", *shards, "pytorch_model.bin.index.json"]
    assert model_files(["config.json", "vocab.txt"]) == []
