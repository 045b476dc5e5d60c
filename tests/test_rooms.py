"""The shape of the package: small files, no circles of imports, and no task that loads what only others need."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vinvl

PACKAGE = Path(vinvl.__file__).parent
MOST_LINES = 480


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of ours that a module imports when it is imported itself."""
    found = set()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.ImportFrom) and statement.module is not None:
            inner = {f"{statement.module}.{alias.name}" for alias in statement.names}
            found |= ({statement.module} | inner) & known.keys()
    return found


def test_no_file_is_long() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_imports_go_round_in_no_circle() -> None:
    known = modules()
    left = {name: imported(path, known) - {name} for name, path in known.items() if path.name != "__init__.py"}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert left == {}


@pytest.mark.parametrize("module", ["vinvl.evaluate", "vinvl.vqa.task", "vinvl.data.batch"])
def test_what_a_task_does_not_load(module: str) -> None:
    program = f"import sys, {module}; print(*(name for name in sys.modules if name.startswith('vinvl.')))"
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    others = ("vinvl.detector", "vinvl.extraction", "vinvl.predictor")
    assert module in loaded and [name for name in loaded if name.startswith(others)] == []
