"""The wheel: the configs travel in it, and an installation works without the clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.conftest import TINY_DEMO
from tests.door_runs import call_copy, door_environment

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "src", "conf")
TINY_WORLD = [
    "data.prepare.num_train_images=8", "data.prepare.num_val_images=3", "data.prepare.num_test_images=3",
    "data.prepare.questions_per_image=6",
]  # fmt: skip


def run(folder: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `python COMMAND` in a folder; it must succeed. Nothing of this process's settings of vinvl goes along."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("VINVL_DATA", "PYTHONPATH")}
    result = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=inherited | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the clone stays as it is."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "clone"
    copy.mkdir()
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=left_out)
        else:
            shutil.copy(ROOT / name, copy / name)
    run(copy, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder / "dist"), str(copy))
    (path,) = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages with vinvl in it."""
    folder = tmp_path_factory.mktemp("installed") / "site"
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", "--no-compile")
    run(folder.parent, "-m", "pip", "install", *quiet, "--target", str(folder), str(wheel))
    return folder


def test_the_wheel_holds_all_modules_and_all_configs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for kind in ("*.py", "*.html") for path in (ROOT / "src").rglob(kind)]
    modules = {path.relative_to(ROOT / "src").as_posix() for path in files}
    configs = {f"vinvl/conf/{path.relative_to(ROOT / 'conf').as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert packed == modules | configs | {"vinvl/py.typed"}


def call_installed(folder: Path, installed: Path, *arguments: str) -> str:
    """What `python -m vinvl.train` of the installed copy prints; an installation of the clone lies here too."""
    environment = {name: value for name, value in door_environment(folder).items() if name != "VINVL_DATA"}
    environment |= {"PYTHONPATH": str(installed)}
    result = call_copy(folder, installed, "vinvl.train", *arguments, environment=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_an_installation_prints_its_configuration(installed: Path, tmp_path: Path) -> None:
    given = ["--cfg", "job", "--resolve", "experiment=vqa2_base", "name=here", "paths.output_dir=out"]
    config = yaml.safe_load(call_installed(tmp_path, installed, *given))
    assert config["data"]["batch_size"] == 32 and config["paths"]["data_dir"] == str(tmp_path / "data")
    assert not any(tmp_path.iterdir())


def test_an_installation_trains_below_the_folder_it_is_called_from(installed: Path, tmp_path: Path) -> None:
    call_installed(tmp_path, installed, *TINY_DEMO, *TINY_WORLD, "trainer.max_steps=1", "trainer.limit_test_batches=2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "runs"]
    assert (tmp_path / "data" / "demo" / "train.h5").is_file()
    (results,) = (tmp_path / "runs" / "demo_vqa").glob("*/results.json")
    assert results.stat().st_size > 0
    assert not [path for path in installed.parent.iterdir() if path != installed]
