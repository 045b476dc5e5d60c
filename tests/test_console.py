"""The command `vinvl`: doors by name, help, completion, facts; and a reader of its output who leaves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vinvl
from tests.conftest import TINY_DEMO
from tests.door_in_process import run_in_process
from tests.test_rooms import LAYERS
from vinvl import info
from vinvl.__main__ import DOORS, main
from vinvl.opening import OpenedModel
from vinvl.run.console import all_doors, completions
from vinvl.run.folders import register_resolvers


def shell(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of bash that calls `vinvl` as if it were installed."""
    command = folder / "vinvl"
    command.write_text(f'#!/bin/bash\nexec {sys.executable} -m vinvl "$@"\n')
    command.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_the_command_has_all_doors_and_help_has_them_too() -> None:
    modules = set(LAYERS[-1]) - {"vinvl", "__main__"}
    assert modules | {"regions", "pretraining.corpus"} == DOORS.keys()
    told = "\n".join(all_doors())
    assert [name for name in modules if f"vinvl {name}" not in told] == []


def test_a_name_that_no_door_has(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["trian"])
    assert left.value.code == 1 and "did you mean vinvl train?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "found", "hidden"),
    [
        ("vinvl tr", ["train", "train_detector"], ["evaluate"]),
        ("vinvl train experiment=vqa2_", ["experiment=vqa2_base", "experiment=vqa2_large"], []),
        ("vinvl train exp", ["experiment="], []),
        ("vinvl train trainer.max_", ["trainer.max_epochs="], ["trainer="]),
        ("vinvl train data=", ["data=vqa2"], ["data=_regions"]),
        ("vinvl train ", ["data=", "data.", "seed="], ["detector=", "hydra.", "paths="]),
        ("vinvl train --m", ["--multirun"], []),
        ("vinvl extract detector=x", ["detector=x152c4"], []),
        ("vinvl regions ", ["merge", "info"], []),
        ("vinvl regions merge --o", ["--output"], []),
        ("vinvl nothing ", [], ["train"]),
    ],
)
def test_words_are_completed(line: str, found: list[str], hidden: list[str]) -> None:
    register_resolvers()
    words = completions(line, DOORS)
    assert set(found) <= set(words) and not set(hidden) & set(words)


def test_bash_completes(tmp_path: Path) -> None:
    program = """
        eval "$(vinvl completion)"
        COMP_LINE="vinvl train experiment=vqa2_l"; COMP_POINT=${#COMP_LINE}
        _vinvl 2>/dev/null; echo "${COMPREPLY[*]}"
    """
    assert shell(tmp_path, program).stdout == "vqa2_large\n"  # what readline puts behind the "="


def test_help_of_a_door_is_its_own_and_a_reader_may_leave(tmp_path: Path) -> None:
    whole = shell(tmp_path, "vinvl train_detector --help")
    assert "python -m vinvl.train_detector " in whole.stdout and "vinvl.train " not in whole.stdout, whole.stderr
    assert "detection_data: coco2017, " in whole.stdout and "objective" not in whole.stdout
    assert ", _" not in whole.stdout and ": _" not in whole.stdout
    cut = shell(tmp_path, "vinvl train --help | true; echo ${PIPESTATUS[0]}")
    assert (cut.stderr, cut.stdout) == ("", "141\n")


def test_names_of_the_package_are_seen() -> None:
    assert {"load", "Predictor"} <= set(dir(vinvl))


def test_facts(demo_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main([]) == 0
    told = capsys.readouterr().out
    assert all(f"{name} " in told for name in ("vinvl", "Python", "torch", "GPU", "data folder"))
    run_in_process("train", demo_data, tmp_path / "run", *TINY_DEMO, "trainer.max_steps=1", "test_after_fit=false")
    assert info.main([str(demo_data / "demo" / "train.h5"), str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert "dimension 2048" in told and "VQATask" in told and "hidden_size 32" in told and "0, 1" in told
    assert info.main([str(tmp_path / "nowhere")]) == 1 and "nowhere does not exist" in capsys.readouterr().err


def test_a_torch_without_its_libraries_is_told_how_to_get_another() -> None:
    from vinvl.run.door import sentence_of_fault

    sentence = sentence_of_fault(OSError("libcudart.so.12: cannot open shared object file: No such file or directory"))
    assert sentence is not None and "download.pytorch.org/whl/cpu" in sentence


def test_a_folder_of_runs_stands_for_its_newest_run(demo_data: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("first", "second")):
        run_in_process(
            "train", demo_data, tmp_path / "runs" / name, *TINY_DEMO, "trainer.max_steps=1", "test_after_fit=false"
        )
        for path in (tmp_path / "runs" / name / "checkpoints").iterdir():
            os.utime(path, (number, number))
    files = OpenedModel.of(tmp_path / "runs").files
    assert files.weights.parents[1].name == "second"
    assert OpenedModel.of(tmp_path / "runs" / "first").files.weights.parents[1].name == "first"
