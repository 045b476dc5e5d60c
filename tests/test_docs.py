"""The commands, code and links of README and docs: commands compose or parse, code runs, what they name exists."""

import argparse
import ast
import importlib.util
import json
import re
import runpy
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vinvl.app import models_and_detector
from vinvl.regions import RegionStore
from vinvl.run.folders import config_directory, register_resolvers
from vinvl.run.options import open_sections, task_as_a_value
from vinvl.zoo import comparing

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]}
DOORS = (
    "train",
    "evaluate",
    "predict",
    "pretrain_finetune",
    "extract",
    "report",
    "convert",
    "train_detector",
    "evaluate_detector",
    "app",
)
DOOR = re.compile(rf"^(?:python|torchrun .*?) ?-m vinvl\.({'|'.join(DOORS)})\b(.*)$")
PARSED = ("vinvl.regions", "vinvl.pretraining.corpus", "vinvl.compare", "vinvl.download")  # by argparse


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, content) of all blocks of code in a language."""
    return [
        (page, block)
        for page, text in PAGES.items()
        for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]


def shell_commands() -> list[str]:
    """The lines of all bash blocks, each once, continued lines joined, comments gone."""
    joined = "\n".join(block for _, block in blocks("bash")).replace("\\\n", " ")
    lines = [line.split("  #")[0].split(" # ")[0].strip() for line in joined.splitlines() if line.strip()]
    return list(dict.fromkeys(lines))


def door_commands() -> list[tuple[str, list[str]]]:
    matches = [DOOR.match(command) for command in shell_commands()]
    return [(match[1], shlex.split(match[2])) for match in matches if match]


def test_the_pages_show_all_doors_and_no_command_that_is_not_tested_here() -> None:
    assert {name for name, _ in door_commands()} == set(DOORS)
    known = (*(f"python -m {module} " for module in PARSED), "make ", "source .venv/bin/activate")
    others = [line for line in shell_commands() if not DOOR.match(line) and not line.startswith(known)]
    launched = [match for line in others if (match := re.search(r"\bscripts/\w+\.sh experiment=\w+$", line))]
    assert len(launched) == len(others), others
    assert all((ROOT / match[0].split()[0]).is_file() for match in launched)


@pytest.mark.parametrize(("name", "overrides"), door_commands(), ids=lambda value: " ".join(value) or "plain")
def test_every_door_command_composes(name: str, overrides: list[str]) -> None:
    register_resolvers()
    sweep = "--multirun" in overrides
    overrides = [override for override in overrides if override != "--multirun"]
    if sweep:
        # The launcher of SLURM is a package of its own.
        overrides = [
            re.sub(r"(?:range|interval)\(([\w.-]+),[\w.-]+\)", r"\1", one).split(",")[0]
            for one in overrides
            if not one.startswith("hydra/launcher=")
        ]
    words = comparing(overrides) if name == "evaluate" else overrides
    composed = open_sections(words) if name in ("evaluate", "predict") else words
    composed = task_as_a_value(composed) if name == "convert" else composed
    composed = models_and_detector(composed) if name == "app" else composed
    composed = [f"+{word}" if word.startswith("stores.") else word for word in composed]  # as the door itself does
    with initialize_config_dir(config_directory(), version_base="1.3"):
        config = compose(name, composed, return_hydra_config=True)
        OmegaConf.set_readonly(config.hydra, False)
        config.hydra.runtime.output_dir = "runs/test"
    for override in overrides:
        key, _, value = override.partition("=")
        if "." in key:
            found = str(OmegaConf.select(config, key)).replace("'", "")  # around the texts of a list or dictionary
            value = str(float(value)) if re.fullmatch(r"\d+e-?\d+", value) else value
            assert found.lower() == " ".join(value.strip("'").split()).lower(), override


class Parsed(BaseException):
    """What is raised in place of the work of a command whose arguments are understood."""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("module", PARSED)
def test_commands_without_hydra_parse(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> None:
        parse(parser, arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    commands = [line for line in shell_commands() if line.startswith(f"python -m {module} ")]
    assert commands
    for command in commands:
        monkeypatch.setattr("sys.argv", ["command", *shlex.split(command)[3:]])
        with pytest.raises(Parsed):
            runpy.run_module(module, run_name="__main__", alter_sys=True)


def test_everything_named_in_passing_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    text = "\n".join(PAGES.values())
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)\b", text, re.MULTILINE)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for module in set(re.findall(r"python -m (vinvl[\w.]*)", text)):
        assert importlib.util.find_spec(module), module
    for path in set(re.findall(r"(?:benchmarks|scripts|conf)/\w[\w/]*\.\w+", text)) - {"conf/experiment/memes.yaml"}:
        assert (ROOT / path).is_file(), path


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    """Links between the pages of docs/ are checked where the site is built (`make lint`)."""
    readme = PAGES["README.md"]
    assert len(readme.splitlines()) <= 200
    links = [link for link in re.findall(r"\]\(([^)]+)\)", readme) if not link.startswith("http")]
    assert len(links) >= 10
    for link in links:
        path, _, anchor = link.partition("#")
        assert (ROOT / path).is_file(), link
        headings = re.findall(r"^#+ (.*)$", PAGES.get(Path(path).name, ""), re.MULTILINE)
        anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, link


def test_code_is_python_and_lines_of_data_are_json() -> None:
    for _, code in blocks("python"):
        ast.parse(code)
    assert [json.loads(block) for _, block in blocks("json")]


def section(page: str, heading: str) -> str:
    """The first Python block below a heading."""
    return sections(page, heading)[0]


def sections(page: str, heading: str) -> list[str]:
    """The Python blocks below a heading."""
    found: list[str] = re.findall(r"```python\n(.*?)```", PAGES[page].split(f"## {heading}\n")[1], re.DOTALL)
    return found


def test_the_library_example_runs(demo_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo_data.parent)
    # The example's checkpoint folder is the reader's; everything else runs as printed.
    code = section("library.md", "Models and stores")
    names: dict = {}
    exec(code.replace('"data/demo', f'"{demo_data}/demo').replace('"FOLDER of an Oscar+ checkpoint"', "None"), names)
    assert names["rows"].shape[1] == 2054
    assert names["model"].config.num_labels == 3129


def test_the_example_of_features_of_ones_own_writes_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    labels = {"label_to_idx": {"cup": 1}, "attribute_to_idx": {"red": 1}}
    Path("VG-SGG-dicts-vgoi6-clipped.json").write_text(json.dumps(labels))
    made = SimpleNamespace(
        id=17,
        features=np.ones((2, 2048), dtype=np.float16),
        boxes=np.array([[0, 0, 5, 5], [1, 1, 9, 9]], dtype=np.float32),
        classes=np.array([1, 1]),
        scores=np.array([0.9, 0.8]),
        attributes=np.ones((2, 16), dtype=np.int64),
        attribute_scores=np.full((2, 16), 0.5),
        width=10,
        height=10,
    )
    alone, whole = sections("own-data.md", "Features from your own network")
    for code, store in ((alone, "regions.h5"), (whole, "data/vqa2/regions")):
        exec(code, {"my_features": lambda: [made]})
        regions = RegionStore(store)["17"]
        assert regions.features.shape == (2, 2048) and regions.boxes[1].tolist() == [1, 1, 9, 9]
    assert RegionStore("data/vqa2/regions").label_map.classes[1] == "cup"
