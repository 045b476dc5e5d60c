"""The table that ends a --multirun."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import TINY_DEMO, Door
from vinvl.run.errors import UserError
from vinvl.run.progress import MultirunTable, comparison, grid, job_rows, results_summary

STAGES = ("train", "val", "test")
SCORES = {"headline": "accuracy", "scores": {"loss": 1.0, "accuracy": 61.5}}


def make_job(sweep: Path, name: str, overrides: list[str], results: object) -> None:
    (sweep / name / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(overrides), sweep / name / ".hydra" / "overrides.yaml")
    if results is not None:
        (sweep / name / "results.json").write_text(json.dumps(results))


def test_jobs_are_held_against_each_other_by_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(11):
        results = {"headline": "accuracy", "scores": {"accuracy": 50.0 + number}}
        make_job(tmp_path, str(number), ["task=vqa", f"seed={number}", "++data.use_tags=false"], results)
    MultirunTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}), config_name="any")
    table = list(csv.reader((tmp_path / "multirun.csv").open()))
    assert table[0] == ["job", "seed", "accuracy", "gain over job 0"]
    assert table[1] == ["0", "0", "50.00", ""]
    assert table[-1] == ["10", "10", "60.00", "+10.00"]  # after 9, not after 1
    printed = capsys.readouterr().out
    assert "11 jobs" in printed and "+10.00" in printed and str(tmp_path / "multirun.csv") in printed


def test_a_job_that_failed_is_a_row_without_figures(tmp_path: Path) -> None:
    make_job(tmp_path, "0", ["lr=1", "~scheduler"], None)
    make_job(tmp_path, "1", ["lr=2", "~scheduler"], SCORES)
    assert comparison(job_rows(tmp_path)) == (
        ["job", "lr", "accuracy", "gain over job 0"],
        [("0", "1", "no result", ""), ("1", "2", "61.50", "")],
    )
    assert comparison(job_rows(tmp_path)[:1]) == (["job", "result"], [("0", "no result")])


def test_a_summary_and_the_validation_are_shown_before_the_headline(tmp_path: Path) -> None:
    """A sweep that chose by the test score would be one that has seen the test split."""
    make_job(tmp_path / "s", "0", ["objective=none"], {"summary": {"finetuning": 40.0}, **SCORES})
    make_job(tmp_path / "s", "1", ["objective=two_way"], {"summary": {"pretraining": 70.0, "finetuning": 36.5}})
    columns, rows = comparison(job_rows(tmp_path / "s"))
    assert columns == ["job", "objective", "pretraining", "finetuning", "gain over job 0"]
    assert rows == [("0", "none", "", "40.00", ""), ("1", "two_way", "70.00", "36.50", "-3.50")]
    chosen_by = [{"split": "dev", "figure": "accuracy", "score": score} for score in (30.0, 33.0)]
    for job, chosen in enumerate(chosen_by):
        make_job(tmp_path / "v", str(job), [f"lr={job}"], {**SCORES, "validation": chosen})
    columns, rows = comparison(job_rows(tmp_path / "v"))
    assert columns == ["job", "lr", "test accuracy", "val accuracy", "gain over job 0"]
    assert rows[1] == ("1", "1", "61.50", "33.00", "+3.00")
    for job, chosen in enumerate(chosen_by):
        part = {} if job == 0 else {"part": "2 of 57 batches"}
        make_job(tmp_path / "p", str(job), [f"lr={job}"], {**SCORES, **part, "validation": {**chosen, **part}})
    columns, rows = comparison(job_rows(tmp_path / "p"))
    assert columns == ["job", "lr", "test accuracy", "val accuracy", "gain over job 0", "only of"]
    assert rows[0][-1] == "" and rows[1][-2:] == ("+3.00", "test 2 of 57 batches, val 2 of 57 batches")
    trained_alone = {"headline": "accuracy", "scores": {}, "validation": chosen_by[0]}
    assert results_summary(trained_alone) == {"val accuracy": 30.0}


def test_a_job_that_says_why_it_failed_fails_the_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_job(tmp_path, "0", ["lr=1"], SCORES)
    make_job(tmp_path, "1", ["lr=2"], None)
    (tmp_path / "1" / "error.txt").write_text("no such file\n")
    with pytest.raises(SystemExit, match=r"error: failed: 1; error.txt in the folder of each says why"):
        MultirunTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert "no result" in capsys.readouterr().out


FOUND = {("a", "none"): 40.0, ("a", "two"): 50.5, ("b", "none"): 38.0, ("b", "two"): None}


def test_jobs_that_differ_in_two_things_are_a_grid_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the figure at test, though jobs are chosen by the one after it."""
    for job, ((features, objective), score) in enumerate(FOUND.items()):
        results = {"summary": {"finetuning test": score, "finetuning val": 1.0}} if score is not None else None
        make_job(tmp_path, str(job), ["seed=1", f"features={features}", f"objective={objective}"], results)
    crossed = grid(job_rows(tmp_path))
    assert crossed is not None and crossed.title == "finetuning test, features × objective"
    assert crossed.columns == ["features", "none", "two", "gain"]
    assert crossed.rows == [
        ("a", "40.00", "50.50", "+10.50"),
        ("b", "38.00", "no result", ""),
        ("gain", "-2.00", "", ""),
    ]
    MultirunTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert list(csv.reader((tmp_path / "grid.csv").open()))[1] == ["a", "40.00", "50.50", "+10.50"]
    assert "finetuning test, features × objective" in capsys.readouterr().out


