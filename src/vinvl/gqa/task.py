"""GQA: choose the one right answer of a closed vocabulary, by cross-entropy."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch

from vinvl.data.batch import Batch
from vinvl.data.table import RecordTable
from vinvl.exact import OVERALL, AnswersSeen, CategoryAccuracy, Earned, ExactMean
from vinvl.examples import Example, answered_rows
from vinvl.gqa.data import GQADataModule
from vinvl.models.answering import VinVLForAnswering
from vinvl.task import TaskArguments, VinVLTask
from vinvl.vqa.task import Prediction, baseline_row, best_answers, check_answers, filled_in, write_answers

OPEN_STRUCTURE = "query"  # all other structures are answered by choosing, mostly yes or no


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
        self.accuracy = CategoryAccuracy()
        self.most_frequent_accuracy = ExactMean()
        self.answers_seen = AnswersSeen()
        self.evaluation_loss = ExactMean()

    @classmethod
    def arguments_from(cls, datamodule: GQADataModule) -> dict[str, Any]:
        return {"answers": list(datamodule.vocabulary.answers)}

    def check_datamodule(self, datamodule: GQADataModule) -> None:
        super().check_datamodule(datamodule)
        check_answers(self.answers, datamodule.vocabulary.answers, datamodule.answers_path)

    def on_test_start(self) -> None:
        """Reads the training split for its commonest answer, if the checkpoint does not say it."""
        self.commonest = self.commonest or self.trainer.datamodule.known_commonest()  # type: ignore[attr-defined]

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
        logits = self(batch)
        self.evaluation_loss.update(self.losses(logits, batch))
        rows: list[Earned] = []
        numbers: list[int] = logits.argmax(dim=-1).tolist()
        # By text: a right answer that the vocabulary has not is never matched, and counts as wrong.
        right = [self.answers[number] == one["answer"] for number, one in zip(numbers, batch.records, strict=True)]
        for is_right, one in zip(right, batch.records, strict=True):
            rows += typed_accuracy(is_right, one.get("structural"), one.get("semantic"))
        self.accuracy.update(rows)
        self.answers_seen.update(batch.records, numbers, [100.0 * is_right for is_right in right])
        constant = self.commonest.get("")
        self.most_frequent_accuracy.update(torch.tensor([one["answer"] == constant for one in batch.records]) * 100.0)

    def compute_scores(self) -> dict[str, float]:
        self._answered = self.answers_seen.compute()
        scores = {f"accuracy/{name}": value.item() for name, value in self.accuracy.compute().items()}
        if self.commonest:
            scores["most_frequent_answer"] = self.most_frequent_accuracy.compute().item()
        return scores | {"loss": self.evaluation_loss.compute().item()}

    def examples(self) -> Iterator[Example]:
        """By structural and by semantic type."""
        records = self.trainer.datamodule.datasets["test"].records  # type: ignore[attr-defined]
        names = ["question_id", "image_id", "question", "structural", "semantic", "answer"]
        for number, score, told in answered_rows(records, self._answered, names):
            own_id, image, text, group, kind, truth = told
            answer = self.answers[number]
            yield Example(str(own_id), str(image), score, group or "", text, answer, (truth,), kind=kind or "")

    def result_rows(self) -> list[tuple[str, str]]:
        kinds = {name.removeprefix("accuracy/"): x for name, x in self.scores.items() if name.startswith("accuracy/")}
        rows = [
            ("GQA accuracy", f"{kinds.pop(OVERALL):.2f}"),
            *((f"  {kind}", f"{x:.2f}") for kind, x in kinds.items()),
        ]
        return [*rows, baseline_row(self.commonest, self.scores.get("most_frequent_answer"))]


def typed_accuracy(right: bool, structural: str | None, semantic: str | None) -> list[Earned]:
    """One answer for `CategoryAccuracy`: overall, open or binary (as GQA's evaluation says), and by either type."""
    answer_kind = "open" if structural == OPEN_STRUCTURE else "binary"
    types = f"structural/{structural or 'unknown'}", f"semantic/{semantic or 'unknown'}"
    return [(category, 1, int(right), 1) for category in (OVERALL, answer_kind, *types)]
