"""What the tasks share that choose one answer of a fixed vocabulary: VQA and GQA."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from vinvl.data.answers import AnswerVocabulary
from vinvl.data.batch import Batch
from vinvl.data.commonest import Commonest, commonest_for
from vinvl.errors import UserError
from vinvl.files import atomic_write

TOP_ANSWERS = 5


class HasVocabulary(Protocol):
    """Data whose answers are a file."""

    answers_path: Path

    @property
    def vocabulary(self) -> AnswerVocabulary: ...


class Prediction(NamedTuple):
    """The best answers to one question, best first."""

    position: int  # of the question in its split
    question_id: int | str
    answers: tuple[str, ...]
    probabilities: tuple[float, ...]  # per answer, independent of each other for the bce loss
    filled_in: bool = False  # without the model


def best_answers(logits: Tensor, batch: Batch, answers: Sequence[str], loss_type: str) -> list[Prediction]:
    """The five best answers to each question of a batch, whose records name it; the rest as in `ranked_answers`."""
    ranked = ranked_answers(logits, answers, loss_type, TOP_ANSWERS)
    return [
        Prediction(record["index"], record["question_id"], texts, probabilities)
        for record, (texts, probabilities) in zip(batch.records, ranked, strict=True)
    ]


def ranked_answers(
    logits: Tensor, answers: Sequence[str], loss_type: str, count: int
) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """The `count` best answers to each of B questions, with sigmoid (bce) or softmax probabilities, best first.

    Args:
        logits: (B, A).
        answers: the A answers.
        loss_type: what the logits were trained with.
        count: all, where there are fewer answers.
    """
    logits = logits.float()
    probabilities = torch.sigmoid(logits) if loss_type == "bce" else torch.softmax(logits, dim=-1)
    # Ranked by logit: a sigmoid in half precision saturates at 1 long before the logits tie.
    best = logits.topk(min(count, len(answers)), dim=-1).indices
    chosen = probabilities.gather(-1, best)
    return [
        (tuple(answers[i] for i in row), tuple(scores))
        for row, scores in zip(best.tolist(), chosen.tolist(), strict=True)
    ]


def filled_in(record: Mapping[str, Any], commonest: Commonest) -> Prediction | None:
    """What is answered to a question, `record`, whose picture the model cannot see; None where nothing is known."""
    answer = commonest_for(record["question"], commonest)
    return None if answer is None else Prediction(0, record["question_id"], (answer,), (0.0,), filled_in=True)


def write_answers(predictions: Sequence[Prediction], folder: Path, *, id_key: str, answer_key: str) -> dict[str, Path]:
    """results.json, the official result file with the given keys, and predictions.jsonl with the five best answers."""
    official, top = folder / "results.json", folder / "predictions.jsonl"
    with atomic_write(official) as file:
        json.dump([{id_key: one.question_id, answer_key: one.answers[0]} for one in predictions], file)
    with atomic_write(top) as file:
        for one in predictions:
            best = [{"answer": a, "score": round(p, 6)} for a, p in zip(one.answers, one.probabilities, strict=True)]
            line = {"question_id": one.question_id, "top": best} | ({"filled_in": True} if one.filled_in else {})
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return {"official result file": official, "five best answers": top}


def check_answers(own: Sequence[str], data: HasVocabulary) -> None:
    """Refuses data whose answer vocabulary is not the model's.

    Raises:
        UserError: the first answer that differs.
    """
    vocabulary: list[Any] = list(data.vocabulary.answers)
    if len(vocabulary) != len(own):
        raise UserError(
            f"{data.answers_path} lists {len(vocabulary)} answers, and the model has a head for "
            f"{len(own)}: pass data.answers=FILE with the vocabulary the model was trained on."
        )
    if vocabulary != list(own):
        first = next(index for index, answer in enumerate(vocabulary) if answer != own[index])
        raise UserError(
            f"{data.answers_path} has answer {first} '{vocabulary[first]}' where the model was trained with "
            f"'{own[first]}': pass data.answers=FILE with the vocabulary the model was trained on."
        )
