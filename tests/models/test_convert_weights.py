"""Weights in and out: every task's model comes back bit-equal in both formats, and what does not fit is refused."""

import errno
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoTokenizer, BertConfig, BertForPreTraining, PreTrainedModel

from tests import golden
from tests.hub_server import Hub
from tests.models.samples import SIZES, initialise_with_report
from vinvl.convert import convert
from vinvl.data.text import load_tokenizer
from vinvl.models import (
    VinVLConfig,
    VinVLForAnswering,
    VinVLForCaptioning,
    VinVLForPairs,
    VinVLForPreTraining,
    VinVLModel,
)
from vinvl.run.errors import UserError
from vinvl.run.folders import config_directory
from vinvl.run.options import task_as_a_value

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(25))]
VINVL = SIZES | {"img_feature_dim": 12}
MODELS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "vqa": (VinVLForAnswering, {"num_labels": 5, "classifier": "mlp", "cls_hidden_scale": 2, "loss_type": "kl"}),
    "gqa": (VinVLForAnswering, {"num_labels": 5, "loss_type": "ce", "use_img_layernorm": True}),
    "retrieval": (VinVLForAnswering, {"num_labels": 2, "loss_type": "ce", "img_layer_norm_eps": 1e-5}),
    "nlvr2": (VinVLForPairs, {"num_labels": 2, "classifier": "mlp", "use_img_layernorm": True, "loss_type": "ce"}),
    "captioning": (VinVLForCaptioning, {"tie_word_embeddings": False, "use_img_layernorm": True}),
    "captioning tied": (VinVLForCaptioning, {"tie_word_embeddings": True}),
    "pretraining": (VinVLForPreTraining, {"num_labels": 3, "use_img_layernorm": True}),
    "encoder": (VinVLModel, {"use_img_layernorm": True, "img_layer_norm_eps": 1e-5}),
}


def run(weights: Path, to: Path, *overrides: str) -> Path:
    """The door, with its own configuration."""
    with initialize_config_dir(config_dir=config_directory(), version_base="1.3"):
        given = [f"weights={weights}", f"to={to}", "paths.output_dir=.", *task_as_a_value([*overrides])]
        return convert(compose("convert", overrides=given))


