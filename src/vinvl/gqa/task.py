"""GQA: choose the one right answer of a closed vocabulary, by cross-entropy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from vinvl.data.batch import Batch
from vinvl.data.table import RecordTable
from vinvl.exact import ExactMean
from vinvl.gqa.data import GQADataModule
from vinvl.gqa.metric import TypedAccuracy
from vinvl.models.answering import VinVLForAnswering, answer_loss_per_example
from vinvl.task import TaskArguments, VinVLTask
from vinvl.vqa.task import Prediction, best_answers, check_answers, filled_in, write_answers


class GQATask(VinVLTask):
    """VinVLForAnswering with cross-entropy; accuracy overall and by structural and semantic type."""

    model_class = VinVLForAnswering
    datamodule_class = GQADataModule
    headline = "accuracy/overall"

    def __init__(self, *, answers: list[str], **shared: Unpack[TaskArguments]) -> None:
        """`answers`: the answer vocabulary, A texts. `shared`: see `VinVLTask`."""
        shared["model_config"] = {**shared["model_config"], "num_labels": len(answers), "loss_type": "ce"}
        super().__init__({"answers": answers}, **shared)
        self.answers = answers
        self.accuracy = TypedAccuracy()
        self.most_frequent_accuracy = ExactMean()
        self.evaluation_loss = ExactMean()

    @classmethod
    def arguments_from(cls, datamodule: GQADataModule) -> dict[str, Any]:
        return {"answers": list(datamodule.vocabulary.answers)}

    def check_datamodule(self, datamodule: GQADataModule) -> None:
        super().check_datamodule(datamodule)
        check_answers(self.answers, datamodule)
        self.commonest = self.commonest or datamodule.known_commonest()

    def training_loss(self, batch: Batch) -> Tensor:
        assert batch.labels is not None
        return answer_loss_per_example(self(batch), batch.labels, "ce").mean()

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """The five best answers to each question."""
        return best_answers(self(batch), batch, self.answers, "ce")

    def filled_in(self, records: RecordTable, index: int) -> Prediction | None:
        """The commonest training answer to questions that begin like this one."""
        return filled_in(records.row(index), self.commonest)

    def write_predictions(self, predictions: Sequence[Prediction], folder: Path) -> dict[str, Path]:
        """The official submission, [{"questionId", "prediction"}], and the five best answers."""
        return write_answers(predictions, folder, id_key="questionId", answer_key="prediction")

    def evaluate_batch(self, batch: Batch) -> None:
        assert batch.labels is not None
        logits = self(batch)
        self.evaluation_loss.update(answer_loss_per_example(logits, batch.labels, "ce"))
        # By text: a right answer that the vocabulary has not is never matched, and counts as wrong.
        given = [self.answers[index] for index in logits.argmax(dim=-1).tolist()]
        right = [record["answer"] for record in batch.records]
        correct = torch.tensor([one == other for one, other in zip(given, right, strict=True)])
        types = {name: [record.get(name, "unknown") for record in batch.records] for name in ("structural", "semantic")}
        self.accuracy.update(correct, types["structural"], types["semantic"])
        constant = self.commonest.get("")
        self.most_frequent_accuracy.update(torch.tensor([answer == constant for answer in right]) * 100.0)

    def compute_scores(self) -> dict[str, float]:
        scores = {f"accuracy/{name}": value.item() for name, value in self.accuracy.compute().items()}
        if self.commonest:
            scores["most_frequent_answer"] = self.most_frequent_accuracy.compute().item()
        scores["loss"] = self.evaluation_loss.compute().item()
        return scores

    def result_rows(self) -> list[tuple[str, str]]:
        scores = self.scores
        rows = [("GQA accuracy", f"{scores['accuracy/overall']:.2f}")]
        for name, value in scores.items():
            if name.startswith("accuracy/") and name != "accuracy/overall":
                rows.append((f"  {name.removeprefix('accuracy/')}", f"{value:.2f}"))
        if self.commonest:
            what = f"most frequent training answer ('{self.commonest['']}')"
            rows.append((what, f"{scores['most_frequent_answer']:.2f}"))
        return rows
