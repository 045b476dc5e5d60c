"""NLVR2: is a statement true of two images; their pooled vectors are judged together."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Unpack

from vinvl.data.batch import Batch
from vinvl.data.table import RecordTable
from vinvl.exact import ExactMean
from vinvl.models.answering import VinVLForPairs
from vinvl.nlvr2.data import NLVR2DataModule
from vinvl.nlvr2.metric import PairAccuracy
from vinvl.run.files import atomic_write
from vinvl.task import TaskArguments, VinVLTask


class Judgement(NamedTuple):
    """Whether a statement is taken to be true."""

    position: int  # of the statement in its split
    identifier: str
    true: bool


class NLVR2Task(VinVLTask):
    """VinVLForPairs (num_choice 2, use_pair of the published code) with accuracy and consistency."""

    model_class = VinVLForPairs
    datamodule_class = NLVR2DataModule
    headline = "accuracy"

    def __init__(self, **shared: Unpack[TaskArguments]) -> None:
        """`shared`: see `VinVLTask`."""
        shared["model_config"] = {**shared["model_config"], "num_labels": 2, "loss_type": "ce"}
        super().__init__({}, **shared)
        self.accuracy = PairAccuracy()
        self.evaluation_loss = ExactMean()

    def evaluate_batch(self, batch: Batch) -> None:
        assert batch.labels is not None
        logits = self(batch)  # (B, 2)
        self.evaluation_loss.update(self.losses(logits, batch))
        identifiers = [record["identifier"] for record in batch.records[::2]]
        self.accuracy.update(identifiers, logits.argmax(dim=-1) == batch.labels)

    def compute_scores(self) -> dict[str, float]:
        figures = self.accuracy.compute() | {"loss": self.evaluation_loss.compute()}
        return {name: value.item() for name, value in figures.items()}

    def result_rows(self) -> list[tuple[str, str]]:
        rows = [("NLVR2 accuracy", f"{self.scores['accuracy']:.2f}")]
        if "consistency" in self.scores:
            rows.append(("consistency (statements right on every pair)", f"{self.scores['consistency']:.2f}"))
        return rows

    def predict_step(self, batch: Batch, batch_idx: int) -> list[Judgement]:
        """True or False for each statement."""
        verdicts = self(batch).argmax(dim=-1).bool().tolist()
        judged = zip(batch.records[::2], verdicts, strict=True)
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