def randomised(model_class: type[Any], **fields: Any) -> Any:
    """A model in which no tensor agrees with a fresh one by chance."""
    torch.manual_seed(0)
    model = model_class(VinVLConfig(**(VINVL | fields)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model.eval()


def with_vocabulary(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return folder


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(with_vocabulary(folder))
    return folder


def published(case: str, folder: Path, **config: Any) -> Path:
    """A golden case's weights as Oscar was published."""
    recorded = golden.facts(f"oscar/{case}")
    folder.mkdir()
    torch.save(load_file(golden.whole(f"oscar/{recorded['weights']}")), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({**recorded["config"], **config}))
    words = golden.facts("oscar/vocab")
    words = words["vocab"] if isinstance(words, dict) else words
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return folder


def as_mmf(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """An answering model's tensors by MMF's names."""
    renamed = {}
    for name, tensor in tensors.items():
        for ours, theirs in (
            ("bert.img_embedding.", "bert.img_embedding.0."),
            ("bert.LayerNorm.", "bert.img_embedding.1."),
            ("bert.pooler.", "classifier.pooler."),
            ("classifier.weight", "classifier.classifier.0.weight"),
            ("classifier.bias", "classifier.classifier.0.bias"),
            ("classifier.", "classifier.classifier."),
        ):
            if name.startswith(ours):
                name = name.replace(ours, theirs, 1)
                break
        renamed[prefix + name] = tensor
    return renamed


def outputs(model: Any) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        found = model(input_ids=torch.randint(0, 30, (2, 6)), region_features=torch.randn(2, 3, 12))
    return [value for value in found.to_tuple() if isinstance(value, Tensor)]


def assert_same(one: Any, other: Any) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys() and type(one) is type(other)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(a, b) for a, b in zip(outputs(one), outputs(other), strict=True))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An answering model in a folder."""
    return saved(randomised(VinVLForAnswering, num_labels=5), tmp_path_factory.mktemp("models") / "start")


@pytest.fixture(scope="module")
def oscar(start: Path) -> Path:
    """The same as Oscar was published."""
    return run(start, start.parent / "oscar", "format=oscar")


@pytest.mark.parametrize("name", MODELS)
def test_out_and_in_again_is_bit_equal(name: str, tmp_path: Path) -> None:
    model_class, fields = MODELS[name]
    model = randomised(model_class, **fields)
    start = saved(model, tmp_path / "start")
    task = f"task={name.split()[0]}"
    there = run(start, tmp_path / "oscar", task, "format=oscar")
    assert sorted(path.name for path in there.iterdir()) == [
        "README.md", "config.json", "conversion.txt", "pytorch_model.bin", "vocab.txt",
    ]  # fmt: skip
    back = run(there, tmp_path / "back")  # without a task: it is recognised
    again = model_class.from_pretrained(back)
    assert_same(model, again.eval())
    for field in (
        "loss_type", "classifier", "use_img_layernorm", "img_layer_norm_eps", "tie_word_embeddings", "num_labels",
    ):  # fmt: skip
        if field in fields:
            assert getattr(again.config, field) == fields[field], field
    assert len(load_tokenizer(back)) == len(AutoTokenizer.from_pretrained(back)) == 30
    fresh, report = initialise_with_report(model_class, VinVLConfig(**(VINVL | fields)), there, strict_head=True)
    assert_same(model, fresh.eval())
    assert report.missing == report.unused == ()


@pytest.mark.parametrize(
    ("case", "model_class"),
    [
        ("seqcls__vqa_bce_mlp3", VinVLForAnswering),
        ("seqcls__retrieval_sfmx", VinVLForAnswering),
        ("nlvr2__mlp3_imgln", VinVLForPairs),
        ("nlvr2__linear", VinVLForPairs),
        ("caption_train__plain", VinVLForCaptioning),
        ("caption_train__smooth_tied_frozen", VinVLForCaptioning),
        ("pretrain__3class", VinVLForPreTraining),
    ],
)
def test_published_names_and_fields_come_back(case: str, model_class: type[Any], tmp_path: Path) -> None:
    start = published(case, tmp_path / "published")
    there = run(start, tmp_path / "ours")
    rows = (there / "conversion.txt").read_text().splitlines()
    assert rows and all(row.startswith(("loaded\t", "renamed\t")) for row in rows), rows
    back = run(there, tmp_path / "back", "format=oscar", *(["task=retrieval"] if "retrieval" in case else []))
    before = torch.load(start / "pytorch_model.bin", weights_only=True)
    after = torch.load(back / "pytorch_model.bin", weights_only=True)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (start, back))
    first["use_img_layernorm"] = first.get("use_img_layernorm", 0)
    taking_part = {"freeze_embedding", "label_smoothing", "drop_worst_ratio", "drop_worst_after"}  # of training alone
    differing = {name for name in first.keys() - taking_part if first[name] != second.get(name)}
    assert not differing, {name: (first[name], second.get(name)) for name in differing}
    assert (start / "vocab.txt").read_text() == (back / "vocab.txt").read_text()
    assert not (back / "pytorch_model.bin").read_bytes().startswith(b"PK")  # torch 1.4 reads no zip files


@pytest.mark.parametrize("layout", ["pth", "model", "lightning", "parallel"])
def test_checkpoints_of_mmf(layout: str, tmp_path: Path) -> None:
    model = randomised(VinVLForAnswering, num_labels=5, use_img_layernorm=True, loss_type="ce")
    prefix = {"lightning": "model.vinvl.", "parallel": "module.vinvl."}.get(layout, "vinvl.")
    table: Any = as_mmf(model.state_dict(), prefix)
    content = {"model": {"model": table}, "lightning": {"state_dict": table, "epoch": 3}}.get(layout, table)
    path = with_vocabulary(tmp_path / "mmf") / f"model.{'ckpt' if layout == 'lightning' else 'pth'}"
    torch.save(content, path)
    with pytest.raises(UserError, match="does not say how many attention heads"):
        run(path, tmp_path / "out")
    there = run(path, tmp_path / "out", "config.num_attention_heads=4", "task=vqa")
    assert_same(model, VinVLForAnswering.from_pretrained(there).eval())
    assert json.loads((there / "vinvl.json").read_text()) == {"task": "vqa", "recipe": "vqa2_mmf"}
    rows = (there / "conversion.txt").read_text().splitlines()
    assert f"renamed\t{prefix}classifier.pooler.dense.bias → bert.pooler.dense.bias" in rows
    assert f"renamed\t{prefix}bert.img_embedding.1.bias → bert.LayerNorm.bias" in rows
    started, report = initialise_with_report(VinVLForAnswering, VinVLConfig(**VINVL, num_labels=5), path)
    assert_same(model, started.eval())
    assert len(report.renamed) == len(report.loaded) and report.missing == ()


class HeadOfMMF(nn.Module):
    """The "mlp" head as MMF builds it, with the names that it gives (mmf/models/transformers/heads/mlp.py)."""

    def __init__(self, hidden: int, width: int, layers: int, answers: int) -> None:
        super().__init__()
        self.pooler = nn.ModuleDict({"dense": nn.Linear(hidden, hidden)})
        modules: list[nn.Module] = []
        for before in [hidden] + [width] * (layers - 1) if layers else []:
            transform = {"dense": nn.Linear(before, width), "LayerNorm": nn.LayerNorm(width, eps=1e-6)}
            modules += [nn.Dropout(0.1), nn.ModuleDict(transform)]
        self.classifier = nn.Sequential(*modules, nn.Linear(width, answers))

    def forward(self, hidden_states: Tensor) -> Tensor:
        found = self.pooler["dense"](hidden_states[:, 0]).tanh()
        for module in self.classifier:
            if isinstance(module, nn.ModuleDict):
                found = module["LayerNorm"](nn.functional.gelu(module["dense"](found)))
            else:
                found = module(found)
        return found


def checkpoint_of_mmf(folder: Path, head: HeadOfMMF, **changes: Tensor | None) -> tuple[Path, Any]:
    """A checkpoint of MMF's with a random encoder and a head, some tensors changed or left out; and the encoder."""
    encoder = randomised(VinVLModel, use_img_layernorm=True)
    table = as_mmf({f"bert.{name}": tensor for name, tensor in encoder.state_dict().items()}, "vinvl.")
    table = {name: one for name, one in table.items() if "pooler" not in name}  # MMF's encoder has none
    table |= {f"vinvl.classifier.{name}": one for name, one in head.state_dict().items()}
    path = with_vocabulary(folder) / "model.pth"
    torch.save({name: one for name, one in (table | changes).items() if one is not None}, path)
    return path, encoder


@pytest.mark.parametrize(("layers", "scale"), [(0, 1), (1, 1), (1, 2), (3, 2)])
def test_heads_of_mmf_give_its_logits(layers: int, scale: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    head = HeadOfMMF(16, 16 * scale, layers, 5).eval()
    for name, parameter in head.named_parameters():  # small values, on which the epsilon of the layer norm tells
        nn.init.normal_(parameter, std=1e-2 if "dense" in name and "classifier" in name else 1.0)
    path, encoder = checkpoint_of_mmf(tmp_path / "mmf", head)
    there = run(path, tmp_path / "out", "config.num_attention_heads=4", "task=vqa")
    torch.manual_seed(1)
    given = {"input_ids": torch.randint(0, 30, (3, 6)), "region_features": torch.randn(3, 4, 12)}
    with torch.no_grad():
        expected = head(encoder(**given).last_hidden_state)
        found = VinVLForAnswering.from_pretrained(there).eval()(**given).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    config = json.loads((there / "config.json").read_text())
    assert (config["classifier"], config["cls_hidden_layers"]) == (("mlp_gelu", layers) if layers else ("linear", 1))
    again = run(there, tmp_path / "again")
    assert_same(VinVLForAnswering.from_pretrained(there).eval(), VinVLForAnswering.from_pretrained(again).eval())
    if layers:
        with pytest.raises(UserError, match=r"has no classifier mlp_gelu, .* pass format=transformers"):
            run(there, tmp_path / "oscar", "format=oscar")
        assert not (tmp_path / "oscar").exists()


def test_the_dropouts_of_a_head_of_mmf() -> None:
    """One before each hidden layer, the first of them on the pooled vector, and none before the last layer."""
    given: Any = {"classifier": "mlp_gelu", "cls_hidden_layers": 2, "classifier_dropout": 0.3, "num_labels": 5}
    model = VinVLForAnswering(VinVLConfig(**(VINVL | given)))
    kinds = [type(module).__name__ for module in model.classifier]
    assert kinds == ["Identity", "Sequential", "Dropout", "Sequential", "Linear"]
    assert (model.dropout.p, model.classifier[2].p) == (0.3, 0.3)


LAYER_OF_MMF = "vinvl.classifier.classifier"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({f"{LAYER_OF_MMF}.1.dense.weight": torch.zeros(20, 16)}, "classifier .* is 20 wide, not a multiple of .* 16"),
        ({f"{LAYER_OF_MMF}.3.dense.weight": torch.zeros(16, 32)}, r"'classifier.3.dense.weight' is \(16, 32\) there"),
        ({f"{LAYER_OF_MMF}.3.dense.weight": None}, "'classifier.2.bias' is not in it"),
        ({f"{LAYER_OF_MMF}.1.LayerNorm.bias": None}, "'classifier.1.LayerNorm.bias' is not in it"),
        ({"vinvl.classifier.pooler.dense.weight": None}, "lacks 'bert.pooler.dense.weight', without which"),
    ],
)
def test_heads_of_mmf_that_do_not_fit(changes: dict[str, Tensor | None], sentence: str, tmp_path: Path) -> None:
    path, encoder = checkpoint_of_mmf(tmp_path / "mmf", HeadOfMMF(16, 32, 2, 5), **changes)
    with pytest.raises(UserError, match=sentence):
        run(path, tmp_path / "out", "config.num_attention_heads=4", "task=vqa")
    assert not (tmp_path / "out").exists()
    there = run(path, tmp_path / "out", "task=encoder", "config.num_attention_heads=4")
    first, second = encoder.state_dict(), VinVLModel.from_pretrained(there).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first if "pooler" not in name)


def test_plain_bert_becomes_an_encoder_whose_image_side_is_said_to_be_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = saved(BertForPreTraining(BertConfig(**SIZES)), tmp_path / "bert")
    there = run(start, tmp_path / "out")
    assert type(VinVLModel.from_pretrained(there)) is VinVLModel
    assert "missing\timg_embedding.weight" in (there / "conversion.txt").read_text()
    assert "**not trained**" in (there / "README.md").read_text()
    assert "randomly initialised (2): img_embedding.bias, img_embedding.weight" in capsys.readouterr().out
    with pytest.raises(UserError, match="has no head for this task"):
        run(start, tmp_path / "vqa", "task=vqa")


def said(**changes: Any) -> Callable[[Path], None]:
    """Writes other fields into the config.json of a folder."""

    def harm(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return harm


def tensors(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    """Changes the weights of a folder."""

    def harm(folder: Path) -> None:
        path = folder / "pytorch_model.bin"
        torch.save(change(torch.load(path, weights_only=True)), path)

    return harm


def words(*words: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (said(hidden_size=32), "contradicts itself: hidden_size is 32 in its configuration and 16 in its tensors"),
        (said(hidden_dropout_prob="much"), "has hidden_dropout_prob 'much', which is no such number"),
        (said(hidden_act="swoosh"), "has hidden_act 'swoosh'; choose one of"),
        (
            tensors(lambda found: found | {"classifier.weight": torch.tensor(1.0)}),
            "has no head for this task|does not fit the model|lacks 'classifier",
        ),
        (
            tensors(lambda found: {name: one for name, one in found.items() if "pooler" not in name}),
            "lacks 'bert.pooler.dense.bias', without which VinVLForAnswering is not whole",
        ),
        (words(*WORDS, "more"), "has 31 words and the model's embeddings 30"),
        (words("a", "b"), r"no vocabulary of BERT's: it has no \[PAD\]"),
        (lambda folder: (folder / "vocab.txt").unlink(), "has no tokenizer"),
    ],
)
def test_folders_that_are_refused(harm: Callable[[Path], None], sentence: str, oscar: Path, tmp_path: Path) -> None:
    harm(folder := Path(shutil.copytree(oscar, tmp_path / "oscar")))
    with pytest.raises(UserError, match=sentence):
        run(folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["oscar"]


def test_nothing_is_overwritten(start: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="exists already, and nothing is overwritten"):
        run(start, target)
    assert not target.exists()


@pytest.mark.parametrize(
    ("output", "failing"), [("transformers", "weights"), ("oscar", "weights"), ("transformers", "card")]
)
def test_a_full_disk_leaves_nothing_behind(
    output: str, failing: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_in_torch(content: Any, path: Path, **_: Any) -> None:
        path.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:595] . unexpected pos 64 vs 0: file write failed")

    if failing == "card":
        monkeypatch.setattr("vinvl.models.published.model_card", full)
    elif output == "oscar":
        monkeypatch.setattr("vinvl.models.published.torch.save", full_in_torch)
    else:
        monkeypatch.setattr(VinVLForAnswering, "save_pretrained", full)
    with pytest.raises(UserError, match="out cannot be written"):
        run(start, tmp_path / "out", f"format={output}")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["task=vqq"], "no task 'vqq' to convert for"),
        (["format=onnx"], "format is 'onnx'"),
        (["task=captioning"], "no head for this task"),
        (["tokenizer=/nowhere/at/all"], "There is no tokenizer folder /nowhere/at/all"),
    ],
)
def test_commands_that_are_refused(overrides: list[str], sentence: str, start: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        run(start, tmp_path / "out", *overrides)
    assert not (tmp_path / "out").exists()


def test_published_weights_get_the_texts_of_their_answers(tmp_path: Path) -> None:
    start = saved(randomised(VinVLForAnswering, num_labels=3), tmp_path / "start")
    answers = tmp_path / "trainval_ans2label.pkl"
    answers.write_bytes(pickle.dumps({"net": 1, "Yes": 0, "": 2}))
    there = run(start, tmp_path / "out", "task=vqa", f"answers={answers}")
    # As Oscar takes them: the first entry is the first output, whatever its number.
    assert VinVLForAnswering.from_pretrained(there).config.id2label == {0: "net", 1: "Yes", 2: ""}
    assert json.loads((there / "answers.json").read_text()) == ["net", "Yes", ""]
    assert json.loads((there / "vinvl.json").read_text()) == {"task": "vqa", "recipe": None}
    again = run(there, tmp_path / "again")
    assert VinVLForAnswering.from_pretrained(again).config.id2label == {0: "net", 1: "Yes", 2: ""}
    assert (again / "answers.json").read_text() == (there / "answers.json").read_text()
    more = tmp_path / "label2ans.json"
    more.write_text('["yes", "no"]')
    with pytest.raises(UserError, match=r"label2ans\.json lists 2 answers, and .*start has a head for 3"):
        run(start, tmp_path / "more", "task=vqa", f"answers={more}")
    captions = saved(randomised(VinVLForCaptioning), tmp_path / "captions")
    with pytest.raises(UserError, match="is a VinVLForCaptioning, which has no answers"):
        run(captions, tmp_path / "more", f"answers={more}")
    assert not (tmp_path / "more").exists()


def test_a_model_on_the_hub_brings_its_own_tokenizer(tmp_path: Path, hub: Hub) -> None:
    bert = hub.add("someone/bert", saved(BertForPreTraining(BertConfig(**SIZES)), tmp_path / "bert"))
    there = run(Path("someone/bert"), tmp_path / "out")
    assert f"converted from `someone/bert@{bert.refs['main']}`" in (there / "README.md").read_text()
    assert load_tokenizer(there).get_vocab() == load_tokenizer(tmp_path / "bert").get_vocab()
