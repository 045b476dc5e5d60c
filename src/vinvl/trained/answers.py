"""The texts of the answers that an answering model chooses between."""

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel

from vinvl.data.answer_files import PICKLES, read_head_answers
from vinvl.data.answers import AnswerVocabulary
from vinvl.errors import UserError
from vinvl.models.answer_rows import NEW, AnswerRows
from vinvl.models.checkpoint_files import CheckpointFiles
from vinvl.models.export import answers_in

ANSWER_FILES = ("answers.json", *(f"*{kind}{suffix}" for kind in ("label2ans", "ans2label") for suffix in PICKLES))
"""What lies beside the weights of an answering model that we or Oscar's authors have written."""


def known_answers(files: CheckpointFiles, size: int) -> list[str] | None:
    """The answers of a checkpoint's head of `size` rows, by row; None where it does not say them.

    They are those of the training run, or in config.json, or in a file beside the weights: `ANSWER_FILES`.

    Raises:
        UserError: such a file is damaged.
    """
    if files.training:
        carried = files.training.get("hyper_parameters", {}).get("answers")
        whole = isinstance(carried, list) and len(carried) == size and all(isinstance(one, str) for one in carried)
        return carried if whole else None
    named = answers_in(files.config.get("id2label"))
    if named is not None and len(named) == size:
        return named
    beside = {read_head_answers(path) for name in ANSWER_FILES for path in sorted(files.weights.parent.glob(name))}
    fitting = [answers for answers in beside if len(answers) == size]
    return list(fitting[0]) if len(fitting) == 1 else None


def match_answers(there: Sequence[str], here: Sequence[str], name: str) -> AnswerRows:
    """Which row of a head with the answers `there` each of `here` takes: as it is written, or else in normal form.

    Raises:
        UserError: the checkpoint `name` names an answer twice.
    """
    try:
        vocabulary = AnswerVocabulary(tuple(there))
    except ValueError as error:
        raise UserError(f"The answers of {name} cannot be told apart: {error}") from None
    found = [vocabulary.find(answer) for answer in here]
    return AnswerRows(tuple(there), tuple(here), tuple(NEW if row is None else row for row in found))


def given_answers(given: str | Path | Sequence[str]) -> list[str]:
    """The answers of a file as `read_head_answers` takes it, or the texts themselves.

    Raises:
        UserError: they are no texts, or one is there twice.
    """
    if isinstance(given, str | Path):
        AnswerVocabulary.load(given)
        return list(read_head_answers(given))
    if not all(isinstance(one, str) for one in given):
        raise UserError("answers holds what is no text: give a file, or the texts in the order of the outputs.")
    return list(given)


def find_answers(
    given: str | Path | Sequence[str] | None, files: CheckpointFiles, model: PreTrainedModel
) -> list[str] | None:
    """The answers of a model with A outputs that has been made of a checkpoint: those given, or else those known.

    Returns:
        None where nobody names them.

    Raises:
        UserError: those that were given are not as many as the model's, or no texts.
    """
    size = model.config.num_labels
    assert size is not None  # transformers fills it in
    if given is None:
        return known_answers(files, size)
    texts = given_answers(given)
    if len(texts) != size:
        place = str(given) if isinstance(given, str | Path) else "answers"
        raise UserError(
            f"{place} lists {len(texts):,} answers, and {files.name} has a head for {size:,}: give those that it was "
            "trained on."
        )
    return texts


def rows_of_given(
    given: str | Path | Sequence[str] | None, files: CheckpointFiles, size: int, new_ones: bool
) -> AnswerRows | None:
    """Where the answers that were given have their rows in a checkpoint's head of `size` rows that are named.

    Returns:
        None where they are the head's in its order: none were given, the head's are not known, or none of them is
        known, which is taken for new names of the same answers, in another language for instance.

    Raises:
        UserError: some but not all of them are known, and `new_ones` forbids that.
    """
    known = None if given is None else known_answers(files, size)
    if given is None or known is None:
        return None
    rows = match_answers(known, given_answers(given), files.name)
    if not rows.kept or rows.here == rows.there or (len(rows.here) != size and not new_ones):
        return None
    if rows.new and not new_ones:
        raise UserError(
            f"{files.name} was not trained with {len(rows.new):,} of the answers that were given, the first "
            f"{rows.new[0]!r}: give its own, in any order."
        )
    return rows
