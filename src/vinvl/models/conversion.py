"""A whole model from a checkpoint that says itself what it is, nothing of it random that was trained there."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from vinvl.errors import UserError
from vinvl.models.answer_rows import AnswerRows, output_layer
from vinvl.models.captioning import VinVLForCaptioning
from vinvl.models.checkpoint_files import CheckpointFiles, load_published_state_dict
from vinvl.models.checkpoints import (
    WORD_DECODER,
    WORD_EMBEDDINGS,
    LoadingReport,
    encoder_is_there,
    initialise_from_tensors,
)
from vinvl.models.encoder import VinVLModel
from vinvl.models.heads import VinVLForAnswering
from vinvl.models.key_names import by_modern_names, same_numbers
from vinvl.models.model_kinds import model_of_task, recognise_model
from vinvl.models.pretraining import VinVLForPreTraining
from vinvl.models.published_configuration import configuration_of

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
