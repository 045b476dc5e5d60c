"""VQA: choose one answer of a fixed vocabulary, trained on soft targets, scored the official way."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from vinvl.data.batch import Batch
from vinvl.data.vqa import VQADataModule, question_record
from vinvl.data.vqa_records import VQARecords
from vinvl.metrics import ExactMean, SoftTargetScore, VQAAccuracy
from vinvl.models import VinVLForAnswering, answer_loss_per_example
from vinvl.tasks.answering import Prediction, best_answers, check_answers, filled_in, write_answers
from vinvl.tasks.base import TaskArguments, VinVLTask


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

    def filled_in(self, records: VQARecords, index: int) -> Prediction | None:
        """The commonest training answer to questions that begin like this one."""
        return filled_in(question_record(records, index), self.commonest)

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
