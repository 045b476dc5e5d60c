"""The page of `vinvl.app`, served by the door as a user starts it, and a real Chromium that looks at it."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import torch

from tests.detector.samples import SMALL, small_detector
from tests.door_runs import ON_CPU, door_environment
from tests.predictor.conftest import folder, own_runs
from vinvl.detector.weights import save_detector
from vinvl.models import VinVLConfig
from vinvl.models.answering import VinVLForPairs
from vinvl.regions import LabelMap

__all__ = ["folder", "own_runs"]  # fixtures of the predictor's tests
HOSTILE = "<img src=x onerror=alert(1)> ${alert(2)} {{3}}"
KINDS = {"label_to_idx": SMALL.architecture.num_classes, "attribute_to_idx": SMALL.architecture.num_attributes}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They are for `make test-app`, which sets VINVL_TEST_APP; where something is missing they say what."""
    missing = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
    missing += [] if CHROMIUM else ["a program called chromium"]
    reason = f"{', '.join(missing)} missing" if missing else "run by make test-app"
    if missing or "VINVL_TEST_APP" not in os.environ:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


class Served:
    """A running `python -m vinvl.app`."""

    def __init__(self, folder: Path, data: Path, *arguments: str) -> None:
        self.folder, self.temporary = folder, folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.log = folder / "log.txt"
        environment = door_environment(data) | ON_CPU | {"TMPDIR": str(self.temporary), "PYTHONUNBUFFERED": "1"}
        (folder / "cwd").mkdir()
        with self.log.open("w") as log:
            command = [sys.executable, "-m", "vinvl.app", *arguments]
            self.process = subprocess.Popen(command, cwd=folder / "cwd", env=environment, stdout=log, stderr=log)
        self.address = self._wait()

    def printed(self) -> str:
        return self.log.read_text()

    def uploads(self) -> list[Path]:
        """What of pictures lies in the folder of uploads; those that the page offers lie there too, and empty files."""
        return [path for path in self.temporary.rglob("*") if path.is_file() and path.stat().st_size]

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def _wait(self) -> str:
        deadline = time.monotonic() + 120
        while (found := re.search(r"Open (http://\S+)", self.printed())) is None:
            assert self.process.poll() is None and time.monotonic() < deadline, self.printed()
            time.sleep(0.05)
        return found[1]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """Chromium without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


class Looked:
    """A page in the browser, and all that it has asked for."""

    def __init__(self, chromium: Any, address: str, width: int) -> None:
        self.page = chromium.new_page(viewport={"width": width, "height": 900})
        self.requests, self.errors = list[str](), list[str]()
        self.page.on("request", lambda one: self.requests.append(one.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.set_default_timeout(20_000)
        self.page.goto(address)
        self.page.wait_for_selector("input[type=file]", state="attached")

    def give(self, *files: Path) -> None:
        """Uploads a picture into each place for one."""
        for number, file in enumerate(files):
            self.page.locator("input[type=file]").nth(number).set_input_files(file)

    def hosts(self) -> set[str | None]:
        return {urlparse(url).hostname for url in self.requests if not url.startswith(("data:", "blob:"))}


@pytest.fixture(scope="session")
def served(
    own_runs: dict[str, Path], folder: Path, demo_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The page of a model for each of questions, captions and scores; two for questions."""
    models = [own_runs[task].parents[1] for task in ("vqa", "captioning", "retrieval")]
    twice = [*models, own_runs["vqa"]]
    running = Served(
        tmp_path_factory.mktemp("app"), demo_data, f"model=[{','.join(map(str, twice))}]",
        f"detector={folder / 'detector.pth'}", f"examples={folder / 'pictures'}", "most_examples=3",
        "max_pixels=1000000", "most_megabytes=2",
    )  # fmt: skip
    try:
        yield running
    finally:
        running.end()


@pytest.fixture(scope="session")
def statements(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of an untrained model for statements about two pictures, whose detector has hostile names."""
    folder = tmp_path_factory.mktemp("statements")
    labels = {kind: {f"{HOSTILE} {i}": i for i in range(1, count)} for kind, count in KINDS.items()}
    save_detector(folder / "detector.pth", small_detector(), LabelMap.from_json(json.dumps(labels)))
    config = VinVLConfig(
        vocab_size=2000, hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16,
        img_feature_dim=SMALL.architecture.c5_channels + 6, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    VinVLForPairs(config).save_pretrained(folder / "model")
    shutil.copytree(demo_data / "demo" / "tokenizer", folder / "model", dirs_exist_ok=True)
    running = Served(
        folder / "app", demo_data, f"model={folder / 'model'}", f"detector={folder / 'detector.pth'}", "task=nlvr2"
    )
    try:
        yield running
    finally:
        running.end()
