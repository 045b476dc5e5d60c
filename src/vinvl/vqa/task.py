"""What the tasks share that choose one answer of a fixed vocabulary: VQA and GQA."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Unpack

import torch
from torch import Tensor

from vinvl.data.batch import Batch
from vinvl.data.table import RecordTable
from vinvl.data.words import Commonest, commonest_for
from vinvl.exact import ExactMean
from vinvl.models.answering import VinVLForAnswering, answer_loss_per_example
from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write
from vinvl.task import TaskArguments, VinVLTask
from vinvl.vqa.accuracy import SoftTargetScore, VQAAccuracy
from vinvl.vqa.answers import AnswerVocabulary
from vinvl.vqa.data import VQADataModule

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
        count: all, if there are fewer answers.
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
    """What is answered to a question, `record`, whose picture the model cannot see; None if nothing is known."""
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


# VQA: choose one answer of a fixed vocabulary, trained on soft targets, scored the official way.


class VQATask(VinVLTask):
    """VinVLForAnswering with the official accuracy."""

    model_class = VinVLForAnswering
    datamodule_class = VQADataModule
    headline = "accuracy/overall"

    def __init__(self, *, answers: list[str], **shared: Unpack[TaskArguments]) -> None:
        """`answers`: the answer vocabulary, A texts. `shared`: see `VinVLTask`."""
        shared["model_config"] = {**shared["model_config"], "num_labels": len(answers)}
        super().__init__({"answers": answers}, **shared)
        self.answers = answers
        self.train_score = SoftTargetScore()
        self.accuracy = VQAAccuracy()
        self.most_frequent_accuracy = VQAAccuracy()
        self.soft_score = SoftTargetScore()
        self.evaluation_loss = ExactMean()

    @classmethod
    def arguments_from(cls, datamodule: VQADataModule) -> dict[str, Any]:
        return {"answers": list(datamodule.vocabulary.answers)}

    def check_datamodule(self, datamodule: VQADataModule) -> None:
        super().check_datamodule(datamodule)
        check_answers(self.answers, datamodule)
        self.commonest = self.commonest or datamodule.known_commonest()

    def training_loss(self, batch: Batch) -> Tensor:
        assert batch.labels is not None
        logits = self(batch)
        self.train_score(logits.detach(), batch.labels)
        self.log("train/soft_score", self.train_score, on_step=False, on_epoch=True, batch_size=len(batch))
        return answer_loss_per_example(logits, batch.labels, self.config.loss_type).mean()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """The five best answers to each question."""
        return best_answers(self(batch), batch, self.answers, self.config.loss_type)

    def filled_in(self, records: RecordTable, index: int) -> Prediction | None:
        """The commonest training answer to questions that begin like this one."""
        return filled_in(records.row(index), self.commonest)

    def write_predictions(self, predictions: Sequence[Prediction], folder: Path) -> dict[str, Path]:
        """The official VQA result format and the five best answers."""
        return write_answers(predictions, folder, id_key="question_id", answer_key="answer")

    def evaluate_batch(self, batch: Batch) -> None:
        assert batch.labels is not None
        logits = self(batch)
        self.evaluation_loss.update(answer_loss_per_example(logits, batch.labels, self.config.loss_type))
        self.soft_score.update(logits, batch.labels)
        people = [record["answers"] for record in batch.records]
        answer_types = [record["answer_type"] for record in batch.records]
        typed = all("question_type" in record for record in batch.records)
        question_types = [record["question_type"] for record in batch.records] if typed else None
        predicted = [self.answers[index] for index in logits.argmax(dim=-1).tolist()]
        self.accuracy.update(predicted, people, answer_types, question_types)
        if self.commonest:
            self.most_frequent_accuracy.update([self.commonest[""]] * len(people), people, answer_types)

    def compute_scores(self) -> dict[str, float]:
        scores = {f"accuracy/{name}": value.item() for name, value in self.accuracy.compute().items()}
        if self.commonest:
            constant = self.most_frequent_accuracy.compute()
            scores |= {f"most_frequent_answer/{name}": value.item() for name, value in constant.items()}
        scores["soft_score"] = self.soft_score.compute().item()
        scores["loss"] = self.evaluation_loss.compute().item()
        return scores

    def result_rows(self) -> list[tuple[str, str]]:
        scores = self.scores
        rows = [("VQA accuracy", f"{scores['accuracy/overall']:.2f}")]
        for name, value in scores.items():
            kind = name.removeprefix("accuracy/")
            if name.startswith("accuracy/") and kind != "overall" and not kind.startswith("question_type/"):
                rows.append((f"  {kind}", f"{value:.2f}"))
        for name, value in scores.items():
            if name.startswith("accuracy/question_type/"):
                rows.append((f"    {name.removeprefix('accuracy/question_type/')}", f"{value:.2f}"))
        if self.commonest:
            what = f"most frequent training answer ('{self.commonest['']}')"
            rows.append((what, f"{scores['most_frequent_answer/overall']:.2f}"))
        rows.append(("soft target of the arg-max (in-training score)", f"{scores['soft_score']:.2f}"))
        return rows
