"""VQA: choose one answer of a fixed vocabulary, trained on soft targets, scored the official way."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from vinvl.data.batch import Batch
from vinvl.data.table import RecordTable
from vinvl.data.words import Commonest, commonest_for
from vinvl.exact import OVERALL, AnswersSeen, CategoryAccuracy, ExactMean
from vinvl.examples import Outcome, answered_rows
from vinvl.models.answering import VinVLForAnswering, best_choices
from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write
from vinvl.task import VinVLTask
from vinvl.vqa.accuracy import QUESTION_TYPE, SoftTargetScore, official_accuracy
from vinvl.vqa.data import VQADataModule

TOP_ANSWERS = 5


@dataclass(kw_only=True, eq=False, repr=False)
class VQATask(VinVLTask):
    """VinVLForAnswering with the official accuracy.

    Args:
        answers: the answer vocabulary, A texts; with `datamodule` that of the data.
        the others: see `VinVLTask`.
    """

    model_class = VinVLForAnswering
    datamodule_class = VQADataModule
    headline = "accuracy/overall"

    answers: Sequence[str] = ()

    def add_metrics(self) -> None:
        self.train_score = SoftTargetScore()
        self.accuracy = CategoryAccuracy()
        self.most_frequent_accuracy = CategoryAccuracy()
        self.soft_score = SoftTargetScore()
        self.answers_seen = AnswersSeen(min(TOP_ANSWERS, len(self.answers)))
        self.evaluation_loss = ExactMean()

    def decided(self) -> dict[str, Any]:
        return {"num_labels": len(self.answers)}

    @classmethod
    def arguments_from(cls, datamodule: VQADataModule) -> dict[str, Any]:
        return {"answers": list(datamodule.vocabulary.answers)}

    def check_datamodule(self, datamodule: VQADataModule) -> None:
        super().check_datamodule(datamodule)
        check_answers(self.answers, datamodule.vocabulary.answers, datamodule.answers_path)

    def on_test_start(self) -> None:
        """Reads the training split for its commonest answer, if the checkpoint does not say it and it can be scored."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if not self.commonest and "answers" in data.datasets["test"].records:
            self.commonest = data.known_commonest()

    def training_loss(self, batch: Batch) -> Tensor:
        assert batch.labels is not None
        logits = self(batch)
        self.train_score(logits.detach(), batch.labels)
        self.log("train/soft_score", self.train_score, on_step=False, on_epoch=True, batch_size=len(batch))
        return self.losses(logits, batch).mean()

    def predict_step(self, batch: Batch, batch_idx: int) -> list["Prediction"]:
        """The five best answers to each question."""
        return best_answers(self(batch), batch, self.answers, self.config.loss_type)

    def filled_in(self, records: RecordTable, index: int) -> "Prediction | None":
        """The commonest training answer to questions that begin like this one."""
        return filled_in(records.row(index), self.commonest)

    def write_predictions(self, predictions: Sequence["Prediction"], folder: Path) -> dict[str, Path]:
        """The official VQA result format and the five best answers."""
        return write_answers(predictions, folder, id_key="question_id", answer_key="answer")

    def evaluate_batch(self, batch: Batch) -> None:
        assert batch.labels is not None
        logits = self(batch)
        self.evaluation_loss.update(self.losses(logits, batch))
        self.soft_score.update(logits, batch.labels)
        ours, constant, scores = [], [], list[float]()
        best = best_choices(logits, self.config.loss_type, TOP_ANSWERS)
        chosen = best[0][:, 0].tolist()  # B of them
        for number, one in zip(chosen, batch.records, strict=True):
            if "answers" not in one:  # of the published folder
                continue
            asked = one["answers"], one["answer_type"]
            earned = official_accuracy(self.answers[number], *asked, one.get("question_type"))
            ours += earned
            scores.append(100 * earned[0][2] / earned[0][1])
            constant += official_accuracy(self.commonest[""], *asked) if self.commonest else []
        if not scores:
            scores = (100 * batch.labels.gather(1, best[0][:, :1]).double()[:, 0]).tolist()
        self.answers_seen.update(batch.records, chosen, scores, best)
        self.accuracy.update(ours)
        self.most_frequent_accuracy.update(constant)

    def compute_scores(self) -> dict[str, float]:
        self._answered = self.answers_seen.compute()
        scores = {f"accuracy/{name}": value.item() for name, value in self.accuracy.compute().items()}
        if math.isnan(scores[f"accuracy/{OVERALL}"]):  # nobody's answers are known: the published in-training score
            loss = self.evaluation_loss.compute().item()
            return {f"accuracy/{OVERALL}": self.soft_score.compute().item(), "loss": loss}
        if self.commonest:
            constant = self.most_frequent_accuracy.compute()
            scores |= {f"most_frequent_answer/{name}": value.item() for name, value in constant.items()}
        return scores | {"soft_score": self.soft_score.compute().item(), "loss": self.evaluation_loss.compute().item()}

    def examples(self) -> Iterator[Outcome]:
        """The score is the official accuracy or, where people's answers are unknown, the target of the answer."""
        records = self.evaluated().records
        return vqa_examples(records, self._answered, self.answers)

    def result_rows(self) -> list[tuple[str, str]]:
        scores = self.scores
        if "soft_score" not in scores:
            what = "target of the chosen answer (in-training score; without people's answers no official accuracy)"
            return [(what, f"{scores[f'accuracy/{OVERALL}']:.2f}")]
        baseline = baseline_row(self.commonest, scores.get(f"most_frequent_answer/{OVERALL}"))
        return [
            *accuracy_rows(scores),
            baseline,
            ("soft target of the arg-max (in-training score)", f"{scores['soft_score']:.2f}"),
        ]


