"""NLVR2: is a statement true of two images, whose pooled vectors, or that of a sequence with both, are judged."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedModel

from vinvl.data.batch import Batch
from vinvl.data.table import RecordTable
from vinvl.exact import AnswersSeen, ExactMean
from vinvl.examples import Outcome, answered_rows
from vinvl.models.answering import VinVLForAnswering, VinVLForPairs, best_choices
from vinvl.nlvr2.data import NLVR2DataModule
from vinvl.nlvr2.metric import PairAccuracy
from vinvl.run.errors import UserError
from vinvl.run.files import atomic_write
from vinvl.task import VinVLTask

VERDICTS = ("False", "True")


class Judgement(NamedTuple):
    """Whether a statement is taken to be true."""

    position: int  # of the statement in its split
    identifier: str
    true: bool


@dataclass(kw_only=True, eq=False, repr=False)
class NLVR2Task(VinVLTask):
    """Accuracy and consistency of VinVLForPairs (num_choice 2, use_pair of the published code), or of
    VinVLForAnswering for data of one sequence (without use_pair).

    Args:
        one_sequence: see `NLVR2DataModule`; with `datamodule` that of the data.
        the others: see `VinVLTask`.
    """

    model_class = VinVLForPairs
    datamodule_class = NLVR2DataModule
    headline = "accuracy"

    one_sequence: bool = False

    def add_metrics(self) -> None:
        self.accuracy = PairAccuracy()
        self.answers_seen = AnswersSeen(len(VERDICTS))
        self.evaluation_loss = ExactMean()

    def chosen_model_class(self) -> type[PreTrainedModel]:
        return VinVLForAnswering if self.one_sequence else VinVLForPairs

    def decided(self) -> dict[str, Any]:
        return {"num_labels": 2, "loss_type": "ce"}

    @classmethod
    def arguments_from(cls, datamodule: Any) -> dict[str, Any]:
        return {"one_sequence": datamodule.one_sequence}

    def check_datamodule(self, datamodule: Any) -> None:
        super().check_datamodule(datamodule)
        if datamodule.one_sequence != self.hparams["one_sequence"]:
            option = f"data.one_sequence={str(not datamodule.one_sequence).lower()}"
            raise UserError(f"The model was trained with {option}, and these data are read without: pass {option}.")

    def evaluate_batch(self, batch: Batch) -> None:
        assert batch.labels is not None
        logits = self(batch)  # (B, 2)
        self.evaluation_loss.update(self.losses(logits, batch))
        records, best = batch.records[:: len(batch) // batch.num_items], best_choices(logits, "ce", len(VERDICTS))
        verdicts = best[0][:, 0]
        right = verdicts == batch.labels  # (B,)
        self.accuracy.update([record["identifier"] for record in records], right)
        self.answers_seen.update(records, verdicts.tolist(), (100.0 * right).tolist(), best)

    def compute_scores(self) -> dict[str, float]:
        self._answered = self.answers_seen.compute()
        figures = self.accuracy.compute() | {"loss": self.evaluation_loss.compute()}
        return {name: value.item() for name, value in figures.items()}

    def examples(self) -> Iterator[Outcome]:
        """A statement's picture is its pair of pictures."""
        records = self.evaluated().records
        return nlvr2_examples(records, self._answered)

    def result_rows(self) -> list[tuple[str, str]]:
        return accuracy_rows(self.scores)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Judgement]:
        """True or False for each statement."""
        verdicts = self(batch).argmax(dim=-1).bool().tolist()
        judged = zip(batch.records[:: len(batch) // batch.num_items], verdicts, strict=True)
        return [Judgement(record["index"], record["identifier"], true) for record, true in judged]

    def filled_in(self, records: RecordTable, index: int) -> Judgement | None:
        """What more of the training statements are."""
        known = self.commonest.get("")
        return None if known is None else Judgement(0, records["identifier"][index], known == "True")

    def write_predictions(self, predictions: Sequence[Judgement], folder: Path) -> dict[str, Path]:
        """predictions.csv, lines of identifier,True or False: what the official metrics.py reads."""
        path = folder / "predictions.csv"
        with atomic_write(path) as file:
            file.writelines(f"{one.identifier},{one.true}\n" for one in predictions)
        return {"prediction CSV": path}


def accuracy_rows(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """For a person: accuracy and, where identifiers are official, consistency."""
    rows = [("NLVR2 accuracy", f"{scores['accuracy']:.2f}")]
    if "consistency" in scores:
        rows.append(("consistency (statements right on every pair)", f"{scores['consistency']:.2f}"))
    return rows


def nlvr2_examples(records: RecordTable, answered: np.ndarray) -> Iterator[Outcome]:
    """What came of each statement, `answered` as `AnswersSeen` has it: 1 for True, 0 for False, -1 for neither."""
    names = ["identifier", "left_image_id", "right_image_id", "sentence", "label"]
    for verdict, score, told, best in answered_rows(records, answered, names):
        own_id, left, right, text, label = told
        said = "" if verdict < 0 else VERDICTS[verdict]
        one = Outcome(str(own_id), f"{left} {right}", score, "", text, said, (str(label),))
        yield one.with_best(best, VERDICTS)
