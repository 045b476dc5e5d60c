"""Published checkpoints, in and out: the model that one holds, and a model written for transformers or for Oscar."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled

from vinvl.models import MODEL_OF_TASK, model_of_task
from vinvl.models.answering import VinVLForAnswering, VinVLForPairs
from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.config import VinVLConfig, refuse_wrong_fields
from vinvl.models.encoder import VinVLModel
from vinvl.models.pretraining import VinVLForPreTraining
from vinvl.models.weight_files import CheckpointFiles, Weights, same_numbers
from vinvl.models.weights import (
    WORD_DECODER,
    WORD_EMBEDDINGS,
    AnswerRows,
    LoadingReport,
    answers_in,
    encoder_is_there,
    encoder_sizes,
    initialise_from,
    output_layer,
)
from vinvl.run.errors import UserError, printable

# The first layer of an answer head of each kind.
FIRST_LAYERS = {"classifier.weight": "linear", "classifier.0.weight": "mlp", "classifier.1.dense.weight": "mlp_gelu"}
HIDDEN_GELU_LAYER = re.compile(r"classifier\.\d+\.dense\.weight")


def recognise_model(config: Mapping[str, Any], found: Mapping[str, Tensor]) -> type[PreTrainedModel]:
    """The model class that a checkpoint's config.json names, or else its tensors (`Weights.found`) show.

    Plain BERT, which has no projection of regions, is an encoder whatever heads it brings: they know no regions.
    """
    named = {kind: task for task, kind in MODEL_OF_TASK.items()}
    architectures = config.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        if isinstance(name, str) and name in named:
            return model_of_task(named[name])
    if "img_embedding.weight" not in found:
        return VinVLModel
    if "cls.seq_relationship.weight" in found:
        return VinVLForPreTraining
    if "cls.predictions.bias" in found:
        return VinVLForCaptioning
    if not any(name.startswith("classifier.") for name in found):
        return VinVLModel
    head = next((found[name] for name in FIRST_LAYERS if name in found), None)
    pooler = found.get("pooler.dense.weight")
    if head is None or pooler is None or head.dim() != 2 or pooler.dim() != 2:
        return VinVLForAnswering  # which the conversion will find to be without a head of its kind
    return VinVLForPairs if head.shape[1] == 2 * pooler.shape[0] else VinVLForAnswering


# Taken over as they stand; sizes and heads are read off the tensors.
TAKEN = (
    "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "initializer_range",
    "layer_norm_eps", "pad_token_id", "num_attention_heads", "img_layer_norm_eps", "loss_type", "id2label",
)  # fmt: skip
HEADS_OF_BERT = {768: 12, 1024: 16}  # attention heads of BERT base and large, by hidden size


def configuration_of(weights: Weights, model_class: type[PreTrainedModel], given: Mapping[str, Any]) -> VinVLConfig:
    """The configuration of the model that the checkpoint holds.

    `given`: fields that a person has said; they go before the checkpoint's. None says nothing.

    Raises:
        UserError: config.json contradicts the tensors, does not say enough, or describes a head that we do not have.
    """
    files, found = weights.files, weights.found
    published = files.config
    fields = {name: published[name] for name in TAKEN if published.get(name) is not None}
    refuse_wrong_fields(fields, f"The configuration of {files.name}")
    for name, value in encoder_sizes(weights).items():
        if published.get(name, value) not in (None, value):
            raise UserError(
                f"{files.name} contradicts itself: {name} is {published[name]} in its configuration and {value} in its "
                "tensors; the two files are not of one model."
            )
        fields[name] = value
    fields["use_img_layernorm"] = "LayerNorm.weight" in found
    fields |= _head(files, found, fields.get("hidden_size", 0), model_class)
    tied = published.get("tie_word_embeddings", published.get("tie_weights"))  # counts where the tensors allow both
    fields["tie_word_embeddings"] = model_class is VinVLForPreTraining or (
        (model_class is VinVLModel or not _has_own_decoder(found)) and (tied is None or bool(tied))
    )
    fields |= {name: value for name, value in given.items() if value is not None}
    if "num_attention_heads" not in fields:
        fields["num_attention_heads"] = HEADS_OF_BERT.get(fields.get("hidden_size", 0))
        if fields["num_attention_heads"] is None:
            raise UserError(
                f"{files.name} does not say how many attention heads its encoder has, which its tensors do not show: "
                "pass config.num_attention_heads=NUMBER."
            )
    fields.setdefault("loss_type", "ce")  # MMF's and, if nothing is stated, published Oscar's
    answers = answers_in(fields.pop("id2label", None))
    if answers is not None and len(answers) == fields.get("num_labels"):
        fields["id2label"] = dict(enumerate(answers))
    try:
        return VinVLConfig(**{name: value for name, value in fields.items() if value is not None})
    except UserError as error:
        raise UserError(f"{files.name} describes a model that cannot be: {error}") from None
    except Exception as error:  # transformers checks the types of some fields, with errors of several kinds
        reason = " ".join(str(error).split())
        raise UserError(f"The configuration of {files.name} is no model's ({reason}); get the file again.") from error


def _head(
    files: CheckpointFiles, found: Mapping[str, Tensor], hidden_size: int, model_class: type[PreTrainedModel]
) -> dict[str, Any]:
    """num_labels, and for a classifier its kind and width; what the tensors do not show is left out."""
    if model_class is VinVLModel:
        return {}
    pairs = found.get("cls.seq_relationship.weight")
    if model_class is VinVLForPreTraining:
        return {"num_labels": len(pairs)} if pairs is not None and pairs.dim() == 2 else {}
    output, kinds = output_layer(found), [name for name in FIRST_LAYERS if name in found]
    if not output or not kinds or found[output[0]].dim() != 2:
        return {}
    kind, first, answers = FIRST_LAYERS[kinds[0]], found[kinds[0]], len(found[output[0]])
    if kind == "linear":
        return {"classifier": "linear", "num_labels": answers}
    if first.dim() != 2 or not hidden_size:
        return {}
    if len(first) % hidden_size:
        raise UserError(
            f"The classifier in {files.name} is {len(first)} wide, not a multiple of its hidden size {hidden_size}; "
            "no model here has such a head."
        )
    sizes = {"classifier": kind, "cls_hidden_scale": len(first) // hidden_size, "num_labels": answers}
    if kind == "mlp_gelu":
        sizes["cls_hidden_layers"] = sum(HIDDEN_GELU_LAYER.fullmatch(name) is not None for name in found)
    return sizes


def _has_own_decoder(found: Mapping[str, Tensor]) -> bool:
    """Whether words are decoded by other numbers than those of their embeddings."""
    decoder, embeddings = found.get(WORD_DECODER), found.get(WORD_EMBEDDINGS)
    return decoder is not None and embeddings is not None and not same_numbers(decoder, embeddings)


IMAGE_SIDE = ("bert.img_embedding.", "bert.LayerNorm.", "img_embedding.", "LayerNorm.")
POOLER = ("bert.pooler.", "pooler.")
# What may be random, and is reported: plain BERT knows no regions; captions do not pass the pooler.
MAY_BE_NEW: dict[type[PreTrainedModel], tuple[str, ...]] = {
    VinVLModel: IMAGE_SIDE + POOLER,
    VinVLForPreTraining: IMAGE_SIDE,
    VinVLForCaptioning: POOLER,
}


def convert_model(
    files: CheckpointFiles,
    task: str | None = None,
    given: Mapping[str, Any] | None = None,
    match_answers: Callable[[int], AnswerRows | None] | None = None,
) -> tuple[PreTrainedModel, LoadingReport]:
    """The model that a checkpoint holds, in evaluation mode, and what became of every tensor.

    Args:
        files: the checkpoint (`find_checkpoint`).
        task: whose model it shall be, a key of `MODEL_OF_TASK`; None to go by the checkpoint.
        given: fields of `VinVLConfig` that the checkpoint does not say, or says wrongly.
        match_answers: rows of an answer head there → where the model's answers are among them, if not as they stand.

    Raises:
        UserError: no such task; weights that do not make up a model, or not one of this task, or part of one.
    """
    weights = Weights.of(files)
    encoder_is_there(weights)
    found = weights.found
    model_class = recognise_model(files.config, found) if task is None else model_of_task(task)
    rows = None
    if match_answers is not None and model_class is VinVLForAnswering and (output := output_layer(found)):
        rows = match_answers(len(found[output[0]]))
    if rows is not None:
        given = {**(given or {}), "num_labels": len(rows.here), "id2label": None}
    config = configuration_of(weights, model_class, given or {})
    if model_class is VinVLForPreTraining and _has_own_decoder(found):
        raise UserError(
            f"{files.name} decodes words by weights of their own, and the pre-training model by the embeddings: "
            "pass task=captioning or task=encoder."
        )
    model, report = initialise_from(model_class, config, weights, strict_head=True, answers=rows)
    absent = [name for name in report.missing if not name.startswith(MAY_BE_NEW.get(model_class, ()))]
    if absent:
        raise UserError(
            f"{files.name} lacks {absent[0]!r}, without which {model_class.__name__} is not whole; pass task=NAME of "
            "the task that it was trained for, or task=encoder."
        )
    return model.eval(), report


SENTENCES = {
    "vqa": "visual question answering: a classifier over answers",
    "gqa": "question answering on GQA: a classifier over answers",
    "nlvr2": "NLVR2: true or false of a statement about two pictures",
    "retrieval": "image-text retrieval: a caption matches a picture or not",
    "captioning": "image captioning: masked words are predicted from left to right",
    "pretraining": "Oscar+ pre-training: masked tokens, and matched or mismatched triplets",
    "encoder": "only the encoder; its heads are not trained yet",
}


PIPELINES = {"vqa": "visual-question-answering", "gqa": "visual-question-answering", "captioning": "image-to-text"}
"""The hub's names of tasks, where it has one."""