def accuracy_rows(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """For a person: the official accuracy, by answer type and by question type."""
    kinds = {name.removeprefix("accuracy/"): x for name, x in scores.items() if name.startswith("accuracy/")}
    rows = [("VQA accuracy", kinds.pop(OVERALL))]
    for kind, value in sorted(kinds.items(), key=lambda one: one[0].startswith(QUESTION_TYPE)):
        asked = kind.startswith(QUESTION_TYPE)
        rows.append((f"    {kind.removeprefix(QUESTION_TYPE)}" if asked else f"  {kind}", value))
    return [(what, f"{value:.2f}") for what, value in rows]


def vqa_examples(records: RecordTable, answered: np.ndarray, answers: Sequence[str]) -> Iterator[Outcome]:
    """What came of each record, `answered` as `AnswersSeen` has it with numbers of these answers."""
    names = ["question_id", "image_id", "question", "question_type", "answer_type", "answers"]
    names += ["target_answers", "target_scores"]
    for number, score, told, best in answered_rows(records, answered, names):
        own_id, image, text, group, kind, people, targets, weights = told
        target = zip(targets or (), weights or (), strict=True)
        truth = people or [f"{answer} ({weight:.2f})" for answer, weight in target]
        one = Outcome(str(own_id), str(image), score, group or "", text, answers[number], tuple(truth), kind=kind or "")
        yield one.with_best(best, answers)


# What the tasks share that choose one answer of a fixed vocabulary: VQA and GQA.


def baseline_row(commonest: Commonest, accuracy: float | None) -> tuple[str, str]:
    """For a person: the accuracy of the training split's commonest answer, or that it is not known."""
    if accuracy is None:
        return "most frequent training answer", "not known: no training answers are there"
    return f"most frequent training answer ('{commonest['']}')", f"{accuracy:.2f}"


class Prediction(NamedTuple):
    """The best answers to one question, best first."""

    position: int  # of the question in its split
    question_id: int | str
    answers: tuple[str, ...]
    probabilities: tuple[float, ...]  # per answer, independent of each other for the bce loss
    image_file: str | None = None  # of VizWiz, whose server asks for it
    filled_in: bool = False  # without the model
    attention: list[list[float]] | None = None  # of GQA, where it is asked for: see `gqa.attention.region_attention`


def best_answers(logits: Tensor, batch: Batch, answers: Sequence[str], loss_type: str) -> list[Prediction]:
    """The five best answers to each question of a batch, whose records name it; the rest as in `ranked_answers`."""
    ranked = ranked_answers(logits, answers, loss_type, TOP_ANSWERS)
    return [
        Prediction(record["index"], record["question_id"], texts, probabilities, record.get("image_file"))
        for record, (texts, probabilities) in zip(batch.records, ranked, strict=True)
    ]


def ranked_answers(
    logits: Tensor, answers: Sequence[str], loss_type: str, count: int
) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """The `count` best answers to each of B questions, or all, with sigmoid (bce) or softmax probabilities, best first.

    Of logits (B, A) that were trained with `loss_type`, and the A answers.
    """
    best, chosen = best_choices(logits, loss_type, count)
    return [
        (tuple(answers[i] for i in row), tuple(scores))
        for row, scores in zip(best.tolist(), chosen.tolist(), strict=True)
    ]


def filled_in(record: Mapping[str, Any], commonest: Commonest) -> Prediction | None:
    """What is answered to a question, `record`, whose picture the model cannot see; None if nothing is known."""
    answer = commonest_for(record["question"], commonest)
    file = record.get("image_file")
    return None if answer is None else Prediction(0, record["question_id"], (answer,), (0.0,), file, filled_in=True)


def write_answers(predictions: Sequence[Prediction], folder: Path, *, id_key: str, answer_key: str) -> dict[str, Path]:
    """results.json, the official result file with the given keys, and predictions.jsonl with the five best answers.

    Where all questions name the files of their pictures, as VizWiz's do, the result file is VizWiz's, with "image".
    """
    official, top = folder / "results.json", folder / "predictions.jsonl"
    named = all(one.image_file is not None for one in predictions)
    asked = [{"image": one.image_file} if named else {id_key: one.question_id} for one in predictions]
    with atomic_write(official) as file:
        rows = [{**which, answer_key: one.answers[0]} for which, one in zip(asked, predictions, strict=True)]
        json.dump(rows, file)
    with atomic_write(top) as file:
        for one in predictions:
            best = [{"answer": a, "score": round(p, 6)} for a, p in zip(one.answers, one.probabilities, strict=True)]
            which = {"question_id": one.question_id} | ({"image": one.image_file} if one.image_file else {})
            line = {**which, "top": best} | ({"filled_in": True} if one.filled_in else {})
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return {"official result file": official, "five best answers": top}


def check_answers(own: Sequence[str], given: Sequence[str], path: Path) -> None:
    """Raises UserError, naming the first difference, if the vocabulary given in a file is not the model's own."""
    remedy = "pass data.answers=FILE with the vocabulary the model was trained on."
    if len(given) != len(own):
        raise UserError(f"{path} lists {len(given)} answers, and the model has a head for {len(own)}: {remedy}")
    for number, (answer, expected) in enumerate(zip(given, own, strict=True)):
        if answer != expected:
            raise UserError(
                f"{path} has answer {number} '{answer}' where the model was trained with '{expected}': {remedy}"
            )
