"""The shape of the package: small files, no circles of imports, and no task that loads what only others need."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vinvl

PACKAGE = Path(vinvl.__file__).parent
MOST_LINES, MOST_OF_A_FUNCTION = 480, 60
LAYERS = (  # a room imports those above it in this list, and none beside it
    ("run",),
    ("regions", "models"),
    ("data",),
    ("pictures", "opening", "schedules", "exact", "zoo", "examples", "downloads", "composing"),
    ("said", "panels"),
    ("task",),
    ("vqa", "gqa", "nlvr2", "retrieval", "captioning", "pretraining", "detector"),
    ("extraction", "pages", "demo"),
    ("predictor", "comparison"),
    ("restore", "plan", "published", "asking"),
    ("results",),
    (
        "train",
        "train_detector",
        "pretrain_finetune",
        "evaluate",
        "evaluate_detector",
        "predict",
        "extract",
        "convert",
        "report",
        "compare",
        "app",
        "download",
        "info",
        "__main__",
        "vinvl",
    ),
)
EXCEPTIONS = {
    ("gqa", "vqa"),  # its answers
    ("opening", "vqa"),  # the answers of a model's head
    ("retrieval", "captioning"),  # its captions
    ("train_detector", "train"),
    ("vinvl", "train"),  # which is called by that name
}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, known: dict[str, Path], *, ever: bool = False) -> set[str]:
    """Modules of ours that a module imports when it is imported itself, or ever: in one of its functions too."""
    found, tree = set(), ast.parse(path.read_text())
    for statement in ast.walk(tree) if ever else tree.body:
        if isinstance(statement, ast.Import):
            found |= {alias.name for alias in statement.names} & known.keys()
        if isinstance(statement, ast.ImportFrom) and statement.module is not None:
            inner = {f"{statement.module}.{alias.name}" for alias in statement.names}
            found |= ({statement.module} | inner) & known.keys()
    return found


def test_no_file_is_long() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}


def test_functions_fit_a_screen() -> None:
    long = {
        f"{name}.{one.name}": (one.end_lineno or 0) - one.lineno + 1
        for name, path in modules().items()
        for one in ast.walk(ast.parse(path.read_text()))
        if isinstance(one, ast.FunctionDef)
    }
    assert {name: lines for name, lines in long.items() if lines > MOST_OF_A_FUNCTION} == {}


def test_imports_go_round_in_no_circle() -> None:
    known = modules()
    left = {name: imported(path, known) - {name} for name, path in known.items() if path.name != "__init__.py"}
    while free := {name for name, needs in left.items() if not needs & left.keys()}:
        left = {name: needs for name, needs in left.items() if name not in free}
    assert left == {}


def room(module: str) -> str:
    return (module.split(".") * 2)[1]


def test_imports_go_down() -> None:
    known = modules()
    layer_of = {name: layer for layer, names in enumerate(LAYERS) for name in names}
    assert {room(name) for name in known} == layer_of.keys()
    upwards = {
        (room(name), room(need)): f"{name} imports {need}"
        for name, path in known.items()
        for need in imported(path, known, ever=True) - {"vinvl"}
        if room(name) != room(need) and layer_of[room(need)] >= layer_of[room(name)]
    }
    assert {pair: told for pair, told in upwards.items() if pair not in EXCEPTIONS} == {}
    assert upwards.keys() >= EXCEPTIONS


@pytest.mark.parametrize("module", ["vinvl.restore", "vinvl.vqa.task", "vinvl.data.batch"])
def test_what_a_task_does_not_load(module: str) -> None:
    known, loaded, waiting = modules(), set[str](), [module]
    while waiting:
        name = waiting.pop()
        parents = {name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)}  # their __init__ runs too
        waiting += (parents | imported(known[name], known)) - loaded - {name}
        loaded.add(name)
    assert len(loaded) > 5 and not {room(name) for name in loaded} & {"detector", "extraction", "predictor"}
    others = {"captioning", "pretraining", "decoding", "generate", "constrained", "published"}  # heads, and their use
    assert not loaded & {f"vinvl.models.{name}" for name in others}


def test_doors_are_imported_without_what_takes_seconds() -> None:
    """They import it where they work: help, and a sentence about a misspelt option, need none of it."""
    doors = [*LAYERS[-1][:-1], "regions.__main__"]
    program = f"""
import importlib, sys
for door in {doors}:
    importlib.import_module(f"vinvl.{{door}}")
    heavy = [name for name in ("torch", "pytorch_lightning", "transformers") if name in sys.modules]
    assert not heavy, (door, heavy)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