CARD = """---
library_name: vinvl
tags: [vinvl, oscar, vision-language]
{pipeline}---

# {name}

VinVL (Zhang et al. 2021) for {what}.

- {parameters:,} parameters: {config.num_hidden_layers} layers, hidden size {config.hidden_size}
- region rows of {config.img_feature_dim} numbers, the last 6 of them the box
- converted from `{source}`; conversion.txt says what became of every tensor
{new}
## How to load

```python
from vinvl.models import {name}
model = {name}.from_pretrained("FOLDER").eval()
```

FOLDER is this folder, or the name of this repository. {use}`python -m vinvl.train model.init=FOLDER
data.tokenizer=FOLDER` continues from it.

## Data

{data}

## Metrics

{scores}
"""


def model_card(
    model: PreTrainedModel,
    report: LoadingReport,
    *,
    source: str,
    task: str | None = None,
    data: Mapping[str, Any] | None = None,
    split: str | None = None,
    scores: Mapping[str, float] | None = None,
) -> str:
    """The text of README.md: whence the model comes, the data it was trained on, and its scores on a split."""
    new = ", ".join(f"`{name}`" for name in report.missing)
    settings = [f"- {name}: `{value}`" for name, value in (data or {}).items()]
    table = [f"| {name} | {value:.4g} |" for name, value in (scores or {}).items()]
    if table:
        table = [f"On `{split}`:", "", "| metric | value |", "| --- | --- |", *table]
    used = task in MODEL_OF_TASK and task not in ("pretraining", "encoder")
    return CARD.format(
        name=type(model).__name__,
        pipeline=f"pipeline_tag: {PIPELINES[task]}\n" if task in PIPELINES else "",
        use='`vinvl.load("FOLDER", detector=…)` asks it about pictures. ' if used else "",
        what=SENTENCES.get(task or "", "a task that its checkpoint does not name"),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        config=model.config,
        source=printable(source),
        new=f"- **not trained**, random: {printable(new)}\n" if new else "",
        data="\n".join(map(printable, settings)) or "The checkpoint does not say what it was trained on.",
        scores="\n".join(map(printable, table)) or "None are known: no results.json of this checkpoint lay beside it.",
    )


