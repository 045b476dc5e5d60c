"""A `VinVLConfig` from what a checkpoint says of itself: its config.json and the shapes of its tensors."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from vinvl.models.answering import VinVLForAnswering, VinVLForPairs
from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.config import VinVLConfig, refuse_wrong_fields
from vinvl.models.encoder import VinVLModel
from vinvl.models.pretraining import VinVLForPreTraining
from vinvl.models.weight_files import CheckpointFiles, by_modern_names, load_published_state_dict, same_numbers
from vinvl.models.weights import (
    WORD_DECODER,
    WORD_EMBEDDINGS,
    AnswerRows,
    LoadingReport,
    encoder_is_there,
    encoder_sizes,
    initialise_from_tensors,
    output_layer,
)
from vinvl.run.errors import UserError

# Which model each task has, and what a foreign checkpoint's tensors say about the task they were trained for.


ENCODER = "encoder"  # only the encoder, of no task
MODEL_OF_TASK: dict[str, type[PreTrainedModel]] = {
    "vqa": VinVLForAnswering,
    "gqa": VinVLForAnswering,
    "retrieval": VinVLForAnswering,
    "nlvr2": VinVLForPairs,
    "captioning": VinVLForCaptioning,
    "pretraining": VinVLForPreTraining,
    ENCODER: VinVLModel,
}


def model_of_task(task: str) -> type[PreTrainedModel]:
    """The model class of a task.

    Raises:
        UserError: no such task.
    """
    if task not in MODEL_OF_TASK:
        raise UserError(f"There is no task {task!r} to convert for; choose one of {', '.join(MODEL_OF_TASK)}.")
    return MODEL_OF_TASK[task]


def recognise_model(config: Mapping[str, Any], found: Mapping[str, Tensor]) -> type[PreTrainedModel]:
    """The model class that a checkpoint's config.json names, or else its tensors show.

    Plain BERT, which has no projection of regions, is an encoder whatever heads it brings: they know no regions.

    Args:
        config: the checkpoint's config.json.
        found: its tensors, as `by_modern_names` calls them.
    """
    named = {kind.__name__: kind for kind in MODEL_OF_TASK.values()}
    architectures = config.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        if name in named:
            return named[name]
    if "img_embedding.weight" not in found:
        return VinVLModel
    if "cls.seq_relationship.weight" in found:
        return VinVLForPreTraining
    if "cls.predictions.bias" in found:
        return VinVLForCaptioning
    if not any(name.startswith("classifier.") for name in found):
        return VinVLModel
    head, pooler = found.get("classifier.weight", found.get("classifier.0.weight")), found.get("pooler.dense.weight")
    if head is None or pooler is None or head.dim() != 2 or pooler.dim() != 2:
        return VinVLForAnswering  # which the conversion will find to be without a head of its kind
    return VinVLForPairs if head.shape[1] == 2 * pooler.shape[0] else VinVLForAnswering


# Taken over as they stand; sizes and heads are read off the tensors.
TAKEN = (
    "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "initializer_range",
    "layer_norm_eps", "pad_token_id", "num_attention_heads", "img_layer_norm_eps", "loss_type", "id2label",
)  # fmt: skip
HEADS_OF_BERT = {768: 12, 1024: 16}  # attention heads of BERT base and large, by hidden size


def configuration_of(
    files: CheckpointFiles,
    found: Mapping[str, Tensor],
    model_class: type[PreTrainedModel],
    given: Mapping[str, Any],
) -> VinVLConfig:
    """The configuration of the model that the checkpoint holds.

    Args:
        files: the checkpoint.
        found: its tensors, as `by_modern_names` calls them.
        model_class: what it shall become.
        given: fields that a person has said; they go before the checkpoint's. None says nothing.

    Raises:
        UserError: config.json contradicts the tensors, does not say enough, or describes a head that we do not have.
    """
    published = files.config
    fields = {name: published[name] for name in TAKEN if published.get(name) is not None}
    refuse_wrong_fields(fields, f"The configuration of {files.name}")
    sizes = encoder_sizes(published, found)
    _refuse_contradictions(files, sizes)
    fields |= sizes
    fields["use_img_layernorm"] = "LayerNorm.weight" in found
    fields |= _head(files, found, fields.get("hidden_size", 0), model_class)
    fields["tie_word_embeddings"] = _ties_words(published, found, model_class)
    fields |= {name: value for name, value in given.items() if value is not None}
    if "num_attention_heads" not in fields:
        guess = HEADS_OF_BERT.get(fields.get("hidden_size", 0))
        if guess is None:
            raise UserError(
                f"{files.name} does not say how many attention heads its encoder has, which its tensors do not show: "
                "pass config.num_attention_heads=NUMBER."
            )
        fields["num_attention_heads"] = guess
    fields.setdefault("loss_type", "ce")  # MMF's and, if nothing is stated, published Oscar's
    fields["id2label"] = _answers(fields.get("id2label"), fields.get("num_labels"))
    known = {name: value for name, value in fields.items() if value is not None}
    try:
        return VinVLConfig(**known)
    except UserError as error:
        raise UserError(f"{files.name} describes a model that cannot be: {error}") from None
    except Exception as error:  # transformers checks the types of some fields, with errors of several kinds
        reason = " ".join(str(error).split())
        raise UserError(f"The configuration of {files.name} is no model's ({reason}); get the file again.") from error


def _refuse_contradictions(files: CheckpointFiles, sizes: Mapping[str, Any]) -> None:
    for field, value in sizes.items():
        said = files.config.get(field)
        if said is not None and said != value:
            raise UserError(
                f"{files.name} contradicts itself: {field} is {said} in its configuration and {value} in its tensors; "
                "the two files are not of one model."
            )


def _head(
    files: CheckpointFiles, found: Mapping[str, Tensor], hidden_size: int, model_class: type[PreTrainedModel]
) -> dict[str, Any]:
    """num_labels, and for a classifier its kind and width; what the tensors do not show is left out."""
    if model_class is VinVLForPreTraining:
        pairs = _rows(found, "cls.seq_relationship.weight")
        return {} if pairs is None else {"num_labels": pairs}
    foreign = sorted(name for name in found if name.startswith("classifier.classifier."))
    if foreign:
        raise UserError(
            f"{files.name} has a classifier of MMF with hidden layers ({foreign[0]!r}: dense, GELU, layer norm), which "
            "no model here has; take its encoder: pass task=encoder."
        )
    answers, width = _rows(found, "classifier.weight"), _rows(found, "classifier.0.weight")
    if answers is not None:
        return {"classifier": "linear", "num_labels": answers}
    if width is None or not hidden_size:
        return {}
    if width % hidden_size:
        raise UserError(
            f"The classifier in {files.name} is {width} wide, not a multiple of its hidden size {hidden_size}; "
            "no model here has such a head."
        )
    last = max(int(match[1]) for name in found if (match := re.match(r"classifier\.(\d+)\.weight$", name)))
    answers = _rows(found, f"classifier.{last}.weight")
    return {"classifier": "mlp", "cls_hidden_scale": width // hidden_size, "num_labels": answers}


def _rows(found: Mapping[str, Tensor], name: str) -> int | None:
    """The rows of a matrix; None if there is none of that name."""
    return found[name].shape[0] if name in found and found[name].dim() == 2 else None


def _ties_words(published: Mapping[str, Any], found: Mapping[str, Tensor], model_class: type[PreTrainedModel]) -> bool:
    """Whether words are decoded by their embeddings: as the tensors show and, if they allow both, as is stated."""
    if model_class is VinVLForPreTraining:
        return True
    decoder, embeddings = found.get(WORD_DECODER), found.get(WORD_EMBEDDINGS)
    if decoder is not None and embeddings is not None and not same_numbers(decoder, embeddings):
        return False
    said = published.get("tie_word_embeddings", published.get("tie_weights"))
    return True if said is None else bool(said)


def _answers(id2label: Any, num_labels: Any) -> dict[int, str] | None:
    """Answer texts by number, if there are as many of them as answers."""
    if not isinstance(id2label, dict) or len(id2label) != num_labels:
        return None
    try:
        answers = {int(number): str(answer) for number, answer in id2label.items()}
    except (ValueError, TypeError, OverflowError):
        return None
    return answers if sorted(answers) == list(range(len(answers))) else None


# A whole model from a checkpoint that says itself what it is, nothing of it random that was trained there.


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
        UserError: no such task; weights that do not make up a model, or not one of this task.
    """
    tensors = load_published_state_dict(files.weights)
    found, _ = by_modern_names(tensors, files.name)
    encoder_is_there(files, found)
    model_class = recognise_model(files.config, found) if task is None else model_of_task(task)
    if model_class is VinVLModel:
        found = {name: tensor for name, tensor in found.items() if not name.startswith(("classifier.", "cls."))}
    rows = None
    if match_answers is not None and model_class is VinVLForAnswering and (output := output_layer(found)):
        rows = match_answers(len(found[output[0]]))
    if rows is not None:
        given = {**(given or {}), "num_labels": len(rows.here), "id2label": None}
    config = configuration_of(files, found, model_class, given or {})
    _refuse_own_decoder(files, found, model_class)
    model, report = initialise_from_tensors(model_class, config, files, tensors, strict_head=True, answers=rows)
    allowed = MAY_BE_NEW.get(model_class, ())
    absent = [name for name in report.missing if not name.startswith(allowed)]
    if absent:
        raise UserError(
            f"{files.name} lacks {absent[0]!r}, without which {model_class.__name__} is not whole; pass task=NAME of "
            "the task that it was trained for, or task=encoder."
        )
    return model.eval(), report


def _refuse_own_decoder(
    files: CheckpointFiles, found: Mapping[str, Tensor], model_class: type[PreTrainedModel]
) -> None:
    decoder = found.get(WORD_DECODER)
    if model_class is not VinVLForPreTraining or decoder is None or WORD_EMBEDDINGS not in found:
        return
    if not same_numbers(decoder, found[WORD_EMBEDDINGS]):
        raise UserError(
            f"{files.name} decodes words by weights of their own, and the pre-training model by the embeddings: "
            "pass task=captioning or task=encoder."
        )
