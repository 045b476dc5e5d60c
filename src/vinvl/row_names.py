"""Starting a task from other weights whose rows are named: no answer, and no word, is taken for another."""

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor
from transformers import PreTrainedModel

from vinvl.models.answering import VinVLForAnswering
from vinvl.models.config import VinVLConfig
from vinvl.models.weight_files import CheckpointFiles, by_modern_names, find_checkpoint, load_published_state_dict
from vinvl.models.weights import AnswerRows, initialise, initialise_from_tensors, output_layer
from vinvl.opening import Words, known_answers, known_words, match_answers, refuse_other_words
from vinvl.run.errors import UserError
from vinvl.vqa.answers import read_head_answers

logger = logging.getLogger(__name__)
ANEW = "none"  # model.init_answers: a new head


def start_model(
    model_class: type[PreTrainedModel],
    config: VinVLConfig,
    init: str | None,
    *,
    answers: Sequence[str] | None,
    init_answers: str | None,
    words: Words | None,
) -> PreTrainedModel:
    """`models.initialise` for a task: an answer head is matched by the texts of its answers, and words are compared.

    Args:
        answers: those of the task's head, by row; None if it chooses no answers.
        init_answers: a file with those of the checkpoint's head, if it does not state them, or "none".
        words: of the run's tokenizer, if it is known.

    Raises:
        UserError: as `initialise`; or the checkpoint has other words, or a head of as many answers without names.
    """
    if init is None:
        return initialise(model_class, config, None)
    files = find_checkpoint(init)
    if words is not None:
        refuse_other_words(known_words(files), words, files.name, "data.tokenizer")
    tensors = load_published_state_dict(files.weights)
    size = _head_size(tensors, files.name)
    rows = _rows(files, size, answers, init_answers) if model_class is VinVLForAnswering else None
    model, report = initialise_from_tensors(model_class, config, files, tensors, answers=rows)
    logger.info("%s", report)
    return model


def _head_size(tensors: Mapping[str, Tensor], name: str) -> int:
    """How many answers the head in a checkpoint has; 0 if there is none."""
    found, _ = by_modern_names(tensors, name)
    return next((len(found[name]) for name in output_layer(found)), 0)


def _rows(
    files: CheckpointFiles, size: int, answers: Sequence[str] | None, init_answers: str | None
) -> AnswerRows | None:
    """Where a task's answers are in the checkpoint's head; None to take the head as it stands, if it fits."""
    if not size:
        return None
    known = known_answers(files, size) if init_answers is None else None
    if answers is None:  # its classes have the same meaning in every checkpoint of the task
        return None if known is None else AnswerRows.anew(("mismatched", "matched"))
    if init_answers not in (None, ANEW):
        known = list(read_head_answers(str(init_answers)))
        if len(known) != size:
            raise UserError(
                f"model.init_answers={init_answers} lists {len(known):,} answers, and {files.name} has a head for "
                f"{size:,}: give those that it was trained with."
            )
    if known is not None:
        return match_answers(known, answers, files.name)
    if init_answers == ANEW or files.training:  # ours names its answers, if it has any
        return AnswerRows.anew(answers)
    if size != len(answers):
        return None  # such a head is new in any case
    raise UserError(
        f"{files.name} has a head of {size:,} answers and does not say which, so its rows might get the names of "
        "others: pass model.init_answers=FILE, with its answers in the order of its rows (JSON, or the "
        f"trainval_ans2label.pkl it was published with), or model.init_answers={ANEW} to begin the head anew."
    )
