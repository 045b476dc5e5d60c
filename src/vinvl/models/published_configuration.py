"""A `VinVLConfig` from what a checkpoint says of itself: its config.json and the shapes of its tensors."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from vinvl.errors import UserError
from vinvl.models.checkpoint_files import CheckpointFiles
from vinvl.models.checkpoints import WORD_DECODER, WORD_EMBEDDINGS, encoder_sizes
from vinvl.models.configuration import VinVLConfig, refuse_wrong_fields
from vinvl.models.key_names import same_numbers
from vinvl.models.pretraining import VinVLForPreTraining

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
        UserError: config.json contradicts the tensors, does not say enough, or describes a head that we have not.
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
    fields.setdefault("loss_type", "ce")  # MMF's and, where nothing is said, published Oscar's
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
            "no model here has; its encoder can be had: pass task=encoder."
        )
    answers, width = _rows(found, "classifier.weight"), _rows(found, "classifier.0.weight")
    if answers is not None:
        return {"classifier": "linear", "num_labels": answers}
    if width is None or not hidden_size:
        return {}
    if width % hidden_size:
        raise UserError(
            f"The classifier in {files.name} is {width} wide, which is no multiple of its hidden size {hidden_size}; "
            "no model here has such a head."
        )
    last = max(int(match[1]) for name in found if (match := re.match(r"classifier\.(\d+)\.weight$", name)))
    answers = _rows(found, f"classifier.{last}.weight")
    return {"classifier": "mlp", "cls_hidden_scale": width // hidden_size, "num_labels": answers}


def _rows(found: Mapping[str, Tensor], name: str) -> int | None:
    """The rows of a matrix; None if there is none of that name."""
    return found[name].shape[0] if name in found and found[name].dim() == 2 else None


def _ties_words(published: Mapping[str, Any], found: Mapping[str, Tensor], model_class: type[PreTrainedModel]) -> bool:
    """Whether words are decoded by their embeddings: as the tensors show, and where they show both, as is said."""
    if model_class is VinVLForPreTraining:
        return True
    decoder, embeddings = found.get(WORD_DECODER), found.get(WORD_EMBEDDINGS)
    if decoder is not None and embeddings is not None and not same_numbers(decoder, embeddings):
        return False
    said = published.get("tie_word_embeddings", published.get("tie_weights"))
    return True if said is None else bool(said)


def _answers(id2label: Any, num_labels: Any) -> dict[int, str] | None:
    """Answer texts by number, where there are as many of them as answers."""
    if not isinstance(id2label, dict) or len(id2label) != num_labels:
        return None
    try:
        answers = {int(number): str(answer) for number, answer in id2label.items()}
    except (ValueError, TypeError, OverflowError):
        return None
    return answers if sorted(answers) == list(range(len(answers))) else None
