"""Where the figures of a run go: a table with one row a step, TensorBoard, Weights & Biases."""

import csv
import io
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from vinvl.run.files import atomic_write


def counted_from_one(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Figures with the number of their epoch counted from 1; a test has none, Lightning would say that after the last.

    Lightning counts from 0.
    """
    told = {name: value for name, value in metrics.items() if name != "epoch"}
    if "epoch" not in metrics or any(name.startswith("test/") for name in told):
        return told
    return {"epoch": int(metrics["epoch"]) + 1, **told}


class CSVByStep(Logger):
    """`metrics.csv` in a folder: a row for each step that figures are told of, whoever tells them and when.

    A run that continues goes on in the same file (`begin_at`). What was told is on the disk at once.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []
        self._row: dict[str, Any] = {}  # the last one, which the next figures may belong to
        self._begin = 0  # byte at which it begins

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """They are in the configuration of the run."""

    @rank_zero_only
    def begin_at(self, step: int) -> None:
        """Keeps, of the file that is there, the rows before this step; at step 0 it is another run's, and kept aside.

        Rows of one step, as earlier versions wrote them, become one.
        """
        if not self.path.is_file():
            return
        if step == 0:
            self.path.rename(
                next(new for number in count(1) if not (new := self.path.with_stem(f"metrics.{number}")).exists())
            )
            return
        kept: dict[int, dict[str, Any]] = {}
        with self.path.open(newline="", encoding="utf-8", errors="replace") as file:
            for row in csv.DictReader(file):
                place = row.get("step") or ""
                if place.isdecimal() and int(place) < step:
                    cells = {name: value for name, value in row.items() if name and value}
                    kept.setdefault(int(place), {}).update(cells | {"step": int(place)})
        self._write_all(list(kept.values()))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        if step != self._row.get("step"):
            self._row = {"step": step}
            self._begin = self.path.stat().st_size if self.path.is_file() else 0
        self._row |= counted_from_one(metrics)
        if self._columns and self._row.keys() <= set(self._columns):
            self._write_row()
        else:
            self._write_all([*self._rows_before(), self._row])

    def _rows_before(self) -> list[dict[str, Any]]:
        """The rows on the disk before the last one."""
        if not self.path.is_file():
            return []
        text = self.path.read_bytes()[: self._begin].decode()
        return list(csv.DictReader(io.StringIO(text, newline="")))

    def _write_all(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes the file anew, with the columns that these rows need."""
        names = set().union(*rows) - {"step", "epoch"}
        self._columns = ["step", "epoch", *sorted(names)]
        lines = [self._line({name: name for name in self._columns}), *map(self._line, rows)]
        with atomic_write(self.path, "wb") as file:
            file.write(b"".join(lines))
        self._row = dict(rows[-1]) if rows else {}
        self._begin = sum(map(len, lines[:-1]))

    def _write_row(self) -> None:
        """Writes the last row in its place, at the end of the file."""
        with self.path.open("r+b") as file:
            file.seek(self._begin)
            file.write(self._line(self._row))
            file.truncate()

    def _line(self, row: Mapping[str, Any]) -> bytes:
        text = io.StringIO(newline="")
        csv.DictWriter(text, self._columns, lineterminator="\n").writerow(row)
        return text.getvalue().encode()


class TensorBoard(TensorBoardLogger):
    """Lightning's, with training and test in one file of events, and hyper-parameters beside the scores they led to."""

    @rank_zero_only
    def begin_at(self, step: int) -> None:
        """What earlier files of the folder say of this step and later ones is not shown any more."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # type: ignore[import-untyped]

        begin = Event(step=step, session_log=SessionLog(status=SessionLog.START))
        self.experiment.file_writer.add_event(begin)

    @rank_zero_only
    def tell_recipe(self, recipe: Mapping[str, Any], scores: Sequence[str]) -> None:
        """Shows hyper-parameters in HPARAMS, beside the latest of these figures."""
        from torch.utils.tensorboard.summary import hparams

        kinds = (bool, int, float, str)
        plain = {name: value if isinstance(value, kinds) else str(value) for name, value in recipe.items()}
        experiment, begin, _ = hparams(plain, dict.fromkeys(scores, 0))
        for summary in (experiment, begin):
            self.experiment.file_writer.add_summary(summary)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics(counted_from_one(metrics), step)

    @rank_zero_only
    def save(self) -> None:
        """Without Lightning's hparams.yaml, for the configuration of the run is there."""
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Without closing the file: the test writes into it too."""
        self.save()


class WeightsAndBiases(WandbLogger):
    """Lightning's, with epochs that count from 1."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics(counted_from_one(metrics), step)
