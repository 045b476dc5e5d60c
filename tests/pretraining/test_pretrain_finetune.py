"""`python -m vinvl.pretrain_finetune`: both stages, and several objectives in one table."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests import door_runs
from tests.conftest import TINY_MODEL, TINY_WORLD
from tests.door_in_process import same_weights
from tests.door_runs import door_environment
from vinvl import pretrain_finetune
from vinvl.pretrain_finetune import figures, replaced_keys, same_stage, train_stage
from vinvl.run.errors import UserError
from vinvl.run.overrides import as_overrides, given_values, replacing
from vinvl.run.signals import run_passing_signals_on

TINY = [
    *(f"data.prepare.{name}={value}" for name, value in TINY_WORLD.items()),
    *TINY_MODEL,
    "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=4",
]
STAGES = [*(f"pretrain.{one}" for one in TINY), *(f"finetune.{one}" for one in TINY)]


def call(folder: Path, data: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return door_runs.call(folder, "vinvl.pretrain_finetune", *overrides, environment=door_environment(data))


@pytest.mark.slow
def test_objectives_are_compared_in_one_multirun(demo_data: Path, tmp_path: Path) -> None:
    result = call(tmp_path, demo_data, "--multirun", "objective=none,two_way", "tags=false", *STAGES)
    assert result.returncode == 0, result.stdout + result.stderr
    (sweep,) = (tmp_path / "runs" / "multirun").iterdir()
    table = list(csv.reader((sweep / "multirun.csv").open()))
    figures = ["pretraining test", "pretraining val", "finetuning test", "finetuning val"]
    assert table[0] == ["job", "objective", *figures, "gain over job 0"]
    assert [row[:2] for row in table[1:]] == [["0", "none"], ["1", "two_way"]] and "gain over" in result.stdout
    assert not (sweep / "0" / "pretraining").exists()
    given = {stage: OmegaConf.load(sweep / "1" / stage / ".hydra" / "config.yaml") for stage in STAGE_TASKS}
    for stage, task in STAGE_TASKS.items():
        assert given[stage].task._target_ == task and given[stage].data.use_tags is False and given[stage].seed == 88
    assert given["pretraining"].data.texta_false_prob == 0.5  # without tags it is the caption that is wrong
    last = str(sweep.relative_to(tmp_path) / "1" / "pretraining" / "checkpoints" / "last.ckpt")
    assert given["finetuning"].model.init.endswith(last)
    summary = json.loads((sweep / "1" / "results.json").read_text())["summary"]
    found = results(sweep / "1" / "finetuning")
    assert summary["finetuning test"] == found["scores"]["accuracy/overall"]
    assert (
        summary["finetuning val"] == found["validation"]["score"] and f"{summary['finetuning val']:.2f}" == table[2][5]
    )
    assert not same_weights(sweep / "0" / "finetuning", sweep / "1" / "finetuning")


STAGE_TASKS = {
    "pretraining": "vinvl.pretraining.task.PretrainingTask.build",
    "finetuning": "vinvl.vqa.task.VQATask.build",
}


def results(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "results.json").read_text())
    return content


def test_a_dict_for_a_split_reaches_the_stage_as_one() -> None:
    words = replacing(["++finetune.data.splits.train={questions:q.json}", "++finetune.trainer={max_epochs:2}"])
    given = given_values(words)
    config = OmegaConf.create({"data": {"splits": {"train": {"questions": "q.json"}}}, "trainer": {"max_epochs": 2}})
    assert replaced_keys(given) == {"pretrain": set(), "finetune": {"data.splits.train"}}
    stage = as_overrides(config, replaced_keys(given)["finetune"])
    assert stage == ["data.splits.train={questions:q.json}", "trainer.max_epochs=2"]
    assert given_values(stage)["data.splits.train"] == {"questions": "q.json"}


def test_a_folder_of_both_stages_may_be_moved() -> None:
    start = "model.init=/old/run/pretraining/checkpoints/last.ckpt"
    assert same_stage(["seed=1", start], ["seed=1", start.replace("/old/run", "/new/place")])
    assert not same_stage(["seed=1", start], ["seed=1"])
    assert not same_stage(["seed=1", start], ["seed=1", start.replace("last", "best")])


class FakeRuns:
    """Stands for the processes of the stages: writes what a run of `vinvl.train` leaves, or ends with a code."""

    def __init__(self, code: int = 0) -> None:
        self.commands: list[list[str]] = []
        self.code = code

    def __call__(self, command: list[str]) -> int:
        self.commands.append(command[3:])
        folder = Path(command[3].removeprefix("hydra.run.dir="))
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(command[4:]), folder / ".hydra" / "overrides.yaml")
        if self.code == 0:
            (folder / "results.json").write_text('{"headline": "loss", "scores": {"loss": 2.5}}')
        return self.code


def test_a_stage_that_has_ended_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = FakeRuns()
    monkeypatch.setattr(pretrain_finetune, "run_passing_signals_on", runs)
    folder = tmp_path / "stage"
    assert figures("finetuning", train_stage(folder, ["seed=1"])) == {"finetuning loss": 2.5}  # of an earlier version
    train_stage(folder, ["seed=1"])
    assert runs.commands == [[f"hydra.run.dir={folder}", "seed=1", "ckpt_path=auto"]]
    with pytest.raises(
        UserError, match=r"stage holds a run of other settings \(seed=1 .*\): choose another hydra.run.dir"
    ):
        train_stage(folder, ["seed=2"])


def test_a_stage_that_was_stopped_is_called_again_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = FakeRuns(code=1)
    monkeypatch.setattr(pretrain_finetune, "run_passing_signals_on", runs)
    with pytest.raises(UserError, match=r"the run in .*stage failed"):
        train_stage(tmp_path / "stage", ["seed=1"])
    for runs.code in (75, 130):
        with pytest.raises(SystemExit) as exited:
            train_stage(tmp_path / "stage", ["seed=1"])
        assert exited.value.code == runs.code  # a launcher's sign to start it again
    runs.code = 0
    train_stage(tmp_path / "stage", ["seed=1"])
    assert len(runs.commands) == 4 and len(set(map(tuple, runs.commands))) == 1


WAITING = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
signal.signal(signal.SIGINT, signal.default_int_handler)
open(sys.argv[1], "w").close()
time.sleep(60)
"""


def test_a_signal_is_passed_on_to_the_stage(tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def ask_to_stop() -> None:
        while not ready.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)  # a terminal would send it to the stage too: it is not sent twice
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=ask_to_stop).start()
    assert run_passing_signals_on([sys.executable, "-c", WAITING, str(ready)]) == 75
    assert signal.getsignal(signal.SIGTERM) == before


NAMES = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
TEXT = st.characters(exclude_characters="$", codec="utf-8")  # of interpolations
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-9999, 9999),
    st.floats(0.001, 1000),
    st.text(TEXT, max_size=8),
    st.lists(NAMES),
)


@given(st.dictionaries(NAMES, st.one_of(LEAVES, st.dictionaries(NAMES, LEAVES, min_size=1)), max_size=4))
def test_sections_become_overrides_that_hydra_reads_back(section: dict[str, Any]) -> None:
    flat = {}
    for key, value in section.items():
        inner = value if isinstance(value, dict) else {"": value}
        flat |= {f"{key}.{name}".rstrip("."): leaf for name, leaf in inner.items()}
    parsed = OverridesParser.create().parse_overrides(as_overrides(OmegaConf.create(section)))
    assert {one.key_or_group: one.value() for one in parsed} == flat