@pytest.mark.parametrize(
    "jobs",
    [
        [["a=1"], ["a=2"]],
        [["a=1", "b=1", "c=1"], ["a=2", "b=2", "c=2"]],
        [["a=1", "b=1"], ["a=2", "b=1"], ["a=1", "b=2"], ["a=2", "b=1"]],  # a cell for two jobs
    ],
    ids=["one key", "three keys", "a pair twice"],
)
def test_other_jobs_are_no_grid(tmp_path: Path, jobs: list[list[str]]) -> None:
    for number, overrides in enumerate(jobs):
        make_job(tmp_path, str(number), overrides, SCORES)
    assert grid(job_rows(tmp_path)) is None
    MultirunTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert not (tmp_path / "grid.csv").exists()


def test_without_any_figure_there_is_no_grid(tmp_path: Path) -> None:
    for number, overrides in enumerate((["a=1", "b=1"], ["a=2", "b=2"])):
        make_job(tmp_path, str(number), overrides, None)
    assert grid(job_rows(tmp_path)) is None


@pytest.mark.slow
def test_a_sweep_makes_a_run_for_each_value_and_goes_on_after_one_has_failed(door: Door, tmp_path: Path) -> None:
    short = [*TINY_DEMO, "trainer.max_epochs=1", *(f"trainer.limit_{stage}_batches=1" for stage in STAGES)]
    result = door("train", "--multirun", "data.target_rule=none,count/3,leave_one_out", *short)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 and "'none' is no rule" in lines[0] and lines[1].startswith("error: failed: 0;")
    (sweep,) = (tmp_path / "runs" / "multirun").iterdir()
    table = list(csv.reader((sweep / "multirun.csv").open()))
    assert table[0][2:] == ["test accuracy/overall", "val accuracy/overall", "gain over job 0", "only of"]
    assert table[1][-1] == "" and re.fullmatch(r"test 1 of \d+ batches(, val 1 of \d+ batches)?", table[2][-1])
    assert table[1][:3] == ["0", "none", "no result"] and table[2][1] == "count/3" and float(table[2][2]) >= 0
    assert sorted(path.name for path in sweep.iterdir() if path.is_dir()) == ["0", "1", "2"]
    jobs = [sweep / name for name in ("1", "2")]
    used = [OmegaConf.load(job / ".hydra" / "config.yaml").data.target_rule for job in jobs]
    assert used == ["count/3", "leave_one_out"] and all((job / "csv/metrics.csv").is_file() for job in jobs)


@pytest.mark.parametrize("content", ["", "[]", '{"scores": {}}', '{"headline": "a", "scores": {"a": null}}'])
def test_a_damaged_result_file_is_named(tmp_path: Path, content: str) -> None:
    make_job(tmp_path, "0", [], None)
    (tmp_path / "0" / "results.json").write_text(content)
    with pytest.raises(UserError, match=r"0/results\.json is no result file of vinvl"):
        job_rows(tmp_path)


def test_a_sweep_without_jobs_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MultirunTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert capsys.readouterr().out == "" and not list(tmp_path.iterdir())


SEARCHED = [
    *TINY_DEMO, "data.num_workers=0", "trainer.max_epochs=1", "hydra.sweeper.n_trials=2",
    *(f"trainer.limit_{stage}_batches=2" for stage in STAGES), "optim.optimizer.lr=interval(1e-4,1e-3)",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "best"),
    [
        (["--multirun", "hydra/sweeper=optuna", "optimized_metric=val/loss"], max),
        (["hparams_search=optuna", "optimized_metric=val/loss", "callbacks.best.mode=min"], min),
    ],
    ids=["a sweeper", "a search"],
)
def test_optuna_finds_the_best_of_the_validation(
    door: Door, tmp_path: Path, words: list[str], best: Callable[..., float]
) -> None:
    """By the loss, which no two jobs share; the greatest counts, unless the least is asked for."""
    result = door("train", *SEARCHED, *words)
    assert result.returncode == 0 and "alembic" not in result.stdout, result.stdout + result.stderr
    (sweep,) = (tmp_path / "runs" / "multirun").iterdir()
    with (sweep / "multirun.csv").open() as file:
        jobs = list(csv.DictReader(file))
    found = OmegaConf.load(sweep / "optimization_results.yaml")
    scores = [json.loads((sweep / job / "results.json").read_text())["validation"]["score"] for job in ("0", "1")]
    assert scores[0] != scores[1] and found.best_value == best(scores)
    chosen = jobs[scores.index(found.best_value)]
    assert float(chosen["optim.optimizer.lr"]) == found.best_params["optim.optimizer.lr"]
    assert chosen["val loss"] == f"{found.best_value:.2f}" and float(chosen["test accuracy/overall"]) >= 0
    assert f"Best value: {found.best_value}" in result.stdout


@pytest.mark.slow
def test_a_search_whose_jobs_all_fail_says_so(door: Door) -> None:
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", "data.target_rule=choice(no,none)"]
    sentences = [line for line in door("train", "-m", *TINY_DEMO, *words).stderr.splitlines() if "error: " in line]
    assert len(sentences) == 2 and "is no rule" in sentences[0]
    assert sentences[1].startswith("error: No job of the search has a score: error.txt in the folder of each says what")
