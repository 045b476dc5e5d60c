"""The texts of the answers that an answering model chooses between."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from vinvl.data.answers import AnswerVocabulary
from vinvl.errors import UserError
from vinvl.models.export import named_answers


def find_answers(
    given: str | Path | Sequence[str] | None, ours: Mapping[str, Any], model: PreTrainedModel, name: str
) -> list[str] | None:
    """The A answers that were given, or else those of the training run, or else those in the model's configuration.

    Args:
        given: a file as `read_answers` takes it, or the texts.
        ours: the content of a checkpoint of ours, {} for anybody else's.
        model: with A = `config.num_labels` outputs.
        name: of the model, for messages.

    Returns:
        None where nobody names them.

    Raises:
        UserError: those that were given are not as many as the model's, or no texts.
    """
    number = model.config.num_labels
    if given is None:
        carried = ours.get("hyper_parameters", {}).get("answers")
        whole = isinstance(carried, list) and len(carried) == number and all(isinstance(one, str) for one in carried)
        return carried if whole else named_answers(model)
    if isinstance(given, str | Path):
        texts, place = list(AnswerVocabulary.load(given).answers), str(given)
    else:
        texts, place = list(given), "answers"
        if not all(isinstance(one, str) for one in texts):
            raise UserError("answers holds what is no text: give a file, or the texts in the order of the outputs.")
    if len(texts) != number:
        raise UserError(
            f"{place} lists {len(texts):,} answers, and {name} has a head for {number:,}: give those that it was "
            "trained on."
        )
    return texts