FORMATS = ("transformers", "oscar")
# The published code's configuration class and ours share these.
SHARED_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size",
    "initializer_range", "layer_norm_eps", "img_feature_dim", "img_layer_norm_eps",
)  # fmt: skip


def write_transformers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """model.safetensors, config.json and the tokenizer, as `from_pretrained` loads them; `folder` exists."""
    with_bar = is_progress_bar_enabled()
    disable_progress_bar()  # of shards, of which there is one
    try:
        model.save_pretrained(folder)
    finally:
        if with_bar:
            enable_progress_bar()
    tokenizer.save_pretrained(folder)


def write_oscar(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, task: str | None = None
) -> None:
    """pytorch_model.bin, config.json and vocab.txt with the published names of keys and fields; `folder` exists.

    The weights are in torch's older file format: the published code runs on releases that know no other. Raises
    UserError for a vocabulary that vocab.txt cannot hold.
    """
    prefix = "bert." if isinstance(model, VinVLModel) else ""
    tensors = {prefix + name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    config = json.dumps(_published_fields(model, task), indent=2, sort_keys=True)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    (folder / "vocab.txt").write_text(_vocabulary(tokenizer), encoding="utf-8")


def _published_fields(model: PreTrainedModel, task: str | None) -> dict[str, Any]:
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
    if config.classifier not in ("linear", "mlp"):
        raise UserError(
            f"Oscar's code has no classifier {config.classifier}, which this model has: pass format=transformers."
        )
    if isinstance(model, VinVLForPairs):
        fields["num_choice"] = 2
    cross_entropy = "sfmx" if task == "retrieval" else "xe"
    return fields | {
        "num_labels": config.num_labels,
        "classifier": config.classifier,
        "cls_hidden_scale": config.cls_hidden_scale,
        "loss_type": cross_entropy if config.loss_type == "ce" else config.loss_type,
    }


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """The words by number, as vocab.txt has them; UserError where that file cannot hold them."""
    by_number = sorted((number, word) for word, number in tokenizer.get_vocab().items())
    for place, (number, word) in enumerate(by_number):
        if number != place or "\n" in word or not word:
            raise UserError(
                f"The tokenizer's vocabulary cannot be written as vocab.txt: number {place} has no word that is a "
                "line; pass format=transformers, or a WordPiece tokenizer."
            )
    return "".join(f"{word}\n" for _, word in by_number)


def check_tokenizer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raises UserError for a tokenizer that counts further than the model's word embeddings."""
    words = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
    if words > model.config.vocab_size:
        raise UserError(
            f"The tokenizer '{name}' has {words} words and the model's embeddings {model.config.vocab_size}: "
            "it is another model's; pass tokenizer=FOLDER of the one that the model was trained with."
        )
