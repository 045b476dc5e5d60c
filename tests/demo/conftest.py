"""The demo world of the tests, for its files' tests."""

from pathlib import Path

import pytest

from vinvl.demo import DemoWorld


@pytest.fixture(scope="module")
def world(demo_data: Path) -> DemoWorld:
    return DemoWorld(demo_data / "demo")
