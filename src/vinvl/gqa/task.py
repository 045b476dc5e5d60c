"""GQA: choose the one right answer of a closed vocabulary, by cross-entropy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vinvl.data.batch import Batch
from vinvl.data.table import RecordTable
from vinvl.exact import OVERALL, AnswersSeen, CategoryAccuracy, Earned, ExactMean
from vinvl.examples import Outcome, answered_rows
from vinvl.gqa.attention import region_attention, write_attention
from vinvl.gqa.data import GQADataModule
from vinvl.gqa.metric import OPEN_STRUCTURE, grounding_of
from vinvl.gqa.official import Official
from vinvl.models.answering import VinVLForAnswering, best_choices
from vinvl.task import VinVLTask
from vinvl.vqa.task import TOP_ANSWERS, Prediction, baseline_row, best_answers, check_answers, filled_in, write_answers

PREFIX = "official/"
OFFICIAL = {  # figures that are no accuracy, for a person
    "consistency": "consistency",
    "validity": "validity",
    "plausibility": "plausibility",
    "grounding": "grounding",
    "distribution": "distribution (lower is better)",
}


@dataclass(kw_only=True, eq=False, repr=False)
class GQATask(VinVLTask):
    """VinVLForAnswering with cross-entropy; accuracy overall and by structural and semantic type.

    At test also GQA's official metrics of the balanced questions, `official/…`, where their files are there.

    Args:
        answers: the answer vocabulary, A texts; with `datamodule` that of the data.
        the others: see `VinVLTask`.
    """

    model_class = VinVLForAnswering
    datamodule_class = GQADataModule
    headline = "accuracy/overall"

    answers: Sequence[str] = ()

    def add_metrics(self) -> None:
        self.accuracy = CategoryAccuracy()
        self.most_frequent_accuracy = ExactMean()
        self.answers_seen = AnswersSeen(min(TOP_ANSWERS, len(self.answers)))
        self.grounding_seen = AnswersSeen()
        self.evaluation_loss = ExactMean()
        self._official: Official | None = None  # of the test split

    def decided(self) -> dict[str, Any]:
        return {"num_labels": len(self.answers), "loss_type": "ce"}

    @classmethod
    def arguments_from(cls, datamodule: GQADataModule) -> dict[str, Any]:
        return {"answers": list(datamodule.vocabulary.answers)}

    def check_datamodule(self, datamodule: GQADataModule) -> None:
        super().check_datamodule(datamodule)
        check_answers(self.answers, datamodule.vocabulary.answers, datamodule.answers_path)

    def on_test_start(self) -> None:
        """Reads the training split for its commonest answer, if the checkpoint does not say it, and scene graphs."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        self.commonest = self.commonest or data.known_commonest()
        self._official = data.official(data.split_of["test"])

    def attending(self, batch: Batch) -> tuple[Tensor, list[np.ndarray]]:
        """Logits, and what each answer attended to (`region_attention`)."""
        assert isinstance(self.model, VinVLForAnswering)
        with self.model.bert.recorded_attention() as recorded:
            logits = self(batch)
        return logits, region_attention(batch, recorded[0])

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Prediction]:
        """The five best answers to each question."""
        if not self.trainer.datamodule.attention:  # type: ignore[attr-defined]
            return best_answers(self(batch), batch, self.answers, "ce")
        logits, attended = self.attending(batch)
        best = zip(best_answers(logits, batch, self.answers, "ce"), attended, strict=True)
        return [one._replace(attention=cells.tolist()) for one, cells in best]

    def filled_in(self, records: RecordTable, index: int) -> Prediction | None:
        """The commonest training answer to questions that begin like this one."""
        return filled_in(records.row(index), self.commonest)

    def write_predictions(self, predictions: Sequence[Prediction], folder: Path) -> dict[str, Path]:
        """The official submission, [{"questionId", "prediction"}], the five best answers and, if asked, attention."""
        files = write_answers(predictions, folder, id_key="questionId", answer_key="prediction")
        if any(one.attention is not None for one in predictions):
            files["attention"] = folder / "attentions.json"
            write_attention(files["attention"], ((one.question_id, one.attention or ()) for one in predictions))
        return files

    def evaluate_batch(self, batch: Batch) -> None:
        objects = None if self._official is None or self.trainer.state.fn != "test" else self._official.objects
        logits = self(batch) if objects is None else self._grounded(batch, objects)
        self.evaluation_loss.update(self.losses(logits, batch))
        rows: list[Earned] = []
        best = best_choices(logits, "ce", TOP_ANSWERS)
        numbers: list[int] = best[0][:, 0].tolist()
        # By text: a right answer that the vocabulary has not is never matched, and counts as wrong.
        right = [self.answers[number] == one["answer"] for number, one in zip(numbers, batch.records, strict=True)]
        for is_right, one in zip(right, batch.records, strict=True):
            rows += typed_accuracy(is_right, one.get("structural"), one.get("semantic"))
        self.accuracy.update(rows)
        self.answers_seen.update(batch.records, numbers, [100.0 * is_right for is_right in right], best)
        constant = self.commonest.get("")
        self.most_frequent_accuracy.update(torch.tensor([one["answer"] == constant for one in batch.records]) * 100.0)

    def _grounded(self, batch: Batch, objects: Mapping[str, np.ndarray]) -> Tensor:
        """Logits; takes down how much of the attention lies on the objects that each question names."""
        logits, attended = self.attending(batch)
        named = [objects.get(str(one["question_id"]), np.zeros((0, 4))) for one in batch.records]
        shares = [grounding_of(cells, boxes) for cells, boxes in zip(attended, named, strict=True)]
        self.grounding_seen.update(batch.records, [0] * len(shares), shares)
        return logits

    def _official_scores(self, official: Official) -> dict[str, float]:
        """GQA's official figures of what was answered, by name; {} if none of it is balanced."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        places = self._answered[:, 0].astype(np.int64)
        asked = [str(own_id) for own_id in data.datasets["test"].records["question_id"].take(places)]
        numbers = self._answered[:, 1].astype(np.int64).tolist()
        said = {own_id: self.answers[number] for own_id, number in zip(asked, numbers, strict=True)}
        shares = self.grounding_seen.compute()[:, 2].tolist()
        grounding = None if official.objects is None else dict(zip(asked, shares, strict=True))
        found = official.scores_of_answered(said, grounding)
        return {} if found is None else {f"{PREFIX}{name}": value for name, value in found.flat().items()}

    def compute_scores(self) -> dict[str, float]:
        self._answered = self.answers_seen.compute()
        scores = {f"accuracy/{name}": value.item() for name, value in self.accuracy.compute().items()}
        if self.commonest:
            scores["most_frequent_answer"] = self.most_frequent_accuracy.compute().item()
        if self._official is not None and self.trainer.state.fn == "test":
            scores |= self._official_scores(self._official)
        return scores | {"loss": self.evaluation_loss.compute().item()}

    def examples(self) -> Iterator[Outcome]:
        """By structural and by semantic type."""
        records = self.evaluated().records
        return gqa_examples(records, self._answered, self.answers)

    def result_rows(self) -> list[tuple[str, str]]:
        return [*accuracy_rows(self.scores), baseline_row(self.commonest, self.scores.get("most_frequent_answer"))]


def accuracy_rows(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """For a person: accuracy by type, and the official figures."""
    kinds = {name.removeprefix("accuracy/"): x for name, x in scores.items() if name.startswith("accuracy/")}
    rows = [("GQA accuracy", f"{kinds.pop(OVERALL):.2f}")]
    rows += [(f"  {kind}", f"{x:.2f}") for kind, x in kinds.items()]
    official = {name.removeprefix(PREFIX): x for name, x in scores.items() if name.startswith(PREFIX)}
    rows += [(OFFICIAL[name], f"{value:.2f}") for name, value in official.items() if name in OFFICIAL]
    return rows + [(f"  {name}", f"{x:.2f}") for name, x in official.items() if name.startswith(("steps/", "words/"))]


def gqa_examples(records: RecordTable, answered: np.ndarray, answers: Sequence[str]) -> Iterator[Outcome]:
    """What came of each record, `answered` as `AnswersSeen` has it with numbers of these answers."""
    names = ["question_id", "image_id", "question", "structural", "semantic", "answer"]
    for number, score, told, best in answered_rows(records, answered, names):
        own_id, image, text, group, kind, truth = told
        one = Outcome(str(own_id), str(image), score, group or "", text, answers[number], (truth,), kind=kind or "")
        yield one.with_best(best, answers)


def typed_accuracy(right: bool, structural: str | None, semantic: str | None) -> list[Earned]:
    """One answer for `CategoryAccuracy`: overall, open or binary (as GQA's evaluation says), and by either type."""
    answer_kind = "open" if structural == OPEN_STRUCTURE else "binary"
    types = f"structural/{structural or 'unknown'}", f"semantic/{semantic or 'unknown'}"
    return [(category, 1, int(right), 1) for category in (OVERALL, answer_kind, *types)]
