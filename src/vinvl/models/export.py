"""Write a model into a folder: as transformers reads it, or as the published Oscar code does."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from vinvl.models.answering import VinVLForPairs
from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.config import VinVLConfig
from vinvl.models.encoder import VinVLModel
from vinvl.models.pretraining import VinVLForPreTraining
from vinvl.models.weights import LoadingReport
from vinvl.run.errors import UserError, printable

# README.md of an exported model: what it is, what it was trained on, what it reaches, how to load it.


SENTENCES = {
    "vqa": "visual question answering: a classifier over answers",
    "gqa": "question answering on GQA: a classifier over answers",
    "nlvr2": "NLVR2: true or false of a statement about two pictures",
    "retrieval": "image-text retrieval: a caption matches a picture or not",
    "captioning": "image captioning: masked words are predicted from left to right",
    "pretraining": "Oscar+ pre-training: masked tokens, and matched or mismatched triplets",
    "encoder": "only the encoder; its heads are not trained yet",
}


@dataclass(frozen=True)
class Provenance:
    """Where an exported model comes from, as far as its checkpoint says.

    Attributes:
        source: the checkpoint.
        task: a key of `MODEL_OF_TASK`, None if unknown.
        data: settings of the data that it was trained on, by name.
        split: what it was scored on.
        scores: its figures there, by name.
    """

    source: str
    task: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    split: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


def model_card(model: PreTrainedModel, provenance: Provenance, report: LoadingReport) -> str:
    """The text of README.md."""
    what = SENTENCES.get(provenance.task or "", "a task that its checkpoint does not name")
    config = model.config
    assert isinstance(config, VinVLConfig)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    lines = [
        "---",
        "tags: [vinvl, oscar, vision-language]",
        "---",
        "",
        f"# {type(model).__name__}",
        "",
        f"VinVL (Zhang et al. 2021) for {what}.",
        "",
        f"- {parameters:,} parameters: {config.num_hidden_layers} layers, hidden size {config.hidden_size}",
        f"- region rows of {config.img_feature_dim} numbers, the last 6 of them the box",
        f"- converted from `{provenance.source}`; conversion.txt says what became of every tensor",
    ]
    if report.missing:
        lines.append(f"- **not trained**, random: {', '.join(f'`{name}`' for name in report.missing)}")
    lines += ["", "## How to load", "", "```python", f"from vinvl.models import {type(model).__name__}", ""]
    lines += [f'model = {type(model).__name__}.from_pretrained("FOLDER").eval()', "```", ""]
    lines.append("`python -m vinvl.train model.init=FOLDER data.tokenizer=FOLDER` continues from it.")
    lines += ["", "## Data", "", *_rows(provenance.data, "The checkpoint does not say what it was trained on.")]
    lines += ["", "## Metrics", ""]
    if provenance.scores:
        lines += [f"On `{provenance.split}`:", "", "| metric | value |", "| --- | --- |"]
        lines += [f"| {name} | {value:.4g} |" for name, value in provenance.scores.items()]
    else:
        lines.append("None are known: no results.json of this checkpoint lay beside it.")
    return "\n".join(map(printable, lines)) + "\n"


def _rows(data: Mapping[str, Any], otherwise: str) -> list[str]:
    return [f"- {name}: `{value}`" for name, value in data.items()] or [otherwise]


FORMATS = ("transformers", "oscar")
# The published code's configuration class and ours share these.
SHARED_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
    "initializer_range", "layer_norm_eps", "img_feature_dim", "img_layer_norm_eps",
)  # fmt: skip


def write_transformers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """model.safetensors, config.json and the tokenizer, as `from_pretrained` loads them; `folder` exists."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_oscar(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, task: str | None = None
) -> None:
    """pytorch_model.bin, config.json and vocab.txt with the published names of keys and fields; `folder` exists.

    The weights are in torch's older file format: the published code runs on releases that know no other.

    Raises:
        UserError: a vocabulary that vocab.txt cannot hold.
    """
    prefix = "bert." if isinstance(model, VinVLModel) else ""
    tensors = {prefix + name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    config = json.dumps(published_fields(model, task), indent=2, sort_keys=True)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words_of(tokenizer)), encoding="utf-8")


def published_fields(model: PreTrainedModel, task: str | None = None) -> dict[str, Any]:
    """The content of a config.json that the published Oscar code builds this model from."""
    config = model.config
    assert isinstance(config, VinVLConfig)
    fields: dict[str, Any] = {name: getattr(config, name) for name in SHARED_FIELDS}
    fields |= {"use_img_layernorm": int(config.use_img_layernorm), "img_feature_type": "faster_r-cnn"}
    fields |= {"finetuning_task": task, "output_attentions": False, "output_hidden_states": False, "torchscript": False}
    if isinstance(model, VinVLForPreTraining):
        return fields | {"num_contrast_classes": config.num_labels, "num_labels": 2}
    if isinstance(model, VinVLForCaptioning):
        # The published captioning command writes a loss_type, which no captioning model reads.
        return fields | {"tie_weights": bool(config.tie_word_embeddings), "loss_type": "sfmx", "num_labels": 2}
    if isinstance(model, VinVLModel):
        return fields
    if isinstance(model, VinVLForPairs):
        fields["num_choice"] = 2
    cross_entropy = "sfmx" if task == "retrieval" else "xe"
    return fields | {
        "num_labels": config.num_labels,
        "classifier": config.classifier,
        "cls_hidden_scale": config.cls_hidden_scale,
        "loss_type": cross_entropy if config.loss_type == "ce" else config.loss_type,
    }


def words_of(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The words of a vocabulary by number, as the lines of vocab.txt.

    Raises:
        UserError: a number without a word, or a word that is not a line.
    """
    by_number = sorted((number, word) for word, number in tokenizer.get_vocab().items())
    for place, (number, word) in enumerate(by_number):
        if number != place or "\n" in word or not word:
            raise UserError(
                f"The tokenizer's vocabulary cannot be written as vocab.txt: number {place} has no word that is a "
                "line; pass format=transformers, or a WordPiece tokenizer."
            )
    return [word for _, word in by_number]


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuses a tokenizer that counts further than the model's word embeddings.

    Raises:
        UserError: names both numbers.
    """
    words = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
    if words > model.config.vocab_size:
        raise UserError(
            f"The tokenizer '{name}' has {words} words and the model's embeddings {model.config.vocab_size}: "
            "it is another model's; pass tokenizer=FOLDER of the one that the model was trained with."
        )


def name_answers(model: PreTrainedModel, answers: Sequence[str]) -> None:
    """Puts the answers' texts into the model's configuration, as `id2label` and `label2id`."""
    model.config.id2label = dict(enumerate(answers))
    model.config.label2id = {answer: number for number, answer in enumerate(answers)}


def named_answers(model: PreTrainedModel) -> list[str] | None:
    """The answers' texts in the model's configuration; None if it has transformers' own LABEL_0, LABEL_1, …"""
    return answers_in(model.config.id2label)


def answers_in(id2label: object) -> list[str] | None:
    """The answers' texts of a configuration's `id2label`; None if it names none."""
    if not isinstance(id2label, Mapping):
        return None
    by_number = {str(number): answer for number, answer in id2label.items()}
    answers = [by_number.get(str(number)) for number in range(len(by_number))]
    named = all(isinstance(answer, str) for answer in answers)
    return answers if named and answers != [f"LABEL_{n}" for n in range(len(answers))] else None  # type: ignore[return-value]
