"""The doors within the process of the tests: what they do, without the seconds that a new process costs.

`conftest.Door` and `door_runs` call the doors as a user does; use these where such a call is tested already.
"""

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from tests.conftest import TINY_MODEL, TINY_WORLD
from vinvl.app import app
from vinvl.evaluate import evaluate
from vinvl.evaluate_detector import evaluate_detector
from vinvl.examples import Outcome, read_examples
from vinvl.extraction.run import extract
from vinvl.predict import predict
from vinvl.report import report
from vinvl.run.checkpoint import read_checkpoint
from vinvl.run.door import run_door
from vinvl.run.folders import config_directory
from vinvl.train import train

DOORS: dict[str, Callable[[DictConfig], object]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "train_detector": train,
    "evaluate_detector": evaluate_detector,
    "extract": extract,
    "report": report,
    "app": app,
}
WORLD = [f"data.prepare.{name}={value}" for name, value in TINY_WORLD.items()]
TINY = [*WORLD, "data.batch_size=16", "trainer.accelerator=cpu", "trainer.max_epochs=1", *TINY_MODEL]
CAPTIONING = ["task=captioning", *TINY, "task.options.java_metrics=false", "decoding.num_beams=2"]


@contextmanager
def composed(door: str, data: Path, output: Path, *overrides: str) -> Iterator[DictConfig]:
    """A door's configuration as Hydra would hand it over, for a run in `output` with the demo world of `data`."""
    given = [*overrides, f"hydra.runtime.output_dir={output}", f"paths.data_dir={data}"]
    with initialize_config_dir(config_dir=config_directory(), version_base="1.3"):
        config = compose(door, overrides=given, return_hydra_config=True)
    HydraConfig.instance().set_config(config)  # for ${hydra:…}, and for doors that ask which overrides were given
    try:
        (output / ".hydra").mkdir(parents=True, exist_ok=True)
        own = DictConfig({name: node for name, node in config.items() if name != "hydra"})
        OmegaConf.save(own, output / ".hydra" / "config.yaml")
        yield own
    finally:
        HydraConfig.instance().cfg = None


def run_in_process(door: str, data: Path, output: Path, *overrides: str) -> str:
    """Runs a door that must succeed; returns what it printed and warned of."""
    printed = StringIO()
    with (
        _undisturbed(),
        redirect_stdout(printed),
        redirect_stderr(printed),
        warnings.catch_warnings(record=True) as told,
    ):
        warnings.simplefilter("always")
        with composed(door, data, output, *overrides) as config:
            run_door(DOORS[door], config)
    return printed.getvalue() + "\n".join(str(one.message) for one in told)


def refused_in_process(door: str, data: Path, output: Path, *overrides: str) -> str:
    """The one sentence of a door that refuses; nothing is left of its run."""
    with (
        _undisturbed(),
        redirect_stdout(StringIO()),
        composed(door, data, output, *overrides) as config,
        pytest.raises(SystemExit) as exited,
    ):
        run_door(DOORS[door], config)
    sentence = exited.value.code  # what sys.exit prints before it exits with 1
    assert isinstance(sentence, str) and sentence.startswith("error: ") and "\n" not in sentence, sentence
    assert not output.exists(), sorted(output.rglob("*"))
    return sentence


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Puts back what a door sets for its whole process."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level, environment, threads = logger.level, dict(os.environ), torch.get_num_threads()
    try:
        yield
    finally:
        logger.setLevel(level)
        torch.set_num_threads(threads)
        os.environ.clear()
        os.environ.update(environment)


def checkpoint(run: Path, which: str = "best") -> str:
    """The override that names a run's checkpoint."""
    return f"ckpt_path={run / 'checkpoints' / which}.ckpt"


def scores(run: Path) -> dict[str, float]:
    """The figures in a run's results.json."""
    found: dict[str, float] = json.loads((run / "results.json").read_text())["scores"]
    return found


def examples(run: Path) -> list[dict[str, Any]]:
    """The examples of a run, of which the mean score is the headline figure, of retrieval each direction's R@1."""
    told, found = json.loads((run / "results.json").read_text()), read_examples(run / "examples.parquet")
    about = found.about
    source = told["checkpoint"]
    assert (about.split, about.headline, about.source) == (told["split"], told["headline"], source)
    assert about.left_out == told.get("left_out", 0)
    rows: list[dict[str, Any]] = found.table.to_pylist()
    figures = {about.headline: rows}
    if about.task == "retrieval":
        ways = ("image_to_text", "text_to_image")
        figures = {f"{way}/R@1": [row for row in rows if row["group"] == way] for way in ways}
    for name, part in figures.items():
        assert sum(row["score"] for row in part) / len(part) == pytest.approx(told["scores"][name], abs=1e-6)
    return rows


def scored_alike(data: Path, output: Path, results: Path, run: Path, *overrides: str) -> str:
    """Scores a file of results without its model, as the `run` that scored the model did. What was printed."""
    given = [f"results={results}", "java_metrics=false", *overrides, *WORLD]
    printed = run_in_process("evaluate", data, output, *given)
    found, own = scores(output), scores(run)
    assert found == pytest.approx({name: own[name] for name in found}, abs=1e-5)
    told = json.loads((output / "results.json").read_text())
    assert told["headline"] in found and told["results"] == str(results) and "missing" not in told
    ours, theirs = (read_examples(folder / "examples.parquet") for folder in (output, run))
    alike = [name for name in Outcome._fields if name not in ("score", "best", "probabilities")]
    assert ours.table.select(alike) == theirs.table.select(alike)
    np.testing.assert_allclose(ours.numpy("score"), theirs.numpy("score"), rtol=0, atol=1e-9)
    assert ours.about.task == theirs.about.task
    assert ours.about.source == str(results)
    return printed


def assert_same_weights(one: Path, other: Path) -> None:
    """The last weights of two runs are bit-equal."""
    assert same_weights(one, other)


def same_weights(one: Path, other: Path) -> bool:
    """Whether the last weights of two runs are bit-equal."""
    first, second = (read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (one, other))
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)
