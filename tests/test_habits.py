"""The files for who works on this code: hooks, workflow, issue templates and CONTRIBUTING say what is so."""

import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests import conftest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
SETUP = ConfigParser()
SETUP.read(ROOT / "setup.cfg")
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")


def made(command: str) -> None:
    """Checks that a `make` command names targets, variables and files that there are."""
    first, *words = command.split()
    assert first == "make"
    for word in words:
        name, is_set, value = word.strip("\"'").partition("=")
        assert re.search(rf"^{name} \?=" if is_set else rf"^{name}:", MAKEFILE, re.MULTILINE), word
        assert name != "CONSTRAINTS" or (ROOT / value).is_file(), word


def floors() -> dict[str, str]:
    """The oldest releases that are admitted, of what the file of floors pins."""
    wanted = dict(line.split(">=") for line in SETUP["options"]["install_requires"].split() if ">=" in line)
    lines = (ROOT / "constraints-floors.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pinned == {name: wanted[name] + ".0" * (2 - wanted[name].count(".")) for name in pinned}
    return pinned


def test_the_workflow_runs_what_ci_runs_on_every_supported_python() -> None:
    jobs = WORKFLOW["jobs"]
    commands = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    made_there = [one for run in commands.values() for one in run if not one.startswith("apt-get ")]
    for command in made_there:
        made(command)
    in_ci = re.findall(r"^\s*make ([\w-]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert set(in_ci) == {word for command in made_there for word in command.split()[1:] if "=" not in word}
    assert commands["test"] == ["make lint test"] and floors().keys() == {"torch", "transformers"}
    assert any("CONSTRAINTS=constraints-floors.txt" in command for command in commands["floors"])
    pythons = jobs["test"]["strategy"]["matrix"]["python"]
    oldest = SETUP["options"]["python_requires"].removeprefix(">=")
    assert pythons == ["3.11", "3.12", "3.13"] and pythons[0] == oldest
    said = re.findall(r"^Programming Language :: Python :: (\d+\.\d+)$", SETUP["metadata"]["classifiers"], re.MULTILINE)
    assert said == pythons
    setups = [step["with"] for job in jobs.values() for step in job["steps"] if "setup-python" in step.get("uses", "")]
    assert setups[1]["python-version"] == oldest  # where the floors are tried
    assert jobs["app"]["container"].startswith(f"python:{oldest}-")
    for setup in setups:
        assert all((ROOT / path).is_file() for path in setup["cache-dependency-path"].split())


def test_hooks_are_what_lint_runs_with_the_tools_of_the_environment() -> None:
    (local,) = HOOKS["repos"]
    assert local["repo"] == "local"
    lint = MAKEFILE.split("\nlint:")[1].split("\n\n")[0]
    extras = SETUP["options.extras_require"]
    installed = {re.split("[<>=]", line)[0] for line in (extras["lint"] + extras["docs"]).split()}
    for hook in local["hooks"]:
        tool, *words = hook["entry"].removeprefix(".venv/bin/").split()
        assert tool in installed and hook["language"] == "system"
        assert " ".join([f"$(BIN)/{tool}", *(word for word in words if word != "--force-exclude")]) in lint
    assert lint.count("$(BIN)/") == len(local["hooks"]) == len({hook["entry"] for hook in local["hooks"]})


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_forms_ask_for_what_vinvl_info_prints(form: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(form.read_text())
    assert content["name"] and content["description"] and "vinvl info" in form.read_text()
    kinds = {"textarea", "input", "dropdown", "checkboxes", "markdown"}
    ids = [field["id"] for field in content["body"]]
    assert len(set(ids)) == len(ids) and len(FORMS) >= 2
    for field in content["body"]:
        assert field["type"] in kinds and field["attributes"]["label"]


def test_contributing_names_what_there_is() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = re.search("```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None
    for line in block[1].splitlines():
        made(re.sub('ARGS="[^"]*"', 'ARGS=""', line.partition("#")[0].strip()))
    for link in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), re.MULTILINE)
        assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings], link
    for path in re.findall(r"`((?:src|tests|conf|docs)/[\w./]+)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path
    rooms = (ROOT / "tests" / "test_rooms.py").read_text()
    assert "MOST_LINES, MOST_OF_A_FUNCTION = 480, 60" in rooms and "480 lines, functions at most 60" in text
    assert "(CONTRIBUTING.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("marked", "rounds"), [(None, 10**7), (True, 10**7), (None, 1)])
def test_a_long_test_is_told_of_unless_it_is_marked_slow(
    marked: bool | None, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    item: Any = SimpleNamespace(user_properties=[], get_closest_marker=lambda name: marked if name == "slow" else None)
    with monkeypatch.context() as shorter:
        shorter.setattr(conftest, "LONGEST", 0.1)
        call = conftest.pytest_runtest_call(item)
        next(call)
        subprocess.run([sys.executable, "-ISc", f"for _ in range({rounds}): pass"], check=True)
        assert next(call, "over") == "over"
    report = SimpleNamespace(when="call", nodeid="test_it", user_properties=item.user_properties)
    told: list[str] = []
    reporter: Any = SimpleNamespace(
        getreports=lambda kind: [report] if kind == "passed" else [], section=told.append, write_line=told.append
    )
    conftest.pytest_terminal_summary(reporter)
    assert len(told) == (0 if marked or rounds == 1 else 2) and all(line.endswith("test_it") for line in told[1:])
