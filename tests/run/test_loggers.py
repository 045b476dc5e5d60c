"""Where figures go: one row a step in the CSV, also where a run goes on; recipes beside scores in TensorBoard."""

import csv
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from vinvl.run.loggers import CSVByStep, TensorBoard, counted_from_one


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a folder's metrics.csv, without empty cells."""
    with (folder / "metrics.csv").open() as file:
        return [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_what_is_told_of_one_step_is_one_row_that_is_there_at_once(tmp_path: Path) -> None:
    log = CSVByStep(tmp_path / "csv")
    log.log_metrics({"lr": 0.5}, 9)
    assert rows(tmp_path / "csv") == [{"step": "9", "lr": "0.5"}]
    log.log_metrics({"epoch": 0, "train/loss": 2.0}, 9)
    log.log_metrics({"lr": 0.4}, 19)
    log.log_metrics({"epoch": 0, "train/loss": 1.25}, 19)
    log.log_metrics({"train/loss": 1}, 19)  # a shorter line in the place of a longer one
    log.log_metrics({"epoch": 1, "val/a, b": 33.0}, 19)
    log.log_metrics({"epoch": 2, "test/score": 30.0}, 20)
    assert rows(tmp_path / "csv") == [
        {"step": "9", "epoch": "1", "lr": "0.5", "train/loss": "2.0"},
        {"step": "19", "epoch": "2", "lr": "0.4", "train/loss": "1", "val/a, b": "33.0"},
        {"step": "20", "test/score": "30.0"},
    ]
    header = (tmp_path / "csv/metrics.csv").read_text().splitlines()[0]
    assert header == 'step,epoch,lr,test/score,train/loss,"val/a, b"'


def test_a_run_that_continues_goes_on_in_its_file(tmp_path: Path) -> None:
    """Also in one of an earlier version, with several rows of a step; what came after its checkpoint goes."""
    lines = ["epoch,lr,step,train/loss", ",0.5,9,", "0,,9,2.0", ",0.4,19,", "0,,19,1.5", ",0.3,29,", "broken"]
    (tmp_path / "metrics.csv").write_text("\n".join(lines))
    log = CSVByStep(tmp_path)
    log.begin_at(20)
    log.log_metrics({"val/score": 7.0}, 19)  # of an evaluation that is made again
    log.log_metrics({"lr": 0.2}, 29)
    assert rows(tmp_path) == [
        {"step": "9", "epoch": "0", "lr": "0.5", "train/loss": "2.0"},
        {"step": "19", "epoch": "0", "lr": "0.4", "train/loss": "1.5", "val/score": "7.0"},
        {"step": "29", "lr": "0.2"},
    ]


def test_another_runs_file_is_kept_aside(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "metrics.csv").write_text(f"step\n{number}\n")
        log = CSVByStep(tmp_path)
        log.begin_at(0)
        assert not (tmp_path / "metrics.csv").exists()
        assert (tmp_path / f"metrics.{number}.csv").read_text() == f"step\n{number}\n"
    log.log_metrics({"lr": 1}, 0)
    assert rows(tmp_path) == [{"step": "0", "lr": "1"}]


def test_epochs_count_from_one_and_a_test_is_in_none() -> None:
    assert counted_from_one({"epoch": 0, "a": 1}) == {"epoch": 1, "a": 1}
    assert counted_from_one({"epoch": 3, "test/a": 1}) == {"test/a": 1}
    assert counted_from_one({"a": 1}) == {"a": 1}


def events(folder: Path) -> EventAccumulator:
    """All that TensorBoard shows of a folder."""
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def recipe_in(found: EventAccumulator) -> tuple[dict[str, object], set[str]]:
    """The hyper-parameters that TensorBoard shows, and the figures beside them."""
    told: dict[str, object] = {}
    metrics: set[str] = set()
    for content in found.PluginTagToContent("hparams").values():
        data = HParamsPluginData.FromString(content)
        metrics |= {one.name.tag for one in data.experiment.metric_infos}
        for name, value in data.session_start_info.hparams.items():
            told[name] = getattr(value, str(value.WhichOneof("kind")))
    return told, metrics


def test_tensorboard_has_one_file_and_no_point_twice(tmp_path: Path) -> None:
    """Of a run that was stopped after five updates of ten, and had saved three."""
    for begin, end in ((0, 5), (3, 10)):
        log = TensorBoard(tmp_path, name="", version="", default_hp_metric=False)
        log.begin_at(begin)
        log.tell_recipe({"optim.lr": 0.5, "data.use_tags": True, "data.mixed": [1, 2]}, ["val/best"])
        for step in range(begin, end):
            log.log_metrics({"epoch": 0, "loss": step + 10 * begin}, step)
        log.finalize("success")
        log.log_metrics({"epoch": 1, "test/score": 3.0}, end)
        log.finalize("success")
    found = events(tmp_path)
    assert len(list(tmp_path.glob("events*"))) == 2 and not list(tmp_path.glob("*.yaml"))
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [
        *((step, step) for step in range(3)),
        *((step, step + 30) for step in range(3, 10)),
    ]
    assert {one.value for one in found.Scalars("epoch")} == {1.0}
    assert recipe_in(found) == ({"optim.lr": 0.5, "data.use_tags": True, "data.mixed": "[1, 2]"}, {"val/best"})
    assert pytest.approx(3.0) == found.Scalars("test/score")[-1].value
