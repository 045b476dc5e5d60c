"""The commands and code of README and TASKS: every door command composes, the library example runs."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from vinvl.run.folders import config_directory, open_sections, register_resolvers, task_as_a_value

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TASKS = (ROOT / "TASKS.md").read_text(encoding="utf-8")
FEATURES = (ROOT / "docs" / "features.md").read_text(encoding="utf-8")
DOORS = ("train", "evaluate", "predict", "pretrain_finetune", "extract", "report", "convert", "train_detector")
DOOR = re.compile(rf"^(?:python|torchrun .*?) ?-m vinvl\.({'|'.join(DOORS)})\b(.*)$")


def shell_commands() -> list[str]:
    """The lines of all bash blocks, continued lines joined, comments gone."""
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", README + TASKS + FEATURES, re.DOTALL)).replace("\\\n", " ")
    return [line.split("  #")[0].split(" # ")[0].strip() for line in blocks.splitlines() if line.strip()]


def door_commands() -> list[tuple[str, list[str]]]:
    matches = [DOOR.match(command) for command in shell_commands()]
    return [(match[1], shlex.split(match[2])) for match in matches if match]


def test_the_readme_shows_door_commands_at_all() -> None:
    assert {name for name, _ in door_commands()} == set(DOORS)
    assert len(door_commands()) >= 12


@pytest.mark.parametrize(("name", "overrides"), door_commands(), ids=lambda value: " ".join(value) or "plain")
def test_every_door_command_composes(name: str, overrides: list[str]) -> None:
    register_resolvers()
    sweep = "--multirun" in overrides
    overrides = [override for override in overrides if override != "--multirun"]
    if sweep:
        # The launcher of SLURM is a package of its own.
        overrides = [
            re.sub(r"range\((\d+),\d+\)", r"\1", one).split(",")[0]
            for one in overrides
            if not one.startswith("hydra/launcher=")
        ]
    composed = open_sections(overrides) if name in ("evaluate", "predict") else overrides
    composed = task_as_a_value(composed) if name == "convert" else composed
    with initialize_config_dir(config_directory(), version_base="1.3"):
        config = compose(name, composed, return_hydra_config=True)
        OmegaConf.set_readonly(config.hydra, False)
        config.hydra.runtime.output_dir = "runs/test"
    for override in overrides:
        key, _, value = override.partition("=")
        if "." in key:
            assert str(OmegaConf.select(config, key)).lower() == value.strip("'").lower(), override


def test_every_make_target_named_exists() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)\b", README)) - {"sure"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_library_example_runs(demo_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = README.split("## As a library")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(demo_data.parent)
    # The example's checkpoint folder is the reader's; everything else runs as printed.
    runnable = code[1].replace('"data/demo', f'"{demo_data}/demo').replace('"FOLDER of an Oscar+ checkpoint"', "None")
    names: dict = {}
    exec(runnable, names)
    assert names["rows"].shape[1] == 2054
    assert names["model"].config.num_labels == 3129
