"""Shared by the tests: one tiny demo world, and the doors as a user calls them."""

import gc
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from tests import golden
from tests.door_runs import call, door_environment
from tests.hub_server import Hub, running_hub

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded at test time
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # what OmegaConf reads with, in less time
settings.register_profile("brief", max_examples=40, deadline=None)
settings.load_profile("brief")

TINY_WORLD = {"num_train_images": 24, "num_val_images": 6, "num_test_images": 6, "questions_per_image": 6}
TINY_MODEL = [
    "model.config.hidden_size=32",
    "model.config.num_hidden_layers=2",
    "model.config.num_attention_heads=2",
    "model.config.intermediate_size=64",
    # Dropout on, so that a resumed run must also draw the same random numbers.
    "model.config.hidden_dropout_prob=0.1",
    "model.config.attention_probs_dropout_prob=0.1",
]
TINY_DEMO = [
    *(f"data.prepare.{name}={value}" for name, value in TINY_WORLD.items()),
    "data.min_answer_count=2",
    "data.batch_size=16",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=2",
    *TINY_MODEL,
]

Door = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with a tiny demo world in `demo/`, and its answer vocabulary.

    The first run would make the vocabulary, from its own `data.min_answer_count`: which test is first must not matter.
    """
    from vinvl.demo import ensure_demo_world
    from vinvl.vqa.answers import AnswerVocabulary
    from vinvl.vqa.files import read_official

    folder = tmp_path_factory.mktemp("data")
    world = ensure_demo_world(folder / "demo", seed=0, workers=1, **TINY_WORLD)
    records = read_official(world.questions("train"), world.annotations("train"))
    vocabulary = AnswerVocabulary.build(
        records["answers"], min_count=2, multiple_choice_answers=records.get("multiple_choice_answer")
    )
    vocabulary.save(world.folder / "answers.json")
    return folder


@pytest.fixture
def door(demo_data: Path, tmp_path: Path) -> Door:
    """Runs `python -m vinvl.DOOR overrides` in an empty folder and returns what it did."""

    def run(name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
        return call(tmp_path, f"vinvl.{name}", *overrides, environment=door_environment(demo_data))

    return run


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The one sentence of a door that refused: exit code 1, no traceback."""
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr + result.stdout, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays: no later collection of garbage looks through it."""
    gc.collect()
    gc.freeze()


# Tests are quick: judged by the time of the processor, of the process and of those that it started and waited for, as a
# clock also counts what others do. It is told and fails nothing, for there are slower machines.

LONGEST = 20.0  # seconds of a test that is not marked `slow`
TOO_LONG = "processor_seconds"  # as it travels from workers of pytest-xdist


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    begin = sum(os.times()[:4])
    try:
        yield
    finally:
        spent = sum(os.times()[:4]) - begin
        if spent > LONGEST and item.get_closest_marker("slow") is None:
            item.user_properties.append((TOO_LONG, spent))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [one for kind in ("passed", "failed") for one in terminalreporter.getreports(kind) if one.when == "call"]
    found = [(spent, one.nodeid) for one in reports for name, spent in one.user_properties if name == TOO_LONG]
    if found:
        terminalreporter.section(f"Shorten these, or mark them slow: {len(found)} tests of more than {LONGEST:.0f} s")
    for spent, test in sorted(found, reverse=True):
        terminalreporter.write_line(f"{spent:.0f} s of the processor: {test}")


READ_BY_WORKERS = "golden_read"


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker of pytest-xdist read."""
    golden.READ.update(getattr(node, "workeroutput", {}).get(READ_BY_WORKERS, ()))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Every part of every recording is read by some test: known only when all of them have passed."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput[READ_BY_WORKERS] = sorted(golden.READ)
        return
    choices = ("keyword", "markexpr", "collectonly", "deselect", "ignore", "lf")
    chosen = any(getattr(config.option, name, None) for name in choices)
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS and not chosen
    unread = golden.unread(golden.READ) if whole and exitstatus == 0 else []
    if unread:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\nNo test reads {len(unread)} parts of tests/data/golden:", *unread, sep="\n  ")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hugging Face hub without repositories, which this process asks for models by name."""
    with running_hub(tmp_path / "hub", monkeypatch) as hub:
        yield hub
